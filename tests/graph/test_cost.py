"""Costs: hand-computed graphs, laws, and a liveness oracle that knows no tricks."""

import time
from dataclasses import replace

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshot_strategies import node, snapshot, value

from regraft.errors import ShapeError
from regraft.graph.cost import estimate
from regraft.graph.cost_types import OpCost
from regraft.graph.snapshot import Snapshot, SnapshotNode, SnapshotValue
from regraft.graph.symbols import bind, dim_expr
from regraft.graph.types import TensorType

DIMS = {"batch": 3, "seq": 5}
B, S = dim_expr("batch"), dim_expr("seq")


def macs_of(op, result, *operands, attributes=None, native=None):
    """Multiply-adds of one node, by the types of its operands."""
    result = TensorType("float32", result)
    inputs = [value(f"i{place}", *shape) for place, shape in enumerate(operands) if shape is not None]
    keys = " ".join("_" if shape is None else f"i{place}" for place, shape in enumerate(operands))
    made = node(op, keys, SnapshotValue("y", "y", result), "", attributes)
    found = estimate(snapshot(inputs, [], [replace(made, native=native or op)], "y"))
    assert not found.uncounted
    return found.macs


@pytest.mark.parametrize(
    ("op", "result", "operands", "attributes", "expected"),
    [
        ("linear", (2, 3, 7), [(2, 3, 5), (7, 5), (7,)], {}, 2 * 3 * 5 * 7),
        ("linear", ("batch", "seq", 7), [("batch", "seq", 5), (7, 5)], {}, B * S * 35),
        ("linear", (7,), [(5,), (7, 5)], {}, 35),
        ("addmm", (2, 7), [(7,), (2, 5), (5, 7)], {"alpha": 1.0, "beta": 1.0}, 70),
        ("gemm", (2, 7), [(2, 5), (5, 7), (7,)], {"transB": 0}, 70),
        ("gemm", (2, 7), [(2, 5), (7, 5), None], {"transB": 1}, 70),
        ("gemm", (5, 7), [(2, 5), (2, 7)], {"transA": 1, "transB": 0}, 70),
        ("matmul", (2, 3, 4, 6), [(2, 3, 4, 5), (2, 3, 5, 6)], {}, 2 * 3 * 4 * 5 * 6),
        ("matmul", (2, 3, 4, 6), [(2, 1, 4, 5), (3, 5, 6)], {}, 2 * 3 * 4 * 5 * 6),
        ("matmul", ("batch", 4, 6), [("batch", 4, 5), (5, 6)], {}, B * 120),
        ("matmul", ("batch", 4, 6), [("batch", 4, 5), (1, 5, 6)], {}, B * 120),
        ("matmul", (2, 4, 6), [("batch", 4, 5), (2, 5, 6)], {}, 240),
        ("matmul", ("batch", 4, 6), [("batch", 4, "k"), ("unknown", 5, 6)], {}, B * 120),
        ("matmul", (4,), [(4, 5), (5,)], {}, 20),
        ("matmul", (6,), [(5,), (5, 6)], {}, 30),
        ("matmul", (), [(5,), (5,)], {}, 5),
        ("conv", (2, 8, 9, 9), [(2, 6, 11, 11), (8, 3, 3, 3)], {"groups": 2}, 2 * 8 * 81 * 27),
        ("conv", (2, 4, 9), [(2, 6, 5), (6, 4, 3)], {"transposed": True}, 2 * 6 * 5 * 12),
        ("attention", (2, 3, 4, 7), [(2, 3, 4, 6), (2, 3, 5, 6), (2, 3, 5, 7)], {}, 2 * 3 * 4 * 5 * (6 + 7)),
        ("attention", ("batch", "seq", 8), [("batch", "seq", 8)] * 3, {}, 16 * B * S**2),
        (
            "attention",
            (2, 4, 12),
            [(2, 4, 12), (2, 5, 4), (2, 5, 4)],
            {"q_num_heads": 6, "kv_num_heads": 2},
            2 * 4 * 5 * (12 + 12),
        ),
        ("softmax", (2, 3), [(2, 3)], {}, 0),
        ("aten.amax.default", (2,), [(2, 3)], {}, 0),
    ],
)
def test_multiply_adds_follow_the_formula_of_the_operation(op, result, operands, attributes, expected):
    assert sympy.expand(macs_of(op, result, *operands, attributes=attributes) - expected) == 0


def test_a_product_of_unknown_result_is_counted_from_its_operands():
    assert macs_of("matmul", None, (2, 1, 4, 5), (3, 5, 6)) == 2 * 3 * 4 * 5 * 6
    assert macs_of("matmul", None, (5,), (5, 6)) == 30
    assert macs_of("matmul", None, (4, 5), (5,)) == 20


def test_a_broadcast_of_two_unknown_extents_takes_the_larger():
    found = macs_of("matmul", None, ("a", 4, 5), ("b", 5, 6))
    assert bind(found, {"a": 1, "b": 3}) == bind(found, {"a": 3, "b": 1}) == 360


@pytest.mark.parametrize(
    ("made", "inputs"),
    [
        (node("lstm", "x", value("y", 2)), [value("x", 2)]),
        (node("linear", "x w", value("y", 2)), [SnapshotValue("x", "x", TensorType("float32")), value("w", 2, 2)]),
        (node("linear", "x", value("y", 2)), [value("x", 2)]),
        (node("linear", "x w", value("y", 2)), [value("x", 2), value("w", 2)]),
        (node("matmul", "x w", SnapshotValue("y", "y", TensorType())), [value("x", 2, 2, 2), value("w", 3, 2, 2)]),
        (node("conv", "x w", SnapshotValue("y", "y", TensorType())), [value("x", 2, 2, 2), value("w", 2, 2, 2)]),
        (node("attention", "x x x _ x", value("y", 1, 2, 4)), [value("x", 1, 2, 4)]),
    ],
)
def test_what_cannot_be_counted_is_listed_and_counts_as_nothing(made, inputs):
    found = estimate(snapshot(inputs, [], [made], "y"))
    assert found.uncounted == ("y",)
    assert found.macs == 0


def test_given_formulas_come_before_the_own_ones():
    graph = snapshot([value("x", 2, 3)], [], [node("linear", "x x", value("y", 2, 3))], "y")
    found = estimate(graph, {"linear": lambda _node, types: OpCost(dim_expr(types[0].shape[1]), sympy.Integer(1000))})
    assert found.macs == 3
    assert found.peak_activation_bytes() == 24 + 24 + 1000
    assert found.at().largest_buffer_bytes == 1000


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        ("float32", (3, 5), 60),
        ("int4", (3, 5), 8),
        ("uint2", (3, 3), 3),
        ("bool", (7,), 7),
        ("bfloat16", (), 2),
        ("float8_e4m3fn", (3,), 3),
        (None, (2,), 8),
        ("float64", (0, 4), 0),
    ],
)
def test_parameter_bytes_follow_the_element_type(dtype, shape, size):
    constant = SnapshotValue("w", "w", TensorType(dtype, shape))
    assert estimate(snapshot([], [constant, constant], [], "")).parameter_bytes == size


def test_values_of_unknown_size_are_listed():
    unknown = SnapshotValue("x", "x", TensorType("float32"))
    graph = snapshot(
        [unknown], [SnapshotValue("w", "w", TensorType("float32", ("n",)))], [node("relu", "z", value("y", 2))], "y"
    )
    assert estimate(graph).unsized == ("w", "x", "z")


def chain(count, *shape, op="relu"):
    nodes = [node(op, "x" if place == 0 else f"v{place - 1}", value(f"v{place}", *shape)) for place in range(count)]
    return snapshot([value("x", *shape)], [], nodes, f"v{count - 1}")


@given(st.integers(1, 6))
def test_a_chain_of_equal_operations_needs_two_buffers(count):
    assert estimate(chain(count, 4, 8)).peak_activation_bytes() == 2 * 128


@pytest.mark.parametrize("op", ["identity", "reshape", "unsqueeze", "squeeze", "view"])
def test_a_view_needs_no_buffer(op):
    assert estimate(chain(3, 4, 8, op=op)).peak_activation_bytes() == 128


@pytest.mark.parametrize("op", ["transpose", "slice", "expand"])
def test_a_change_of_layout_writes_a_buffer(op):
    assert estimate(chain(3, 4, 8, op=op)).peak_activation_bytes() == 256


def residual():
    """x[b,s,8] -> linear 32 -> gelu -> linear 8 -> + x, hand-computed below."""
    return snapshot(
        [value("x", "batch", "seq", 8)],
        [value("up", 32, 8), value("down", 8, 32), value("bias", 8)],
        [
            node("linear", "x up _", value("h", "batch", "seq", 32)),
            node("gelu", "h", value("g", "batch", "seq", 32)),
            node("linear", "g down bias", value("d", "batch", "seq", 8)),
            node("add", "d x", value("y", "batch", "seq", 8)),
        ],
        "y",
    )


def test_a_residual_block_costs_what_it_costs_by_hand():
    found = estimate(residual())
    assert found.parameter_bytes == 4 * (256 + 256 + 8)
    assert found.macs == 512 * B * S
    assert found.live_bytes == (("g", 4 * (8 + 32 + 32) * B * S),)
    assert found.peak_activation == 288 * B * S
    assert found.dims == ("batch", "seq")
    at = found.at(DIMS)
    assert (at.macs, at.peak_activation_bytes, at.peak_node) == (512 * 15, 288 * 15, "g")
    assert at.largest_buffer_bytes == 128 * 15
    assert [(point.key, point.live_bytes // 60) for point in at.per_node] == [
        ("", 8),
        ("h", 40),
        ("g", 72),
        ("d", 48),
        ("y", 24),
    ]


def test_an_input_that_is_returned_lives_to_the_end():
    graph = snapshot([value("x", 4)], [], [node("relu", "x", value("y", 4)), node("relu", "y", value("z", 4))], "z x")
    assert estimate(graph).peak_activation_bytes() == 3 * 16


def test_a_view_keeps_its_operand_alive():
    nodes = [
        node("relu", "x", value("y", 4)),
        node("reshape", "y", value("v", 2, 2)),
        node("relu", "y", value("z", 4)),
        node("relu", "z", value("u", 4)),
        node("add", "u v", value("w", 4)),
    ]
    assert [point.live_bytes for point in estimate(snapshot([value("x", 4)], [], nodes, "w")).at().per_node] == [
        16,
        32,
        16,
        32,
        48,
        48,
    ]


def test_a_view_of_a_constant_is_no_activation():
    nodes = [node("reshape", "w", value("v", 4)), node("reshape", "v", value("u", 2, 2))]
    assert estimate(snapshot([], [value("w", 4)], nodes, "u")).peak_activation_bytes() == 0


def test_an_unused_input_counts_at_the_start_only():
    graph = snapshot([value("x", 4), value("big", 100)], [], [node("relu", "x", value("y", 4))], "y")
    at = estimate(graph).at()
    assert (at.peak_activation_bytes, at.peak_node) == (416, "")
    assert at.per_node[1].live_bytes == 32


def test_a_value_that_a_loop_body_reads_lives_until_the_loop_has_run():
    nodes = [
        node("relu", "x", value("a", 10)),
        node("relu", "x", value("b", 1)),
        replace(node("add", "a b", value("loop/body/c", 1)), key="loop/body/c"),
        replace(node("relu", "loop/body/c", value("loop/body/d", 1)), key="loop/body/d"),
        replace(node("loop", "b", value("y", 1)), key="loop"),
        node("relu", "y", value("z", 1)),
    ]
    at = estimate(snapshot([value("x", 1)], [], nodes, "z")).at()
    assert [point.live_bytes // 4 for point in at.per_node] == [1, 11, 12, 12, 13, 12, 2]


def test_a_key_that_begins_like_another_node_is_not_in_a_body():
    nodes = [
        replace(node("relu", "x", value("a", 10)), key="net/a"),
        node("relu", "a", value("b", 1)),
        replace(node("relu", "b", value("c", 1)), key="net"),
    ]
    assert [point.live_bytes // 4 for point in estimate(snapshot([value("x", 1)], [], nodes, "c")).at().per_node] == [
        1,
        11,
        11,
        2,
    ]


def test_extents_that_are_missing_or_negative_are_refused():
    found = estimate(residual())
    with pytest.raises(ShapeError) as caught:
        found.at({"batch": 2})
    assert str(caught.value) == "the extents of seq are needed; got {'batch': 2}"
    with pytest.raises(ShapeError) as caught:
        found.at({"batch": 2, "seq": -1})
    assert str(caught.value) == "the extent of seq must be at least 0; got -1"


EXTENTS = st.sampled_from([1, 2, 3, "batch", "seq", "2*batch", "seq//2 + 1", "batch*seq", "seq - 1", "a b"])
UNARY = ("relu", "reshape", "identity", "transpose", "mystery")


@st.composite
def graphs(draw: st.DrawFn) -> Snapshot:
    """Graphs whose operands exist; shapes are free, as elementwise costs do not look at them."""
    dtype = st.sampled_from(["float32", "int4", "bool"])
    shapes = st.lists(EXTENTS, max_size=3).map(tuple)
    types = st.builds(TensorType, dtype, shapes)
    inputs = [SnapshotValue(f"x{place}", "", draw(types)) for place in range(draw(st.integers(1, 2)))]
    constants = [SnapshotValue("w", "w", TensorType("int4", (3, 5)))]
    known = [value_.key for value_ in (*inputs, *constants)]
    nodes: list[SnapshotNode] = []
    for place in range(draw(st.integers(0, 7))):
        operands = tuple(draw(st.lists(st.sampled_from(known), min_size=1, max_size=2)))
        outputs = tuple(SnapshotValue(f"v{place}_{out}", "", draw(types)) for out in range(draw(st.integers(1, 2))))
        op = draw(st.sampled_from((*UNARY, "add", "linear")))
        nodes.append(SnapshotNode(f"n{place}", op, op, "", operands, outputs))
        known += [value_.key for value_ in outputs]
    returned = draw(st.lists(st.sampled_from(known), max_size=2, unique=True))
    return Snapshot("fx", "m", tuple(inputs), tuple(constants), tuple(nodes), tuple(returned))


def with_extents(graph: Snapshot, dims) -> Snapshot:
    def fix(found: SnapshotValue) -> SnapshotValue:
        shape = tuple(bind(dim_expr(dim), dims) for dim in found.type.shape)
        return replace(found, type=TensorType(found.type.dtype, shape))

    return replace(
        graph,
        inputs=tuple(fix(item) for item in graph.inputs),
        nodes=tuple(replace(item, outputs=tuple(fix(out) for out in item.outputs)) for item in graph.nodes),
    )


extents = st.fixed_dictionaries({"batch": st.integers(1, 5), "seq": st.integers(1, 5), "a b": st.integers(1, 3)})


@settings(max_examples=50)
@given(graphs(), extents)
def test_filling_in_extents_commutes_with_counting(graph, dims):
    symbolic, concrete = estimate(graph), estimate(with_extents(graph, dims))
    assert symbolic.at(dims) == concrete.at()
    assert bind(symbolic.macs, dims) == concrete.at().macs
    assert bind(symbolic.peak_activation, dims) == concrete.peak_activation_bytes()


@given(graphs(), extents)
def test_the_peak_is_at_least_every_single_buffer(graph, dims):
    at = estimate(graph).at(dims)
    assert at.peak_activation_bytes >= at.largest_buffer_bytes
    assert at.peak_activation_bytes == max(point.live_bytes for point in at.per_node)


def brute_force_live(graph: Snapshot) -> list[int]:
    """For every point: the bytes of all buffers that are there and that something later still needs."""
    bits = {"float32": 32, "int4": 4, "bool": 8}

    def size(found):
        elements = 1
        for dim in found.type.shape:
            elements *= dim
        return (elements * bits[found.type.dtype] + 7) // 8

    home, sizes, made_at = {}, {}, {}
    for item in graph.constants:
        home[item.key] = None
    for item in graph.inputs:
        home[item.key], sizes[item.key], made_at[item.key] = item.key, size(item), 0
    for place, item in enumerate(graph.nodes, 1):
        for number, out in enumerate(item.outputs):
            if item.op in ("reshape", "identity") and number == 0:
                home[out.key] = home[item.inputs[0]]
            else:
                home[out.key], sizes[out.key], made_at[out.key] = out.key, size(out), place

    def needed(buffer, place):
        later = [key for item in graph.nodes[max(place - 1, 0) :] for key in item.inputs] + list(graph.outputs)
        return any(home[key] == buffer for key in later) or made_at[buffer] == place

    return [
        sum(sizes[buffer] for buffer in sizes if made_at[buffer] <= place and needed(buffer, place))
        for place in range(len(graph.nodes) + 1)
    ]


@given(graphs(), extents)
def test_live_bytes_are_those_of_a_brute_force_oracle(graph, dims):
    concrete = with_extents(graph, dims)
    assert [point.live_bytes for point in estimate(concrete).at().per_node] == brute_force_live(concrete)


@given(graphs())
def test_no_point_that_is_kept_exceeds_another_kept_one_in_every_term(graph):
    kept = estimate(graph).live_bytes
    for place, (_, one) in enumerate(kept):
        for _, other in kept[place + 1 :]:
            assert sympy.expand(one - other) != 0


def test_an_extent_that_may_shrink_below_its_sum_hides_no_other_point():
    nodes = [node("arange", "", value("v0", 9)), node("arange", "", value("v1", "(s - 5)//2 + 9"))]
    found = estimate(snapshot([], [], nodes, "v1"))
    assert bind(found.peak_activation, {"s": 1}) == found.peak_activation_bytes({"s": 1}) == 36
    assert bind(found.peak_activation, {"s": 7}) == found.peak_activation_bytes({"s": 7}) == 40


def test_ten_thousand_nodes_of_distinct_shapes_take_seconds():
    nodes = [
        node("linear", f"x w{place % 7}", value(f"v{place}", "batch", "seq", place + 1)) for place in range(10_000)
    ]
    constants = [value(f"w{place}", place + 1, 8) for place in range(7)]
    begin = time.perf_counter()
    found = estimate(snapshot([value("x", "batch", "seq", 8)], constants, nodes, "v9999"))
    assert len(found.live_bytes) == 1
    assert found.at(DIMS).peak_node == "v9999"
    assert time.perf_counter() - begin < 10


def test_products_of_sums_from_a_file_are_not_multiplied_out_without_bound():
    dim = "*".join(["(a + b + c + d)"] * 12)
    begin = time.perf_counter()
    found = estimate(snapshot([value("x", dim)], [], [], "x"))
    assert found.peak_activation_bytes(dict.fromkeys("abcd", 1)) == 4 * 4**12
    assert time.perf_counter() - begin < 5
