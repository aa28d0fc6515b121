import os
import signal
import subprocess
import sys

import pytest

from regraft.backends.tvm import _compat
from regraft.backends.tvm._worker import Worker
from regraft.errors import BackendError, MissingExtraError

TEMPLATES = {
    "raising_template": "def template(problem, tiling):\n    raise ValueError('rank must be\\n  even')\n",
    "chatty_template": "import sys\ndef template(problem, tiling):\n    print('this is no answer')\n    return 1 / 0\n",
}


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("templates")
    for name, text in TEMPLATES.items():
        (folder / f"{name}.py").write_text(text)
    worker = Worker(timeout_s=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield worker
    worker.close()
    assert worker.pid is None


def request(template):
    problem = {"dtype": "float16", "sizes": {}, "options": {}, "rows": 1}
    tiling = {"variant": "", "tiles": {}}
    return {"do": "source", "arch": "sm_80", "simt": False, "template": template, "problem": problem, "tiling": tiling}


def refusal(worker, template):
    with pytest.raises(BackendError) as caught:
        worker.ask(request(template))
    return str(caught.value)


def test_an_error_of_a_template_is_one_line_with_its_place_and_the_process_goes_on(worker):
    expected = "tilelang: raising_template: ValueError: rank must be even (raising_template.py:2)"
    assert refusal(worker, "raising_template") == expected
    first = worker.pid
    assert refusal(worker, "raising_template") == expected
    assert worker.pid == first


def test_what_a_template_prints_does_not_mix_with_answers(worker):
    assert "ZeroDivisionError: division by zero (chatty_template.py:4)" in refusal(worker, "chatty_template")


def test_a_killed_process_is_replaced(worker):
    refusal(worker, "raising_template")
    first = worker.pid
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert "rank must be even" in refusal(worker, "raising_template")
    assert worker.pid != first


CHILD = """
import os, sys, time
print('{}', flush=True)
for line in sys.stdin:
    if 'dying' in line:
        print('out of luck', file=sys.stderr, flush=True)
        os._exit(3)
    if 'hanging' in line:
        time.sleep(600)
    print('{"source": "of " }', flush=True)
"""
"""Speaks as TileLang's process does, and starts at once."""


@pytest.fixture
def child():
    worker = Worker(timeout_s=30, command=(sys.executable, "-c", CHILD))
    yield worker
    worker.close()


def test_a_process_that_dies_in_a_request_says_how_and_is_replaced(child):
    expected = "tilelang: its process ended without an answer, with code 3: out of luck"
    assert refusal(child, "dying_template") == expected
    assert child.pid is None
    assert child.ask(request("any_template")) == {"source": "of "}


def test_a_hanging_process_is_ended_after_the_time_out_and_replaced(child):
    child.ask(request("any_template"))
    first, child.timeout_s = child.pid, 0.5
    assert refusal(child, "hanging_template") == "tilelang: gave no answer in 0.5 s; its process was ended"
    assert child.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    child.timeout_s = 30
    assert child.ask(request("any_template")) == {"source": "of "}


def test_a_process_that_cannot_start_says_why():
    worker = Worker(timeout_s=30, command=(sys.executable, "-c", "import no_such_module_here"))
    with pytest.raises(
        BackendError, match=r"ended without an answer, with code 1: ModuleNotFoundError: No module named"
    ):
        worker.ask(request("raising_template"))


def test_a_process_ends_with_the_program():
    code = (
        "from regraft.backends.tvm._worker import shared_worker\n"
        "from regraft.errors import BackendError\n"
        "try: shared_worker().ask({'do': 'source', 'template': 'no_such_template', 'problem': {}, 'tiling': {}})\n"
        "except BackendError as error: print(shared_worker().pid, error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    pid, text = said.split(" ", 1)
    assert "No module named 'no_such_template'" in text
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


@pytest.mark.parametrize("found", [None, "0.1.14"])
def test_without_the_pinned_tilelang_the_error_names_it(monkeypatch, found):
    def version(name):
        if name != "tilelang":
            return _compat.PINS[name]
        if found is None:
            raise _compat.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(_compat, "version", version)
    state = "is not installed" if found is None else "is 0.1.14"
    with pytest.raises(MissingExtraError, match=f"needs tilelang 0.1.15, apache-tvm-ffi 0.1.12; tilelang {state}"):
        Worker().ask(request("raising_template"))
