"""A store written by hand, with every file that a report reads, and a reader of the page that is strict about HTML."""

from __future__ import annotations

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
from ttpa.run import config

NASTY = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x00\x1b[31m\u202e\ud800&amp;\"'{{7*7}}" + "W" * 300
)


class Lab:
    """Writes result rows and stages below a folder. `text` stands wherever a user or a model may write."""

    def __init__(self, root: Path, text: str = "plain") -> None:
        self.root, self.text, self.samples = root, text, 4
        self.results, self.store = root / "results", root / "store"
        self.stages: dict[str, str] = {}
        self.made = 0

    def stage(self, kind: str, what: str, inputs: Mapping[str, str] | None = None, pid: int = 1) -> str:
        """The folder's name; the same `what` is the same stage."""
        if f"{kind}/{what}" in self.stages:
            return self.stages[f"{kind}/{what}"]
        self.made += 1
        name = self.stages[f"{kind}/{what}"] = f"{kind}-{self.made:012x}"
        folder = self.store / name
        folder.mkdir(parents=True)
        second = f"2026-01-02T03:04:{self.made % 60:02d}+00:00"
        made_with = {"commit": None, "dirty": None, "packages": {"ttpa": "0"}, "python": "3", "platform": self.text,
                     "host": "h", "cpu": self.text, "cpu_count": 1, "gpu": None}  # fmt: skip
        found = {"started": second, "ended": second, "inputs": dict(inputs or {}), **made_with}
        write_text(folder / "provenance.json", json.dumps(found))
        write_text(folder / "attempts.json", json.dumps([{"pid": pid, "host": "h", "seconds": 1.0}]))
        write_text(folder / "metrics.json", json.dumps({"samples": {"explore": 40}} if kind == "data" else {}))
        write_text(folder / "done.json", json.dumps({"seconds": 1.0}))
        getattr(self, f"_{kind}", lambda folder: None)(folder)
        return name

    def row(self, seed: int = 0, right: int = 2, settings: Mapping[str, Any] | None = None, **choices: str) -> Path:
        """A result row and its stages. Groups that are not named are the same in every row; `right` of the samples with
        seen tools are answered right, of the warm-up one.
        """
        chosen = {"data": "made", "model": "tiny", "warmup": "plain", "select": "all", "sampler": "tps",
                  "scorer": "esm", "pairs": "verified", "objective": "dpo", "eval": "heldout", **choices}  # fmt: skip
        cell = f"{sorted(chosen.items())}/{sorted((settings or {}).items())}"
        data = self.stage("data", f"{seed}")
        start = f"{seed}/{chosen['warmup']}"
        warmup = self.stage("warmup", start, {"data": data[-12:]})
        up = {"policy": warmup[-12:], "data": data[-12:]}
        explore = self.stage("explore", f"{seed}/{chosen['sampler']}", up, pid=2)
        align = self.stage("align", f"{seed}/{cell}", {**up, "explore": explore[-12:]}, pid=2)
        stages = {"data": data, "warmup": warmup, "baseline": self.stage("evaluate", start, up), "explore1": explore,
                  "align1": align, "evaluation": self.stage("evaluate", f"{seed}/{cell}", up, pid=2)}  # fmt: skip
        whole: dict[str, Any] = {group: {} for group in config.IDENTITY}
        whole |= {
            "data": {"seed": seed, "noise": self.text.replace("\ud800", "")},
            "objective": {"name": chosen["objective"]},
        }
        for key, value in (settings or {}).items():
            group, _, name = key.partition(".")
            whole.setdefault(group, {})[name] = value
        self.made += 1
        row = {"run": f"{self.made:012x}", "row_version": 1, "name": "made", "seed": seed, "rounds": 1,
               "choices": chosen, "config": whole, "stages": stages, "versions": {"data": 1},
               "baseline": self._answers(stages["baseline"], 1), "metrics": self._answers(stages["evaluation"], right),
               "explored": {}, "cost": {role: {"seconds": 2.0, "tokens": 30} for role in stages}}  # fmt: skip
        self.results.mkdir(exist_ok=True)
        file = self.results / f"made-{self.made:012x}.jsonl"
        write_jsonl(file, [row])
        return file

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
        tools = (ToolSpec(name=f"tool {self.text}"), ToolSpec(name="second"))
        target = (ToolCall(name="f", arguments={"a": self.text}),)
        for split, letter, number in (("explore", "s", 6), ("test", "q", self.samples + 1)):
            names = [f"{letter}{k}" for k in range(number)]
            said = [(Message(role="user", content=f"please {name} {self.text}"),) for name in names]
            rows = [Sample(id=name, source="lab", tools=tools, messages=one, target=target)
                    for name, one in zip(names, said, strict=True)]  # fmt: skip
            write_jsonl(folder / f"{split}.jsonl", rows)

    def _explore(self, folder: Path) -> None:
        rows = [self._explored(f"s{k}") for k in range(6)]
        write_jsonl(folder / "candidates.jsonl", rows)
        write_jsonl(folder / "pairs.jsonl", [pair for row in rows for pair in row["pairs"]])

    def _explored(self, name: str) -> dict[str, Any]:
        good = Candidate(
            sample_id=name, index=0, text=f"[f(a={self.text})]", token_ids=(5, 6, 7), logps=(-0.1, -0.2, 0.0)
        )
        bad = Candidate(sample_id=name, index=1, text=f"[f(b={self.text})]", token_ids=(5, 8), logps=(-0.1, -1.5))
        scores = (
            Score(value=1.0, exact=True, detail={"name": 1.0, self.text: 1.0}, explanation=self.text),
            Score(value=0.25, exact=False, detail={"name": 0.0}, explanation="wrong"),
        )
        parting = {"position": 1, "chosen": {"token": 6, "probability": 0.8187}}
        pair = Pair(sample_id=name, chosen=good, rejected=bad, chosen_score=scores[0], rejected_score=scores[1],
                    provenance={"parting": parting, "search": {"values": [0.9, 0.2]}})  # fmt: skip
        nodes = [(None, "", 4), (0, "[f(", 4), (1, f"a={self.text}", 3), (1, f"b={self.text}", 1)]
        tree = [{"id": k, "parent": up, "tokens": 1, "text": text, "prior": 0.5, "visits": visits, "value": 0.75,
                 "terminal": k > 1, "answers": [k % 2]} for k, (up, text, visits) in enumerate(nodes)]  # fmt: skip
        return {"id": name, "candidates": [good.to_json(), bad.to_json()], "scores": [one.to_json() for one in scores],
                "pairs": [pair.to_json()], "tree": tree, "counts": {"generated": 5}}  # fmt: skip

    def _warmup(self, folder: Path) -> None:
        self.curve(folder, "loss,step\n" + "".join(f"{9 - k},{k}\n" for k in range(9)))

    def _align(self, folder: Path) -> None:
        self.curve(folder, "loss,reward,step\n" + "".join(f"{1 / (k + 1)},{k / 9},{k}\n" for k in range(9)))
        quoted = self.text.replace('"', '""')
        table = "step,sample_id,answer,reward,exact,text\n" + "".join(
            f'{step},s1,{k},{k},{k > 0},"{quoted}"\n' for step in (0, 1) for k in (0, 1)
        )
        (folder / "answers.csv").write_text(table, encoding="utf-8", errors="backslashreplace")

    @staticmethod
    def curve(folder: Path, text: str, version: int = 0) -> None:
        """What the CSV logger wrote in one attempt."""
        logs = folder / "logs" / f"version_{version}"
        logs.mkdir(parents=True, exist_ok=True)
        write_text(logs / "metrics.csv", text)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """An empty store and results folder."""
    return Lab(tmp_path)


VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
# Which an open paragraph would be closed by: then the page's own end tag is one too many.
BLOCKS = {"div", "table", "ul", "dl", "details", "figure", "section", "p", "h1", "h2", "h3"}


class Html(HTMLParser):
    """Reads a page and asserts that every element is closed where it must be.

    `tags` are (name, attributes), `tables` caption -> rows of texts, `links` the same with (href, text) of each link,
    `classes` the same with the class of each cell, `marks` a policy's label -> colours of its marks.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = self.css = ""
        self.tables: dict[str, list[list[str]]] = {}
        self.classes: dict[str, list[list[str]]] = {}
        self.links: dict[str, list[tuple[str, str]]] = {}
        self.marks: dict[str, set[str]] = {}
        self._table = self._colour = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        found = re.search(r'<script type="application/json" id="answers-data">(.*?)</script>', text, re.DOTALL)
        self.answers = json.loads(found[1]) if found else None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        assert not (tag in BLOCKS and "p" in self.open), f"<{tag}> inside of <p>, line {self.getpos()[0]}"
        given = {name: value or "" for name, value in attrs}
        self.tags.append((tag, given))
        if tag == "table":
            self._table = given["aria-label"]
            self.tables[self._table], self.classes[self._table] = [], []
        elif tag == "tr":
            self.tables[self._table].append([])
            self.classes[self._table].append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")
            self.classes[self._table][-1].append(given.get("class", ""))
        elif tag == "a" and "table" in self.open:
            self.links.setdefault(self._table, []).append((given["href"], ""))
        elif given.get("class") == "mark":
            self._colour = given["style"].removeprefix("color:")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID or "svg" in self.open, f"<{tag}/> is not closed by its slash in HTML"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}, line {self.getpos()[0]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.css += data
        elif "script" not in self.open:
            self.text += data
            if self._colour and self.open[-1] != "span" and data.strip():
                self.marks.setdefault(re.split(r" - |:|, round", data.strip())[0], set()).add(self._colour)
                self._colour = ""
            if "td" in self.open or "th" in self.open:
                self.tables[self._table][-1][-1] += data
            if "a" in self.open and "table" in self.open:
                self.links[self._table][-1] = (self.links[self._table][-1][0], data)


@pytest.fixture
def report(tmp_path: Path) -> Callable[..., str]:
    """Runs the command in this process on the lab's folders and gives the page's text."""
    from ttpa.results.report.report import main

    def run(target: str, **options: Any) -> str:
        words = {"out": tmp_path / "page.html", "results": tmp_path / "results", "store": tmp_path / "store", **options}
        assert main([target, *(f"{key}={value}" for key, value in words.items())]) == 0
        return Path(words["out"]).read_text(encoding="utf-8")

    return run
