"""A compiled library as something that runs; needs neither torch nor TVM's compiler."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ml_dtypes  # of apache-tvm
import numpy as np

from regraft.backends.tvm._archive import is_archive, loaded_module, read_contents
from regraft.backends.tvm._compat import load_extras, module
from regraft.backends.tvm._ports import Port, Ports, bind
from regraft.backends.tvm._processor import check_processor
from regraft.errors import BackendError, ModelFileError, ModelNotFoundError

_BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)

MAIN: Final = "main"
PORTS: Final = "regraft_ports"
"""Function of a library that returns its ports as text."""
CPU: Final = "regraft_cpu"
"""Function of a library that returns what processor it needs, as text."""


@dataclass(frozen=True, eq=False)
class Library:
    """Compiled code in TVM's virtual machine.

    Attributes:
        machine: the virtual machine that holds the code.
        ports: what it takes and returns.
        device: of TVM, on which it runs; the CPU when None.
    """

    machine: Any
    ports: Ports
    device: Any = None

    @property
    def inputs(self) -> Sequence[Port]:
        """Names and types that it takes."""
        return self.ports.inputs

    @property
    def outputs(self) -> Sequence[Port]:
        """Names and types that it returns."""
        return self.ports.outputs

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return the outputs in order: numpy arrays, or torch tensors when it was given torch tensors.

        Raises:
            InputError: when a name, shape or type does not fit; says which and what is needed.
            BackendError: when the compiled code refuses what it is given.
        """
        given = bind(self.ports, args, kwargs)
        tvm = module("tvm")
        try:
            results = self.machine[MAIN](*(tvm.runtime.tensor(_array(value), self.device) for value in given))
        except (ValueError, TypeError, RuntimeError) as error:  # TVM's own errors derive from these
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise BackendError(f"tvm backend: the compiled model refuses these inputs: {first}") from error
        arrays = [result.numpy() for result in results]
        torch = _torch_of(given)
        return tuple(arrays if torch is None else (_to_torch(torch, array) for array in arrays))


def load_library(path: str | os.PathLike[str]) -> Library:
    """Return the library in a file; see `regraft.backends.tvm.load`."""
    shown = Path(path)
    if not shown.is_file():
        raise ModelNotFoundError(f"{shown}: there is no such file")
    if is_archive(shown):
        return load_archive(shown)
    load_extras()
    runtime = module("tvm.runtime")
    try:
        loaded = runtime.load_module(str(shown.resolve()))
    except (ValueError, RuntimeError, OSError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelFileError(f"{shown}: is no library that TVM can load: {first}") from error
    return started(loaded, str(shown))


def load_archive(path: Path) -> Library:
    """Return the whole graph for a GPU that an archive has; raises BackendError without a driver."""
    contents = read_contents(path)
    try:
        loaded = loaded_module(contents, str(path))
    except (ValueError, RuntimeError, OSError, AttributeError) as error:
        if isinstance(error, BackendError):
            raise
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise BackendError(f"{path}: cannot be loaded on this GPU: {first}") from error
    return started(loaded, str(path), module("tvm").cuda(0))


def started(loaded: Any, name: str, device: Any = None) -> Library:
    """Return a module of TVM, its virtual machine started on a device or the CPU; ModelFileError for one of others.

    BackendError when this processor cannot run it.
    """
    vm = module("tvm.runtime.vm")
    try:
        machine = vm.VirtualMachine(loaded, module("tvm").cpu() if device is None else device)
        text, needed = str(machine[PORTS]()), str(machine[CPU]())
    except (AttributeError, ValueError, RuntimeError) as error:
        raise ModelFileError(f"{name}: is no library that Regraft saved") from error
    check_processor(name, needed)
    return Library(machine, Ports.from_text(text), device)


def _array(value: Any) -> Any:
    torch = _torch_of([value])
    if torch is None:
        return np.ascontiguousarray(value)
    plain = value.detach().cpu().contiguous()
    if plain.dtype != torch.bfloat16:
        return plain.numpy()
    return plain.view(torch.int16).numpy().view(_BFLOAT16)  # numpy has no type of its own for it


def _to_torch(torch: Any, array: Any) -> Any:
    if array.dtype != _BFLOAT16:
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)


def _torch_of(values: Sequence[Any]) -> Any:
    """Torch when one of the values is its tensor; where it is not imported there can be none."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and any(isinstance(value, torch.Tensor) for value in values) else None
