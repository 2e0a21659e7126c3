"""A folder of answers scored end to end with a judge behind a loopback server, and the command."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.test_toolbench import ANSWERS, REFERENCE, SOLVABLE
from tests.benchmarks.test_toolbench_judge import Server, endpoint, server
from ttpa.benchmarks.toolbench import Endpoint, Judge, ToolBench, score_folder
from ttpa.benchmarks.toolbench.cli import score, table
from ttpa.benchmarks.toolbench.scoring import summarise
from ttpa.errors import ConfigError, DataError
from ttpa.records import Candidate, Sample
from ttpa.results.stats import paired_difference

__all__ = ["server"]  # a fixture


def options(server: Server, path: Path = ANSWERS, **more: Any) -> ToolBench:
    chosen = {"endpoint": endpoint(server), "workers": 3, **more}
    return ToolBench(path=str(path), **chosen)


# --- a folder, end to end --------------------------------------------------------------------------------------------


def words_of(body: dict[str, Any]) -> str:
    """Solved where the final answer is about Paris or trains; every query is solvable; ties."""
    prompt = body["messages"][0]["content"]
    if '"task"' in prompt:
        return '{"reason": "yes", "task": "solvable"}'
    if '"better"' in prompt:
        return '{"reason": "same", "better": "tie"}'
    final = prompt.split("Its final answer:")[1]
    return json.dumps({"reason": "so", "status": "solved" if "12 degrees" in final or "late" in final else "unsolved"})


def test_a_folder_is_scored_and_a_second_run_asks_nothing(server: Server, tmp_path: Path) -> None:
    server.said = words_of
    wanted = options(server, measures=("pass_rate", "sopr", "win_rate", "sowr"), reference=str(REFERENCE), votes=3)
    rows, summary = score_folder(wanted, Judge(wanted.endpoint, tmp_path / "v.jsonl"))
    assert [row["id"] for row in rows] == ["I1-Inst/101", "I1-Inst/102", "I1-Inst/103", "I1-Inst/104", "I3-Inst/7"]
    assert [row["pass_rate"] for row in rows] == [True, False, False, False, True]
    assert [row["sopr"] for row in rows] == [1, 0, 0, 0, 1]
    # 101 both solved: a tie. 102 both unsolved: a tie. 103 lost to a reference that passes. 104 and 7 have none.
    assert [row["win_rate"] for row in rows] == [row["sowr"] for row in rows] == ["tie", "tie", "lose", None, None]
    assert (summary["accuracy"]["value"], summary["unreferenced"], summary["missing"]) == (0.4, 2, None)
    assert (summary["no_finish_call"], summary["malformed"], summary["judge"]) == (1, 0, "m")
    assert summary["errors"]["tool_name"]["value"] == 0.2
    count = len(server.asked)
    # Status of 101, 102, 7 and three references; solvability of 102, 104 and one query more; two comparisons.
    assert count == 3 * (6 + 2 + 2) and len({json.dumps(body) for body in server.asked}) == count
    again = Judge(wanted.endpoint, tmp_path / "v.jsonl")
    assert score_folder(wanted, again) == (rows, summary) and again.requests == 0 and len(server.asked) == count
    one = score_folder(options(server, measures=wanted.measures, reference=str(REFERENCE), workers=1), again)
    assert one == (rows, summary) and again.requests == 0


def test_only_solvable_queries_count_where_a_list_says_which(server: Server, tmp_path: Path) -> None:
    server.said = words_of
    wanted = options(server, solvable=str(SOLVABLE), subsets=("I1-Inst",))
    rows, summary = score_folder(wanted, Judge(wanted.endpoint, tmp_path / "v.jsonl"))
    assert [row["id"] for row in rows] == ["I1-Inst/101", "I1-Inst/103"] and summary["missing"] == {"I1-Inst": 1}
    assert len(server.asked) == 3  # the status of 101; 103 has no Finish call
    rows, _ = score_folder(options(server, limit=1), Judge(endpoint(server), tmp_path / "v.jsonl"))
    assert [row["id"] for row in rows] == ["I1-Inst/101", "I3-Inst/7"]


def test_an_endpoint_that_fails_on_the_way_loses_nothing_that_was_asked(server: Server, tmp_path: Path) -> None:
    """Every fifth request is the end: runs go on where the last one stopped, and no verdict is asked for twice."""
    cache, good = tmp_path / "v.jsonl", Counter[str]()
    numbers = itertools.count(1)

    def said(body: dict[str, Any]) -> Any:
        if next(numbers) % 5 == 0:
            return 400, b"no more"
        good[json.dumps(body)] += 1
        return words_of(body)

    server.said = said
    wanted, stops = options(server, votes=3), 0
    while stops < 50:
        try:
            rows, _ = score_folder(wanted, Judge(wanted.endpoint, cache))
            break
        except DataError as error:
            assert "HTTP 400" in str(error) or "stopped" in str(error)
            stops += 1
    assert stops > 1 and [row["pass_rate"] for row in rows] == [True, False, False, False, True]
    assert set(good.values()) == {1} and len(cache.read_text().splitlines()) == len(good)


def test_two_sets_of_answers_are_compared_query_by_query(server: Server, tmp_path: Path) -> None:
    server.said = words_of
    cells = []
    for path in (ANSWERS, REFERENCE):
        rows, _ = score_folder(options(server, path, subsets=("I1-Inst",)), Judge(endpoint(server), tmp_path / "v"))
        cells.append({row["id"]: float(row["exact"]) for row in rows if row["id"] != "I1-Inst/104"})
    clusters = {name: name for name in cells[0]}
    assert paired_difference(*cells, clusters)[0] == pytest.approx(-1 / 3)  # 103


def test_a_kill_loses_no_verdict_but_the_one_on_its_way(server: Server, tmp_path: Path) -> None:
    third = threading.Event()

    def said(body: dict[str, Any]) -> Any:
        if len(server.asked) < 3:
            return words_of(body)
        third.set()
        time.sleep(5)

    server.said = said
    code = "import sys, json; from ttpa.benchmarks.toolbench.cli import score; score(json.loads(sys.argv[1]))"
    given = command(server, tmp_path, workers="1")
    process = subprocess.Popen([sys.executable, "-c", code, json.dumps(given)], stderr=subprocess.PIPE)
    assert third.wait(60)
    process.kill()
    process.communicate(timeout=30)
    assert len((tmp_path / "v.jsonl").read_text().splitlines()) == 2 and not (tmp_path / "rows.jsonl").exists()
    before, server.said = [json.dumps(body) for body in server.asked[:2]], words_of
    score(given)
    after = [json.dumps(body) for body in server.asked[3:]]
    assert not set(before) & set(after) and json.dumps(server.asked[2]) == after[0]
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 5


# --- the command -----------------------------------------------------------------------------------------------------


def command(server: Server, tmp_path: Path, **more: str) -> dict[str, str]:
    base = {"benchmark": "toolbench", "outputs": str(ANSWERS), "base_url": server.url, "model": "m"}
    return {**base, "cache": str(tmp_path / "v.jsonl"), "out": str(tmp_path / "rows.jsonl"), **more}


def test_the_command_prints_a_table_and_writes_a_row_a_query(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.said = words_of
    score(command(server, tmp_path, reference=str(REFERENCE), measures="pass_rate,win_rate", votes="1"))
    shown = capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and {"id", "cluster", "exact", "errors"} <= rows[0].keys()
    assert "I1-Inst" in shown and "I2-Cat" not in shown and "0.4000 [" in shown and "sopr" not in shown
    assert f"{len(server.asked)} requests" in shown and "win_rate, ties: 2" in shown
    score(command(server, tmp_path, reference=str(REFERENCE), measures="pass_rate,win_rate", votes="1"))
    assert capsys.readouterr().out == shown.replace(f"{len(server.asked)} requests", "0 requests")


def test_the_command_compares_with_the_rows_of_another_policy(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ours pass where `score_folder` says so; theirs pass everywhere: minus the share that fails."""
    server.said = words_of
    score(command(server, tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    theirs = tmp_path / "theirs.jsonl"
    theirs.write_text("".join(json.dumps({"id": row["id"], "exact": True}) + "\n" for row in rows))
    capsys.readouterr()
    score(command(server, tmp_path, against=str(theirs)))
    fails = sum(not row["exact"] for row in rows) / len(rows)
    assert 0 < fails < 1 and f"outputs - against: {-fails:+.4f} [" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="is also read"):
        score(command(server, tmp_path, against=str(theirs), out=str(theirs)))


def test_an_error_leaves_the_rows_as_they_were_and_keeps_the_verdicts(server: Server, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("as it was")
    replies = itertools.count()
    server.said = lambda body: words_of(body) if next(replies) < 2 else (400, b"")
    with pytest.raises(DataError, match="cannot be asked|stopped"):
        score(command(server, tmp_path, workers="1"))
    assert (tmp_path / "rows.jsonl").read_text() == "as it was"
    assert len((tmp_path / "v.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"outputs": ""}, r"outputs=: is missing"),
        ({"outputs": "nowhere"}, r"outputs=nowhere: no such folder"),
        ({"outputs": str(SOLVABLE.parent)}, r"outputs=.*no answers to I1-Inst"),
        ({"model": ""}, r"model=: is missing"),
        ({"base_url": "localhost"}, r"^base_url=localhost: must be an http address"),
        ({"votes": "0"}, r"^votes=0: must be at least 1"),
        ({"limit": "0"}, r"^limit=0: must be at least 1"),
        ({"votes": "x"}, r"^votes=x: is no number"),
        ({"temperature": "nan"}, r"^temperature=nan: must be a number"),
        ({"measures": "bleu"}, r"^measures=.*pass_rate, sopr"),
        ({"measures": "sowr"}, r"^reference=None: .*compare"),
        ({"subsets": "I4"}, r"^subsets=.*I1-Inst"),
        ({"colour": "red"}, r"colour=red: unknown key.*outputs"),
        ({"out": "/"}, r"out=/: cannot be written"),
    ],
)
def test_words_that_cannot_be_used_are_refused_before_anybody_is_asked(
    more: dict[str, str], message: str, server: Server, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        score(command(server, tmp_path, **more))
    assert not server.asked


def test_rows_and_verdicts_are_two_files(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is the file of verdicts"):
        score(command(server, tmp_path, out=str(tmp_path / "v.jsonl")))


def test_as_a_benchmark_of_a_run_it_says_what_to_do_instead() -> None:
    made = ToolBench(path="x", endpoint=Endpoint(base_url="http://localhost/v1", model="m"))
    sample = Sample(id="a", tools=(), messages=(), target=(), source="toolbench")
    candidate = Candidate(sample_id="a", index=0, text="")
    for refused in (
        made.check, lambda: made.samples(Path()), lambda: made.judge(sample, candidate), lambda: made.dialogue(sample),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"tool server\. Score finished answers with `ttpa-score benchmark=toolb"):
            refused()
    assert made.identity() == {} and made.max_new_tokens == 0


def test_a_table_without_numbers_shows_dashes() -> None:
    empty = {**summarise([]), "votes": 3, "judge": "m", "missing": {"I1-Inst": 2}, "unreferenced": None}
    shown = table(empty, ("sopr", "sowr"))
    assert " - " in shown.replace("\n", " ") and "in no number: 2" in shown and "reference" not in shown
