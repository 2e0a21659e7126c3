"""The held-out evaluation: which answers are right, and the shares it reports, counted by hand."""

import pytest

from ttpa.errors import ConfigError
from ttpa.records import Candidate, Message, Sample, ToolCall, ToolSpec
from ttpa.results.heldout import Heldout

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = ToolSpec(name="weather", description="", parameters=SCHEMA)
BERLIN, PARIS = (ToolCall(name="weather", arguments={"city": city}) for city in ("Berlin", "Paris"))
EVALUATION = Heldout(split="test", max_new_tokens=8, limit=None)


def sample(name: str, *target: ToolCall, band: str = "easy", tags: tuple[str, ...] = ()) -> Sample:
    question = (Message(role="user", content="?"),)
    text = None if target else "Hello"
    return Sample(id=name, source="toy", band=band, tags=tags, tools=(TOOL,), messages=question, target=target,
                  target_text=text)  # fmt: skip


def answer(name: str, *calls: ToolCall) -> Candidate:
    return Candidate(sample_id=name, index=0, text="...", token_ids=(1, 2), calls=calls)


def test_an_answer_is_right_when_its_calls_are_the_targets() -> None:
    """In any order; without a call where none is wanted; never where the text does not parse."""
    both = sample("a", BERLIN, PARIS)
    assert EVALUATION.judge(both, answer("a", PARIS, BERLIN))["exact"]
    wrong = EVALUATION.judge(sample("a", BERLIN), answer("a", PARIS))
    assert (wrong["exact"], wrong["errors"], wrong["tokens"]) == (False, ["parameter_value"], 2)
    assert EVALUATION.judge(sample("a"), answer("a"))["exact"]
    assert not EVALUATION.judge(sample("a"), answer("a", BERLIN))["exact"]
    unreadable = EVALUATION.judge(sample("a", BERLIN), Candidate(sample_id="a", index=0, text="[", error="no call"))
    assert (unreadable["exact"], unreadable["errors"]) == (False, ["format"])


def test_shares_leave_unseen_tools_out() -> None:
    """Three seen samples, two right; one unseen, wrong; one of three answers shows a wrong value."""
    rows = [
        EVALUATION.judge(sample("a", BERLIN), answer("a", BERLIN)),
        EVALUATION.judge(sample("b", BERLIN, band="hard"), answer("b", PARIS)),
        EVALUATION.judge(sample("c", PARIS, band="hard"), answer("c", PARIS)),
        EVALUATION.judge(sample("d", PARIS, tags=("unseen_tool",)), answer("d")),
    ]
    found = EVALUATION.summarise(rows)
    assert (found["accuracy"]["value"], found["accuracy"]["n"]) == (pytest.approx(2 / 3), 3)
    assert {band: one["value"] for band, one in found["bands"].items()} == {"easy": 1.0, "hard": 0.5}
    assert (found["unseen_tool"]["value"], found["split"]) == (0.0, "test")
    assert found["errors"]["parameter_value"]["value"] == pytest.approx(1 / 3)
    assert found["errors"]["format"]["value"] == 0.0 and EVALUATION.summarise(rows[:3])["unseen_tool"] is None


@pytest.mark.parametrize(
    ("changed", "said"), [({"split": "train"}, "split='train'"), ({"limit": 0}, "limit=0"), ({"lmit": 1}, "mean limit")]
)
def test_a_wrong_option_is_named(changed: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Heldout(**{"split": "test", "max_new_tokens": 8, "limit": None} | changed)  # type: ignore[arg-type]
