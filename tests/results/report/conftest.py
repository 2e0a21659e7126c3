"""A store written by hand, with every file that a report reads, and a reader of the page that is strict about HTML."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ttpa.io import dumps
from ttpa.records import Candidate, Pair, Score

NASTY = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x00\x1b[31m\u202e\ud800&amp;\"'{{7*7}}" + "W" * 300
)


def share(value: float, n: int = 4) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": n}


def metrics(accuracy: float) -> dict[str, Any]:
    errors = {"format": share(0.1), "parameter_value": share(1 - accuracy)}
    return {"accuracy": share(accuracy), "bands": {"easy": share(accuracy)}, "unseen_tool": None, "errors": errors}


@dataclass
class Lab:
    """Writes result rows and stages below a folder."""

    root: Path
    text: str = "plain"
    made: int = 0
    stages: dict[str, str] = field(default_factory=dict)

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def store(self) -> Path:
        return self.root / "store"

    def stage(self, kind: str, what: str, inputs: Mapping[str, str] | None = None, pid: int = 1) -> str:
        """The folder's name; the same `what` is the same stage."""
        if f"{kind}/{what}" in self.stages:
            return self.stages[f"{kind}/{what}"]
        self.made += 1
        name = f"{kind}-{self.made:012x}"
        folder = self.store / name
        folder.mkdir(parents=True)
        second = f"2026-01-02T03:04:{self.made % 60:02d}+00:00"
        made_with = {"commit": None, "dirty": None, "packages": {"ttpa": "0"}, "python": "3", "platform": self.text,
                     "host": "h", "cpu": self.text, "cpu_count": 1, "gpu": None}  # fmt: skip
        found = {"started": second, "ended": second, "inputs": dict(inputs or {}), **made_with}
        self._json(folder / "provenance.json", found)
        self._json(folder / "attempts.json", [{"pid": pid, "host": "h", "seconds": 1.0}])
        self._json(folder / "metrics.json", {"samples": {"explore": 40}} if kind == "data" else {})
        self._json(folder / "done.json", {"seconds": 1.0})
        self.stages[f"{kind}/{what}"] = name
        getattr(self, f"_{kind}", lambda folder: None)(folder)
        return name

    def row(
        self, seed: int = 0, accuracy: float = 0.5, config: Mapping[str, Any] | None = None, **choices: str
    ) -> Path:
        """A result row and its stages. Groups that are not named are the same in every row."""
        chosen = {"data": "made", "model": "tiny", "warmup": "plain", "select": "all", "sampler": "tps",
                  "scorer": "esm", "pairs": "verified", "objective": "dpo", "eval": "heldout", **choices}  # fmt: skip
        cell = f"{sorted(chosen.items())}/{sorted((config or {}).items())}"
        data = self.stage("data", f"{seed}")
        warmup = self.stage("warmup", f"{seed}", {"data": data[-12:]})
        up = {"policy": warmup[-12:], "data": data[-12:]}
        explore = self.stage("explore", f"{seed}/{chosen['sampler']}", up, pid=2)
        align = self.stage("align", f"{seed}/{cell}", {**up, "explore": explore[-12:]}, pid=2)
        baseline = self.stage("evaluate", f"{seed}/warmup", up)
        evaluation = self.stage("evaluate", f"{seed}/{cell}", {"policy": align[-12:], "data": data[-12:]}, pid=2)
        for name, value in ((baseline, 0.25), (evaluation, accuracy)):
            right = round(4 * value)
            rows = [{"id": f"q{k}", "cluster": f"q{k}", "tags": [], "exact": k < right} for k in range(4)]
            self._lines(self.store / name / "rows.jsonl", rows)
        stages = {"data": data, "warmup": warmup, "baseline": baseline, "explore1": explore, "align1": align,
                  "evaluation": evaluation}  # fmt: skip
        whole: dict[str, Any] = {
            "data": {"seed": seed, "noise": self.text},
            "objective": {"lr": 1e-3, "name": chosen["objective"]},
        }
        for key, value in (config or {}).items():
            group, _, name = key.partition(".")
            whole.setdefault(group, {})[name] = value
        self.made += 1
        row = {"run": f"{self.made:012x}", "row_version": 1, "name": "made", "seed": seed, "rounds": 1,
               "choices": chosen, "config": whole, "stages": stages, "versions": {"data": 1},
               "baseline": metrics(0.25), "metrics": metrics(accuracy), "explored": {},
               "cost": {role: {"seconds": 2.0, "tokens": 30} for role in stages}}  # fmt: skip
        self.results.mkdir(exist_ok=True)
        file = self.results / f"made-{self.made:012x}.jsonl"
        self._lines(file, [row])
        return file

    # --- what stages leave behind ------------------------------------------------------------------------------------

    def _data(self, folder: Path) -> None:
        self._json(folder / "splits.json", {"explore": "explore.jsonl"})
        tools = dumps([{"name": f"tool {self.text}"}])
        said = [{"role": "user", "content": f"please {self.text}"}]
        rows = [
            {"id": f"s{k}", "tools": tools, "messages": said, "target": "[]", "target_text": None} for k in range(6)
        ]
        self._lines(folder / "explore.jsonl", rows)

    def _explore(self, folder: Path) -> None:
        rows = [self._explored(f"s{k}") for k in range(6)]
        self._lines(folder / "candidates.jsonl", rows)
        self._lines(folder / "pairs.jsonl", [pair for row in rows for pair in row["pairs"]])

    def _explored(self, name: str) -> dict[str, Any]:
        good = Candidate(
            sample_id=name, index=0, text=f"[f(a={self.text})]", token_ids=(5, 6, 7), logps=(-0.1, -0.2, 0.0)
        )
        bad = Candidate(sample_id=name, index=1, text=f"[f(b={self.text})]", token_ids=(5, 8), logps=(-0.1, -1.5))
        scores = (
            Score(value=1.0, exact=True, detail={"name": 1.0, self.text: 1.0}, explanation=self.text),
            Score(value=0.25, exact=False, detail={"name": 0.0}, explanation="wrong"),
        )
        parting = {
            "position": 1,
            "chosen": {"token": 6, "probability": 0.8187},
            "rejected": {"token": 8, "probability": 0.2231},
        }
        pair = Pair(sample_id=name, chosen=good, rejected=bad, chosen_score=scores[0], rejected_score=scores[1],
                    provenance={"parting": parting, "search": {"values": [0.9, 0.2]}})  # fmt: skip
        nodes = [(None, "", 4), (0, "[f(", 4), (1, f"a={self.text}", 3), (1, f"b={self.text}", 1)]
        tree = [
            {"id": k, "parent": up, "tokens": 1, "text": text, "prior": 0.5, "visits": visits, "value": 0.75,
             "terminal": k > 1, "answers": [k % 2]}
            for k, (up, text, visits) in enumerate(nodes)
        ]  # fmt: skip
        return {"id": name, "candidates": [good.to_json(), bad.to_json()], "scores": [one.to_json() for one in scores],
                "pairs": [pair.to_json()], "tree": tree, "counts": {"generated": 5}}  # fmt: skip

    def _align(self, folder: Path) -> None:
        logs = folder / "logs" / "version_0"
        logs.mkdir(parents=True)
        (logs / "metrics.csv").write_text(
            "loss,reward,step\n" + "".join(f"{1 / (k + 1)},{k / 9},{k}\n" for k in range(9))
        )
        quoted = self.text.replace('"', '""')
        table = "step,sample_id,answer,reward,exact,text\n" + "".join(
            f'{step},s1,{k},{k},{k > 0},"{quoted}"\n' for step in (0, 1) for k in (0, 1)
        )
        (folder / "answers.csv").write_text(table, encoding="utf-8", errors="backslashreplace")

    @staticmethod
    def _json(file: Path, value: Any) -> None:
        file.write_text(json.dumps(value), encoding="utf-8")

    @staticmethod
    def _lines(file: Path, rows: list[Any]) -> None:
        file.write_text("".join(dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """An empty store and results folder."""
    return Lab(tmp_path)


VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
# Which an open paragraph would be closed by: then the page's own end tag is one too many.
BLOCKS = {"div", "table", "ul", "dl", "details", "figure", "section", "p", "h1", "h2", "h3"}


class Html(HTMLParser):
    """Reads a page and asserts that every element is closed where it must be. `tags` are (name, attributes)."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.css = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        assert not (tag in BLOCKS and "p" in self.open), f"<{tag}> inside of <p>, line {self.getpos()[0]}"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
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


@pytest.fixture
def report(tmp_path: Path) -> Callable[..., str]:
    """Runs the command in this process on the lab's folders and gives the page's text."""
    from ttpa.results.report import cli

    def run(target: str, **options: Any) -> str:
        words = {"out": tmp_path / "page.html", "results": tmp_path / "results", "store": tmp_path / "store", **options}
        parsed = cli.parse([target, *(f"{key}={value}" for key, value in words.items())])
        size = cli.report(parsed)
        text = parsed.out.read_text(encoding="utf-8")
        assert size == len(text.encode())
        return text

    return run
