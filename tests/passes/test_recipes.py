"""Recipes: passes in a YAML file."""

from pathlib import Path

import pytest

from regraft.errors import ModelNotFoundError, OptionError, UnknownNameError
from regraft.passes import LowRank, read_recipe, resolve_passes


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_passes_come_in_order_with_their_options(recipe: Path) -> None:
    _write(recipe, "passes:\n  - low-rank: {keep: 0.25, targets: [encoder.*, 're:a{2}'], heads: yes}\n  - low-rank\n")
    assert read_recipe(recipe) == [LowRank(keep=0.25, targets=("encoder.*", "re:a{2}"), heads=True), LowRank()]


def test_a_pass_may_be_spelled_as_on_the_command_line_or_have_no_options(recipe: Path) -> None:
    _write(recipe, "passes:\n  - 'low-rank{rank=3}'\n  - low-rank:\n  - low-rank: {}\n")
    assert read_recipe(recipe) == [LowRank(rank=3), LowRank(), LowRank()]


def test_a_recipe_is_given_by_its_path_as_text_or_path(recipe: Path) -> None:
    _write(recipe, "passes: [low-rank]\n")
    assert resolve_passes(str(recipe)) == resolve_passes(recipe) == resolve_passes([recipe]) == [LowRank()]
    assert resolve_passes([LowRank(rank=2), str(recipe)]) == [LowRank(rank=2), LowRank()]


def test_a_recipe_that_does_not_exist_is_refused(recipe: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_passes(str(recipe))
    assert str(caught.value) == f"recipe {recipe} does not exist"


def test_a_folder_in_the_place_of_a_recipe_is_refused_as_one(recipe: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        read_recipe(recipe.parent)
    assert str(caught.value) == f"recipe {recipe.parent} is a folder; the name of a file is needed"


def test_a_recipe_that_may_not_be_read_is_refused_with_the_reason(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, **_: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)  # the tests may run as root, who may read everything
    with pytest.raises(OptionError) as caught:
        read_recipe(recipe)
    assert str(caught.value) == f"recipe {recipe} cannot be read: Permission denied"


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("passes: [low-rank]\npasses: [monarch]\n", 2, "passes"),
        ("passes:\n  - low-rank:\n      keep: 0.5\n      rank: 3\n      keep: 0.4\n", 5, "keep"),
        ("passes: [low-rank: {keep: 0.5, 'keep': 0.5}]", 1, "keep"),
    ],
)
def test_a_key_that_is_given_twice_is_refused_with_its_line(recipe: Path, text: str, line: int, key: str) -> None:
    with pytest.raises(OptionError) as caught:
        read_recipe(_write(recipe, text))
    assert str(caught.value) == f"recipe {recipe}, line {line}: {key!r} is given twice; once is needed"


def test_options_may_be_taken_over_from_another_pass_and_changed(recipe: Path) -> None:
    text = "passes:\n  - low-rank: &all {keep: 0.5, ridge: 0.1}\n  - low-rank: {<<: *all, keep: 0.4}\n"
    assert read_recipe(_write(recipe, text)) == [LowRank(keep=0.5, ridge=0.1), LowRank(keep=0.4, ridge=0.1)]


@pytest.mark.parametrize("text", ["passes: [low-rank", "\t", "passes: 'a", "a: b: c", "!!python/object:os.system {}"])
def test_text_that_is_no_yaml_is_refused(recipe: Path, text: str) -> None:
    with pytest.raises(OptionError) as caught:
        read_recipe(_write(recipe, text))
    assert str(caught.value).startswith(f"recipe {recipe} is not YAML: ")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(recipe: Path) -> None:
    recipe.write_bytes(b"\xff\xfe\x00passes")
    with pytest.raises(OptionError, match="is not YAML: "):
        read_recipe(recipe)


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("", "NoneType"),
        ("- low-rank", "list"),
        ("low-rank", "str"),
        ("steps: [low-rank]", "keys ['steps']"),
        ("passes: [low-rank]\nseed: 3", "keys ['passes', 'seed']"),
        ("passes: low-rank", "keys ['passes']"),
        ("passes:", "keys ['passes']"),
        ("3: [low-rank]", "keys ['3']"),
    ],
)
def test_other_keys_than_passes_are_refused(recipe: Path, text: str, got: str) -> None:
    with pytest.raises(OptionError) as caught:
        read_recipe(_write(recipe, text))
    assert str(caught.value) == f"recipe {recipe}: one key 'passes' with a list is needed; got {got}"


@pytest.mark.parametrize(
    ("item", "shown"),
    [
        ("3", "3"),
        ("[low-rank]", "['low-rank']"),
        ("{low-rank: 0.5}", "{'low-rank': 0.5}"),
        ("{low-rank: {}, other: {}}", "{'low-rank': {}, 'other': {}}"),
        ("'low-rank,low-rank'", "'low-rank,low-rank'"),
    ],
)
def test_an_item_that_is_no_pass_is_refused(recipe: Path, item: str, shown: str) -> None:
    with pytest.raises(OptionError) as caught:
        read_recipe(_write(recipe, f"passes:\n  - {item}\n"))
    assert str(caught.value) == f"recipe {recipe}: a pass is a name, or a name with options; got {shown}"


def test_a_recipe_cannot_bring_in_another_nor_itself(recipe: Path) -> None:
    _write(recipe, f"passes: [{recipe.name}]\n")
    with pytest.raises(UnknownNameError, match=r"regraft\.passes has no 'recipe\.yaml'"):
        read_recipe(recipe)


def test_unknown_passes_and_options_of_a_recipe_are_refused(recipe: Path) -> None:
    with pytest.raises(UnknownNameError, match="has no 'lowrank'"):
        read_recipe(_write(recipe, "passes: [lowrank]\n"))
    with pytest.raises(OptionError, match="low-rank has no option 'ratio'"):
        read_recipe(_write(recipe, "passes: [low-rank: {ratio: 0.5}]\n"))
    with pytest.raises(OptionError, match=r"^low-rank: ridge must be a number; got true$"):
        read_recipe(_write(recipe, "passes: [low-rank: {ridge: yes}]\n"))


def test_an_empty_recipe_has_no_pass_to_run(recipe: Path) -> None:
    _write(recipe, "passes: []\n")
    assert read_recipe(recipe) == []
    with pytest.raises(OptionError, match="at least one pass is needed"):
        resolve_passes(str(recipe))
