"""Which layers are heads: those whose errors nothing behind them can average out."""

from typing import Final

from regraft.graph import LinearSite

HEAD_NAMES: Final = frozenset(
    {"classifier", "pooler", "lm_head", "score", "qa_outputs", "cls", "head", "heads"}
    | {"predictions", "seq_relationship", "visual_projection", "text_projection", "embed_out"}
)


def head_reason(site: LinearSite) -> str:
    """Return why a layer counts as a head, as a phrase, or ""."""
    for part in (part for layer in site.layers for part in layer.split(".")):
        name = part.partition("#")[0]  # "#2" numbers layers of one name
        if name in HEAD_NAMES:
            return f"it is a head ({name})"
    returned = any(call.feeds_output for call in site.calls)
    return "it is a head (the model returns its output)" if returned else ""
