"""Search over `measure(config) -> seconds`, with records that outlive it; knows no backend."""

from regraft.tune._cost_model import CostModel, Features, Machine, Quality, Sample, judge
from regraft.tune._key import Key, bucket
from regraft.tune._records import Content, Records, Skipped, Trial, fastest
from regraft.tune._report import HEADER, Line, best_only, draw, lines_of, row
from regraft.tune._search import Measure, Measured, Outcome, Sampler, Settings, search
from regraft.tune._space import Config, Space, frozen
from regraft.tune._task import Isolated, Task

__all__ = [
    "HEADER",
    "Config",
    "Content",
    "CostModel",
    "Features",
    "Isolated",
    "Key",
    "Line",
    "Machine",
    "Measure",
    "Measured",
    "Outcome",
    "Quality",
    "Records",
    "Sample",
    "Sampler",
    "Settings",
    "Skipped",
    "Space",
    "Task",
    "Trial",
    "best_only",
    "bucket",
    "draw",
    "fastest",
    "frozen",
    "judge",
    "lines_of",
    "row",
    "search",
]
