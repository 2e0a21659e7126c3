"""A store written by hand, with every file that a report reads, and a reader of the page that is strict about HTML."""

import json
import re
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ttpa.io import write_jsonl, write_text
from ttpa.records import Candidate, Message, Pair, Sample, Score, ToolCall, ToolSpec
from ttpa.results.heldout import Heldout
from ttpa.results.report.report import main
from ttpa.run import config

NASTY = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x00\x1b[31m\u202e\ud800&amp;\"'{{7*7}}<!--<script>"
    "\u2028<svg onload=alert(3)><a href=javascript:alert(4)>\" onfocus=alert(5) '" + "W" * 300
)


class Lab:
    """Writes result rows and stages below a folder. `text` stands wherever a user or a model may write."""

    def __init__(self, root: Path) -> None:
        self.root, self.text, self.samples, self.made = root, "plain", 4, 0
        self.results, self.store = root / "results", root / "store"
        self.results.mkdir()
        self.stages: dict[str, str] = {}  # such as data/0 -> folder's name

    def folder(self, what: str) -> Path:
        return next(self.store / name for key, name in self.stages.items() if key.startswith(what))

    def stage(self, kind: str, what: str, inputs: Mapping[str, str] | None = None, pid: int = 1) -> str:
        """The folder's name; the same `what` is the same stage."""
        if f"{kind}/{what}" in self.stages:
            return self.stages[f"{kind}/{what}"]
        self.made += 1
        name = self.stages[f"{kind}/{what}"] = f"{kind}-{self.made:012x}"
        folder, second = self.store / name, f"2026-01-02T03:04:{self.made % 60:02d}+00:00"
        folder.mkdir(parents=True)
        made = {"started": second, "ended": second, "inputs": dict(inputs or {}), "packages": {"ttpa": "0"},
                "platform": self.text, "host": "h", "cpu": self.text, "cpu_count": 1, "gpu": None}  # fmt: skip
        files = {"provenance": made, "attempts": [{"pid": pid, "host": "h", "seconds": 1.0}], "done": {"seconds": 1.0},
                 "metrics": {"samples": {"explore": 40}} if kind == "data" else {}}  # fmt: skip
        for file, content in files.items():
            write_text(folder / f"{file}.json", json.dumps(content))
        getattr(self, f"_{kind}", lambda folder: None)(folder)
        return name

    def row(self, seed: int = 0, right: int = 2, settings: Mapping[str, Any] | None = None, **choices: str) -> Path:
        """A result row and its stages; `right` of the samples with seen tools are right, of the warm-up one."""
        chosen = {"data": "made", "model": "tiny", "warmup": "plain", "sampler": "tps", "objective": "dpo", **choices}
        cell = f"{seed}/{sorted(chosen.items())}/{sorted((settings or {}).items())}"
        data = self.stage("data", f"{seed}")
        warmup = self.stage("warmup", f"{seed}", {"data": data[-12:]})
        up = {"policy": warmup[-12:], "data": data[-12:]}
        explore = self.stage("explore", f"{seed}/{chosen['sampler']}", up, pid=2)
        align = self.stage("align", cell, {**up, "explore": explore[-12:]}, pid=2)
        start, last = self.stage("evaluate", f"{seed}", up), self.stage("evaluate", cell, up, pid=2)
        stages = {"data": data, "warmup": warmup, "baseline": start, "explore1": explore, "align1": align}
        stages["evaluation"] = last
        whole: dict[str, Any] = {group: {} for group in config.IDENTITY}
        whole["data"] = {"seed": seed, "noise": self.text.replace("\ud800", "")}
        for key, value in {"objective.name": chosen["objective"], **(settings or {})}.items():
            whole[key.partition(".")[0]][key.partition(".")[2]] = value
        self.made += 1
        row = {
            "run": f"{self.made:012x}", "row_version": 1, "name": "made", "seed": seed, "rounds": 1, "choices": chosen,
            "config": whole, "stages": stages, "versions": {"data": 1}, "baseline": self._answers(start, 1),
            "metrics": self._answers(last, right), "cost": {role: {"seconds": 2.0, "tokens": 30} for role in stages},
        }  # fmt: skip
        write_jsonl(file := self.results / f"made-{self.made:012x}.jsonl", [row])
        return file

    def sweep(self) -> None:
        """Two samplers, two objectives, two seeds, two amounts of data."""
        for seed in (0, 1):
            for sampler in ("tps", "mcts"):
                for number, objective in enumerate(("dpo", "rft")):
                    self.row(seed, 2 + number, {"select.limit": 20}, sampler=sampler, objective=objective)
            self.row(seed, 4, {"select.limit": None}, sampler="tps", objective="dpo")

    def _answers(self, stage: str, right: int) -> dict[str, Any]:
        """Answers of an evaluation, to seen tools and one to an unseen one; the last is wrong in two ways."""
        rows = []
        for k in range(self.samples + 1):
            unseen, exact = k == self.samples, k < right
            wrong = [] if exact else ["parameter_value", *["tool_name"] * (k >= self.samples - 1)]
            rows.append({"id": f"q{k}", "cluster": f"q{k}", "tags": ["unseen_tool"] * unseen, "exact": exact,
                         "band": "easy" if 2 * k < self.samples else "hard", "errors": wrong, "finish": "stop",
                         "tokens": 3, "text": f"[f(a={self.text})]"})  # fmt: skip
        write_jsonl(self.store / stage / "rows.jsonl", rows)
        return Heldout(split="test", max_new_tokens=8, limit=None).summarise(rows)

    # --- what stages leave behind ------------------------------------------------------------------------------------

    def _data(self, folder: Path) -> None:
        write_text(folder / "splits.json", json.dumps({"explore": "explore.jsonl", "test": "test.jsonl"}))
        same: dict[str, Any] = {"source": "lab", "target": (ToolCall(name="f", arguments={"a": self.text}),)}
        same["tools"] = (ToolSpec(name=f"tool {self.text}"), ToolSpec(name="second"))
        for split, letter, number in (("explore", "s", 6), ("test", "q", self.samples + 1)):
            said = {f"{letter}{k}": f"please {letter}{k} {self.text}" for k in range(number)}
            rows = [Sample(id=k, messages=(Message(role="user", content=text),), **same) for k, text in said.items()]
            write_jsonl(folder / f"{split}.jsonl", rows)

    def _explore(self, folder: Path) -> None:
        """Six samples, each with a right and a wrong answer, their pair and a tree."""
        good = Score(value=1.0, exact=True, detail={"name": 1.0, self.text: 1.0}, explanation=self.text)
        bad = Score(value=0.25, exact=False, detail={"name": 0.0}, explanation="wrong")
        how = {"parting": {"chosen": {"probability": 0.8187}}, "search": {"values": [0.9, 0.2]}}
        nodes = [(None, ""), (0, "[f("), (1, f"a={self.text}"), (1, f"b={self.text}")]
        same = {"tokens": 1, "prior": 0.5, "visits": 4, "value": 0.75}
        tree = [
            {"id": k, "parent": up, "text": text, "answers": [k % 2], "terminal": k > 1, **same}
            for k, (up, text) in enumerate(nodes)
        ]
        texts, logps = [f"[f({key}={self.text})]" for key in "ab"], ((-0.1, -0.2, 0.0), (-0.1, -1.5))
        rows, pairs = [], []
        for name in (f"s{k}" for k in range(6)):
            given = zip((0, 1), texts, ((5, 6, 7), (5, 8)), logps, strict=True)
            a, b = (Candidate(sample_id=name, index=k, text=t, token_ids=ids, logps=p) for k, t, ids, p in given)
            scored = {"candidates": [a.to_json(), b.to_json()], "scores": [good.to_json(), bad.to_json()]}
            rows.append({"id": name, **scored, "tree": tree, "counts": {"generated": 5}})
            scores = {"chosen_score": good, "rejected_score": bad}
            pairs.append(Pair(sample_id=name, chosen=a, rejected=b, **scores, provenance=how))
        write_jsonl(folder / "candidates.jsonl", rows)
        write_jsonl(folder / "pairs.jsonl", pairs)

    def _warmup(self, folder: Path) -> None:
        self.curve(folder, "loss,step\n" + "".join(f"{9 - k},{k}\n" for k in range(9)))

    def _align(self, folder: Path) -> None:
        self.curve(folder, "loss,reward,step\n" + "".join(f"{1 / (k + 1)},{k / 9},{k}\n" for k in range(9)))
        quoted = self.text.replace('"', '""')
        lines = [f'{step},s1,{k},{k},{k > 0},"{quoted}"\n' for step in (0, 1) for k in (0, 1)]
        table = "step,sample_id,answer,reward,exact,text\n" + "".join(lines)
        (folder / "answers.csv").write_text(table, encoding="utf-8", errors="backslashreplace")

    @staticmethod
    def curve(folder: Path, text: str, version: int = 0) -> None:
        """What the CSV logger wrote in one attempt."""
        logs = folder / "logs" / f"version_{version}"
        logs.mkdir(parents=True, exist_ok=True)
        write_text(logs / "metrics.csv", text)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


VOID, INLINE = {"img", "input", "link", "meta"}, {"span", "code", "mark", "button"}  # others would close a paragraph


class Html(HTMLParser):
    """Reads a page and asserts that every element is closed where it must be.

    `tags` are (name, attributes), `tables` caption -> rows of texts, `charts` and `trees` what the script draws,
    `answers` what its browser shows.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = self.css = ""
        self.tables: dict[str, list[list[str]]] = {}
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        self.sections = {given["id"] for tag, given in self.tags if tag == "section"}
        self.charts = [json.loads(given["data-chart"]) for _, given in self.tags if "data-chart" in given]
        self.trees = [json.loads(given["data-tree"]) for _, given in self.tags if "data-tree" in given]
        found = re.search(r'<script type="application/json" id="answers-data">(.*?)</script>', text, re.DOTALL)
        self.answers = json.loads(found[1]) if found else None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        assert len(attrs) == len(given), f"<{tag}> has an attribute twice: {attrs}"
        assert "p" not in self.open or tag in INLINE, f"<{tag}> inside of <p>, line {self.getpos()[0]}"
        self.tags.append((tag, given))
        if tag == "table":
            self.rows = self.tables[given["aria-label"]] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}, line {self.getpos()[0]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.css += data
        elif "script" not in self.open:
            self.text += data
            if "td" in self.open or "th" in self.open:
                self.rows[-1][-1] += data


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs the command in the lab's folder and gives the page's text."""
    monkeypatch.chdir(tmp_path)

    def run(target: str, **options: Any) -> str:
        assert main([target, "out=page.html", *(f"{key}={value}" for key, value in options.items())]) == 0
        return Path("page.html").read_text(encoding="utf-8")

    return run
