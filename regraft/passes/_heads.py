"""Which layers are heads: those whose errors nothing behind them can average out."""

from typing import Final

from regraft.graph import LinearSite

HEAD_NAMES: Final = frozenset(
    {"classifier", "pooler", "lm_head", "score", "qa_outputs", "cls", "head", "heads"}
    | {"predictions", "seq_relationship", "visual_projection", "text_projection", "embed_out"}
)


def head_reason(site: LinearSite) -> str:
    """Return why a layer counts as a head, as a phrase, or ""."""
    for part in site.name.split("."):
        name = part.partition("#")[0]  # "#2" numbers the calls of one layer
        if name in HEAD_NAMES:
            return f"it is a head ({name})"
    return "it is a head (the model returns its output)" if site.feeds_output else ""
