"""What can be chosen: named parameters, their values, and which combinations make no sense."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod

from regraft.errors import OptionError

Choice = int | float | str
Config = Mapping[str, Choice]
"""One value a parameter."""

Frozen = tuple[tuple[str, Choice], ...]


def frozen(config: Config) -> Frozen:
    """Return a config as something that can be a key, whatever the order of its parameters."""
    return tuple(sorted(config.items()))


@dataclass(frozen=True)
class Space:
    """All configs.

    Attributes:
        parameters: values by name.
        refusal: why a config makes no sense, or None.
    """

    parameters: Mapping[str, tuple[Choice, ...]]
    refusal: Callable[[Config], str | None] = lambda config: None

    def __post_init__(self) -> None:
        empty = [name for name, values in self.parameters.items() if not values]
        if empty or not self.parameters:
            raise OptionError(f"a space needs parameters with values; {empty[0] if empty else 'it'} has none")

    @property
    def size(self) -> int:
        """Number of combinations, also of those that are refused."""
        return prod(len(values) for values in self.parameters.values())

    def configs(self) -> Iterator[Config]:
        """Yield every config that makes sense, in the order of the values."""
        for values in product(*self.parameters.values()):
            config = dict(zip(self.parameters, values, strict=True))
            if self.refusal(config) is None:
                yield config

    def problem(self, config: Config) -> str | None:
        """Return why a config is none of this space, or None."""
        if set(config) != set(self.parameters):
            return f"needs {', '.join(self.parameters)}; got {', '.join(config) or 'nothing'}"
        for name, value in config.items():
            if value not in self.parameters[name]:
                return f"{name} must be one of {', '.join(map(str, self.parameters[name]))}; got {value!r}"
        return self.refusal(config)
