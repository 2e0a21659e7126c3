"""`data=reversed_openai` against a real server on loopback: faults, redirects, kills, and what is paid for."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.datasources.endpoint import SOLD, Server, serving
from tests.sources import dialogues, reversed_source
from ttpa.data.reversed.dialogues import OpenAIDialogues
from ttpa.data.source import read_split
from ttpa.errors import ConfigError
from ttpa.io import read_jsonl
from ttpa.records import Sample

pytest.importorskip("openai")
pytest.importorskip("datasketch")
ROOT = Path(__file__).resolve().parents[2]
KEY = "sk-very-secret-4711"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TTPA_TEST_KEY", KEY)
    with serving() as one:
        yield one


def source(server: Any, **more: Any) -> OpenAIDialogues:
    quick = {"base_url": server.url, "api_key_env": "TTPA_TEST_KEY", "timeout_s": 10.0, "concurrency": 3}
    return dialogues(OpenAIDialogues, "reversed_openai", **(quick | more))


def built(server: Server, folder: Path, **more: Any) -> dict[str, Any]:
    out = folder / "data-x.part"
    out.mkdir(parents=True, exist_ok=True)
    return source(server, **more).build(out)


def test_a_clean_run_gives_dialogues_that_are_paid_for_once(server: Server, tmp_path: Path) -> None:
    prices = {"gpt-4o-mini": [1.0, 2.0], "big": [10.0, 20.0]}
    metrics = built(server, tmp_path, strong_model="big", token_prices=prices)
    assert metrics["dialogues"] == {"train": 6, "validation": 2, "test": 2} and metrics["rejected"] == {}
    assert metrics["samples"]["warmup"] == 12 and metrics["calls"]["counts"] == {2: 10}
    assert len(server.sold) == len(set(server.sold)) == len(server.asked) == 50
    # 10 dialogues: a scenario, two calls and the answer by the small model, the question by the big one.
    assert metrics["usage"] == {"gpt-4o-mini": {"replies": 40, "prompt": 4000, "reply": 400},
                                "big": {"replies": 10, "prompt": 1000, "reply": 100}}  # fmt: skip
    assert metrics["dollars"] == pytest.approx((4000 * 1 + 400 * 2 + 1000 * 10 + 100 * 20) / 1e6)
    card = (tmp_path / "data-x.part" / "card.md").read_text()
    assert "| big | 10 | 1000 | 100 |" in card and "0.0168 dollars" in card and server.url not in card
    assert {path for path, *_ in server.asked} == {"/v1/chat/completions"}
    assert {key for _, key, *_ in server.asked} == {f"Bearer {KEY}"}
    again = built(server, tmp_path, similarity=0.95, strong_model="big")  # another gate, a data set begun anew
    assert len(server.asked) == 50 and again["content_sha256"] == metrics["content_sha256"]


def test_transport_faults_change_no_sample_and_buy_nothing_twice(server: Server, tmp_path: Path) -> None:
    clean = built(server, tmp_path / "clean")
    begun = len(server.asked)
    faults = ["500", "timeout", "cut", "broken", "429 0.2", "503", "429"]
    server.fault = lambda number, body: (
        faults[(number - begun) // 2] if (number - begun) % 2 == 0 and number - begun < 14 else ""
    )
    metrics = built(server, tmp_path / "faulty", timeout_s=1.0)
    assert metrics["content_sha256"] == clean["content_sha256"]
    told = Counter(fault for *_, fault in server.asked[begun:])
    assert set(faults) == set(told) - {""}
    kept = list(read_jsonl(next((tmp_path / "faulty" / "replies").glob("*.jsonl"))))
    assert len({row["key"] for row in kept}) == len(kept) == 50


def test_retry_after_is_kept_by_all_that_ask(server: Server, tmp_path: Path) -> None:
    server.fault = lambda number, body: "429 1" if number == 4 else ""
    built(server, tmp_path, samples=2, validation_samples=0, test_samples=0, concurrency=1)
    assert server.times[5] - server.times[4] >= 0.99


def test_replies_that_a_gate_refuses_are_asked_for_again_with_the_reason(server: Server, tmp_path: Path) -> None:
    odd = {1: "unknown", 5: "empty", 9: "prose"}
    server.fault = lambda number, body: odd.get(number, "")
    metrics = built(server, tmp_path, concurrency=1)
    assert metrics["dialogues"]["train"] == 6 and metrics["rejected"] == {}
    assert metrics["reasked"] == {"format": 2, "schema": 1}
    reasons = [body["messages"][-1]["content"] for _, _, body, _ in server.asked]
    assert any("There is no tool" in one for one in reasons) and any("it is empty" in one for one in reasons)


@pytest.mark.parametrize(("fault", "gate", "reason"), [
    ("mute", "grounding", "the message does not say"), ("leak", "tool_name", "contains the name of the tool"),
])  # fmt: skip
def test_a_question_that_hides_a_value_or_names_a_tool_is_written_again(
    fault: str, gate: str, reason: str, server: Server, tmp_path: Path
) -> None:
    server.fault = lambda number, body: fault if number == 4 else ""  # the first question
    more = {"samples": 2, "validation_samples": 0, "test_samples": 0, "concurrency": 1}
    metrics = built(server, tmp_path, **more)
    asked = [body for *_, body, _ in server.asked if body["response_format"]["json_schema"]["name"] == "question"]
    assert metrics["reasked"] == {gate: 1} and len(asked) == 3
    assert reason in asked[1]["messages"][-1]["content"] and metrics["dialogues"]["train"] == 2
    metrics = built(server, tmp_path, **more, script={"reasks": 0}, drafts_per_sample=4.0)
    assert metrics["rejected"][gate] == 1
    (row,) = read_jsonl(tmp_path / "data-x.part" / "rejected.jsonl")
    assert row["calls"] and row["answer"] and reason in row["problem"] and "question" in row["reply"]


def test_drafts_that_stay_bad_are_kept_with_their_reason(server: Server, tmp_path: Path) -> None:
    def fault(number: int, body: dict[str, Any]) -> str:
        role = body["response_format"]["json_schema"]["name"]
        return "unknown" if role == "call" and body["seed"] % 3 == 0 else ""

    server.fault = fault
    metrics = built(server, tmp_path, script={"reasks": 0}, drafts_per_sample=6.0)
    rejected = list(read_jsonl(tmp_path / "data-x.part" / "rejected.jsonl"))
    assert metrics["rejected"] == {"schema": len(rejected)} and len(rejected) > 2
    assert all(row["problem"] == 'There is no tool "launch_rocket".' and row["scenario"] for row in rejected)
    assert metrics["drafts"] >= metrics["rejected"]["schema"] + sum(metrics["dialogues"].values())


def test_an_endpoint_that_refuses_everybody_stops_the_run_and_one_request_a_draft(
    server: Server, tmp_path: Path
) -> None:
    server.fault = lambda number, body: "400"
    with pytest.raises(ConfigError, match=r"data\.base_url=http.*no reply can be had \(HTTP 400.*goes on"):
        built(server, tmp_path)
    assert len(server.asked) <= 3 and KEY not in str(list(tmp_path.rglob("*")))
    begun = len(server.asked)
    server.fault = lambda number, body: "400" if number == begun + 7 else ""
    assert built(server, tmp_path)["rejected"] == {"endpoint": 1}


@pytest.mark.parametrize("fault", ["redirect", "401", "404"])
def test_a_redirect_is_not_followed_and_the_key_is_in_nothing_that_is_written(
    fault: str, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    server.fault = lambda number, body: fault if number > 6 else ""
    with pytest.raises(ConfigError, match="no reply can be had") as raised:
        built(server, tmp_path)
    assert not server.elsewhere and KEY not in f"{raised.value}{caplog.text}"
    server.fault = lambda number, body: ""
    built(server, tmp_path)
    assert len(set(server.sold)) == len(server.sold)
    assert all(KEY not in path.read_text() for path in tmp_path.rglob("*") if path.is_file())


def test_a_server_that_is_gone_stops_the_run_after_its_retries(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no reply can be had"):
        built(server, tmp_path, base_url="http://127.0.0.1:9/v1", retries=1)


CHILD = """
import sys
from pathlib import Path
from tests.datasources.test_reversed_openai import source
from types import SimpleNamespace
out = Path(sys.argv[2]); out.mkdir(parents=True, exist_ok=True)
print(source(SimpleNamespace(url=sys.argv[1]), timeout_s=20.0).build(out)["content_sha256"])
"""


def test_a_killed_build_goes_on_and_pays_for_nothing_again(server: Server, tmp_path: Path) -> None:
    server.slow = 0.05
    env = {**os.environ, "TTPA_TEST_KEY": KEY}
    command = [sys.executable, "-c", CHILD, server.url, str(tmp_path / "a" / "data-x.part")]
    for more in (7, 25):
        before = len(server.asked)
        with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL) as child:
            deadline = time.monotonic() + 60
            while len(server.asked) < before + more and time.monotonic() < deadline:
                time.sleep(0.01)
            child.send_signal(signal.SIGKILL)
        assert len(server.asked) >= before + more
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True, timeout=120)
    kept = list(read_jsonl(next((tmp_path / "a" / "replies").glob("*.jsonl"))))
    assert len({row["key"] for row in kept}) == len(kept) == 50
    assert len(set(server.sold)) == 50 and len(server.sold) <= 50 + 2 * 3  # what was under way at a kill
    assert done.stdout.strip() == built(server, tmp_path / "b")["content_sha256"]


def test_two_builds_do_not_write_into_one_file_of_replies(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data-x.part").mkdir()
    writer = source(server).writer(tmp_path / "data-x.part")
    with pytest.raises(ConfigError, match=r"data\.model=gpt-4o-mini: another run buys"):
        built(server, tmp_path)
    writer.close()
    assert built(server, tmp_path)["dialogues"]["train"] == 6


def test_splits_share_no_tool_and_every_argument_is_said(server: Server, tmp_path: Path) -> None:
    built(server, tmp_path, samples=12, validation_samples=4, test_samples=4)
    splits = {name: read_split(tmp_path / "data-x.part", name) for name in ("warmup", "validation", "test")}
    tools = {name: {tool.name for sample in found for tool in sample.tools} for name, found in splits.items()}
    assert not tools["warmup"] & tools["test"] and not tools["warmup"] & tools["validation"]
    assert not tools["test"] & tools["validation"]
    for sample in (sample for found in splits.values() for sample in found):
        (call,), said = sample.target, " ".join(message.content for message in sample.messages)
        for value in call.arguments.values():
            parts = value if isinstance(value, list) else [value]
            assert all(isinstance(one, bool) or str(one) in said for one in parts)
        assert isinstance(sample, Sample) and sample.dialogue_id.startswith("reversed-")


def test_a_second_pass_rejects_what_the_judge_calls_bad(server: Server, tmp_path: Path) -> None:
    metrics = built(server, tmp_path, script={"judge": True}, judge_model="strict")
    assert metrics["rejected"]["judge"] > 0 and metrics["usage"]["strict"]["replies"] >= 10
    roles = Counter(body["response_format"]["json_schema"]["name"] for *_, body, fault in server.asked if fault in SOLD)
    assert roles["judge"] == metrics["drafts"]


def test_results_of_tools_that_cannot_run_are_written_and_marked(server: Server, tmp_path: Path) -> None:
    tools = [{"name": f"tool_{word}", "description": "Does it.", "inputSchema": {
        "type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]}}
        for word in "abcdefghijklmnopqrst"]  # fmt: skip
    (tmp_path / "mcp.json").write_text(json.dumps({"jsonrpc": "2.0", "id": 1, "result": {"tools": tools}}, indent=1))
    more = {"tools": [str(tmp_path / "mcp.json")], "validation_samples": 0, "test_samples": 0}
    with pytest.raises(ConfigError, match=r"no tool that can run.*written_results=true"):
        built(server, tmp_path, **more)
    metrics = built(server, tmp_path, **more, script={"written_results": True})
    samples = read_split(tmp_path / "data-x.part", "warmup")
    assert metrics["written_results"] == len(samples) == 12 and {one.tags for one in samples} == {("written_results",)}
    assert "12 results" in (tmp_path / "data-x.part" / "card.md").read_text()


@pytest.mark.parametrize(("more", "said"), [
    ({"tools": []}, r"^tools=\[\]: no tools are given"),
    ({"test_tools": 0.0}, r"^test_samples=2: needs tools of its own"),
    ({"validation_tools": 0.9}, r"^test_tools=0.1: leaves no tools for training"),
    ({"script": {"turns": [2, 4]}}, r"^turns=\[2, 4\]: leaves 1 calls"),
    ({"structured": "xml"}, r"^structured='xml': "),
])  # fmt: skip
def test_a_value_that_cannot_work_is_refused(more: dict[str, Any], said: str, server: Server) -> None:
    with pytest.raises(ConfigError, match=said):
        source(server, **more)


def test_an_address_with_a_login_is_refused_and_the_simulator_names_the_option(server: Server) -> None:
    with pytest.raises(ConfigError, match=r"base_url=http://\*\*\*@127.0.0.1.*holds a login") as raised:
        source(server, base_url=server.url.replace("//", "//me:hidden@")).check()
    assert "hidden" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"generator=openai: .* Type data=reversed_openai\."):
        reversed_source(generator="openai")


def test_how_fast_decides_no_sample(server: Server) -> None:
    quick = {"concurrency": 9, "retries": 1, "requests_per_minute": 60.0, "base_url": "http://elsewhere/v1"}
    one, other = source(server).identity(), source(server, **quick).identity()
    assert one == other and {one[key] for key in quick} == {None}


@pytest.mark.slow
def test_the_command_goes_on_after_a_kill_and_leaves_no_trace_of_the_key(server: Server, tmp_path: Path) -> None:
    server.slow = 0.02
    words = [
        "debug=smoke",
        "data=reversed",
        "data.generator=openai",
        "data.tools=[world]",
        "data.limit=6",
        "until=warmup",
    ]
    words += [f"data.base_url={server.url}", "data.api_key_env=TTPA_TEST_KEY", "data.concurrency=2"]
    command = [sys.executable, "-m", "ttpa.cli", *words]
    env = {**os.environ, "TTPA_TEST_KEY": KEY, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 120
        while len(server.asked) < 20 and time.monotonic() < deadline:
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
    server.fault = lambda number, body: "401" if number == 40 else ""
    stopped = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert stopped.returncode == 2 and "no reply can be had (HTTP 401" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "warm-up: done" in done.stdout
    assert len(set(server.sold)) == 90 and len(server.sold) <= 90 + 2
    texts = [stopped.stdout, stopped.stderr, done.stdout, done.stderr]
    texts += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(KEY in text for text in texts) and len(texts) > 10
    store = tmp_path / "debug" / "store"
    assert (next(store.glob("data-*")) / "card.md").is_file() and list((store / "replies").glob("gpt-4o-mini.jsonl"))
