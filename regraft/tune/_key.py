"""For what a measured time holds: the op, its shapes and types, the machine, and the versions of what made it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from regraft.errors import InputError


@dataclass(frozen=True, slots=True)
class Key:
    """A time measured under one key says nothing about another.

    Attributes:
        op: name of the op or of the task.
        shape: extents by name, sorted; those that vary from call to call are rounded up by `bucket`.
        dtypes: by operand or role, sorted.
        target: what code was made for ("llvm -mcpu=sapphirerapids", "sm_90a").
        device: name of the processor.
        driver: version of its driver, or of the operating system for a CPU.
        compiler: name and version of what compiled.
        version: of Regraft.
    """

    op: str
    shape: tuple[tuple[str, int], ...]
    dtypes: tuple[tuple[str, str], ...]
    target: str
    device: str
    driver: str
    compiler: str
    version: str

    @staticmethod
    def of(
        op: str,
        shape: Mapping[str, int],
        dtypes: Mapping[str, str],
        *,
        target: str,
        device: str,
        driver: str,
        compiler: str,
        version: str,
    ) -> "Key":
        """Return the key of these extents and types, whatever their order."""
        return Key(
            op, tuple(sorted(shape.items())), tuple(sorted(dtypes.items())), target, device, driver, compiler, version
        )

    @property
    def title(self) -> str:
        """Op, extents and types in a few words."""
        types = ",".join(dict.fromkeys(dtype for _, dtype in self.dtypes))
        return " ".join((self.op, *_extents(self.shape), types)).strip()

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self) | {"shape": dict(self.shape), "dtypes": dict(self.dtypes)}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "Key":
        """Return what `as_json` wrote; raises KeyError, TypeError or AttributeError for anything else."""
        texts = {name: content[name] for name in ("target", "device", "driver", "compiler", "version")}
        if not all(isinstance(text, str) for text in (content["op"], *texts.values())):
            raise TypeError("a text is needed")
        shape = {str(name): int(extent) for name, extent in content["shape"].items()}
        dtypes = {str(name): str(dtype) for name, dtype in content["dtypes"].items()}
        return Key.of(content["op"], shape, dtypes, **texts)


def _extents(shape: tuple[tuple[str, int], ...]) -> list[str]:
    """Extents of one operand ("x.0", "x.1") together, the others by name."""
    axes: dict[str, list[str]] = {}
    for name, extent in shape:
        operand, _, axis = name.rpartition(".")
        axes.setdefault(operand if axis.isdecimal() and operand else f"{name}=", []).append(str(extent))
    return [
        f"{name}{'x'.join(found)}" if name.endswith("=") else f"{name}[{'x'.join(found)}]"
        for name, found in axes.items()
    ]


def bucket(extent: int) -> int:
    """Return the power of two that an extent is rounded up to: what is best changes slowly with the number of rows.

    Raises:
        InputError: for an extent below 1.
    """
    if extent < 1:
        raise InputError(f"an extent must be at least 1; got {extent}")
    return 1 << (extent - 1).bit_length()
