"""ToolBench through `ttpa score`, with a scripted endpoint below the HTTP client."""

import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.test_toolbench import ANSWERS, REFERENCE, SOLVABLE
from ttpa.benchmarks.score import main
from ttpa.benchmarks.toolbench.judge import Judge, JudgeKeys, Question, read_verdict
from ttpa.errors import ConfigError, DataError
from ttpa.io import read_jsonl, write_jsonl

openai = pytest.importorskip("openai")
library = openai.DefaultHttpxClient.__base__.__module__.partition(".")[0]
httpx = pytest.importorskip(library)  # the HTTP client below: httpx or httpx2

QUESTION = Question(prompt="?", field="status", choices=("solved", "unsure", "unsolved"))
URL = "http://localhost:8000/v1"


def completion(text: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


class Endpoint:
    """Says what it is told to: words, (status, body, headers), or an error of the network."""

    def __init__(self) -> None:
        self.said: Callable[[dict[str, Any]], Any] = lambda body: "solved"
        self.asked: list[dict[str, Any]] = []
        self.requests: list[Any] = []
        self.options: dict[str, Any] = {}  # of the client

    def __call__(self, request: Any) -> Any:
        self.requests.append(request)
        self.asked.append(json.loads(request.content))
        said = self.said(self.asked[-1])
        if isinstance(said, Exception):
            raise said
        status, reply, headers = said if isinstance(said, tuple) else (200, completion(said), {})
        return httpx.Response(status, content=reply, headers={"Content-Type": "application/json", **headers})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    made, client = Endpoint(), openai.DefaultHttpxClient
    transport = httpx.MockTransport(made)

    def make(**more: Any) -> Any:
        made.options = more
        return client(transport=transport, **more)

    monkeypatch.setattr(openai, "DefaultHttpxClient", make)
    return made


def judge(tmp_path: Path, **more: Any) -> Judge:
    return Judge(JudgeKeys(**{"base_url": URL, "model": "m", "retries": 0, "cache": str(tmp_path / "v.jsonl"), **more}))


def test_a_verdict_is_asked_once_and_survives_a_restart(server: Endpoint, tmp_path: Path) -> None:
    first = judge(tmp_path)
    assert [first.ask(QUESTION, vote) for vote in (0, 1, 0)] == ["solved", "solved", "solved"]
    assert first.requests == len(server.asked) == 2 and server.asked[1]["seed"] == 1
    settings = {"model": "m", "temperature": 0.2, "max_tokens": 512}
    assert server.asked[0] == {"messages": [{"role": "user", "content": "?"}], **settings, "seed": 0}
    assert str(server.requests[0].url) == f"{URL}/chat/completions"
    assert server.requests[0].extensions["timeout"]["read"] == 60
    second = judge(tmp_path)
    assert second.ask(QUESTION, 1) == "solved" and second.requests == 0 and len(server.asked) == 2
    second.stopped = True
    with pytest.raises(DataError, match="the judge was stopped"):
        second.ask(QUESTION, 2)


@pytest.mark.usefixtures("server")
def test_all_that_decides_a_verdict_is_in_its_key(tmp_path: Path) -> None:
    changes = ({}, {"temperature": 0.5}, {"max_tokens": 9}, {"model": "other"}, {"base_url": URL + "/x"})
    judges = [judge(tmp_path, **more) for more in changes]
    others = [QUESTION._replace(**more) for more in ({"prompt": "!"}, {"field": "task"}, {"choices": ("solved",)})]
    keys = [one.key(QUESTION, 0) for one in judges] + [judges[0].key(one, 0) for one in others]
    assert len({*keys, judges[0].key(QUESTION, 1)}) == 9
    assert judge(tmp_path, retries=9, timeout_s=1.0).key(QUESTION, 0) == keys[0]


@pytest.mark.parametrize("failure", [(503, b"", {}), httpx.ConnectError("refused")])
def test_a_failed_request_is_sent_again_and_then_stops_the_run(failure: Any, server: Endpoint, tmp_path: Path) -> None:
    replies = iter([failure, "unsolved"])
    server.said = lambda body: next(replies)
    one = judge(tmp_path, retries=1)
    assert one.ask(QUESTION, 0) == "unsolved" and len(server.asked) == one.requests == 2
    server.said = lambda body: failure
    with pytest.raises(DataError, match=r"base_url=.*cannot be asked \(.*\)\. Verdicts so far .*run the same command"):
        one.ask(QUESTION, 1)
    assert len(server.asked) == 4 and len((tmp_path / "v.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("reply", [b"<html>", b"[1]", b'{"choices": []}', b'{"choices": [{"message": null}]}',
                                   b"[" * 100_000])  # fmt: skip
def test_a_reply_that_is_no_chat_completion_stops_the_run(reply: bytes, server: Endpoint, tmp_path: Path) -> None:
    server.said = lambda body: (200, reply, {})
    with pytest.raises(DataError, match="cannot be asked .no chat completion came back"):
        judge(tmp_path).ask(QUESTION, 0)
    assert not (tmp_path / "v.jsonl").exists()


@pytest.mark.parametrize("status", [301, 302, 307])
def test_the_key_goes_to_no_other_host(
    status: int, server: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = {"OPENAI_API_KEY": "sk-other", "OPENAI_CUSTOM_HEADERS": "Authorization: Bearer sk-other\nX-Key: sk-other"}
    for name, value in {**theirs, "JUDGE_KEY": "sk-secret\n", "http_proxy": "http://proxy:1"}.items():
        monkeypatch.setenv(name, value)
    server.said = lambda body: (status, b"", {"Location": "http://thief.example.org/"})
    with pytest.raises(DataError, match=f"HTTP {status}"):
        judge(tmp_path, api_key_env="JUDGE_KEY").ask(QUESTION, 0)
    (request,) = server.requests
    assert request.headers["Authorization"] == "Bearer sk-secret" and "sk-other" not in str(request.headers.raw)
    assert server.options["mounts"] == {"http://": None}  # no proxy, which a scripted transport never has
    assert request.url.host == "localhost" and not (tmp_path / "v.jsonl").exists()
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(ConfigError, match=r"api_key_env=JUDGE_KEY: there is no such environment variable"):
        judge(tmp_path, api_key_env="JUDGE_KEY")


@pytest.mark.parametrize("login", ["user:pass-word@", "user:pass-word%2F@", "pass-word@", ""])
def test_no_message_shows_the_key_or_a_password(
    login: str, server: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    one = judge(tmp_path, base_url=URL.replace("//", f"//{login}"), api_key_env="JUDGE_KEY")
    assert one.key(QUESTION, 0) == judge(tmp_path).key(QUESTION, 0)  # which is stored
    body = f'{{"error": "bad key {" " * 1_975} sk-secret or {login.rpartition(":")[2]}."}}'.encode()
    server.said = lambda _: (401, body, {})
    with pytest.raises(DataError, match=f"base_url={URL}: .*HTTP 401: .*bad key .* or") as raised:
        one.ask(QUESTION, 0)
    assert not re.search("sk-s|pass-", f"{raised.value}{caplog.text}")
    assert server.requests[0].headers["Authorization"].split()[0] == ("Basic" if login else "Bearer")


@pytest.mark.parametrize("garbage", ["I think so.", None, "{" * 50_000])
def test_words_without_a_verdict_are_asked_again_and_then_kept(garbage: Any, server: Endpoint, tmp_path: Path) -> None:
    server.said = lambda body: (200, completion(garbage), {})
    one = judge(tmp_path, reasks=2)
    assert one.ask(QUESTION, 0) is None and len(server.asked) == 3
    again = judge(tmp_path, reasks=2)
    assert again.ask(QUESTION, 0) is None and again.requests == 0
    replies = iter(["?", '{"status": "Unsure"}'])
    server.said = lambda body: next(replies)
    assert one.ask(QUESTION, 1) == "unsure"


@pytest.mark.parametrize(("text", "choice"), [
    (" Unsolved.\n", "unsolved"),
    ('```json\n{"reason": "{x}", "status": "solved"}\n```', "solved"),
    ('It says {"status": "solved"}, yet: {"status": "unsolved"}', "unsolved"),
    ('{"status": "solved"} {"other": {"a": 1}}', "solved"),
    ("solved or unsolved", None),
    ('{"status": ["solved"]} {"status": "great"} \ud800', None),
])  # fmt: skip
def test_verdicts_in_words(text: str, choice: str | None) -> None:
    assert read_verdict(text, QUESTION) == choice


def test_a_torn_or_foreign_cache(server: Endpoint, tmp_path: Path) -> None:
    cache = tmp_path / "v.jsonl"
    judge(tmp_path).ask(QUESTION, 0)
    with cache.open("a") as file:
        file.write('{"key": "to')  # a kill in the middle of a write
    one = judge(tmp_path)
    assert [one.ask(QUESTION, vote) for vote in (0, 1)] == ["solved"] * 2 and len(server.asked) == 2
    assert [json.loads(line)["vote"] for line in cache.read_text().splitlines()] == [0, 1]
    cache.write_text(foreign := '{"key": "a", "text": "another file"}\n')
    with pytest.raises(ConfigError, match="cache=.*no verdict"):
        judge(tmp_path)
    assert cache.read_text() == foreign
    cache.write_text(json.dumps({"key": one.key(QUESTION, 0), "choice": "banana"}) + "\n")
    with pytest.raises(ConfigError, match=r"cache=.*v.jsonl: holds 'banana' where one of solved, .* Remove the line"):
        judge(tmp_path).ask(QUESTION, 0)


def words_of(body: dict[str, Any]) -> str:
    """Solved where the final answer is about Paris or trains; every query is solvable; ties."""
    prompt = body["messages"][0]["content"]
    if '"task"' in prompt:
        return "solvable"
    if '"better"' in prompt:
        return "tie"
    final = prompt.split("Its final answer:")[1]
    return "solved" if "12 degrees" in final or "late" in final else "unsolved"


def command(tmp_path: Path, **more: str) -> list[str]:
    base = {"benchmark": "toolbench", "outputs": str(ANSWERS), "base_url": URL, "model": "m", "retries": "0"}
    files = {"cache": str(tmp_path / "v.jsonl"), "out": str(tmp_path / "rows.jsonl")}
    return [f"{key}={value}" for key, value in {**base, **files, **more}.items()]


def rows_of(tmp_path: Path) -> list[dict[str, Any]]:
    return list(read_jsonl(tmp_path / "rows.jsonl"))


def test_a_folder_is_scored_and_a_second_run_asks_nothing(
    server: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.said = words_of
    words = command(tmp_path, measures="pass_rate,sopr,win_rate,sowr", reference=str(REFERENCE))
    assert main(words) == 0
    rows, shown = rows_of(tmp_path), capsys.readouterr().out
    assert [row["id"] for row in rows] == ["I1-Inst/101", "I1-Inst/102", "I1-Inst/103", "I1-Inst/104", "I3-Inst/7"]
    assert [row["pass_rate"] for row in rows] == [True, False, False, False, True]
    assert [row["sopr"] for row in rows] == [1, 0, 0, 0, 1]
    # 101 both solved: a tie. 102 both unsolved: a tie. 103 lost to a reference that passes. 104 and 7 have none.
    assert [row["win_rate"] for row in rows] == [row["sowr"] for row in rows] == ["tie", "tie", "lose", None, None]
    count = len(server.asked)
    # Status of 101, 102, 7 and three references; solvability of 102, 104 and one query more; two comparisons.
    assert count == 3 * (6 + 2 + 2) and len({json.dumps(body) for body in server.asked}) == count
    for said in ("I1-Inst", "0.4000 [", "win_rate, ties: 2", "answers without a reference: 2", f"{count} requests",
                 "answers without a Finish call: 1", "judge: m"):  # fmt: skip
        assert said in shown
    assert main([*words, "workers=1"]) == 0 and len(server.asked) == count and rows_of(tmp_path) == rows
    assert capsys.readouterr().out == shown.replace(f"{count} requests", "0 requests")


def test_solvable_limit_and_against(server: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.said = words_of
    assert main(command(tmp_path, solvable=str(SOLVABLE), subsets="I1-Inst")) == 0
    assert [row["id"] for row in rows_of(tmp_path)] == ["I1-Inst/101", "I1-Inst/103"]
    assert len(server.asked) == 3  # the status of 101; 103 has no Finish call
    assert "queries without an answer, in no number: 1" in capsys.readouterr().out
    assert main(command(tmp_path, limit="1")) == 0
    assert [row["id"] for row in rows_of(tmp_path)] == ["I1-Inst/101", "I3-Inst/7"]
    theirs = tmp_path / "theirs.jsonl"
    ids = [*(f"I1-Inst/{number}" for number in (101, 102, 103, 104)), "I3-Inst/7"]
    write_jsonl(theirs, [{"id": name, "exact": True} for name in ids])
    assert main(command(tmp_path, against=str(theirs))) == 0
    assert "outputs - against: -0.6000 [" in capsys.readouterr().out  # three of five fail, where theirs all pass


def test_an_endpoint_that_fails_on_the_way_loses_nothing_that_was_asked(
    server: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every fifth request is the end."""
    (tmp_path / "rows.jsonl").write_text("as it was")
    good, numbers = Counter[str](), itertools.count(1)

    def said(body: dict[str, Any]) -> Any:
        if next(numbers) % 5 == 0:
            return 400, b"no more", {}
        good[json.dumps(body)] += 1
        return words_of(body)

    server.said, stops = said, 0
    while main(command(tmp_path)) and stops < 50:
        assert "HTTP 400" in (error := capsys.readouterr().err) or "stopped" in error
        assert (tmp_path / "rows.jsonl").read_text() == "as it was"
        stops += 1
    assert stops > 1 and [row["pass_rate"] for row in rows_of(tmp_path)] == [True, False, False, False, True]
    assert set(good.values()) == {1} and len((tmp_path / "v.jsonl").read_text().splitlines()) == len(good)


@pytest.mark.parametrize(("word", "message"), [
    ("outputs=nowhere", r"outputs=nowhere: no answers to I1-Inst"), ("base_url=localhost", r"base_url=localhost: "),
    ("base_url=me:pass-word@localhost/v1", r"base_url=\*\*\*@localhost/v1: is no address"),
    ("base_url=http://me:pass-word@[::1/v1", r"base_url=http://\*\*\*@\[::1/v1: "),
    ("base_url=http://h/v1?key=pass-word", r"base_url=http://h/v1: .*without a query"),
    ("base_urll=http://me:pass-word@h/v1", r"base_urll=http://\*\*\*@h/v1: .*Did you mean base_url\?"),
    ("base_urll=http://h/v1?api-key=pass-word&a=1", r"base_urll=http://h/v1\?api-key=\*\*\*&a=1: "),
    ("votes=0", r"votes='0'"), ("measures=bleu", r"measures=bleu: .*pass_rate, sopr"),
    ("measures=sowr", r"Give reference="), ("subsets=I1-Inst,I1-Inst", r"subsets=I1-Inst,I1-Inst"),
    ("solvabel=red", r"Did you mean solvable\?"), ("out=/", r"out=/: cannot be written"),
    ("out=toolbench_verdicts.jsonl", r"out=.*is also read"),
])  # fmt: skip
def test_unusable_words_are_refused_before_anybody_is_asked(word: str, message: str, server: Endpoint) -> None:
    key, _, value = word.partition("=")
    keys = {"benchmark": "toolbench", "outputs": str(ANSWERS), "base_url": URL, "model": "m", key: value}
    with pytest.raises(ConfigError, match=message) as raised:
        main([f"{key}={value}" for key, value in keys.items()])
    assert not server.asked and "pass-word" not in str(raised.value)


def test_without_the_package_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigError, match=r"pip install 'ttpa\[judge\]'"):
        judge(tmp_path)
