"""Which instructions a saved library needs, and whether this processor has them; needs neither torch nor a compiler."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Final

from regraft.errors import BackendError

CHECKED: Final = (
    *("avx", "avx2", "bmi2", "fma", "f16c"),
    *("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni", "avx512bf16", "avx512fp16"),
    *("avx512ifma", "avx512vbmi", "avx512vbmi2", "avx512bitalg", "avx512vpopcntdq"),
)
"""Extensions of x86, by LLVM's names; those of Linux are the same but for underscores."""

_CPUINFO: Final = Path("/proc/cpuinfo")


@lru_cache(maxsize=1)
def flags_here() -> frozenset[str] | None:
    """Return the extensions that this processor has; None where the system does not tell."""
    if not _CPUINFO.is_file():
        return None
    found = re.search(r"^flags\s*:(.*)$", _CPUINFO.read_text(encoding="utf-8"), re.MULTILINE)
    return None if found is None else frozenset(name.replace("_", "") for name in found.group(1).split())


def check_processor(name: str, needed: str) -> None:
    """Raise BackendError when this processor lacks what a library was compiled for.

    Args:
        name: of the library, for the message.
        needed: "cpu: extension extension ...", as the library tells.
    """
    cpu, _, listed = needed.partition(":")
    here = flags_here()
    missing = [] if here is None else [one for one in listed.split() if one not in here]
    if missing:
        hint = "compile it with mcpu='generic', or on this machine"
        text = f"{name}: is compiled for {cpu}; this processor has no {', '.join(missing)}"
        raise BackendError(text, hint=hint)
