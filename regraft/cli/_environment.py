"""What `regraft doctor` finds out: packages against what Regraft asks for, processor, accelerator.

What has to be installed is read from the package's own metadata, so that there is no second list to keep.
"""

import json
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import (
    PackageNotFoundError,
    distribution,
    distributions,
    packages_distributions,
    requires,
    version,
)
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlparse

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from regraft.backends.tvm import describe
from regraft.backends.tvm._toolchain import describe_cuda

_CPU_FEATURES = frozenset(["avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"])
_ARM_FEATURES = {"asimd": "neon", "asimddp": "dotprod", "i8mm": "i8mm", "bf16": "bf16", "sve": "sve", "sve2": "sve2"}
_NO_EXTRA = ""


@dataclass(frozen=True, slots=True)
class Package:
    """One package that Regraft asks for.

    Attributes:
        name: its name in the package index.
        version: the installed one; "" when there is none.
        problem: what is wrong, as one phrase; "" when nothing is.
        detail: what else matters about it (onnxruntime's execution providers).
    """

    name: str
    version: str = ""
    problem: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Environment:
    """What is there.

    Attributes:
        machine: python, system, processor, accelerator, what TVM can do, in words.
        core: packages without which nothing works.
        extras: packages by the extra that asks for them.
        checkout: folder of an editable install, or None.
    """

    machine: Mapping[str, str]
    core: tuple[Package, ...]
    extras: Mapping[str, tuple[Package, ...]]
    checkout: str | None

    @property
    def core_is_fine(self) -> bool:
        """Whether every core package is there, new enough and can be imported."""
        return not any(package.problem for package in self.core)

    def install_line(self, extra: str = _NO_EXTRA) -> str:
        """Return the command that installs an extra, or the core."""
        suffix = f"[{extra}]" if extra else ""
        if self.checkout is None:
            return f"python -m pip install 'regraft{suffix}'"
        return f"cd '{self.checkout}' && python -m pip install -c constraints.txt -e '.{suffix}'"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data (JSON types)."""
        return {
            "ok": self.core_is_fine,
            "machine": dict(self.machine),
            "core": [asdict(package) for package in self.core],
            "extras": {
                name: {
                    "installed": not any(package.problem for package in packages),
                    "install": self.install_line(name),
                    "packages": [asdict(package) for package in packages],
                }
                for name, packages in self.extras.items()
            },
        }


def environment() -> Environment:
    """Look at this interpreter and this machine."""
    required = [Requirement(text) for text in requires("regraft") or ()]
    names = distribution("regraft").metadata.get_all("Provides-Extra") or []
    core = tuple(_core_package(item) for item in required if _asked_for(item, _NO_EXTRA))
    in_core = {package.name for package in core}
    extras = {
        name: tuple(_package(item) for item in required if _asked_for(item, name) and item.name not in in_core)
        for name in names
    }
    torch = _imported("torch")
    return Environment(_machine(torch if isinstance(torch, ModuleType) else None), core, extras, _checkout())


def _asked_for(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _package(requirement: Requirement) -> Package:
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return Package(requirement.name, problem="not installed")
    if not requirement.specifier.contains(found, prereleases=True):
        return Package(requirement.name, found, problem=f"{requirement.specifier} is needed")
    return Package(requirement.name, found)


def _core_package(requirement: Requirement) -> Package:
    package = _package(requirement)
    if package.problem:
        return package
    for name in _module_names(requirement.name):
        module = _imported(name)
        if not isinstance(module, ModuleType):
            return Package(package.name, package.version, problem=f"importing {name} fails: {module}")
        if name == "onnxruntime":
            providers = ", ".join(module.get_available_providers())
            return Package(package.name, package.version, detail=f"providers {providers}")
    return package


def _module_names(name: str) -> list[str]:
    """Modules that a package installs at the top level and that are meant to be imported; its namesake first."""
    wanted = canonicalize_name(name)
    found = [
        module
        for module, owners in _owners().items()
        if module.isidentifier() and not module.startswith("_") and wanted in map(canonicalize_name, owners)
    ]
    return sorted(found, key=lambda module: (canonicalize_name(module) != wanted, module))


@lru_cache(maxsize=1)
def _owners() -> Mapping[str, list[str]]:
    return packages_distributions()


def _imported(name: str) -> ModuleType | str:
    try:
        return import_module(name)
    except Exception as error:  # a broken install raises anything; to say so is what this command is for
        lines = str(error).splitlines() or ["no message"]
        return f"{type(error).__name__}: {lines[0]}"


def _machine(torch: ModuleType | None) -> dict[str, str]:
    return {
        "regraft": version("regraft"),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(torch),
        "accelerator": _accelerator(torch),
        "tvm": describe(),
        "cuda kernels": describe_cuda(),
    }


def _processor(torch: ModuleType | None) -> str:
    parts: list[str] = []
    if torch is not None:
        threads = torch.get_num_threads()
        parts = [f"{threads} thread{'' if threads == 1 else 's'}", torch.backends.cpu.get_cpu_capability()]
    return ", ".join([*parts, *_features(_cpu_flags())]) or "unknown"


def _cpu_flags() -> set[str]:
    """Flags of the first processor, where the system tells (Linux)."""
    source = Path("/proc/cpuinfo")
    if not source.is_file():
        return set()
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", source.read_text(encoding="utf-8", errors="replace"), re.M)
    return set(match.group(1).split()) if match else set()


def _features(flags: Iterable[str]) -> list[str]:
    """Those flags that decide how fast a rewritten model can be."""
    return sorted({_ARM_FEATURES.get(flag, flag) for flag in flags if flag in _CPU_FEATURES or flag in _ARM_FEATURES})


def _accelerator(torch: ModuleType | None) -> str:
    if torch is None:
        return "unknown: torch cannot be imported"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
        return f"CUDA {torch.version.cuda}: {', '.join(names)}"
    return "Apple GPU" if torch.backends.mps.is_available() else "none"


def _checkout() -> str | None:
    """Folder of an editable install, as pip notes it."""
    for found in distributions(
        name="regraft"
    ):  # build metadata in the current folder can come before the installed one
        text = found.read_text("direct_url.json")
        note: dict[str, Any] = json.loads(text) if text else {}
        if note.get("dir_info", {}).get("editable"):
            return unquote(urlparse(note["url"]).path)
    return None
