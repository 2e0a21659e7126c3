"""Difficulty bands of the easy-to-hard warm-up (iTool, arXiv 2501.09766 v5, warm-up section).

The paper gives three columns per band (number of tools, length of the tool-set string, calls needed) and leaves open
how they combine. Reconstruction used here: *easy* needs all three of its conditions, *hard* any one of its own, and
*medium* is the rest, so that every sample has a band. Length counts characters of the tool list as the rows store it
(`ttpa.records.tools_to_text`); the paper says "string length" and names no unit or layout.

Boundary cases: a length of exactly 1000 is not below 1000, so it is not easy; exactly 2000 is not above 2000, so it is
not hard (the paper's medium, "< 2000", leaves it without a band): both are medium. Exactly 4 tools or 4 calls is hard,
1 of either can be easy, and a sample without a call needs 0 calls.

What this module does not do: order or weigh the bands; the warm-up stage does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ttpa.errors import ConfigError
from ttpa.records import ToolCall, ToolSpec, tools_to_text

EASY, MEDIUM, HARD = BANDS = ("easy", "medium", "hard")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bands:
    """Thresholds of the bands; the defaults are the paper's.

    Args:
        easy_tools: Easy has at most this many tools.
        easy_length: Easy has a tool list of fewer characters than this.
        easy_calls: Easy needs at most this many calls.
        hard_tools: Hard has at least this many tools,
        hard_length: or a tool list of more characters than this,
        hard_calls: or needs at least this many calls.

    Raises:
        ConfigError: a hard threshold lies below its easy one, so that a sample could be both.

    Example:
        >>> Bands().band(tools=1, length=999, calls=1), Bands().band(tools=1, length=1000, calls=1)
        ('easy', 'medium')
        >>> Bands().band(tools=3, length=2000, calls=3), Bands().band(tools=1, length=10, calls=4)
        ('medium', 'hard')
    """

    easy_tools: int = 1
    easy_length: int = 1000
    easy_calls: int = 1
    hard_tools: int = 4
    hard_length: int = 2000
    hard_calls: int = 4

    def __post_init__(self) -> None:
        # Easy is `< easy_length` and hard `> hard_length`, so equal lengths cannot overlap; equal counts would.
        for name, low, high in (
            ("tools", self.easy_tools + 1, self.hard_tools),
            ("length", self.easy_length, self.hard_length),
            ("calls", self.easy_calls + 1, self.hard_calls),
        ):
            if high < low:
                raise ConfigError.at(
                    f"data.bands.hard_{name}",
                    high,
                    f"must be at least {low}, or a sample could be easy and hard",
                    f"Raise it or lower data.bands.easy_{name}",
                )

    def band(self, *, tools: int, length: int, calls: int) -> str:
        """The band of a sample with that many tools, characters of tool list, and calls needed."""
        if tools >= self.hard_tools or length > self.hard_length or calls >= self.hard_calls:
            return HARD
        if tools <= self.easy_tools and length < self.easy_length and calls <= self.easy_calls:
            return EASY
        return MEDIUM


PAPER = Bands()


def band_of(tools: Sequence[ToolSpec], target: Sequence[ToolCall], bands: Bands = PAPER) -> str:
    """The band of a sample with these tools and this target.

    Args:
        tools: The sample's tool list.
        target: The calls it asks for; empty when the right answer is text.
        bands: The thresholds.

    Returns:
        "easy", "medium" or "hard".

    Example:
        >>> band_of((ToolSpec(name="f"),), (ToolCall(name="f"),))
        'easy'
    """
    return bands.band(tools=len(tools), length=len(tools_to_text(tools)), calls=len(target))
