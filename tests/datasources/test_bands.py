"""The difficulty bands against the paper's table, with the boundary values it leaves open."""

from __future__ import annotations

import pytest

from ttpa.data.bands import Bands, band_of
from ttpa.errors import ConfigError
from ttpa.records import ToolCall, ToolSpec, tools_to_text

TABLE = [
    # tools, length, calls, band
    (0, 2, 0, "easy"),
    (1, 999, 1, "easy"),
    (1, 1000, 1, "medium"),  # easy is strictly below 1000
    (1, 1001, 1, "medium"),
    (2, 10, 1, "medium"),  # each condition of easy is needed
    (1, 10, 2, "medium"),
    (3, 1999, 3, "medium"),
    (3, 2000, 3, "medium"),  # in no band of the paper: medium has < 2000, hard > 2000
    (1, 2000, 1, "medium"),
    (1, 2001, 1, "hard"),  # each condition of hard is enough
    (4, 10, 1, "hard"),
    (1, 10, 4, "hard"),
    (4, 2001, 4, "hard"),
    (9, 9999, 0, "hard"),
]


@pytest.mark.parametrize(("tools", "length", "calls", "band"), TABLE)
def test_table(tools: int, length: int, calls: int, band: str) -> None:
    assert Bands().band(tools=tools, length=length, calls=calls) == band


def tools_of_length(length: int) -> tuple[ToolSpec, ...]:
    """One tool whose list has exactly that many characters."""
    empty = len(tools_to_text([ToolSpec(name="f")]))
    return (ToolSpec(name="f", description="x" * (length - empty)),)


@pytest.mark.parametrize(("length", "band"), [(999, "easy"), (1000, "medium"), (2000, "medium"), (2001, "hard")])
def test_length_is_that_of_the_stored_tool_list(length: int, band: str) -> None:
    tools = tools_of_length(length)
    assert len(tools_to_text(tools)) == length
    assert band_of(tools, [ToolCall(name="f")]) == band


def test_length_counts_characters_not_bytes() -> None:
    tools = (ToolSpec(name="f", description="\u6f22" * 900),)
    assert len(tools_to_text(tools).encode()) > 2000
    assert band_of(tools, []) == "easy"


def test_thresholds_are_used() -> None:
    strict = Bands(easy_tools=0, easy_length=10, easy_calls=0, hard_tools=2, hard_length=500, hard_calls=2)
    assert band_of([ToolSpec(name="f")], [ToolCall(name="f")], strict) == "medium"
    assert band_of([ToolSpec(name="f"), ToolSpec(name="g")], [], strict) == "hard"


@pytest.mark.parametrize("wrong", [{"hard_tools": 1}, {"hard_length": 999}, {"hard_calls": 1}])
def test_overlapping_bands_are_refused(wrong: dict[str, int]) -> None:
    (key,) = wrong
    with pytest.raises(ConfigError, match=rf"data\.bands\.{key}={wrong[key]}: must be at least"):
        Bands(**wrong)
