"""Something that runs: what every backend returns."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # graphs need torch, which is not there where a compiled library runs
    from regraft.graph.snapshot import SnapshotValue


class Executable(Protocol):
    """A compiled graph. Call it like the model: by position or by name.

    Attributes:
        backend: name of the backend that made it.
        target: what it runs on ("cpu", "cuda", "llvm").
        inputs: names and types that it takes.
        outputs: names and types that it returns.
    """

    @property
    def backend(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def inputs(self) -> "Sequence[SnapshotValue]": ...
    @property
    def outputs(self) -> "Sequence[SnapshotValue]": ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on inputs.

        Raises:
            InputError: when a name, shape or type does not fit; says which and what is needed.
        """
        ...
