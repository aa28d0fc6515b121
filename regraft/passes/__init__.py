"""Rewrite passes: one file a pass, and the manager that runs and checks them."""

from regraft.passes._batches import calibration_batch
from regraft.passes._budget import Budget, ErrorGate, Gate, ScoreGate, SpeedGate
from regraft.passes._explain import Explanation, Finding, explain_graph
from regraft.passes._instruments import Dump, Instrument, Print, instruments_from_environment
from regraft.passes._manager import OnViolation, Report, Settings, no_report, run_passes
from regraft.passes._pass import Plan, Reject, SitePass
from regraft.passes._registry import (
    AnyPass,
    PassLike,
    all_passes,
    get_pass,
    pass_options,
    read_recipe,
    resolve_passes,
    spelling,
)
from regraft.passes._statistics import SiteStatistics
from regraft.passes.flash_svd import FlashSVD
from regraft.passes.fuse_attention import FuseAttention
from regraft.passes.llm_int8 import LLMInt8
from regraft.passes.low_rank import LowRank
from regraft.passes.monarch import Monarch
from regraft.passes.shift_add import ShiftAdd

__all__ = [
    "AnyPass",
    "Budget",
    "Dump",
    "ErrorGate",
    "Explanation",
    "Finding",
    "FlashSVD",
    "FuseAttention",
    "Gate",
    "Instrument",
    "LLMInt8",
    "LowRank",
    "Monarch",
    "OnViolation",
    "PassLike",
    "Plan",
    "Print",
    "Reject",
    "Report",
    "ScoreGate",
    "Settings",
    "ShiftAdd",
    "SitePass",
    "SiteStatistics",
    "SpeedGate",
    "all_passes",
    "calibration_batch",
    "explain_graph",
    "get_pass",
    "instruments_from_environment",
    "no_report",
    "pass_options",
    "read_recipe",
    "resolve_passes",
    "run_passes",
    "spelling",
]
