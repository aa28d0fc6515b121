"""Which passes exist, how they are named, described and registered."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from doubles import EveryOption, Nothing

import regraft.passes
from regraft.errors import OptionError, UnknownNameError
from regraft.passes import LowRank, all_passes, get_pass, pass_options, resolve_passes
from regraft.passes import _registry as registry


def test_every_file_of_the_folder_is_a_pass_of_its_name_and_there_are_no_others() -> None:
    files = {path.stem.replace("_", "-") for path in Path(regraft.passes.__file__).parent.glob("[!_]*.py")}
    assert set(all_passes()) == files
    assert all(cls.name == name for name, cls in all_passes().items())


def test_every_pass_can_be_imported_from_regraft_passes() -> None:
    for cls in all_passes().values():
        assert getattr(regraft.passes, cls.__name__) is cls
        assert cls.__name__ in regraft.passes.__all__


def test_every_name_that_regraft_passes_lists_exists() -> None:
    assert sorted(regraft.passes.__all__) == list(regraft.passes.__all__)
    assert all(hasattr(regraft.passes, name) for name in regraft.passes.__all__)


@pytest.mark.parametrize("name", sorted(all_passes()))
def test_every_pass_is_a_frozen_dataclass_whose_options_have_defaults_and_are_described(name: str) -> None:
    cls = get_pass(name)
    assert is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert cls.needs in ("weights", "calibration", "gradients", "training")
    options = pass_options(cls)
    assert [option[0] for option in options] == [item.name for item in fields(cls)]
    assert all(description.endswith(".") for _, _, _, description in options)
    assert "needed" not in [default for _, _, default, _ in options]
    assert cls() == cls()


def test_options_are_listed_with_type_default_and_description() -> None:
    assert pass_options(EveryOption) == [
        ("number", "a number", "0.5", "a number: with a colon and a second line."),
        ("whole", "a whole number or none", "none", "a whole number."),
        ("flag", "true or false", "false", "yes or no."),
        ("text", "text", "text", "any text."),
        ("mode", "one or two or three", "one", "one of three."),
        ("names", "names", "none", "some names."),
        ("keep_bias", "true or false", "true", "an option of two words."),
    ]
    assert pass_options(Nothing) == []


def test_an_unknown_pass_is_refused_with_what_may_have_been_meant() -> None:
    known = ", ".join(all_passes())
    for name, meant in (("lowrank", " (did you mean 'low-rank'?)"), ("xyzzy", "")):
        with pytest.raises(UnknownNameError) as caught:
            get_pass(name)
        assert str(caught.value) == f"regraft.passes has no {name!r}{meant}; it has: {known}"
        with pytest.raises(UnknownNameError):
            resolve_passes(f"{name}{{keep=0.5}}")


def test_passes_are_given_as_instances_spellings_and_mixtures() -> None:
    mine = LowRank(keep=0.3)
    assert resolve_passes(mine) == [mine]
    assert resolve_passes([mine, "low-rank,low-rank{rank=2}"]) == [mine, LowRank(), LowRank(rank=2)]
    assert resolve_passes(item for item in ("low-rank", mine)) == [LowRank(), mine]


def test_what_is_no_pass_is_refused() -> None:
    for given in (LowRank, 5, None):
        with pytest.raises(OptionError) as caught:
            resolve_passes([given])  # type: ignore[list-item]
        assert str(caught.value) == f"a pass must be an instance, a spelling or the path of a recipe; got {given!r}"
        with pytest.raises(OptionError):
            resolve_passes(given)  # type: ignore[arg-type]
    with pytest.raises(OptionError) as caught:
        resolve_passes([])
    assert str(caught.value) == f"at least one pass is needed; there are: {', '.join(all_passes())}"


# Passes of other packages


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Register entry points for the length of a test."""

    def _register(**points: str) -> None:
        found = [EntryPoint(name.replace("_", "-"), value, "regraft.passes") for name, value in points.items()]
        monkeypatch.setattr(registry, "entry_points", lambda group: found if group == "regraft.passes" else [])
        all_passes.cache_clear()

    yield _register
    all_passes.cache_clear()


def test_other_packages_register_passes_by_entry_points(register: Any) -> None:
    register(every_option="doubles:EveryOption", nothing="doubles:Nothing")
    assert get_pass("every-option") is EveryOption
    assert resolve_passes("every-option{whole=3}") == [EveryOption(whole=3)]
    assert list(all_passes())[-2:] == ["every-option", "nothing"]


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("low_rank", "doubles:Nothing", "the name is taken"),
        ("thing", "doubles:named", "is no pass (<function named"),
        ("thing", "doubles:Nothing", "calls itself 'nothing'; the names must be equal"),
        ("thing", "doubles:Missing", "cannot be loaded: module 'doubles' has no attribute 'Missing'"),
        ("thing", "no_such_module:Pass", "cannot be loaded: No module named 'no_such_module'"),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_refused_and_named(
    register: Any, name: str, value: str, problem: str
) -> None:
    register(**{name: value})
    with pytest.raises(OptionError) as caught:
        all_passes()
    assert str(caught.value).startswith(f"entry point regraft.passes {name.replace('_', '-')!r} of {value}: {problem}")
