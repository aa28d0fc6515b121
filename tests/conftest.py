"""Fixtures that every test may use: golden files, and quick, repeatable Hypothesis runs."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("regraft", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("regraft")

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write what the tests found to tests/golden/")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with tests/golden/<name>: names and types, never floats or addresses."""

    def check(name: str, found: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(found + "\n", encoding="utf-8")
        assert path.exists(), f"{path} does not exist; run pytest --update-golden, then read what it wrote"
        assert found + "\n" == path.read_text(encoding="utf-8")

    return check
