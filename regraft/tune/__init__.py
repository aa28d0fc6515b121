"""Search over `measure(config) -> seconds`, with records that outlive it; knows no backend."""

from regraft.tune._key import Key, bucket
from regraft.tune._records import Content, Records, Skipped, Trial, fastest
from regraft.tune._search import Measure, Measured, Outcome, Settings, search
from regraft.tune._space import Config, Space, frozen

__all__ = [
    "Config",
    "Content",
    "Key",
    "Measure",
    "Measured",
    "Outcome",
    "Records",
    "Settings",
    "Skipped",
    "Space",
    "Trial",
    "bucket",
    "fastest",
    "frozen",
    "search",
]
