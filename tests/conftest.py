"""Fixtures that several test files share: a handful of samples, and a policy small enough for one thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ttpa.errors import FALLBACKS
from ttpa.records import Message, Sample, ToolCall, ToolSpec

if TYPE_CHECKING:
    from ttpa.policy.policy import Policy

WEATHER = ToolSpec(
    name="get_weather",
    description="Weather of a city.",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
)
ROOM = ToolSpec(
    name="book_room",
    description="Books a hotel room.",
    parameters={
        "type": "object",
        "properties": {"hotel": {"type": "string"}, "nights": {"type": "integer"}},
        "required": ["hotel", "nights"],
    },
)


@pytest.fixture(autouse=True)
def no_fallbacks() -> None:
    """What an earlier test fell back to is not this one's."""
    FALLBACKS.clear()


def _sample(number: int, question: str, calls: tuple[ToolCall, ...], band: str, text: str | None = None) -> Sample:
    return Sample(
        id=f"toy-{number}",
        dialogue_id=f"dialogue-{number // 2}",
        source="toy",
        band=band,
        tools=(WEATHER, ROOM),
        messages=(Message(role="user", content=question),),
        target=calls,
        target_text=text,
    )


@pytest.fixture(scope="session")
def toy_samples() -> tuple[Sample, ...]:
    """Six samples with the same two tools: five of one or two calls and a reply in words; two of each band."""
    paris = ToolCall(name="get_weather", arguments={"city": "Paris"})
    rome = ToolCall(name="get_weather", arguments={"city": "Rome", "days": 3})
    ritz = ToolCall(name="book_room", arguments={"hotel": "Ritz", "nights": 2})
    plaza = ToolCall(name="book_room", arguments={"hotel": "Plaza", "nights": 5})
    return (
        _sample(0, "Weather in Paris?", (paris,), "easy"),
        _sample(1, "Book the Ritz for 2 nights.", (ritz,), "easy"),
        _sample(2, "How will Rome be over the next 3 days?", (rome,), "medium"),
        _sample(3, "Please reserve a room at the Plaza, five nights in all.", (plaza,), "medium"),
        _sample(4, "Weather in Paris, and in Rome for 3 days. Then 2 nights at the Ritz.", (paris, rome, ritz), "hard"),
        _sample(5, "Thank you!", (), "hard", text="You are welcome."),
    )


@pytest.fixture
def tiny_policy(toy_samples: tuple[Sample, ...]) -> Policy:
    """The embedded model with hidden size 32 and one layer, untrained; its tokenizer has seen the toy samples."""
    from ttpa.calls.syntaxes import get_syntax
    from ttpa.policy.models import TinyModel
    from ttpa.policy.policy import create_policy
    from ttpa.prompts import compact_segments

    spec = TinyModel(
        hidden=32, layers=1, heads=4, feed_forward=64, vocab=340, max_tokens=256, dtype="float32",
        syntax="python_compact", template="compact",
    )  # fmt: skip
    syntax = get_syntax(spec.syntax)
    texts = [text for sample in toy_samples for _, text in compact_segments(sample, syntax)]
    texts += [syntax.print(sample.target) if sample.target else sample.target_text or "" for sample in toy_samples]
    return create_policy(spec, texts, seed=0)
