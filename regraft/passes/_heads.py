"""Which layers are heads: those whose errors nothing behind them can average out."""

from typing import Final

from regraft.graph import LinearSite

HEAD_NAMES: Final = frozenset(
    {"classifier", "pooler", "lm_head", "qa_outputs", "predictions", "seq_relationship"}
    | {"visual_projection", "text_projection", "embed_out"}
)
"""Names that say it at any place in a layer's name ("bert.pooler.dense")."""

END_NAMES: Final = frozenset({"head", "heads", "cls", "score"})
"""Names that parts of attention have, too: heads only as the model's outermost part, or as the layer's own name."""


def head_reason(site: LinearSite) -> str:
    """Return why a layer counts as a head, as a phrase, or ""."""
    for layer in site.layers:
        name = _head_in(layer)
        if name:
            return f"it is a head ({name})"
    returned = any(call.feeds_output for call in site.calls)
    return "it is a head (the model returns its output)" if returned else ""


def _head_in(layer: str) -> str:
    parts = [part.partition("#")[0] for part in layer.split(".")]  # "#2" numbers layers of one name
    ends = (name for name in (parts[0], parts[-1]) if name in END_NAMES)
    return next((name for name in parts if name in HEAD_NAMES), "") or next(ends, "")
