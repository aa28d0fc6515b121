"""Passes that stand in for real ones: with options of every kind, and with orders and conflicts."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from regraft.passes import SitePass


@dataclass(frozen=True)
class Nothing(SitePass[Any, Any]):
    """A pass that sees nothing."""

    name: ClassVar[str] = "nothing"

    def find(self, graph: Any) -> tuple[list[Any], list[Any]]:
        return [], []

    def plan(self, site: Any, statistics: Any) -> Any:
        raise AssertionError("there is no site")

    def build(self, graph: Any, site: Any, plan: Any) -> None:
        raise AssertionError("there is no site")


@dataclass(frozen=True)
class EveryOption(Nothing):
    """A pass with an option of every kind.

    Attributes:
        number: a number: with a colon
            and a second line.
        whole: a whole number.
        flag: yes or no.
        text: any text.
        mode: one of three.
        names: some names.
        keep_bias: an option of two words.

    Nothing of this paragraph belongs to an option: not even
        this line.
    """

    name: ClassVar[str] = "every-option"

    number: float = 0.5
    whole: int | None = None
    flag: bool = False
    text: str = "text"
    mode: Literal["one", "two", "three"] = "one"
    names: tuple[str, ...] = ()
    keep_bias: bool = True


def named(name_: str, *, after_: tuple[str, ...] = (), conflicts_: tuple[str, ...] = ()) -> Nothing:
    """Return a pass of that name with an order or conflicts."""
    base: Any = Nothing

    class Named(base):
        name: ClassVar[str] = name_
        after: ClassVar[tuple[str, ...]] = after_
        conflicts: ClassVar[tuple[str, ...]] = conflicts_

    return Named()
