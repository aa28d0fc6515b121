"""Ops are found by their files."""

from pathlib import Path

import pytest

import regraft.ops
from regraft.errors import UnknownNameError
from regraft.ops import all_ops, get_op


def test_every_file_holds_an_op_of_its_name_and_there_are_no_others() -> None:
    files = {path.stem for path in Path(regraft.ops.__file__).parent.glob("[!_]*.py")}
    assert set(all_ops()) == files
    assert list(all_ops()) == sorted(files)
    assert all(op.name == name for name, op in all_ops().items())
    assert get_op("lowrank_linear") is all_ops()["lowrank_linear"]


@pytest.mark.parametrize("name", sorted(all_ops()))
def test_every_op_says_what_it_is_and_declares_only_what_it_has(name: str) -> None:
    op = get_op(name)
    assert op.doc
    assert len(op.doc.splitlines()) == 1
    operands = {operand.name for operand in op.operands}
    needed = {operand.name for operand in op.operands if not operand.optional}
    assert set(op.linear_weights) <= operands
    assert op.examples
    assert len({example.name for example in op.examples}) == len(op.examples)
    for example in op.examples:
        assert needed <= set(example.shapes) <= operands
        assert set(example.attributes or {}) == set(op.attributes)


def test_an_unknown_op_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(UnknownNameError) as caught:
        get_op("lowrank")
    assert str(caught.value) == f"regraft.ops has no 'lowrank'; it has: {', '.join(sorted(all_ops()))}"
