"""Search over `measure(config) -> seconds`, with records that outlive it; knows no backend."""

from regraft.tune._cost_model import CostModel, Features, Machine, Quality, Sample, judge
from regraft.tune._key import Key, bucket
from regraft.tune._records import Content, Records, Skipped, Trial, fastest
from regraft.tune._search import Measure, Measured, Outcome, Settings, search
from regraft.tune._space import Config, Space, frozen
from regraft.tune._task import Isolated, Task

__all__ = [
    "Config",
    "Content",
    "CostModel",
    "Features",
    "Isolated",
    "Key",
    "Machine",
    "Measure",
    "Measured",
    "Outcome",
    "Quality",
    "Records",
    "Sample",
    "Settings",
    "Skipped",
    "Space",
    "Task",
    "Trial",
    "bucket",
    "fastest",
    "frozen",
    "judge",
    "search",
]
