"""Difficulty bands of the easy-to-hard warm-up (iTool, arXiv 2501.09766 v5, warm-up section).

*Easy* needs all three conditions, *hard* any one of its own, the rest is *medium*: the paper does not say how they
combine. Length counts characters of the tool list as rows store it.
"""

from collections.abc import Sequence

from ttpa.errors import ConfigError
from ttpa.options import option
from ttpa.records import ToolCall, ToolSpec, tools_to_text

EASY, MEDIUM, HARD = BANDS = ("easy", "medium", "hard")


@option
class Bands:
    """Thresholds of the bands; conf/published_data.yaml says how each is meant."""

    easy_tools: int
    easy_length: int
    easy_calls: int
    hard_tools: int
    hard_length: int
    hard_calls: int

    def __post_init__(self) -> None:
        # Easy is `< easy_length` and hard `> hard_length`, so equal lengths cannot overlap; equal counts would.
        lowest = {"tools": self.easy_tools + 1, "length": self.easy_length, "calls": self.easy_calls + 1}
        for name, low in lowest.items():
            if (high := getattr(self, f"hard_{name}")) < low:
                problem = f"must be at least {low}, or a sample could be easy and hard"
                raise ConfigError.at(f"hard_{name}", high, problem, f"Raise it or lower easy_{name}")

    def band(self, tools: Sequence[ToolSpec], target: Sequence[ToolCall]) -> str:
        """The band of a sample with these tools and this target (empty where the right answer is text)."""
        length = len(tools_to_text(tools))
        if len(tools) >= self.hard_tools or length > self.hard_length or len(target) >= self.hard_calls:
            return HARD
        if len(tools) <= self.easy_tools and length < self.easy_length and len(target) <= self.easy_calls:
            return EASY
        return MEDIUM
