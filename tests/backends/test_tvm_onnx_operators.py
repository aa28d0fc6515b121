"""Operators of ONNX files through the program that TVM compiles, against ONNX's reference or ONNX Runtime."""

from typing import Any

import numpy as np
import pytest
import torch
from onnx_case_table import CASES
from onnx_cases import Case

from regraft.backends import compile_graph
from regraft.backends.tvm._importer import Importer
from regraft.backends.tvm._maker import CpuMaker
from regraft.backends.tvm._onnx import program_of_onnx
from regraft.frontends.onnx import load

FIRST = list({case.op: case for case in reversed(CASES)}.values())
"""One case of each operator; its variants are run by the slow tests."""

QUICK = [case for case in CASES if str(case) in ("Attention-mask", "Resize-linear")]
"""Compiling takes seconds; the others are run by the slow tests."""


def check(case: Case, results: Any) -> None:
    for got, wanted in zip(results, case.expected(), strict=True):
        assert got.dtype == torch.from_numpy(wanted.copy()).dtype
        assert tuple(got.shape) == wanted.shape
        if got.dtype in (torch.uint8, torch.int8):  # a half may be rounded to either side
            assert np.abs(got.numpy().astype(np.int64) - wanted.astype(np.int64)).max() <= (
                case.op != "DequantizeLinear"
            )
        else:
            np.testing.assert_allclose(got.numpy(), wanted, rtol=2e-5, atol=2e-5)


def inputs(case: Case) -> list[torch.Tensor]:
    return [torch.from_numpy(value.copy()) for value in case.feeds.values()]


def check_traced(case: Case) -> None:
    program, _ = program_of_onnx(load(case.model()), CpuMaker())
    check(case, program.module()(*inputs(case)))
    assert not Importer().unsupported(program)


@pytest.mark.parametrize("case", FIRST, ids=str)
def test_an_operator_is_traced_as_its_reference_computes_it(case: Case) -> None:
    check_traced(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case not in FIRST], ids=str)
def test_variants_of_operators_are_traced_as_their_reference_computes_them(case: Case) -> None:
    check_traced(case)


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_compiled_code_computes_what_the_reference_does(case: Case) -> None:
    check(case, compile_graph(load(case.model()), "tvm", "llvm")(*inputs(case)))


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case not in QUICK], ids=str)
def test_compiled_code_of_every_case_computes_what_the_reference_does(case: Case) -> None:
    check(case, compile_graph(load(case.model()), "tvm", "llvm")(*inputs(case)))
