"""`eval=bfcl`: a policy's answers to BFCL's questions, judged as `ttpa score benchmark=bfcl` judges them."""

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ttpa.benchmarks.bfcl import official
from ttpa.benchmarks.bfcl.cases import Case, Form, checked, judged_row, question_files, read_cases, tool_of
from ttpa.benchmarks.bfcl.categories import CATEGORIES, SINGLE_TURN, Category, find_category
from ttpa.benchmarks.bfcl.check import Verdict
from ttpa.benchmarks.bfcl.decode_java_js import parser
from ttpa.benchmarks.bfcl.multi_turn import DOCUMENTS, Conversation, Said, read_multi_turn
from ttpa.benchmarks.bfcl.totals import aggregates
from ttpa.calls.six_errors import LABELS
from ttpa.data.rows import file_digest
from ttpa.errors import ConfigError, DataError
from ttpa.io import dumps, write_jsonl
from ttpa.options import Count, option
from ttpa.records import Candidate, Message, Sample
from ttpa.results.stats import share

# Names whose handlers in the official tool read lists of calls, or text, without changing names.
_READERS = {"training": "qwen3-235b-a22b-instruct-2507-FC", "official": "gpt-4o-2024-11-20"}
_EVALUATED = (*SINGLE_TURN, "multi_turn")
_cases = lru_cache(maxsize=2)(read_cases)
_LOST = Verdict("failed", "the answer could not be had", "format")


class _Asked(Form):
    question: Annotated[list[list[Said]], Field(min_length=1)]


@option
class BFCL:
    """The Berkeley Function Calling Leaderboard on a folder of its files; `conf/eval/bfcl.yaml` documents each key."""

    path: str
    max_new_tokens: Count
    categories: list[str] | str | None
    prompt: Literal["training", "official"]
    limit: Count | None
    model: Annotated[str, Field(pattern=r"^\w[\w.-]*(/\w[\w.-]*)?$")] | None

    def __post_init__(self) -> None:
        if isinstance(self.categories, str) and self.categories != "all":
            raise ConfigError.at("categories", self.categories, "is no list", "Use all, null or [simple_python]")
        known = [one.name for one in CATEGORIES.values() if one.rule in _EVALUATED]
        for name in self.categories if isinstance(self.categories, list) else ():
            if (category := find_category(name)) is None or category.name not in known:
                raise ConfigError.at("categories", name, "is not evaluated here", f"Use {', '.join(known)}")

    def check(self) -> None:
        if not Path(self.path).is_dir():
            raise ConfigError.at("eval.path", self.path, "no such folder", "Give the folder with BFCL_v4_*.json files")
        for category in self._wanted():
            if self.prompt == "official" or category.rule == "multi_turn":
                official.require()
            if self.prompt == "official" and category.language != "python":  # else, texts are replies in words
                parser(category.language)

    def identity(self) -> Mapping[str, Any]:
        """The content of the files instead of their path."""
        wanted, folder = self._wanted(), Path(self.path)
        files = [path for path, category in question_files(folder) if category in wanted]
        names = [f"{path.name.removesuffix('.gz')}*" for path in files]
        files += [path for name in names for path in sorted((folder / "possible_answer").glob(name))]
        if any(category.rule == "multi_turn" for category in wanted):
            files += sorted((folder / DOCUMENTS).glob("*.json*"))
        return {"path": [[path.name, file_digest(path)] for path in files]}

    def samples(self, data: Path) -> list[Sample]:
        """The questions, as prompts without a target: the checker knows what is right."""
        found: list[Sample] = []
        for category in self._wanted():
            if category.rule == "multi_turn":
                cases = list(read_multi_turn(Path(self.path), category).values())
                opened = (Conversation(case, prompt=self.prompt).sample() for case in cases[: self.limit])
                found += filter(None, opened)
            else:
                singles = [case for case in _cases(self.path).values() if case.category == category]
                found += map(self._sample, singles[: self.limit])
        if not found:
            raise DataError(f"eval.path={self.path}: no questions of {self.categories or 'any category'} there.")
        return found

    def dialogue(self, sample: Sample) -> Conversation | None:
        """The conversation of a multi-turn question; None for a single answer."""
        if (category := CATEGORIES[sample.source]).rule != "multi_turn":
            return None
        return Conversation(read_multi_turn(Path(self.path), category)[sample.id], prompt=self.prompt)

    def judge(self, sample: Sample, candidate: Candidate) -> dict[str, Any]:
        """The row of an answer. In multi-turn categories only one that could not be had comes here."""
        category, calling = CATEGORIES[sample.source], self.prompt == "training"
        calls = [{call.name: dumps(call.arguments)} for call in candidate.calls or () if calling]
        verdict, result = _LOST, calls or (candidate.text if calling else official.reply(candidate.text))
        if category.rule == "multi_turn":
            result = []
        elif candidate.error != "failed":
            verdict = _cases(self.path)[sample.id].judge(result, function_calling=calling)
        return judged_row(sample.id, category, verdict, result, [candidate])

    def summarise(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Accuracy over all answers and in each category, and the totals: None where something was not run."""
        by_category = {name: [row for row in rows if row["category"] == name] for name in CATEGORIES}
        right = itemgetter("exact")
        categories = {name: share(some, right) for name, some in by_category.items() if some}
        scores, counts = ({name: found[key] for name, found in categories.items()} for key in ("value", "n"))
        totals = {
            version: {
                one.name: {"value": one.value, "covered": one.covered, "depth": one.depth}
                for one in aggregates(scores, cases=counts, version=version)
            }
            for version in ("v4", "v3")
        }
        return {
            "accuracy": share(rows, right),
            **{key: share(some, right) if some else None for key, some in _by_kind(rows).items()},
            "bands": {},
            "unseen_tool": None,
            "errors": {label: share(rows, partial(lambda one, row: one in row["errors"], label)) for label in LABELS},
            "categories": categories,
            "totals": totals,
            "prompt": self.prompt,
            "benchmark": "bfcl",
            "split": "BFCL",
        }

    def write(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """The official layout: `result/<model>/<group>/BFCL_v4_<category>_result.json`."""
        model = (self.model or _READERS[self.prompt]).replace("/", "_")  # as the official tool does
        for name in CATEGORIES:
            some = [{"id": row["id"], "result": row["result"]} for row in rows if row["category"] == name]
            if some:
                group = next((one for one in ("multi_turn", "live") if name.startswith(one)), "non_live")
                path = folder / "result" / model / group / f"BFCL_v4_{name}_result.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_jsonl(path, some)

    def _wanted(self) -> list[Category]:
        """The categories, in the usual order."""
        there = {category for _, category in question_files(Path(self.path))}
        wanted = {one for one in there if one.rule in (SINGLE_TURN if self.categories is None else _EVALUATED)}
        if isinstance(self.categories, list):
            wanted = {found for name in self.categories if (found := find_category(name))}
        if missing := sorted(one.name for one in wanted - there):
            raise DataError(f"eval.path={self.path}: no file of {', '.join(missing)}. Take them from one release.")
        return [one for one in CATEGORIES.values() if one in wanted]

    def _sample(self, case: Case) -> Sample:
        turn = checked(_Asked, {"question": case.question}, case.case_id).model_dump()["question"][0]
        tools = [tool_of(function, case.category.language) for function in case.functions]
        if self.prompt == "official":
            turn, tools = official.official_messages(turn, case.functions, case.category), []
        messages = tuple(Message(**one) for one in turn)
        return Sample(id=case.case_id, tools=tuple(tools), messages=messages, target=(), source=case.category.name)


def _by_kind(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of questions that ask for a call, and of those where none is right."""
    without = {row["id"] for row in rows if row["category"].endswith("irrelevance")}
    return {
        "calls": [row for row in rows if row["id"] not in without],
        "non_calls": [row for row in rows if row["id"] in without],
    }
