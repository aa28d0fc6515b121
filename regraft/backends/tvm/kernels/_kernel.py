"""What a CUDA kernel of an op is: arguments, tile parameters and what they take; needs neither TVM nor TileLang."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Final, Literal

Value = int | float | str
Role = Literal["in", "out", "scratch"]
Shapes = Mapping[str, tuple[int, ...]]
"""Extents of the operands that are there, by name."""

ARCHITECTURES: Final[Mapping[str, int]] = {"sm_80": 163 * 1024, "sm_90a": 227 * 1024}
"""Bytes of shared memory that one block may have."""

BYTES: Final[Mapping[str, int]] = {
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "tf32": 4,
    "int64": 8,
    "int32": 4,
    "int8": 1,
    "uint8": 1,
}
"""Of one element; "tf32" is float32 in memory, whose products the tensor cores round to 10 bits."""

_REGISTERS: Final = 200
"""Of the 255 of a thread; the rest is for addresses and operands."""


@dataclass(frozen=True)
class Problem:
    """All that is fixed when a kernel is built.

    Attributes:
        dtype: of activations and weights: "float16", "bfloat16", "float32" or, asked for by name, "tf32".
        sizes: extents of the weights by name.
        options: the op's attributes, and which optional operands there are.
        rows: how many rows are expected, for choosing tiles; any number of rows is computed.
    """

    dtype: str
    sizes: Mapping[str, int]
    options: Mapping[str, Value] = field(default_factory=dict[str, Value])
    rows: int = 512

    @property
    def storage(self) -> str:
        """Dtype in memory."""
        return "float32" if self.dtype == "tf32" else self.dtype

    @property
    def item_bytes(self) -> int:
        """Bytes of an element."""
        return BYTES[self.dtype]

    def has(self, option: str) -> bool:
        """Return whether an option is set to something other than 0."""
        return bool(self.options.get(option, 0))


@dataclass(frozen=True)
class Tiling:
    """How a kernel cuts its work.

    Attributes:
        variant: which of the kernel's algorithms.
        tiles: its tile parameters by name.
    """

    variant: str
    tiles: Mapping[str, int]


@dataclass(frozen=True)
class Argument:
    """A tensor that a built kernel takes: row-major, contiguous, in the memory of the GPU.

    Attributes:
        name: of the op's operand, or of a buffer of the kernel's own.
        dims: extents; a text is the name of one that is known when it runs ("rows").
        dtype: in memory.
        role: scratch is memory that the caller lends, of any content.
        present: whether the problem has it; an absent one is passed as null.
        alignment: of its address, in bytes.
    """

    name: str
    dims: tuple[int | str, ...]
    dtype: str
    role: Role = "in"
    present: bool = True
    alignment: int = 16


@dataclass(frozen=True)
class Use:
    """What a block takes: bytes of shared memory, 32-bit accumulators of all its threads, and threads."""

    shared_bytes: int
    accumulators: int
    threads: int


@dataclass(frozen=True)
class Kernel:
    """A kernel template.

    Attributes:
        op: the structured op that it implements.
        dtypes: of problems that it can take.
        sizes: names of the extents that a problem must give, all at least 1.
        options: names of the options that a problem may give, with their values.
        variants: name -> tile parameters -> values that make sense: the space that a tuner searches.
        problem: (shapes of the operands, attributes of the op, dtype) -> the problem that a call of the op is.
        arguments: (problem, tiling) -> what a built kernel takes, in order.
        default: (problem, arch) -> tiles that fit, if any do.
        use: (problem, tiling) -> what a block takes.
        refusal: (problem, tiling) -> why these cannot go together, or None.
        simt: problem -> whether its products run without tensor cores, as those of plain float32 do.
        template: module that holds `template(problem, tiling)`, which only TileLang's process imports.
    """

    op: str
    dtypes: tuple[str, ...]
    sizes: tuple[str, ...]
    options: Mapping[str, tuple[Value, ...]]
    variants: Mapping[str, Mapping[str, tuple[int, ...]]]
    problem: Callable[[Shapes, Mapping[str, Value], str], Problem]
    arguments: Callable[[Problem, Tiling], tuple[Argument, ...]]
    default: Callable[[Problem, str], Tiling]
    use: Callable[[Problem, Tiling], Use]
    template: str
    refusal: Callable[[Problem, Tiling], str | None] = lambda problem, tiling: None
    simt: Callable[[Problem], bool] = lambda problem: problem.dtype == "float32"

    def fits(self, problem: Problem, tiling: Tiling, arch: str) -> str | None:
        """Return why a problem cannot be built with these tiles for an architecture, or None when it can."""
        return (
            self.wrong_problem(problem)
            or self._wrong_tiling(tiling)
            or self.refusal(problem, tiling)
            or self._too_large(problem, tiling, arch)
        )

    def wrong_problem(self, problem: Problem) -> str | None:
        """Return why a problem is none of this kernel's with any tiles, or None."""
        if problem.dtype not in self.dtypes:
            return f"dtype must be one of {', '.join(self.dtypes)}; got {problem.dtype!r}"
        if set(problem.sizes) != set(self.sizes):
            return f"sizes must be {', '.join(self.sizes)}; got {', '.join(problem.sizes) or 'none'}"
        small = [f"{name}={extent}" for name, extent in problem.sizes.items() if extent < 1]
        if small:
            return f"sizes must be at least 1; got {', '.join(small)}"
        for name, value in problem.options.items():
            if name not in self.options:
                return f"has no option {name!r}; it has {', '.join(self.options) or 'none'}"
            if self.options[name] and value not in self.options[name]:
                return f"{name} must be one of {', '.join(map(str, self.options[name]))}; got {value!r}"
        return None

    def _wrong_tiling(self, tiling: Tiling) -> str | None:
        if tiling.variant not in self.variants:
            return f"has no variant {tiling.variant!r}; it has {', '.join(self.variants)}"
        space = self.variants[tiling.variant]
        if set(tiling.tiles) != set(space):
            return f"{tiling.variant} needs the tiles {', '.join(space)}; got {', '.join(tiling.tiles) or 'none'}"
        for name, value in tiling.tiles.items():
            if value not in space[name]:
                return f"{name} must be one of {', '.join(map(str, space[name]))}; got {value}"
        return None

    def _too_large(self, problem: Problem, tiling: Tiling, arch: str) -> str | None:
        if arch not in ARCHITECTURES:
            return f"architecture must be one of {', '.join(ARCHITECTURES)}; got {arch!r}"
        use = self.use(problem, tiling)
        if use.shared_bytes > ARCHITECTURES[arch]:
            most = ARCHITECTURES[arch] // 1024
            return f"needs {-(-use.shared_bytes // 1024)} KB of shared memory; a block on {arch} has {most} KB"
        registers = -(-use.accumulators // use.threads)
        if registers > _REGISTERS:
            return f"needs {registers} accumulators a thread; {_REGISTERS} fit beside the rest"
        return None


def first_fitting(kernel: Kernel, problem: Problem, arch: str, tilings: Sequence[Tiling]) -> Tiling:
    """Return the first of some tilings that fits, or the last one."""
    fitting = (tiling for tiling in tilings if kernel.fits(problem, tiling, arch) is None)
    return next(fitting, tilings[-1])


def rows_of(shapes: Shapes) -> int:
    """Return the number of rows of x; at least 1, to choose tiles for."""
    return max(1, prod(shapes["x"][:-1]))


def ceil_div(extent: int, part: int) -> int:
    """Return how many parts cover an extent."""
    return -(-extent // part)


def padded(extent: int, unit: int = 16) -> int:
    """Return the multiple of `unit` that covers an extent: tensor cores take 16 by 16 at a time."""
    return ceil_div(extent, unit) * unit
