"""Dialogues of the script over BFCL's backends and of a local model: what holds for every sample; the data stage."""

import json
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import pytest

from tests.datasources.endpoint import scripted
from tests.sources import dialogues
from ttpa.calls.schema import check_call
from ttpa.data.reversed.dialogues import Dialogues, Job, PolicyDialogues, ScriptedDialogues
from ttpa.data.reversed.gates import GATES, Said, named_tool, ungrounded
from ttpa.data.reversed.sandbox import Sandbox
from ttpa.data.reversed.scenario import Draft, Script
from ttpa.data.reversed.tools import Limits, Session, read_source
from ttpa.data.reversed.writers import drive
from ttpa.data.source import read_split
from ttpa.errors import ConfigError, DataError
from ttpa.io import read_jsonl
from ttpa.policy.engine import Generated
from ttpa.records import Sample
from ttpa.run.parts import build_data
from ttpa.run.waves import LocalExecutor

pytest.importorskip("datasketch")
SPLITS = ("warmup", "validation", "test")


def backends() -> ScriptedDialogues:
    pytest.importorskip("bfcl_eval", reason="pip install --no-deps bfcl-eval==2026.3.23 mpmath")
    sizes = {"samples": 30, "validation_samples": 4, "test_samples": 4, "text_turns": True}
    return dialogues(ScriptedDialogues, "reversed_bfcl", tools=["bfcl:all"], **sizes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ScriptedDialogues, Path, dict[str, Any]]:
    source, out = backends(), tmp_path_factory.mktemp("bfcl")
    return source, out, source.build(out)


def every(out: Path) -> list[Sample]:
    return [sample for split in SPLITS for sample in read_split(out, split)]


def test_every_sample_runs_to_its_recorded_results(made: Any) -> None:
    source, out, metrics = made
    assert metrics["dialogues"] == {"train": 30, "validation": 4, "test": 4}
    sandbox, checked = Sandbox(), 0
    for sample in (sample for sample in every(out) if sample.target_text is not None):
        _, split, number = sample.dialogue_id.split("-")
        session = _session(source, Job(split, int(number)), sandbox)
        calls = [call for message in sample.messages for call in message.calls]
        told = [message.content for message in sample.messages if message.role == "tool"]
        assert [session.run(call).text for call in calls] == told and len(calls) >= 2
        checked += len(calls)
    sandbox.close()
    assert checked == sum(n * count for n, count in metrics["calls"]["counts"].items())


def _session(source: Dialogues, job: Job, sandbox: Sandbox) -> Any:
    """A session with the tools and the state of a draft, before its first call."""
    draft: Any = source.start(job, sandbox).gi_frame.f_locals["self"]
    assert isinstance(draft, Draft)
    return draft.session(source.by_split[job.split])


def test_every_argument_is_grounded_and_no_question_names_a_tool(made: Any) -> None:
    for sample in every(made[1]):
        question = sample.messages[0].content
        assert sample.messages[0].role == "user" and named_tool(question, [tool.name for tool in sample.tools]) is None
        for call in sample.target:
            assert not check_call(call, sample.tools)
            told = [message.content for message in sample.messages if message.role == "tool"]
            assert ungrounded(call.arguments, Said(question, *told)) is None


def test_the_splits_share_no_tool_and_no_question(made: Any) -> None:
    found = {split: read_split(made[1], split) for split in SPLITS}
    tools = {split: {tool.name for one in samples for tool in one.tools} for split, samples in found.items()}
    assert all(not tools[a] & tools[b] for a in SPLITS for b in SPLITS if a != b)
    questions = Counter(
        one.messages[0].content for samples in found.values() for one in samples if not one.messages[1:]
    )
    assert set(questions.values()) == {1}


def test_every_draft_is_kept_or_rejected_with_a_reason_and_the_card_counts_them(made: Any) -> None:
    _, out, metrics = made
    rejected = list(read_jsonl(out / "rejected.jsonl"))
    assert len(rejected) > 3 and all(row["gate"] in GATES and row["problem"] for row in rejected)
    assert Counter(row["gate"] for row in rejected) == metrics["rejected"]
    assert {row["id"] for row in rejected}.isdisjoint(one.dialogue_id.removeprefix("reversed-") for one in every(out))
    card = (out / "card.md").read_text()
    assert f"{metrics['drafts']} drafts, 38 kept" in card and "No model was asked." in card
    written = {
        "splits.json",
        "card.json",
        "card.md",
        "rejected.jsonl",
        *(f"{split}.jsonl" for split in metrics["wanted"]),
    }
    assert {path.name for path in out.iterdir()} == written


def test_the_same_seed_gives_the_same_bytes_in_waves_of_an_executor(made: Any, tmp_path: Path) -> None:
    parts: Any = SimpleNamespace(data=backends(), executor=LocalExecutor())
    assert build_data(parts, tmp_path, lambda *_: None) == made[2]


class Engine:
    """Answers prompts, which are texts here, as the script of the test's server does."""

    rows = 4

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    def __call__(self, policy: Any) -> "Engine":
        return self

    def generate(self, prompts: Any, n: int, sampling: Any, seeds: Any) -> list[list[Generated]]:
        assert n == 1 and sampling.max_new_tokens == 64
        texts = [json.dumps(scripted({**self.bodies[ids[0]], "seed": crc32(seed.encode())})) for ids, seed in
                 zip(prompts, seeds, strict=True)]  # fmt: skip
        return [[Generated(token_ids=list(map(ord, "Sure. " + text)))] for text in texts]

    def reset(self) -> None: ...
    def close(self) -> None: ...


def by_hand(replies: list[Any], module: str = "tests.datasources.shop", **script: Any) -> dict[str, Any]:
    """The row of a draft over a user's functions whose writer replies with these objects, in turn."""
    tools, sandbox, said = read_source(f"python:{module}").tools, Sandbox(), iter(replies)
    session = partial(Session, states={}, limits=Limits(2.0, 512, 500), sandbox=sandbox)
    values = {"window": 20, "offered": [2, 10], "facts": [1, 7], "turns": [4, 4], "least_tools": 2, "reasks": 0,
              "show_arguments": True, "written_results": False, "judge": False}  # fmt: skip
    row = drive(Draft(Script(**(values | script)), tools, {}, session, "s").write(), lambda ask: json.dumps(next(said)))
    sandbox.close()
    return row


SCENE = {"scenario": "buying a boat", "facts": ["The harbour opens at 9"], "tools": ["price_of", "fails", "sees_key",
         "prints_and_is_random"]}  # fmt: skip


def step(name: str, **arguments: Any) -> dict[str, Any]:
    return {"tool": name, "arguments": arguments}


def test_a_dialogue_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTPA_ALLOW", "tests")
    price, key = step("price_of", item="boat"), step("sees_key")
    told, asked = step("answer", text="The boat costs 6."), {"question": "What does a boat cost, and what is the key?"}
    row = by_hand([SCENE, price, step("fails", code=3), key, told, asked])
    assert "gate" not in row and row["question"] == asked["question"] and row["answer"] == "The boat costs 6."
    # The call that failed is told to the writer and not kept.
    assert [call["name"] for call in row["calls"]] == ["price_of", "sees_key"]
    assert [result["text"] for result in row["results"]][1] == "nothing"
    ends = {
        "calls": [SCENE, price, told],
        "restart": [SCENE, price, step("restart", reason="no way")],
        "schema": [SCENE, step("price_of", item=3)],
        "repeated": [SCENE, price, price],
        "answer": [SCENE, price, key, step("answer", text="The boat costs 700.")],
        "grounding": [SCENE, price, key, told, {"question": "What does it cost, and what is the key?"}],
        "tool_name": [SCENE, price, key, told, {"question": "What is the price of a boat?"}],
        "scenario": [{**SCENE, "scenario": "using price_of"}],
        "replay": [SCENE, price, step("prints_and_is_random"), told, asked],
        "format": [SCENE, price, key, {"tool": ["x"]}],
    }
    assert {gate: by_hand(replies)["gate"] for gate, replies in ends.items()} == {gate: gate for gate in ends}
    judged = [SCENE, price, key, told, asked, {"good": False, "reason": "dull"}]
    assert by_hand(judged, judge=True)["problem"] == "dull"


ROLES = {"practice material": "scenario", "solves a task": "call", "Write the message": "question"}


@pytest.mark.parametrize("room", [2000, 3])
def test_a_local_model_writes_through_the_engine(room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine and the renderer are stand-ins; prompts, gates and waves are the real ones."""
    engine = Engine()

    def try_prompts(samples: list[Sample]) -> list[list[int]]:
        for sample in samples:
            said = [{"role": message.role, "content": message.content} for message in sample.messages]
            role = next(one for words, one in ROLES.items() if words in said[0]["content"])
            names = [json.loads(line)["name"] for line in said[0]["content"].splitlines() if line.startswith('{"name"')]
            schema = {"properties": {"tools": {"items": {"enum": names}}}}
            engine.bodies.append(
                {"messages": said, "response_format": {"json_schema": {"name": role, "schema": schema}}}
            )
        return [[at] * 5 for at in range(len(engine.bodies) - len(samples), len(engine.bodies))]

    renderer = SimpleNamespace(try_prompts=try_prompts, text=lambda ids: "".join(map(chr, ids)))
    policy = SimpleNamespace(renderer=renderer, spec=SimpleNamespace(max_tokens=64 + room))
    monkeypatch.setattr("ttpa.policy.policy.create_policy", lambda spec, texts, seed: policy)
    source = dialogues(PolicyDialogues, "reversed_policy", model="some/model", engine=engine, max_tokens=64)
    if room == 3:  # no prompt fits
        with pytest.raises(DataError, match=r"no dialogue passed the gates \(endpoint 30\).*the prompt has 5 tokens"):
            source.build(tmp_path)
        return
    metrics = source.build(tmp_path)
    assert metrics["dialogues"] == {"train": 6, "validation": 2, "test": 2} and not metrics["rejected"]
    assert metrics["usage"]["some/model"]["replies"] == 50 and metrics["usage"]["some/model"]["prompt"] == 250


def test_a_book_of_phrases_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "book.yaml").write_text("Shop: {tools: []}")
    with pytest.raises(ConfigError, match=r"data\.phrases=.*is no book of phrases"):
        dialogues(ScriptedDialogues, "reversed_bfcl", phrases=str(tmp_path / "book.yaml")).check()
        dialogues(ScriptedDialogues, "reversed_bfcl", phrases=str(tmp_path / "book.yaml")).identity()


def test_bounds_of_a_script() -> None:
    values = {"window": 20, "offered": [7, 10], "facts": [4, 7], "turns": [4, 7], "least_tools": 2, "reasks": 0,
              "show_arguments": True, "written_results": False, "judge": False}  # fmt: skip
    assert Script(**values).turns == [4, 7]
    with pytest.raises(ConfigError, match=r"facts=\[5, 4\]"):
        Script(**(values | {"facts": [5, 4]}))
