"""`eval=bfcl`: a policy's answers to BFCL's questions, judged as `ttpa-score` judges them.

`prompt=training` renders each question's functions as tools, the way the policy was trained; its calls are handed to
the checker as a function-calling model's are (name and JSON arguments). `prompt=official` puts BFCL's own system prompt
in front and hands over the text; it needs the official package (`ttpa.benchmarks.bfcl.official`), and so do the multi-turn
categories, whose functions really run. The result row names the prompt. Results are also written as the official tool
lays them out, below `result/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from ttpa.benchmarks.bfcl.aggregate import aggregates
from ttpa.benchmarks.bfcl.cases import Case
from ttpa.benchmarks.bfcl.categories import CATEGORIES, SINGLE_TURN, Category, Language, find_category
from ttpa.benchmarks.bfcl.files import question_files, read_cases, read_lines
from ttpa.calls.schema import normalise_schema
from ttpa.calls.six_errors import LABELS
from ttpa.data.rows import file_digest
from ttpa.errors import ConfigError, DataError
from ttpa.io import dumps
from ttpa.records import Candidate, Message, Sample, ToolSpec
from ttpa.results.stats import share
from ttpa.run.evaluation import Dialogue, Row

PROMPTS = ("training", "official")
_READERS = {"training": "qwen3-235b-a22b-instruct-2507-FC", "official": "gpt-4o-2024-11-20"}
"""Names whose handlers in the official tool read lists of calls, or text, without changing names."""
VERSIONS = ("v4", "v3")


@dataclass(frozen=True, slots=True, kw_only=True)
class BFCL:
    """The Berkeley Function Calling Leaderboard on a folder of its files.

    Args:
        path: Folder with `BFCL_v4_<category>.json` files and `possible_answer/`.
        max_new_tokens: Longest answer, in tokens.
        categories: Names of version 4 or 3; None: every single-turn category in the folder; "all": the multi-turn ones
            there too.
        prompt: "training" or "official".
        limit: The first so many questions of each category; None: all.
        model: Name below `result/`. The official tool reads names it knows only, each in its own way; None: one that
            reads calls (training) or text (official) as they are.

    Raises:
        ConfigError: a value out of range, or an unknown category.
    """

    path: str
    max_new_tokens: int
    categories: Sequence[str] | str | None = None
    prompt: str = "training"
    limit: int | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        if self.prompt not in PROMPTS:
            raise ConfigError.at("eval.prompt", self.prompt, "unknown prompt", f"Use {' or '.join(PROMPTS)}")
        if self.model is not None and not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", self.model):
            raise ConfigError.at("eval.model", self.model, "is no name of a model", "Use one the official tool knows")
        if self.max_new_tokens < 1 or (self.limit is not None and self.limit < 1):
            raise ConfigError.at(
                "eval.max_new_tokens, eval.limit", (self.max_new_tokens, self.limit), "must be at least 1", "See conf"
            )
        if isinstance(self.categories, str) and self.categories != "all":
            raise ConfigError.at("eval.categories", self.categories, "is no list", "Use all, null or [simple_python]")
        for name in () if self.categories == "all" else self.categories or ():
            if (category := find_category(name)) is None or category.rule not in (*SINGLE_TURN, "multi_turn"):
                known = [one.name for one in CATEGORIES.values() if one.rule in (*SINGLE_TURN, "multi_turn")]
                raise ConfigError.at("eval.categories", name, "is not evaluated here", f"Use {', '.join(known)}")

    def check(self) -> None:
        """See `Evaluation.check`: the folder and, where it is needed, the official package."""
        if not Path(self.path).is_dir():
            raise ConfigError.at("eval.path", self.path, "no such folder", "Give the folder with BFCL_v4_*.json files")
        if self.prompt == "official" or any(category.rule == "multi_turn" for category in self._wanted()):
            from ttpa.benchmarks.bfcl.official import require

            require()

    def identity(self) -> Mapping[str, Any]:
        """The content of the files instead of their path."""
        names = {category.name for category in self._wanted()}
        folder = Path(self.path)
        files = [path for path, category in question_files(folder) if category.name in names]
        files += [
            path for path in sorted((folder / "possible_answer").glob("BFCL_*")) if _stem(path) in map(_stem, files)
        ]
        if any(category.rule == "multi_turn" for category in self._wanted()):
            files += sorted((folder / "multi_turn_func_doc").glob("*.json*"))
        return {"path": [[path.name, file_digest(path)] for path in files]}

    def samples(self, data: Path) -> list[Sample]:
        """The questions, as prompts without a target: what is right is the checker's business."""
        found: list[Sample] = []
        for category in self._wanted():
            if category.rule == "multi_turn":
                found += self._openings(category)[: self.limit]
            else:
                rows = _rows(self.path, category.name)
                found += [self._sample(row, category) for row in list(rows.values())[: self.limit]]
        if not found:
            raise DataError(f"eval.path={self.path}: no questions of {self.categories or 'any category'} there.")
        return found

    def dialogue(self, sample: Sample) -> Dialogue | None:
        """The conversation of a multi-turn question; None for a single answer."""
        category = CATEGORIES[sample.source]
        if category.rule != "multi_turn":
            return None
        from ttpa.benchmarks.bfcl.multi_turn import Dialogue as Conversation
        from ttpa.benchmarks.bfcl.multi_turn import read_multi_turn

        return Conversation(read_multi_turn(Path(self.path), category)[sample.id], prompt=self.prompt)

    def _openings(self, category: Category) -> list[Sample]:
        """What a policy is first asked in each conversation of a multi-turn category."""
        from ttpa.benchmarks.bfcl.multi_turn import Dialogue as Conversation
        from ttpa.benchmarks.bfcl.multi_turn import read_multi_turn

        cases = read_multi_turn(Path(self.path), category).values()
        asked = [Conversation(case, prompt=self.prompt).sample() for case in cases]
        return [sample for sample in asked if sample is not None]

    def judge(self, sample: Sample, candidate: Candidate) -> Row:
        """See `Evaluation.judge`."""
        calling = self.prompt == "training"  # then a text is a reply in words, as it is of a function-calling model
        result: Any = candidate.text
        if calling and candidate.calls:
            result = [{call.name: dumps(call.arguments)} for call in candidate.calls]
        category = CATEGORIES[sample.source]
        if category.rule == "multi_turn":  # only one that could not be had comes here: the others have a dialogue
            return {**_about(sample, candidate), "category": category.name, "result": [], **_LOST}
        verdict = _cases(self.path)[sample.id].judge(result, function_calling=calling)
        lost = candidate.error == "failed"
        return {
            **_about(sample, candidate),
            "category": category.name,
            "exact": verdict.valid and not lost,
            "errors": [verdict.six_error] if verdict.six_error else [],
            "error_type": verdict.error_type,
            "explanation": verdict.explanation,
            "result": result,
            **(_LOST if lost else {}),
        }

    def summarise(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """See `Evaluation.summarise`: accuracy over all answers, each category, and the totals of both versions, None
        where something was not run.
        """
        by_category = {
            name: list(some)
            for name, some in groupby(sorted(rows, key=lambda row: row["category"]), key=lambda row: row["category"])
        }
        categories = {name: share(by_category[name], _exact) for name in CATEGORIES if name in by_category}
        scores = {name: found["value"] for name, found in categories.items()}
        counts = {name: found["n"] for name, found in categories.items()}
        totals = {
            version: {
                one.name: {"value": one.value, "covered": one.covered, "depth": one.depth}
                for one in aggregates(scores, cases=counts, version=version)
            }
            for version in VERSIONS
        }
        return {
            "accuracy": share(rows, _exact),
            "bands": {},
            "unseen_tool": None,
            "errors": {label: share(rows, _shows(label)) for label in LABELS},
            "categories": categories,
            "totals": totals,
            "prompt": self.prompt,
            "benchmark": "bfcl",
            "split": "BFCL",
        }

    def write(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """The official layout: `result/<model>/<group>/BFCL_v4_<category>_result.json`."""
        model = (self.model or _READERS[self.prompt]).replace("/", "_")  # as the official tool does
        for name, category in CATEGORIES.items():
            some = [row for row in rows if row["category"] == name]
            if some:
                path = folder / "result" / model / _group(category) / f"BFCL_v4_{name}_result.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                lines = (dumps({"id": row["id"], "result": row["result"]}) for row in some)
                path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    # --- questions ---------------------------------------------------------------------------------------------------

    def _wanted(self) -> list[Category]:
        """The categories, in the usual order."""
        there = [category.name for _, category in question_files(Path(self.path))]
        if self.categories is None or self.categories == "all":
            rules = SINGLE_TURN if self.categories is None else (*SINGLE_TURN, "multi_turn")
            return [one for one in CATEGORIES.values() if one.name in there and one.rule in rules]
        named = {found.name for name in self.categories if (found := find_category(name)) is not None}
        if missing := sorted(named - set(there)):
            raise DataError(f"eval.path={self.path}: no file of {', '.join(missing)}. Take them from one release.")
        return [one for one in CATEGORIES.values() if one.name in named]

    def _sample(self, row: Mapping[str, Any], category: Category) -> Sample:
        turn = row["question"][0]
        tools: tuple[ToolSpec, ...] = ()
        if self.prompt == "official":
            from ttpa.benchmarks.bfcl.official import official_messages

            turn = official_messages(turn, row["function"], category)
        else:
            tools = tuple(tool_of(function, category.language) for function in row["function"])
        messages = tuple(Message(role=one["role"], content=one["content"]) for one in turn)
        return Sample(id=row["id"], tools=tools, messages=messages, target=(), source=category.name)


_LOST: Row = {
    "exact": False,
    "errors": ["format"],
    "error_type": "failed",
    "explanation": "the answer could not be had",
}


def tool_of(function: Mapping[str, Any], language: Language = "python") -> ToolSpec:
    """A function document as a tool with a JSON Schema.

    In Java and JavaScript every value is asked for as text, which is what the checker reads.
    """
    parameters = function.get("parameters") or {}
    if language != "python":
        kind = {"java": "Java", "javascript": "JavaScript"}[language]
        parameters = {
            **parameters,
            "properties": {
                name: {
                    "type": "string",
                    "description": f"{one.get('description', '')} ({kind} source, {one.get('type', 'any')})".strip(),
                }
                for name, one in (parameters.get("properties") or {}).items()
            },
        }
    schema = {"type": "object", "properties": {}, **normalise_schema(parameters)}
    return ToolSpec(name=function["name"], description=function.get("description", ""), parameters=schema)


def _about(sample: Sample, candidate: Candidate) -> Row:
    return {
        "id": sample.id,
        "cluster": sample.cluster,
        "band": "",
        "tags": [],
        "finish": candidate.finish,
        "tokens": len(candidate.token_ids),
        "text": candidate.text,
    }


def _shows(label: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda row: label in row["errors"]


def _exact(row: Mapping[str, Any]) -> bool:
    return bool(row["exact"])


def _group(category: Category) -> str:
    """The folder of a category in the official layout."""
    if category.rule == "multi_turn":
        return "multi_turn"
    return "live" if category.live else "non_live"


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz")


@lru_cache(maxsize=2)
def _cases(path: str) -> dict[str, Case]:
    return read_cases(path)


@lru_cache(maxsize=32)
def _rows(path: str, category: str) -> dict[str, Mapping[str, Any]]:
    """Question rows of a category by id; the cases are read as well, which checks that answers are there."""
    known = _cases(path)
    files = [file for file, found in question_files(Path(path)) if found.name == category]
    rows = {line.row["id"]: line.row for file in files for line in read_lines(file) if line.row.get("id") in known}
    for case_id, row in rows.items():
        turns = row.get("question")
        plain = (
            isinstance(turns, list)
            and turns
            and all(isinstance(one, dict) and {"role", "content"} <= set(one) for one in turns[0])
        )
        if not plain:
            raise DataError(f"{case_id}: question is no list of turns of messages: {json.dumps(turns)[:80]}.")
    return rows
