"""Names and types that a compiled library takes and returns, as plain data that is stored in it; needs no torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from regraft.errors import BackendError, InputError

FORMAT: Final = 1
"""Of what is stored in a library; another one is refused."""


@dataclass(frozen=True, slots=True)
class PortType:
    """Element type and shape; dims are extents or names."""

    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output."""

    name: str
    type: PortType


@dataclass(frozen=True, slots=True)
class Ports:
    """Inputs and outputs of a library, in order.

    Attributes:
        inputs: what it takes.
        outputs: what it returns.
        limits: least and largest extent by the name of a dim, both included; None where there is no largest.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    limits: Mapping[str, tuple[int, int | None]] = field(default_factory=dict[str, tuple[int, int | None]])

    def to_text(self) -> str:
        """Return what `from_text` reads: one line of JSON."""
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_text(cls, text: str) -> "Ports":
        """Return the ports that a text describes; raises BackendError for one of another format."""
        content = json.loads(text)
        if content["format"] != FORMAT:
            given = content["format"]
            raise BackendError(f"tvm backend: the library has format {given}; this version reads {FORMAT}")
        inputs, outputs = (tuple(map(_port, content[key])) for key in ("inputs", "outputs"))
        return cls(inputs, outputs, {name: (low, high) for name, (low, high) in content["limits"].items()})


def _port(content: dict[str, Any]) -> Port:
    kind = content["type"]
    return Port(content["name"], PortType(kind["dtype"], tuple(kind["shape"])))


def bind(ports: Ports, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """Return the arguments of a call in the order of the inputs, checked.

    Args:
        ports: of the library.
        args: by position; arrays or torch tensors.
        kwargs: by name.

    Raises:
        InputError: naming the input, what it needs and what was given.
    """
    names = [port.name for port in ports.inputs]
    if len(args) + len(kwargs) > len(names):
        raise InputError(f"the model takes {len(names)} inputs ({', '.join(names)}); got {len(args) + len(kwargs)}")
    unknown = [name for name in kwargs if name not in names]
    if unknown:
        raise InputError(f"the model has no input {unknown[0]!r}; it has: {', '.join(names)}")
    twice = [name for name in names[: len(args)] if name in kwargs]
    if twice:
        raise InputError(f"input {twice[0]!r} is given by position and by name; once is needed")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    missing = [port for port in ports.inputs if port.name not in given]
    if missing:
        raise InputError(f"input {missing[0].name!r} needs {_shown(missing[0].type)}, it was not given")
    extents: dict[str, tuple[int, str]] = {}
    for port in ports.inputs:
        _check(port, given[port.name], extents)
    for name, (extent, where) in extents.items():
        _check_limits(name, extent, where, *ports.limits.get(name, (1, None)))
    return [given[name] for name in names]


def dtype_of(value: Any) -> str:
    """Return the name of an element type, of an array or of a torch tensor."""
    return str(value.dtype).removeprefix("torch.")


def _check(port: Port, value: Any, extents: dict[str, tuple[int, str]]) -> None:
    needed = _shown(port.type)
    if not (hasattr(value, "dtype") and hasattr(value, "shape")):
        raise InputError(f"input {port.name!r} needs {needed}, got {type(value).__name__}")
    shape = tuple(map(int, value.shape))
    given = PortType(dtype_of(value), shape)
    problem = f"input {port.name!r} needs {needed}, got {_shown(given)}"
    if given.dtype != port.type.dtype or len(given.shape) != len(port.type.shape):
        raise InputError(problem)
    for wanted, extent in zip(port.type.shape, shape, strict=True):
        if isinstance(wanted, int) and wanted != extent:
            raise InputError(problem)
        if extent == 0:
            raise InputError(f"{problem}: compiled code takes no empty inputs")
        if isinstance(wanted, str) and wanted.isidentifier():
            first, where = extents.setdefault(wanted, (extent, str(port.name)))
            if first != extent:
                raise InputError(f"{problem}: {wanted} is {first} in {where!r}")


def _check_limits(name: str, extent: int, where: str, least: int, largest: int | None) -> None:
    if extent < least or (largest is not None and extent > largest):
        bound = f"at least {least}" if extent < least else f"at most {largest}"
        raise InputError(f"input {where!r} has {name} {extent}; it can be {bound} in this model")


def _shown(kind: PortType) -> str:
    return f"{kind.dtype} [{', '.join(map(str, kind.shape))}]"
