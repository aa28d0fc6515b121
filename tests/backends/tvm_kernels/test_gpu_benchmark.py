"""The GPU benchmark's own formulas, which share no code with Regraft, beside the ops' float64 oracle; and its table."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.backends.tvm.kernels._kernel import Problem
from regraft.backends.tvm.kernels._registry import all_kernels
from regraft.ops import evaluate, get_op

FOLDER = Path(__file__).parents[3] / "benchmarks" / "gpu"


@pytest.fixture(scope="module")
def program() -> Iterator[Mapping[str, Any]]:
    """The benchmark's modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        names = ("_bundle", "_cases", "_problems", "_timing", "pack", "run")
        yield {name: __import__(name) for name in names}
        for name in names:
            del sys.modules[name]


def small(problem: Problem) -> Problem:
    """The same problem with weights of a few numbers."""
    shrunk = {name: min(extent, 5 + place) for place, (name, extent) in enumerate(problem.sizes.items())}
    shrunk |= {"outliers": 2} if "outliers" in shrunk else {}
    shrunk |= {"kv_heads": 2, "heads": 4} if "heads" in shrunk else {}
    shrunk |= {"in_blocks": 2, "out_blocks": 3, "block_rank": 2} if "in_blocks" in shrunk else {}
    return Problem("float32", shrunk, problem.options, 4)


def described(problem: Problem, op: str) -> dict[str, Any]:
    """A manifest's entry, without a build."""
    kernel = all_kernels()[op]
    arguments = kernel.arguments(problem, kernel.default(problem, "sm_80"))
    return {
        "op": op,
        "library": "none.so",
        "c_entry": "f",
        "c_error": "e",
        "dtype": problem.dtype,
        "sizes": dict(problem.sizes),
        "options": dict(problem.options),
        "rows": problem.rows,
        "tiling": "",
        "extents": [],
        "arguments": [
            {"name": a.name, "dims": list(a.dims), "dtype": a.dtype, "role": a.role, "present": a.present}
            for a in arguments
        ],
    }


def attributes_of(op: str, problem: Problem) -> dict[str, Any]:
    known = get_op(op).attributes
    found = {name: value for name, value in {**problem.sizes, **problem.options}.items() if name in known}
    defaults = {"rows": 0, "split": 0, "causal": 0, "blocks": 1, "terms": 1, "activations": 0}
    return {name: found.get(name, defaults.get(name, 0)) for name in known}


def oracle(op: str, problem: Problem, tensors: Mapping[str, Tensor]) -> Tensor:
    exact = {name: x.double() if x.is_floating_point() else x for name, x in tensors.items()}
    if op == "multi_head_attention" and problem.options.get("split"):
        exact |= {name: exact[name].flatten(2) for name in ("q", "k", "v")}
    found = evaluate(get_op(op), exact, attributes_of(op, problem))
    return found.unflatten(-1, (problem.sizes["heads"], -1)) if found.dim() == 3 else found


def all_problems() -> list[Any]:
    sys.path.insert(0, str(FOLDER))
    try:
        problems = __import__("_problems").PROBLEMS
    finally:
        sys.path.remove(str(FOLDER))
    seen: dict[str, Any] = {}
    for op, wanted in problems.items():
        for problem in wanted:
            name = f"{op} {sorted((k, v) for k, v in problem.options.items() if k != 'scale')}"
            seen.setdefault(name, pytest.param(op, small(problem), id=name))
    return list(seen.values())


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize(("op", "problem"), all_problems())
def test_formulas_on_the_gpu_are_what_the_oracle_says(
    program: Mapping[str, Any], op: str, problem: Problem, rows: int
) -> None:
    case = program["_cases"].CASES[op]
    library = program["_bundle"].Library(described(problem, op), FOLDER)
    extents = case.extents(library, rows)
    tensors = case.draw(library, extents, torch.Generator().manual_seed(1))
    if op.startswith("int8") or problem.options.get("activations") == 2:
        # Both signs to the ends of the shared range, for which the steps of rows are the op's.
        tensors["x"][:, 3], tensors["x"][:, 1] = 2.0, -2.0 * 128 / 127
    wanted = oracle(op, problem, tensors)
    scale = float(wanted.abs().max())
    for formula, tolerance in ((case.reference, 1e-6), (case.unfused, 2e-5)):
        found = formula(library, tensors)
        assert found.shape == wanted.shape
        assert float((found.double() - wanted).abs().max()) <= tolerance * scale


def test_every_kernel_is_checked_and_timed(program: Mapping[str, Any]) -> None:
    assert set(program["_problems"].PROBLEMS) == set(program["_cases"].CASES) == set(all_kernels())


def test_every_problem_fits_its_kernel_on_both_architectures(program: Mapping[str, Any]) -> None:
    for op, problems in program["_problems"].PROBLEMS.items():
        kernel = all_kernels()[op]
        for problem in problems:
            for arch in ("sm_80", "sm_90a"):
                assert kernel.fits(problem, kernel.default(problem, arch), arch) is None, (op, problem)


def test_the_least_time_is_that_of_the_slower_resource(program: Mapping[str, Any]) -> None:
    work = program["_cases"].Work(2e12, "float16", 1e9)
    assert work.least_us({"float16": 1e15, "bytes": 1e12}) == pytest.approx(2000)
    assert work.least_us({"float16": 1e15, "bytes": 1e11}) == pytest.approx(10_000)


def test_without_a_gpu_it_says_so(
    program: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["run.py"])
    assert program["run"].main() == 1
    assert capsys.readouterr().err == "error: torch sees no CUDA device here\n"
