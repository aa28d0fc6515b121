"""What records say: the best of each key, curves that never rise, and pictures of them."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuning import key

from regraft.errors import InputError
from regraft.tune import Content, Key, Line, Trial, best_only, draw, lines_of, row


def trial(place: int, seconds: float | None, **changed: str) -> Trial:
    return Trial(key(**changed), {"place": place}, "ok" if seconds else "failed", seconds)


TIMES = st.lists(st.none() | st.floats(1e-6, 1.0), max_size=12)


@given(TIMES)
def test_a_curve_falls_from_the_first_good_time_to_the_best(times: list[float | None]) -> None:
    trials = tuple(trial(place, seconds) for place, seconds in enumerate(times))
    line = Line(key(), None, trials)
    good = [seconds for seconds in times if seconds is not None]
    assert line.failed == len(times) - len(good)
    assert line.curve == sorted(line.curve, reverse=True)
    assert (line.curve[0], line.curve[-1]) == (good[0], min(good)) if good else line.curve == []


def test_each_key_is_one_line_with_its_best() -> None:
    content = Content((trial(0, 3.0), trial(1, 2.0, device="b"), trial(2, 1.0), trial(3, None, device="b")))
    lines = lines_of(content)
    assert [(line.key.device, len(line.trials), line.failed) for line in lines] == [("a processor", 2, 0), ("b", 2, 1)]
    assert [found.config["place"] for found in best_only(content)] == [2, 1]
    assert row(lines[0])[:4] == ("matmul m=128 n=64 float32", "1000000.0", "place=2", "2")


def test_extents_of_one_operand_stand_together() -> None:
    fields = key().as_json() | {"shape": {"x.0": 64, "x.1": 384, "blocks": 4, "bias.0": 9}}
    assert Key.from_json(fields).title == "matmul bias[9] blocks=4 x[64x384] float32"


@pytest.mark.parametrize("suffix", [".png", ".svg", ".html"])
def test_curves_are_drawn(tmp_path: Path, suffix: str) -> None:
    content = Content((trial(0, 3.0), trial(1, 2.0, device="<b> & c")))
    path = tmp_path / f"curve{suffix}"
    draw(lines_of(content), path)
    written = path.read_bytes()
    if suffix == ".png":
        assert written.startswith(b"\x89PNG")
    elif suffix == ".svg":
        ElementTree.fromstring(written)
    else:
        text = written.decode()
        assert "<svg" in text
        assert "<td>&lt;b&gt; &amp; c</td>" in text
        assert "http" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
            "http://creativecommons.org", ""
        ).replace("https://matplotlib.org", "")


def test_nothing_that_went_well_is_not_drawn(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^tune: no trial went well, so there is no curve to draw$"):
        draw(lines_of(Content((trial(0, None),))), tmp_path / "never.png")
    assert not list(tmp_path.iterdir())
