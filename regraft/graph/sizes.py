"""Sizes in bytes as text, for whoever reads ledgers, explanations and diffs."""


def sizes_text(*sizes: int) -> str:
    """Return sizes with an arrow between them, in one unit that shows the largest (1 MB is a million bytes)."""
    scale, unit = (1e6, "MB") if max(sizes) >= 1e5 else (1e3, "kB")
    return f"{' -> '.join(f'{size / scale:.2f}' for size in sizes)} {unit}"
