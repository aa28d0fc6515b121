"""Hooks around passes, the files that they leave, and progress."""

import io
from pathlib import Path
from typing import Any

import pytest
from faulty_passes import Faulty
from tiny_models import Shared, batch, chain, graph_of

from regraft.errors import NoMatchError, OutputError
from regraft.graph import Graph
from regraft.passes import Dump, ErrorGate, LowRank, Print, Settings, instruments_from_environment, run_passes


class Watch:
    """Writes down what it is told."""

    def __init__(self, name: str, told: list[tuple[Any, ...]]) -> None:
        self.name, self.told = name, told

    def before_pass(self, place: int, spelling: str, graph: Graph) -> None:
        self.told.append((self.name, "before", place, spelling, _layers(graph)))

    def after_pass(self, place: int, spelling: str, graph: Graph, changed: bool) -> None:
        self.told.append((self.name, "after", place, spelling, _layers(graph), changed))

    def on_crash(self, place: int, spelling: str, graph: Graph, error: BaseException) -> None:
        self.told.append((self.name, "crash", place, spelling, _layers(graph), type(error).__name__))


def _layers(graph: Graph) -> int:
    return sum(node.op == "linear" for node in graph.nodes())


def test_instruments_are_called_in_order_around_every_pass() -> None:
    told: list[tuple[Any, ...]] = []
    watches = (Watch("a", told), Watch("b", told))
    passes = [LowRank(rank=3, targets=("query",)), LowRank(rank=3)]
    run_passes(graph_of(Shared), [*passes, LowRank()], Settings(instruments=watches, strict=False))
    first, second = "low-rank{rank=3,targets=[query]}", "low-rank{rank=3}"
    assert [item for item in told if item[0] == "a"] == [
        ("a", "before", 0, first, 3),
        ("a", "after", 0, first, 2, True),
        ("a", "before", 1, second, 2),
        ("a", "after", 1, second, 1, True),
        ("a", "before", 2, "low-rank", 1),
        ("a", "after", 2, "low-rank", 1, False),
    ]
    assert [item[0] for item in told] == ["a", "b"] * 6


def test_after_a_pass_instruments_see_the_graph_with_what_was_taken_back() -> None:
    told: list[tuple[Any, ...]] = []
    run_passes(chain(3), [Faulty(fault="writes nan")], Settings(instruments=[Watch("a", told)]))
    assert told[-1][1:] == ("after", 0, 'faulty{fault="writes nan"}', 1, True)
    run_passes(chain(3), [Faulty(fault="writes nan", at="*")], Settings(instruments=[Watch("a", told)]))
    assert told[-1][4:] == (3, False)


def test_a_crash_is_shown_with_the_graph_before_and_handed_on() -> None:
    told: list[tuple[Any, ...]] = []
    passes = [LowRank(rank=3, targets=("layers.0",)), Faulty(fault="raises in plan")]
    with pytest.raises(ZeroDivisionError, match="this is a bug of the pass"):
        run_passes(chain(3), passes, Settings(instruments=[Watch("a", told)]))
    assert [item[1] for item in told] == ["before", "after", "before", "crash"]
    assert told[-1] == ("a", "crash", 1, 'faulty{fault="raises in plan"}', 2, "ZeroDivisionError")


def test_a_crash_inside_build_is_shown_although_the_run_goes_on() -> None:
    told: list[tuple[Any, ...]] = []
    run_passes(chain(3), [Faulty(fault="raises in build")], Settings(instruments=[Watch("a", told)]))
    assert [item[1] for item in told] == ["before", "crash", "after"]
    assert told[1][4:] == (3, "ZeroDivisionError")


def test_an_error_of_ours_is_no_crash() -> None:
    told: list[tuple[Any, ...]] = []
    with pytest.raises(NoMatchError):
        run_passes(chain(3), [LowRank(targets=("none",))], Settings(instruments=[Watch("a", told)]))
    assert [item[1] for item in told] == ["before"]


# Dumps


def test_dumps_are_the_texts_of_the_graph_before_and_after_every_pass(tmp_path: Path) -> None:
    graph, folder = graph_of(Shared), tmp_path / "deep" / "dumps"
    passes = [LowRank(rank=3, targets=("query",)), LowRank(rank=3)]
    rewritten, _ = run_passes(graph, passes, Settings(instruments=[Dump(folder)]))
    assert sorted(path.name for path in folder.iterdir()) == ["00-before.txt", "01-low-rank.txt", "02-low-rank.txt"]
    assert (folder / "00-before.txt").read_text() == str(graph.snapshot())
    assert (folder / "02-low-rank.txt").read_text() == str(rewritten.snapshot())
    texts = {path.read_text() for path in folder.iterdir()}
    assert len(texts) == 3


def test_a_crash_leaves_the_spelling_the_error_and_the_graph(tmp_path: Path) -> None:
    graph = chain(3)
    with pytest.raises(ZeroDivisionError):
        run_passes(graph, [Faulty(fault="raises in plan")], Settings(instruments=[Dump(tmp_path)]))
    text = (tmp_path / "crash-01-faulty.txt").read_text()
    assert text.startswith('pass faulty{fault="raises in plan"}\n')
    assert "ZeroDivisionError: this is a bug of the pass" in text
    assert "in plan" in text
    assert text.endswith(str(graph.snapshot()))


def test_every_site_at_which_a_pass_crashes_has_a_file_of_its_own(tmp_path: Path) -> None:
    run_passes(chain(3), [Faulty(fault="raises in build", at="*")], Settings(instruments=[Dump(tmp_path)]))
    found = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("crash"))
    assert found == ["crash-01-faulty.txt", "crash-02-faulty.txt", "crash-03-faulty.txt"]


def test_a_file_in_the_place_of_the_dump_folder_is_refused(tmp_path: Path) -> None:
    taken = tmp_path / "dumps"
    taken.write_text("mine")
    with pytest.raises(OutputError) as caught:
        run_passes(chain(2), [LowRank(rank=3)], Settings(instruments=[Dump(taken)]))
    assert str(caught.value) == f"REGRAFT_DUMP={taken} cannot be made a folder: File exists"
    assert caught.value.hint == "name a new folder, or one that can be written to"
    assert taken.read_text() == "mine"


def test_the_environment_asks_for_dumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGRAFT_DUMP", raising=False)
    assert instruments_from_environment() == ()
    monkeypatch.setenv("REGRAFT_DUMP", str(tmp_path))
    (dump,) = instruments_from_environment()
    assert isinstance(dump, Dump)
    assert dump.folder == tmp_path


# Printing


@pytest.mark.parametrize("only_changes", [False, True])
def test_graphs_are_printed_after_every_pass_or_after_those_that_changed_something(only_changes: bool) -> None:
    stream = io.StringIO()
    instruments = [Print(only_changes=only_changes, stream=stream)]
    rewritten, _ = run_passes(
        chain(2), [LowRank(rank=3), LowRank(rank=2)], Settings(instruments=instruments, strict=False)
    )
    heads = [line for line in stream.getvalue().splitlines() if line.startswith("# after ")]
    second = [] if only_changes else ["# after low-rank{rank=2} (no change)"]
    assert heads == ["# after low-rank{rank=3}", *second]
    assert stream.getvalue().count(str(rewritten.snapshot())) == len(heads)


def test_graphs_are_printed_where_errors_go_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    run_passes(chain(2), [LowRank(rank=3)], Settings(instruments=[Print()]))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("# after low-rank{rank=3}\n")


# Progress


@pytest.mark.parametrize("known", [True, False])
def test_progress_never_goes_back_and_ends_at_its_total(known: bool) -> None:
    batches = [(batch(seed),) for seed in range(3)]
    reference = [chain(4).run(item)[0] for item in batches]
    told: list[tuple[str, int, int]] = []
    settings = Settings(
        calibration=batches if known else _Stream(batches),
        probes=batches,
        gates=[ErrorGate(0.1, batches, reference)],
        report=lambda *told_now: told.append(told_now),
    )
    run_passes(chain(4), [LowRank(rank=2)], settings)
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    names = ("calibrate", "plan", "check", "fit the budget")
    assert stages == [f"low-rank: {name}" for name in names]
    for stage in stages:
        steps = [(done, total) for name, done, total in told if name == stage]
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert len({total for _, total in steps}) == 1
        assert all(done <= total or total == 0 for done, total in steps)
    last = {stage: (done, total) for stage, done, total in told}
    assert last["low-rank: calibrate"] == (3, 3 if known else 0)
    assert last["low-rank: plan"] == last["low-rank: check"] == last["low-rank: fit the budget"] == (4, 4)
    assert [stage for stage, _, _ in told] == sorted((stage for stage, _, _ in told), key=stages.index)


class _Stream:
    """Batches of unknown number that can be iterated more than once."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)
