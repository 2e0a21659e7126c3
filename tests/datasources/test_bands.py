"""The difficulty bands against the paper's table, with the boundary values it leaves open."""

import pytest

from tests.sources import bands
from ttpa.errors import ConfigError
from ttpa.records import ToolCall, ToolSpec, tools_to_text

TABLE = [  # tools, length, calls, band
    (0, 2, 0, "easy"), (1, 999, 1, "easy"), (1, 1000, 1, "medium"),  # easy is strictly below 1000
    (2, 10, 1, "medium"), (1, 10, 2, "medium"),  # each condition of easy is needed
    (3, 1999, 3, "medium"), (3, 2000, 3, "medium"),  # 2000 is in no band of the paper
    (1, 2001, 1, "hard"), (4, 10, 1, "hard"), (1, 10, 4, "hard"),  # each condition of hard is enough
]  # fmt: skip


@pytest.mark.parametrize(("tools", "length", "calls", "band"), TABLE)
def test_the_papers_table_by_the_stored_tool_list(tools: int, length: int, calls: int, band: str) -> None:
    """Length counts characters, not bytes."""
    specs = [ToolSpec(name="f")] * tools
    room = max(0, length - len(tools_to_text(specs)))
    if specs:
        specs[0] = ToolSpec(name="f", description="\u6f22" * room)
        assert room == 0 or len(tools_to_text(specs)) == length
    assert bands().band(specs, [ToolCall(name="f")] * calls) == band


@pytest.mark.parametrize("wrong", [{"hard_tools": 1}, {"hard_length": 999}, {"hard_calls": 1}])
def test_overlapping_bands_are_refused(wrong: dict[str, int]) -> None:
    (key,) = wrong
    with pytest.raises(ConfigError, match=rf"{key}={wrong[key]}: must be at least"):
        bands(**wrong)
