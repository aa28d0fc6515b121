"""Reads a recipe's YAML; a key that stands twice in one place is refused, where YAML itself would keep the last one."""

from pathlib import Path
from typing import Any, Final

import yaml

from regraft.errors import ModelNotFoundError, OptionError

_MERGE: Final = "tag:yaml.org,2002:merge"


def read_yaml(path: Path) -> Any:
    """Return what a recipe's file says, as plain data.

    Raises:
        ModelNotFoundError: when there is no such file.
        OptionError: when it cannot be read, is not YAML, or gives a key twice.
    """
    if path.is_dir():
        raise ModelNotFoundError(f"recipe {path} is a folder; the name of a file is needed")
    try:
        text = path.read_text(encoding="utf-8")
        return yaml.load(text, _Loader)  # noqa: S506 - derived from the safe loader
    except FileNotFoundError:
        raise ModelNotFoundError(f"recipe {path} does not exist") from None
    except OSError as error:
        raise OptionError(f"recipe {path} cannot be read: {error.strerror or error}") from error
    except _DuplicateKeyError as error:
        raise OptionError(f"recipe {path}, line {error.line}: {error.key!r} is given twice; once is needed") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise OptionError(f"recipe {path} is not YAML: {first}") from error


class _DuplicateKeyError(Exception):
    def __init__(self, key: Any, line: int) -> None:
        super().__init__(key)
        self.key = key
        self.line = line


class _Loader(yaml.SafeLoader):
    """The safe loader, which refuses a key that its mapping has already."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping; keys merged from elsewhere (`<<`) may be given again, as YAML means them."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float | bool):
                if key in seen:
                    raise _DuplicateKeyError(key, key_node.start_mark.line + 1)
                seen.add(key)
        return super().construct_mapping(node, deep)
