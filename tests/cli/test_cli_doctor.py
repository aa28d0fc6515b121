"""`regraft doctor` tells what is there, what is broken, and the line that mends it."""

import json
from collections.abc import Callable
from importlib.metadata import version

import pytest

from regraft.cli import _environment
from regraft.cli._environment import Environment, Package, environment
from regraft.cli.commands import doctor


def test_a_working_core_exits_with_0_and_says_so(run: Callable) -> None:
    outcome = run("doctor")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[-1] == "the core works"
    assert any(line.split() == ["torch", version("torch")] for line in lines)
    assert any(line.startswith("onnxruntime") and "CPUExecutionProvider" in line for line in lines)


def test_the_state_of_tvm_is_told(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line.split(maxsplit=1) for line in run("doctor").out.splitlines()]
    assert ["tvm", "0.25.0.post1; compiles for the CPU"] in lines
    monkeypatch.setattr(_environment, "describe", lambda: "apache-tvm is not installed")
    assert json.loads(run("doctor", "--json").out)["machine"]["tvm"] == "apache-tvm is not installed"


def test_the_output_holds_no_escape_sequence_when_it_is_no_terminal(run: Callable) -> None:
    assert "\x1b" not in run("doctor").out


def test_json_is_one_document_with_core_and_extras(run: Callable) -> None:
    document = json.loads(run("doctor", "--json").out)
    assert document["ok"] is True
    assert {"torch", "numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime"} <= {
        package["name"] for package in document["core"]
    }
    assert {"tvm", "demo", "dev"} <= set(document["extras"])
    assert document["machine"]["python"].startswith("3.")


def test_extras_list_only_what_the_core_does_not_have() -> None:
    found = environment()
    core = {package.name for package in found.core}
    for packages in found.extras.values():
        assert not core & {package.name for package in packages}


def test_a_missing_core_package_exits_with_1(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Environment({}, (Package("onnx", problem="not installed"),), {}, checkout=None)
    monkeypatch.setattr(doctor, "environment", lambda: broken)
    outcome = run("doctor")
    assert outcome.code == 1
    assert outcome.out.splitlines() == [
        "onnx  not installed",
        "the core is broken: python -m pip install 'regraft'",
    ]


def test_a_package_that_cannot_be_imported_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> object:
        raise OSError(f"lib{name}.so: cannot open\nmore")

    monkeypatch.setattr(_environment, "import_module", import_module)
    found = environment()
    problems = {package.name: package.problem for package in found.core}
    assert problems["torch"].endswith("fails: OSError: libtorch.so: cannot open")
    assert not found.core_is_fine
    assert found.machine["accelerator"] == "unknown: torch cannot be imported"


def test_a_version_out_of_range_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_environment, "version", lambda name: "0.0.1")
    problems = {package.name: package.problem for package in environment().core}
    assert problems["torch"] == "<2.14,>=2.11 is needed"


def test_a_missing_extra_comes_with_the_line_that_installs_it(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    extras = {"tvm": (Package("apache-tvm", problem="not installed"),), "demo": (Package("transformers", "5.0"),)}
    monkeypatch.setattr(doctor, "environment", lambda: Environment({}, (), extras, checkout=None))
    outcome = run("doctor")
    assert outcome.code == 0
    assert outcome.out.splitlines()[:2] == [
        "extra [tvm]: missing apache-tvm: python -m pip install 'regraft[tvm]'",
        "extra [demo]: installed",
    ]


def test_a_checkout_installs_extras_with_its_constraints() -> None:
    found = Environment({}, (), {}, checkout="/src/regraft")
    assert found.install_line("tvm") == "cd '/src/regraft' && python -m pip install -c constraints.txt -e '.[tvm]'"
