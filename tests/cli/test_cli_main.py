"""Every failure ends in one line, a hint and an exit code."""

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version

import pytest

from regraft import errors
from regraft.cli import _main
from regraft.errors import RegraftError, RegraftWarning


def error_classes() -> list[type[RegraftError]]:
    return [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, RegraftError)]


@pytest.fixture
def run_raising(run: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Run a command line whose command raises the given exception."""

    def run_with(error: BaseException) -> object:
        def broken(**_: object) -> None:
            raise error

        monkeypatch.setattr(_main, "app", broken)
        return run("doctor")

    return run_with


def test_the_version_is_the_packages(run: Callable) -> None:
    outcome = run("--version")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"regraft {version('regraft')}\n", "")


@pytest.mark.parametrize("command", ["diff", "doctor", "explain", "optimize", "passes", "tune run", "tune show"])
def test_the_help_of_a_command_lists_nothing_but_what_the_command_takes(run: Callable, command: str) -> None:
    outcome = run(*command.split(), "--help")
    assert outcome.code == 0
    assert "--json" in outcome.out
    assert "completion" not in outcome.out


def test_no_command_shows_the_help_and_is_a_usage_error(run: Callable) -> None:
    outcome = run()
    assert outcome.code == 2
    for name in ("diff", "doctor", "explain", "optimize", "passes", "tune"):
        assert f"\n  {name} " in outcome.out


def test_an_unknown_command_is_one_line_with_the_one_that_was_meant(run: Callable) -> None:
    outcome = run("optimise")
    assert (outcome.code, outcome.out) == (2, "")
    has = "diff, doctor, explain, optimize, passes, tune"
    assert outcome.err == f"error: regraft has no command 'optimise' (did you mean 'optimize'?); it has: {has}\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["doctor", "--bad"], "No such option: --bad"),
        (["optimize"], "Missing argument 'MODEL'."),
        (["optimize", "a.onnx"], "Missing option '-o' / '--output'."),
        (["optimize", "a.onnx", "-o", "b.onnx", "--seed", "x"], "Invalid value for '--seed'"),
        (["optimize", "a.onnx", "-o", "b.onnx", "--functions", "all"], "Invalid value for '--functions'"),
    ],
)
def test_a_usage_error_is_one_line_that_names_the_commands_help(run: Callable, line: list[str], message: str) -> None:
    outcome = run(*line)
    assert (outcome.code, outcome.out) == (2, "")
    first, second = outcome.err.splitlines()
    assert first.startswith(f"error: {message}")
    assert second == f"hint: `regraft {line[0]} --help` lists what it takes"


@pytest.mark.parametrize("kind", error_classes())
def test_every_error_prints_its_line_its_hint_and_its_code(run_raising: Callable, kind: type[RegraftError]) -> None:
    outcome = run_raising(kind("layer\x1b[2J: 3 is\nneeded", hint="try 3"))
    assert outcome.code == kind.exit_code
    assert outcome.err == "error: layer\\x1b[2J: 3 is needed\nhint: try 3\n"


def test_an_error_without_a_hint_prints_none(run_raising: Callable) -> None:
    assert run_raising(errors.ShapeError("no")).err == "error: no\n"


def test_exit_codes_tell_budget_and_verification_apart(run_raising: Callable) -> None:
    kinds = (errors.NoMatchError, errors.OptionError, errors.BudgetError, errors.VerificationError)
    assert [run_raising(kind("x")).code for kind in kinds] == [1, 2, 3, 4]


def test_a_defect_is_one_line_too(run_raising: Callable) -> None:
    outcome = run_raising(ZeroDivisionError("division\nby zero"))
    assert outcome.code == 1
    assert outcome.err == "error: unexpected ZeroDivisionError: division\nhint: set REGRAFT_TRACEBACK=1 to see where\n"


def test_the_traceback_is_there_for_those_who_ask(run_raising: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_TRACEBACK", "1")
    assert "Traceback (most recent call last)" in run_raising(ZeroDivisionError("x")).err


def test_a_missing_package_points_to_doctor(run_raising: Callable) -> None:
    outcome = run_raising(ModuleNotFoundError("No module named 'onnx'"))
    assert outcome.code == 1
    assert outcome.err.endswith("hint: `regraft doctor` says what is missing\n")


def test_an_interrupted_command_returns_130(run_raising: Callable) -> None:
    outcome = run_raising(KeyboardInterrupt())
    assert (outcome.code, outcome.err) == (130, "")


def test_an_interrupt_inside_a_command_returns_130(run: Callable, zoo: str, folder: object) -> None:
    (folder / "stopping.py").write_text("def make():\n    raise KeyboardInterrupt\n")
    try:
        assert run("explain", "stopping:make", "low-rank").code == 130
    finally:
        sys.modules.pop("stopping", None)


def test_warnings_of_regraft_are_lines_and_those_of_others_are_not_shown(
    run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warning(**_: object) -> None:
        _main.warnings.warn("static\nshapes", RegraftWarning, stacklevel=1)
        _main.warnings.warn("old", DeprecationWarning, stacklevel=1)

    monkeypatch.setattr(_main, "app", warning)
    assert run("doctor").err == "warning: static shapes\n"


def test_the_entry_point_starts_without_torch() -> None:
    code = "import sys, regraft.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
