"""Which layers a pass is asked to rewrite: globs, regular expressions, exclusions, heads."""

from types import SimpleNamespace
from typing import Any

import pytest

from regraft.passes._heads import END_NAMES, HEAD_NAMES, head_reason
from regraft.passes._pass import is_selected, matches_name

QUERY = "encoder.layer.0.attention.self.query"


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (QUERY, True),
        ("encoder.*", True),
        ("*.query", True),
        ("encoder.layer.[0-3].*", True),
        ("encoder.layer.?.attention.self.query", True),
        ("*", True),
        ("query", False),
        ("encoder", False),
        ("ENCODER.*", False),
        ("", False),
        ("encoder.layer.[0].attention.self.query", True),
        (r"re:encoder\.layer\.\d+\..*", True),
        ("re:.*(query|key)", True),
        ("re:query", False),
        ("re:encoder", False),
        ("re:", False),
    ],
)
def test_globs_and_regular_expressions_cover_the_whole_name(wanted: str, found: bool) -> None:
    assert matches_name(QUERY, wanted) == found


@pytest.mark.parametrize(
    ("targets", "exclude", "selected"),
    [
        ((), (), True),
        (("a", "*.query"), (), True),
        (("a", "b"), (), False),
        ((), ("*.query",), False),
        ((), ("*.key",), True),
        (("*.query",), ("re:.*layer.0.*",), False),
    ],
)
def test_a_layer_is_selected_by_any_target_and_dropped_by_any_exclusion(
    targets: tuple[str, ...], exclude: tuple[str, ...], selected: bool
) -> None:
    assert is_selected(QUERY, targets, exclude) == selected


def _site(name: str, *, feeds_output: bool = False) -> Any:
    site = SimpleNamespace(name=name, feeds_output=feeds_output, layers=(name,))
    site.calls = (site,)
    return site


@pytest.mark.parametrize("part", sorted(HEAD_NAMES))
def test_the_usual_names_of_heads_are_known_at_every_place(part: str) -> None:
    for name in (part, f"model.{part}", f"{part}.dense", f"model.{part}.dense", f"{part}#2"):
        assert head_reason(_site(name)) == f"it is a head ({part})"


@pytest.mark.parametrize("part", sorted(END_NAMES))
def test_names_that_parts_of_attention_have_too_are_heads_at_either_end_of_a_name_only(part: str) -> None:
    for name in (part, f"model.{part}", f"{part}.0", f"{part}#2", f"vit.{part}#2"):
        assert head_reason(_site(name)) == f"it is a head ({part})"
    for name in (f"attn.{part}.0", f"blocks.0.{part}.query", f"encoder.{part}#2.proj"):
        assert head_reason(_site(name)) == ""


def test_a_name_with_brackets_is_its_own_pattern() -> None:
    assert matches_name("layers[0].proj", "layers[0].proj")
    assert not matches_name("layers0.proj", "layers[1].proj")


def test_other_names_are_no_heads_although_they_contain_one() -> None:
    for name in (QUERY, "heading", "lm_head_norm", "classifiers.0", "multi_head", "scores", ""):
        assert head_reason(_site(name)) == ""


def test_a_layer_that_the_model_returns_is_a_head() -> None:
    assert head_reason(_site("proj", feeds_output=True)) == "it is a head (the model returns its output)"
