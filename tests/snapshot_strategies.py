"""Hypothesis strategies and short-hands for snapshots, shared by the tests of text, cost and diff."""

import math
from collections.abc import Mapping

from hypothesis import strategies as st

from regraft.graph.snapshot import Snapshot, SnapshotNode, SnapshotValue
from regraft.graph.types import Dim, TensorType
from regraft.graph.view import Attribute

HOSTILE = (
    "",
    "?",
    "_",
    "%",
    '"',
    "\\",
    "a b",
    "a\nb",
    "\x1b[31mred",
    "\u202eevil",
    "\u2028",
    "\ud800",
    "\x00",
    "é",
    "x,y",
)

names = st.one_of(
    st.text("abcxyz_./:$#-019", max_size=8),
    st.sampled_from(HOSTILE),
    st.text(st.characters(), max_size=5),  # lone surrogates included
)
dims = st.one_of(
    st.integers(0, 9),
    st.sampled_from(["batch", "s0", "2*s0", "(a + b)//2", "12", "-3", "", " s", "s ", "s  + 1"]),
    names,
)
dtypes = st.one_of(st.none(), st.sampled_from(["float32", "int4", "bool", "float8_e4m3fn"]), names)
types = st.builds(TensorType, dtypes, st.one_of(st.none(), st.lists(dims, max_size=3).map(tuple)))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.sampled_from([-0.0, math.inf, -math.inf, math.nan, 1e-300, 1.0]),
    names,
)
attributes = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)
values = st.one_of(
    st.builds(SnapshotValue, names, names, types),
    names.flatmap(lambda key: st.builds(SnapshotValue, st.just(key), st.just(key), types)),
)


@st.composite
def _nodes(draw: st.DrawFn) -> SnapshotNode:
    outputs = tuple(draw(st.lists(values, max_size=2)))
    key = outputs[0].key if outputs and draw(st.booleans()) else draw(names)
    op = draw(names)
    return SnapshotNode(
        key,
        op,
        draw(st.one_of(st.just(op), names)),
        draw(names),
        tuple(draw(st.lists(names, max_size=3))),
        outputs,
        draw(st.dictionaries(names, attributes, max_size=3)),
        draw(st.dictionaries(names, names, max_size=2)),
    )


any_snapshot = st.builds(
    Snapshot,
    st.sampled_from(["fx", "onnx"]),
    names,
    st.lists(values, max_size=2).map(tuple),
    st.lists(values, max_size=2).map(tuple),
    st.lists(_nodes(), max_size=4).map(tuple),
    st.lists(names, max_size=3).map(tuple),
)
"""Anything the types allow, sense or not: nothing is drawn to be consistent."""


def value(key: str, *shape: Dim, dtype: str | None = "float32") -> SnapshotValue:
    return SnapshotValue(key, key, TensorType(dtype, shape))


def node(
    op: str,
    inputs: str,
    output: SnapshotValue,
    scope: str = "",
    attributes: Mapping[str, Attribute] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> SnapshotNode:
    """A node with one result; operands by key, separated by spaces, `_` for an absent one."""
    operands = tuple("" if key == "_" else key for key in inputs.split())
    return SnapshotNode(output.key, op, op, scope, operands, (output,), dict(attributes or {}), dict(metadata or {}))


def snapshot(
    inputs: list[SnapshotValue],
    constants: list[SnapshotValue],
    nodes: list[SnapshotNode],
    outputs: str,
    kind: str = "fx",
) -> Snapshot:
    return Snapshot(kind, "model", tuple(inputs), tuple(constants), tuple(nodes), tuple(outputs.split()))
