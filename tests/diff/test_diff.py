"""Diffs: laws for any two programs, and what becomes of rewritten sites, re-exports and edits by hand."""

import time
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshot_strategies import any_snapshot, node, snapshot, value

from regraft.diff import Cause, GraphDiff, diff
from regraft.errors import ShapeError
from regraft.graph.snapshot import Snapshot, SnapshotNode, SnapshotValue
from regraft.graph.text import to_text
from regraft.graph.types import TensorType
from regraft.ledger import Entry, Ledger

LAYERS = ("encoder.0.query", "encoder.0.key", "encoder.1.query")


def constant(key: str, name: str, *shape: int) -> SnapshotValue:
    return SnapshotValue(key, name, TensorType("float32", shape))


def encoder(*, rewritten: tuple[str, ...] = (), metadata: bool = False) -> Snapshot:
    """MatMul + Add a layer, then relu; rewritten layers are one lowrank_linear of rank 2 that keeps the Add's key."""
    x, constants, nodes = "x", [], []
    for place, layer in enumerate(LAYERS):
        bias = constant(f"b{place}", f"{layer}.bias", 8)
        result = value(f"add_{place}", "batch", 8)
        if layer in rewritten:
            constants += [constant(f"d{place}", f"{layer}.down", 8, 2), constant(f"u{place}", f"{layer}.up", 2, 8)]
            notes = {"regraft.pass": "low-rank", "regraft.site": layer} if metadata else {}
            nodes.append(node("lowrank_linear", f"{x} d{place} u{place} b{place}", result, layer, {}, notes))
        else:
            constants.append(constant(f"w{place}", f"val_{place}", 8, 8))
            nodes.append(node("matmul", f"{x} w{place}", value(f"mm_{place}", "batch", 8), layer))
            nodes.append(node("add", f"mm_{place} b{place}", result, layer))
        constants.append(bias)
        x = f"relu_{place}"
        nodes.append(node("relu", f"add_{place}", value(x, "batch", 8)))
    return snapshot([value("x", "batch", 8)], constants, nodes, x, "onnx")


def entry(layer: str, place: int, **changes) -> Entry:
    made = Entry(
        pass_name="low-rank",
        site=layer,
        status="rewritten",
        before="8x8",
        after="rank 2",
        measured_error=0.031,
        bytes_before=288,
        bytes_after=160,
        op="lowrank_linear",
        removed=(f"mm_{place}", f"add_{place}"),
        output=f"add_{place}",
    )
    return replace(made, **changes)


def ledger(*entries: Entry) -> Ledger:
    return Ledger(entries=list(entries))


def renamed(graph: Snapshot) -> Snapshot:
    """The same program with other keys, as another export would name it; constants keep their names."""

    def fix(found: SnapshotValue) -> SnapshotValue:
        return replace(found, key=f"new.{found.key}")

    return replace(
        graph,
        inputs=tuple(fix(item) for item in graph.inputs),
        constants=tuple(fix(item) for item in graph.constants),
        nodes=tuple(
            replace(
                item,
                key=f"new.{item.key}",
                inputs=tuple(key and f"new.{key}" for key in item.inputs),
                outputs=tuple(fix(out) for out in item.outputs),
                metadata={},
            )
            for item in graph.nodes
        ),
        outputs=tuple(f"new.{key}" for key in graph.outputs),
    )


# Laws


@given(any_snapshot)
def test_a_program_does_not_differ_from_itself(graph):
    found = diff(graph, graph)
    assert not found
    assert found.changes == ()
    assert found.summary.unchanged == len(graph.nodes)
    count = len(graph.nodes)
    assert str(found) == f"no changes ({count} node{'' if count == 1 else 's'})"


@st.composite
def edited(draw: st.DrawFn) -> tuple[Snapshot, Snapshot]:
    """A program and what became of it by a few edits that keep some keys."""
    before = draw(st.one_of(any_snapshot, st.builds(encoder, rewritten=st.sets(st.sampled_from(LAYERS)).map(tuple))))
    nodes = list(before.nodes)
    for _ in range(draw(st.integers(0, 4))):
        edit = draw(st.sampled_from(["drop", "swap", "op", "operand", "scope", "double"]))
        if not nodes:
            break
        place = draw(st.integers(0, len(nodes) - 1))
        chosen = nodes[place]
        if edit == "drop":
            del nodes[place]
        elif edit == "swap":
            nodes[place], nodes[0] = nodes[0], nodes[place]
        elif edit == "op":
            nodes[place] = replace(chosen, op="other", metadata={"regraft.pass": "p", "regraft.site": "s"})
        elif edit == "operand":
            nodes[place] = replace(chosen, inputs=(*chosen.inputs, "x"))
        elif edit == "scope":
            nodes[place] = replace(chosen, scope="elsewhere")
        else:
            nodes.insert(place, chosen)
    after = replace(before, nodes=tuple(nodes))
    return before, draw(st.sampled_from([after, renamed(after)]))


pairs = st.one_of(st.tuples(any_snapshot, any_snapshot), edited())
ledgers = st.one_of(st.none(), st.just(ledger(entry(LAYERS[0], 0), entry(LAYERS[1], 1), entry("x", 0, output=""))))


@settings(max_examples=50)
@given(pairs, ledgers)
def test_every_node_is_accounted_for_exactly_once(graphs, story):
    before, after = graphs
    found = diff(before, after, story)
    for side, name in ((before, "before"), (after, "after")):
        listed = [to_text(snapshot([], [], [item], "")) for change in found.changes for item in getattr(change, name)]
        there = [to_text(snapshot([], [], [item], "")) for item in side.nodes]
        assert len(listed) + found.summary.unchanged == len(there)
        assert not Counter(listed) - Counter(there)


@settings(max_examples=50)
@given(pairs, ledgers)
def test_a_diff_comes_back_from_plain_data(graphs, story):
    found = diff(*graphs, story)
    assert GraphDiff.from_dict(found.to_dict()) == found


@settings(max_examples=50)
@given(pairs, ledgers)
def test_a_diff_is_the_same_every_time_and_safe_to_print(graphs, story):
    found = diff(*graphs, story)
    assert found == diff(*graphs, story)
    for line in str(found).split("\n"):
        assert line.isprintable()


@given(edited())
def test_kinds_say_which_sides_have_nodes(graphs):
    for change in diff(*graphs).changes:
        assert (bool(change.before), bool(change.after)) == {
            "replaced": (True, True),
            "changed": (True, True),
            "removed": (True, False),
            "added": (False, True),
        }[change.kind]


# Rewrites


@pytest.mark.parametrize("how", ["ledger", "metadata", "nothing"])
def test_a_replaced_site_of_two_nodes_is_one_change(how):
    after = encoder(rewritten=LAYERS[:1], metadata=how == "metadata")
    found = diff(encoder(), after, ledger(entry(LAYERS[0], 0)) if how == "ledger" else None)
    (change,) = found.changes
    assert (change.kind, change.site) == ("replaced", LAYERS[0])
    assert [item.key for item in change.before] == ["mm_0", "add_0"]
    assert [item.key for item in change.after] == ["add_0"]
    assert change.was == "matmul + add 8x8"
    assert found.summary.unchanged == 7
    assert not found.ports
    expected = {
        "ledger": Cause("low-rank", LAYERS[0], 0.031, 288, 160),
        "metadata": Cause("low-rank", LAYERS[0]),
        "nothing": None,
    }
    assert change.cause == expected[how]
    assert change.now == ("lowrank_linear rank 2" if how == "ledger" else "lowrank_linear 8x2 · 2x8")


def test_a_rewritten_model_prints_one_line_a_site(golden):
    rewritten = [entry(layer, place, measured_error=None) for place, layer in enumerate(LAYERS[:2])]
    story = ledger(*rewritten, entry(LAYERS[2], 2, status="kept"))
    before = encoder()
    before = replace(before, nodes=(*before.nodes, node("identity", "relu_2", value("extra", "batch", 8))))
    golden("diff.txt", str(diff(before, encoder(rewritten=LAYERS[:2]), story, dims={"batch": 4})))


def test_two_passes_at_one_place_are_named_both():
    story = ledger(
        entry(LAYERS[0], 0),
        entry(
            LAYERS[0],
            0,
            pass_name="llm-int8",
            before="rank 2",
            after="int8",
            op="int8_lowrank",
            measured_error=0.01,
            bytes_before=160,
            bytes_after=60,
            removed=("add_0",),
        ),
    )
    after = encoder(rewritten=LAYERS[:1])
    after = replace(after, nodes=(replace(after.nodes[0], op="int8_lowrank"), *after.nodes[1:]))
    found = diff(encoder(), after, story)
    lines = str(found).split("\n")
    assert "low-rank + llm-int8: 1 site" in lines
    assert "matmul + add 8x8 -> int8_lowrank int8  error 0.031 + 0.01  0.29 -> 0.06 kB" in lines[4]


def test_a_node_that_served_two_rewritten_sites_goes_with_the_first():
    turn = node("transpose", "w", value("wt", 8, 8))
    old = [turn, node("matmul", "x wt", value("a", 2, 8), "one"), node("matmul", "x wt", value("b", 2, 8), "two")]
    new = [node("fast", "x w", value("a", 2, 8), "one"), node("fast", "x w", value("b", 2, 8), "two")]
    both = [value("x", 2, 8)], [value("w", 8, 8)]
    found = diff(snapshot(*both, old, "a b"), snapshot(*both, new, "a b"))
    assert [[item.op for item in change.before] for change in found.changes] == [["transpose", "matmul"], ["matmul"]]


def test_a_node_that_something_else_still_needed_is_no_part_of_the_site():
    old = [
        node("transpose", "w", value("wt", 8, 8)),
        node("matmul", "x wt", value("a", 2, 8), "one"),
        node("relu", "wt", value("r", 8, 8)),
    ]
    new = [node("fast", "x w", value("a", 2, 8), "one"), node("relu", "w", value("r", 8, 8))]
    both = [value("x", 2, 8)], [value("w", 8, 8)]
    kinds = {
        change.kind: [item.op for item in change.before]
        for change in diff(snapshot(*both, old, "a r"), snapshot(*both, new, "a r")).changes
    }
    assert kinds == {"removed": ["transpose"], "replaced": ["matmul"], "changed": ["relu"]}


def test_a_site_replaced_by_several_nodes_is_one_change():
    layer = LAYERS[0]
    before = encoder()
    thin = [
        node("matmul", "x d0", value("thin", "batch", 2), layer),
        node("matmul", "thin u0", value("wide", "batch", 8), layer),
        node("add", "wide b0", value("add_0", "batch", 8), layer, {}, {"regraft.pass": "p", "regraft.site": layer}),
    ]
    after = replace(before, nodes=(*thin, *before.nodes[2:]))
    (change,) = diff(before, after).changes
    assert (change.kind, len(change.before), len(change.after)) == ("replaced", 2, 3)
    assert change.cause == Cause("p", layer)


def test_a_rewrite_that_both_sides_have_explains_nothing():
    before = encoder(rewritten=LAYERS[:1], metadata=True)
    after = encoder(rewritten=LAYERS[:2], metadata=True)
    found = diff(before, after)
    assert [change.site for change in found.changes] == [LAYERS[1]]


def test_an_old_rewrite_explains_no_later_edit_of_its_node():
    notes = {"regraft.pass": "low-rank", "regraft.site": "one"}
    relu = node("relu", "x", value("r", 2, 8))
    weights = [value("d", 2, 8), value("u", 8, 2)]
    before = [relu, node("lowrank_linear", "r d u", value("y", 2, 8), "one", {}, notes)]
    after = [node("lowrank_linear", "x d u", value("y", 2, 8), "one", {}, notes)]
    found = diff(snapshot([value("x", 2, 8)], weights, before, "y"), snapshot([value("x", 2, 8)], weights, after, "y"))
    assert [(change.kind, change.causes) for change in found.changes] == [("removed", ()), ("changed", ())]


def test_a_node_that_the_program_returned_is_no_part_of_a_site():
    old = [node("matmul", "x w", value("m", 2, 8), "one"), node("add", "m b", value("y", 2, 8), "one")]
    new = [node("linear", "x w b", value("y", 2, 8), "one")]
    both = [value("x", 2, 8)], [value("w", 8, 8), value("b", 8)]
    found = diff(snapshot(*both, old, "y m"), snapshot(*both, new, "y"))
    assert [(change.kind, [item.op for item in change.before]) for change in found.changes] == [
        ("removed", ["matmul"]),
        ("replaced", ["add"]),
    ]


# Re-exports


def test_a_key_that_moved_to_another_layer_is_not_followed():
    def tower(first, second):
        nodes = [node("relu", "x", value(first, 2), "first"), node("tanh", first, value(second, 2), "second")]
        return snapshot([value("x", 2)], [], nodes, second)

    assert not diff(tower("left", "right"), tower("right", "left"))


def test_other_keys_alone_are_no_change_of_a_torch_graph():
    before = replace(encoder(), kind="fx")
    assert not diff(before, renamed(before))


@pytest.mark.parametrize("with_ledger", [False, True])
def test_a_reexported_rewrite_is_found_by_the_layers_name(with_ledger):
    after = renamed(encoder(rewritten=LAYERS[:2]))
    story = ledger(entry(LAYERS[0], 0), entry(LAYERS[1], 1)) if with_ledger else None
    found = diff(encoder(), after, story)
    assert [(change.kind, change.site) for change in found.changes] == [("replaced", layer) for layer in LAYERS[:2]]
    assert [len(change.causes) for change in found.changes] == [int(with_ledger)] * 2
    assert found.summary.unchanged == 5


def test_a_layer_that_is_called_twice_is_explained_twice():
    def calls(op):
        nodes = [node(op, "x w", value("a", 2, 8), "lm"), node(op, "a w", value("b", 2, 8), "lm")]
        return snapshot([value("x", 2, 8)], [value("w", 8, 8)], nodes, "b")

    story = ledger(entry("lm", 7, output="gone", op="fast"), entry("lm#2", 8, output="gone too", op="fast"))
    found = diff(calls("linear"), renamed(calls("fast")), story)
    assert [[cause.site for cause in change.causes] for change in found.changes] == [["lm"], ["lm#2"]]


def numbered(ops: list[str]) -> Snapshot:
    """Keys are mere numbers in order, as some exporters write them; no layer has a name."""
    nodes = [node(op, str(place), value(str(place + 1), 4)) for place, op in enumerate(ops)]
    return snapshot([value("0", 4)], [], nodes, str(len(ops)))


def test_an_inserted_node_does_not_shift_all_that_have_numbers_for_keys():
    ops = ["relu", "tanh", "erf", "exp", "sqrt", "abs"]
    found = diff(numbered(ops), numbered(["neg", *ops]))
    assert [(change.kind, change.now) for change in found.changes if change.kind == "added"] == [("added", "neg")]
    assert found.summary.unchanged == 5  # relu now reads another value


def test_a_large_reexport_without_names_is_aligned_in_seconds():
    ops = ["matmul", "add", "relu", "mul"] * 2500
    before = numbered(ops)
    after = renamed(numbered(ops[:5000] + ["neg"] * 3 + ops[5000:]))
    begin = time.perf_counter()
    found = diff(before, after)
    assert time.perf_counter() - begin < 20
    assert found.summary.unchanged >= 9000
    assert sum(len(change.after) for change in found.changes if change.kind == "added") >= 3


# Edits by hand


def test_a_changed_attribute_is_shown_with_both_values():
    def softmax(axis):
        return snapshot(
            [value("x", 2, 3)], [], [node("softmax", "x", value("y", 2, 3), "head", {"axis": axis, "n": 1})], "y"
        )

    (change,) = diff(softmax(1), softmax(-1)).changes
    assert (change.kind, change.site, change.was, change.now) == (
        "changed",
        "head",
        "softmax axis=1",
        "softmax axis=-1",
    )


def test_changed_operands_and_types_are_shown():
    before = snapshot([value("x", 2), value("z", 2)], [], [node("relu", "x", value("y", 2))], "y")
    after = snapshot([value("x", 2), value("z", 2)], [], [node("relu", "z", value("y", 2, dtype="int8"))], "y")
    (change,) = diff(before, after).changes
    assert (change.was, change.now) == ("relu of x : float32[2]", "relu of z : int8[2]")


def test_numbers_of_another_kind_are_a_change_and_nan_is_none():
    def op(item):
        return snapshot([], [], [node("op", "", value("y", 2), "", {"a": item})], "y")

    assert diff(op(1), op(1.0))
    assert diff(op(0.0), op(-0.0))
    assert not diff(op(float("nan")), op(float("nan")))


def test_metadata_and_scopes_alone_are_no_change():
    before = snapshot([value("x", 2)], [], [node("relu", "x", value("y", 2), "")], "y")
    after = snapshot([value("x", 2)], [], [node("relu", "x", value("y", 2), "named", {}, {"note": "1"})], "y")
    assert not diff(before, after)


def test_removed_and_added_nodes_are_unexplained():
    before = snapshot([value("x", 2)], [], [node("relu", "x", value("y", 2), "a")], "y")
    after = snapshot([value("x", 2)], [], [node("tanh", "x", value("t", 2), "b")], "t")
    found = diff(before, after)
    assert sorted((change.kind, change.site) for change in found.changes) == [("added", "b"), ("removed", "a")]
    assert found.unexplained == found.changes
    assert "unexplained: 2 changes" in str(found)


def test_constants_and_ports_that_differ_are_listed():
    before = snapshot([value("x", "batch", 4)], [value("w", 4, 4)], [node("op", "x w", value("y", 4))], "y", "onnx")
    after = snapshot(
        [value("x", "n", 4), value("more", 1)],
        [SnapshotValue("w", "w", TensorType("int4", (4, 4)))],
        [node("op", "x w", value("y", 4))],
        "y",
        "onnx",
    )
    found = diff(before, after)
    assert [(change.value.key, change.bytes) for change in found.constants_removed] == [("w", 64)]
    assert [(change.value.key, change.bytes) for change in found.constants_added] == [("w", 8)]
    lines = str(found).split("\n")
    assert "constants: 1 added (0.01 kB), 1 removed (0.06 kB)" in lines
    assert "  input 0: x float32[batch, 4] -> x float32[n, 4]" in lines
    assert "  input 1: none -> more float32[1]" in lines


def test_an_output_that_is_another_value_is_a_change_of_the_interface():
    nodes = [node("relu", "x", value("y", 2)), node("tanh", "x", value("z", 2))]
    found = diff(snapshot([value("x", 2)], [], nodes, "y"), snapshot([value("x", 2)], [], nodes, "z"))
    assert not found.changes
    assert [(change.port, change.before.key, change.after.key) for change in found.ports] == [("output", "y", "z")]


def test_totals_are_symbolic_until_extents_are_given():
    before, after = encoder(), encoder(rewritten=LAYERS[:1])
    found = diff(before, after)
    assert (found.summary.before.macs, found.summary.after.macs) == ("192*batch", "160*batch")
    assert found.summary.before.peak_activation_bytes is None
    filled = diff(before, after, dims={"batch": 4}).summary
    assert (filled.before.macs_at, filled.after.macs_at) == (768, 640)
    assert filled.before.peak_activation_bytes == 2 * 4 * 8 * 4
    with pytest.raises(ShapeError):
        diff(before, after, dims={})


def test_a_long_expression_is_shortened_when_printed_only():
    def graph(count):
        inputs = [value(f"x{place}", f"extent_{place}", 8) for place in range(count)]
        nodes = [node("linear", f"x{place} w", value(f"y{place}", f"extent_{place}", 8)) for place in range(count)]
        return snapshot(inputs, [value("w", 8, 8)], nodes, "y0")

    found = diff(graph(39), graph(40))
    line = str(found).split("\n")[2]
    assert line.startswith("multiply-adds: 64*extent_0 + 64*extent_1 + ")
    assert "... (39 terms) -> " in line
    assert "... (40 terms)" in line
    assert found.summary.after.macs.count("extent_") == 40


def test_names_are_escaped_when_printed():
    evil = "\x1b[2J\u202e"
    before = snapshot([value("x", 2)], [], [node("relu", "x", value("y", 2), evil)], "y")
    after = snapshot([value("x", 2)], [], [SnapshotNode("y", evil, evil, evil, ("x",), (value("y", 2),))], "y")
    text = str(diff(before, after))
    assert "\\x1b[2J\\u202e  relu -> \\x1b[2J\\u202e" in text


def test_factors_that_a_later_pass_rewrote_one_by_one_count_together():
    parts = [
        entry(f"{LAYERS[0]}.{part}", 0, pass_name="llm-int8", before=shape, after="int8", op="int8_linear",
              measured_error=0.01, bytes_before=before, bytes_after=after, removed=("add_0",), output=output)
        for part, shape, before, after, output in (("down", "2x8", 64, 24, "low"), ("up", "8x2", 96, 56, "add_0"))
    ]  # fmt: skip
    rewritten = encoder(rewritten=LAYERS[:1])
    text = "lowrank_linear 8x2 · 2x8 -> int8_linear int8  error 0.01 + 0.01  0.16 -> 0.08 kB"
    low = node("int8_linear", "x d0", value("low", "batch", 2), f"{LAYERS[0]}.down")
    up = node("int8_linear", "low u0 b0", value("add_0", "batch", 8), f"{LAYERS[0]}.up")
    after = replace(rewritten, nodes=(low, up, *rewritten.nodes[1:]))
    assert text in str(diff(rewritten, after, ledger(*(replace(part, removed=("add_0",)) for part in parts))))
    lines = str(diff(encoder(), after, ledger(entry(LAYERS[0], 0), *parts))).split("\n")
    assert "low-rank + llm-int8: 1 site" in lines
    assert (
        lines[4] == f"  {LAYERS[0]}  matmul + add 8x8 -> int8_linear int8  error 0.031 + 0.01 + 0.01  0.29 -> 0.08 kB"
    )


def test_of_two_results_with_one_key_only_the_annotated_one_has_a_cause():
    noted = node("fast", "x", value("a", 8), "one", {}, {"regraft.pass": "low-rank"})
    plain = node("slow", "x", value("a", 8), "one")
    found = diff(snapshot([value("x", 8)], [], [], "x"), snapshot([value("x", 8)], [], [plain, noted], "a"))
    assert {change.cause and change.cause.pass_name for change in found.changes} <= {None, "low-rank"}
