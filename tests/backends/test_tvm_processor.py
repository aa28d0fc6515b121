"""Code for other processors than this one: `mcpu`, and libraries that are refused where they cannot run."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from regraft.backends import compile_graph
from regraft.backends.tvm import _processor, load
from regraft.backends.tvm._processor import check_processor
from regraft.backends.tvm.kernels.cpu._host import Host, this_host, threads
from regraft.errors import BackendError, OptionError
from regraft.frontends.torch import capture


@lru_cache(maxsize=1)
def graph() -> Any:
    torch.manual_seed(0)
    return capture(nn.Sequential(nn.Linear(33, 65), nn.Tanh()).eval(), (torch.randn(4, 33),))


def test_a_generic_library_needs_no_extension_and_computes_the_same(tmp_path: Path) -> None:
    path = compile_graph(graph(), "tvm", "llvm", mcpu="generic").save(tmp_path / "generic.so")
    x = torch.randn(3, 33)
    torch.testing.assert_close(load(path)(x)[0], graph().module(x).detach(), atol=1e-5, rtol=1e-5)


def test_a_library_is_refused_where_the_processor_lacks_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "avx2" not in this_host().features:
        pytest.skip("this processor has no AVX2 to miss")
    path = compile_graph(graph(), "tvm", "llvm", mcpu="x86-64-v3").save(tmp_path / "v3.so")
    monkeypatch.setattr(_processor, "flags_here", lambda: frozenset({"sse2", "avx", "bmi2"}))
    with pytest.raises(BackendError) as caught:
        load(path)
    assert str(caught.value) == f"{path}: is compiled for x86-64-v3; this processor has no avx2, fma, f16c"
    assert caught.value.hint == "compile it with mcpu='generic', or on this machine"


def test_a_processor_that_llvm_does_not_know_is_refused() -> None:
    text = r"tvm backend: mcpu must be 'generic' or a name that LLVM knows \('znver4'\); got 'pentium9'"
    with pytest.raises(OptionError, match=text):
        compile_graph(graph(), "tvm", "llvm", mcpu="pentium9")


def test_code_that_cannot_be_tried_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regraft.backends.tvm.kernels.cpu._host.this_host", lambda: Host("x86-64", frozenset()))
    with pytest.raises(BackendError, match="code for mcpu='x86-64-v3' cannot be tried here: this processor has no avx"):
        compile_graph(graph(), "tvm", "llvm", mcpu="x86-64-v3")


def test_where_the_system_does_not_tell_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_processor, "flags_here", lambda: None)
    check_processor("model.so", "znver4: avx512f")


def test_this_processor_has_what_linux_says_of_it() -> None:
    flags = _processor.flags_here()
    if flags is None:
        pytest.skip("this system does not tell")
    assert {name for name in _processor.CHECKED if name in this_host().features} <= flags


@pytest.mark.parametrize(("features", "lanes"), [({"avx512f", "avx2"}, 16), ({"avx2"}, 8), (set(), 4)])
def test_vectors_are_as_wide_as_registers(features: set[str], lanes: int) -> None:
    assert Host("any", frozenset(features)).lanes(32) == lanes


def test_the_number_of_threads_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_NUM_THREADS", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads() == 3
    monkeypatch.delenv("TVM_NUM_THREADS")
    assert threads() == 5
