"""Every exception of Regraft: one line that says where, what was given and what is needed.

Each class derives from `RegraftError` and from the builtin that a caller would expect to catch. `exit_code` is what the
command line returns: 1 failed, 2 usage, 3 budget violated, 4 verification failed.
"""

from typing import ClassVar


class RegraftError(Exception):
    """The base of all errors that Regraft raises on purpose.

    Attributes:
        hint: the next thing to try, as one sentence, or None.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        return str(self.args[0])


class OptionError(RegraftError, ValueError):
    """An option, a pass spelling or a recipe says something that cannot be meant."""

    exit_code: ClassVar[int] = 2


class UnknownNameError(RegraftError, LookupError):
    """A pass, op, backend or target of that name does not exist."""

    exit_code: ClassVar[int] = 2


class ShapeError(RegraftError, ValueError):
    """Shapes or ranks do not fit together."""


class DtypeError(RegraftError, TypeError):
    """Element types do not fit together."""


class InputError(RegraftError, ValueError):
    """A model was given inputs of another name, shape or type than it takes."""


class ModelTypeError(RegraftError, TypeError):
    """The thing given as a model is none of the kinds that can be captured."""

    exit_code: ClassVar[int] = 2


class CaptureError(RegraftError, RuntimeError):
    """A PyTorch model could not be captured as a graph."""


class ModelFileError(RegraftError, ValueError):
    """A model file is malformed, truncated or not a model at all."""


class ModelNotFoundError(RegraftError, FileNotFoundError):
    """No file or attribute of that name."""

    exit_code: ClassVar[int] = 2


class UnsafeModelError(ModelFileError):
    """A model file asks for something that an untrusted file must not do."""


class GraphError(RegraftError, RuntimeError):
    """A graph broke one of its invariants."""


class SnapshotError(RegraftError, ValueError):
    """The text form of a snapshot could not be read back."""


class NoMatchError(RegraftError, LookupError):
    """A pass found nothing to rewrite."""


class VerificationError(RegraftError, ArithmeticError):
    """A rewritten layer does not compute what its pass announced."""

    exit_code: ClassVar[int] = 4


class BudgetError(RegraftError, RuntimeError):
    """The rewritten model exceeds the budget it was given."""

    exit_code: ClassVar[int] = 3


class BackendError(RegraftError, RuntimeError):
    """A backend could not build or run the graph."""


class MissingExtraError(RegraftError, ImportError):
    """An optional package is needed and not installed."""


class ExportError(RegraftError, RuntimeError):
    """A graph cannot be expressed in the asked-for format."""


class OutputError(RegraftError, OSError):
    """An output file cannot be written."""


class RegraftWarning(UserWarning):
    """Something works, but not as one would hope."""
