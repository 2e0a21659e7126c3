"""Scorers: what one candidate answer to one sample is worth, in [0, 1]; rewards, which may have another range.

A scorer is any object with the call of `Scorer`; the Hydra option names the class and there is no registry. Scorers
know nothing of policies, samplers or prompts. The classification into the six errors lives in
`ttpa.calls.six_errors` (module and function share a name, so the function is imported from there and not re-exported
here).
"""

from __future__ import annotations

from ttpa.calls.six_errors import LABELS, SIX, explain, find_errors, primary_error
from ttpa.explore.scorers.ast_match import ASTMatch
from ttpa.explore.scorers.esm import ESM
from ttpa.explore.scorers.rewards import Reward, Scorer, bounds_of, score_batch
from ttpa.explore.scorers.slm_json import SLMJson
from ttpa.explore.scorers.toolrl import ToolRL
from ttpa.explore.scorers.weighted import Weighted

__all__ = [
    "ESM",
    "LABELS",
    "SIX",
    "ASTMatch",
    "Reward",
    "SLMJson",
    "Scorer",
    "ToolRL",
    "Weighted",
    "bounds_of",
    "explain",
    "find_errors",
    "primary_error",
    "score_batch",
]
