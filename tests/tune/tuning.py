"""A task to tune in tests: a smooth time over three parameters, with configs that are refused."""

from regraft.tune import Config, Key, Measured, Space

SPACE = Space(
    {"rows": (1, 2, 4, 8, 16), "columns": (16, 32, 64, 128), "unroll": (1, 2, 4)},
    lambda config: "too large" if int(config["rows"]) * int(config["columns"]) > 1024 else None,
)


def key(**changed: str) -> Key:
    fields = {
        "target": "llvm",
        "device": "a processor",
        "driver": "6.1",
        "compiler": "tvm 0.25.0.post1",
        "version": "0.1.0",
    }
    return Key.of("matmul", {"m": 128, "n": 64}, {"x": "float32"}, **{**fields, **changed})


def seconds(config: Config) -> float:
    """A time with one smallest value, at rows 8, columns 64, unroll 2."""
    rows, columns, unroll = (int(config[name]) for name in ("rows", "columns", "unroll"))
    far = abs(rows.bit_length() - 4) + abs(columns.bit_length() - 7) + 0.5 * abs(unroll.bit_length() - 2)
    return 1e-3 * (1 + 0.3 * far)


def measure(config: Config) -> Measured:
    return Measured("ok", seconds(config))
