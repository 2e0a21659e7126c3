"""`ttpa score`: verdicts on answers that are already there, row by row. Imports neither torch nor transformers."""

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic.dataclasses import dataclass

from ttpa.benchmarks.bfcl.cases import Case, answer_row, read_answer, read_cases
from ttpa.benchmarks.bfcl.categories import CATEGORIES, category_of_id
from ttpa.benchmarks.bfcl.totals import aggregates
from ttpa.benchmarks.scored import Shares, compared, print_table, read_shares, writer
from ttpa.calls.six_errors import LABELS, primary_error, read_call, six_errors
from ttpa.calls.syntaxes import ParseError, Syntax, get_syntax
from ttpa.errors import ConfigError, DataError, nearest
from ttpa.io import JsonLine, dumps, read_lines
from ttpa.options import arguments
from ttpa.records import Candidate, Sample, ToolCall
from ttpa.results.stats import share_text

if TYPE_CHECKING:
    from ttpa.benchmarks.bfcl.multi_turn import MultiTurnCase

HELP = (resources.files("ttpa.benchmarks") / "score_help.txt").read_text("utf-8")


@dataclass(frozen=True, kw_only=True)
class FileKeys:
    outputs: str
    out: str = ""
    against: str = ""


@dataclass(frozen=True, kw_only=True)
class BFCLKeys(FileKeys):
    benchmark: Literal["bfcl"]
    data: str
    mode: Literal["prompt", "fc"] | None = None
    dots_as_underscores: bool = False


@dataclass(frozen=True, kw_only=True)
class ScorerKeys(FileKeys):
    scorer: str
    samples: str
    syntax: str | None = None
    overrides: tuple[str, ...] = ()  # scorer.KEY=VALUE


class ScoredRow(NamedTuple):
    """One verdict; the fields, in this order, are the keys of a row of `out`."""

    id: str
    valid: bool
    error_type: str | None
    six_error: str
    score: float
    explanation: str


def main(words: Sequence[str]) -> int:
    """Runs the command; returns its exit status. A ConfigError says which arguments cannot work."""
    keys = dict(word.partition("=")[::2] for word in words)
    if ("benchmark" in keys) == ("scorer" in keys):
        raise ConfigError("Give one of benchmark= and scorer=. `ttpa score --help` shows both forms.")
    try:
        if "scorer" in keys:
            _scorer(arguments(words, ScorerKeys, "score"))
        elif keys["benchmark"] == "bfcl":
            _bfcl(arguments(words, BFCLKeys, "score"))
        elif keys["benchmark"] == "toolbench":
            from ttpa.benchmarks.toolbench import command

            command.main(arguments(words, command.ToolBenchKeys, "score"))
        else:
            raise ConfigError.at("benchmark", keys["benchmark"], "unknown benchmark", "Use bfcl or toolbench")
    except DataError as error:
        print(f"ttpa: error: {error}", file=sys.stderr)
        return 1
    return 0


def _stream(keys: FileKeys, judge: Callable[[JsonLine], tuple[ScoredRow, str]], show: Callable[[Shares], None]) -> None:
    """Judges every row of outputs (`judge` gives a row and its cluster), writes the verdicts, and shows tables."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    ours, theirs, errors = Shares(), read_shares(keys.against) if keys.against else None, Counter[str]()
    columns = (TextColumn("{task.completed:,} rows"), TimeElapsedColumn())
    counter = Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    inputs = (keys.outputs, keys.against, getattr(keys, "samples", ""))
    try:
        with writer(keys.out, inputs) as write, counter:
            for line in counter.track(read_lines(keys.outputs, answer_row)):
                row, cluster = judge(line)
                ours.add(row.id, row.valid, cluster)
                errors[row.six_error] += 1
                write(row._asdict())
    finally:
        if answers := errors.total():
            show(ours)
            rows = [(name.replace("_", " "), f"{errors[name]:,}", f"{errors[name] / answers:.4f}") for name in LABELS]
            print_table("First errors", ("error", "answers", "share"), rows)
        else:
            print("no answers were scored")
    if theirs is not None:
        print(compared(ours, theirs))


def _bfcl(keys: BFCLKeys) -> None:
    cases: dict[str, Case | MultiTurnCase] = {**read_cases(keys.data)}

    def judge(line: JsonLine) -> tuple[ScoredRow, str]:
        answer = read_answer(line)
        if answer.case_id not in cases:
            cases.update(_multi_turn(keys.data, line, answer.case_id))
        mode, underscores = answer.mode or keys.mode, answer.dots_as_underscores
        found = cases[answer.case_id].judge(
            answer.result,
            function_calling=mode and mode == "fc",
            dots_as_underscores=keys.dots_as_underscores if underscores is None else underscores,
        )
        score, why = float(found.valid), found.explanation
        return ScoredRow(answer.case_id, found.valid, found.error_type, found.six_error, score, why), ""

    def show(ours: Shares) -> None:
        asked = {name: [one for one in ours.counts if cases[one].category.name == name] for name in CATEGORIES}
        shares = {name: ours.share(some) for name, some in asked.items() if some}
        rows = [
            (name, share_text(one, 4), f"{one['n']:,}", f"{len(asked[name]):,} of {CATEGORIES[name].rows:,}")
            for name, one in shares.items()
        ]
        print_table("Accuracy, 95 % interval over questions", ("category", "accuracy", "answers", "questions"), rows)
        scores = {name: one["value"] for name, one in shares.items()}
        counts = {name: len(some) for name, some in asked.items()}
        for version in ("v4", "v3"):
            totals = [
                ("  " * total.depth + total.name.replace("_", " "),
                 "-" if total.value is None else f"{total.value:.4f}", f"{total.covered:.1%}",
                 "" if total.counts else "not in the overall score")
                for total in aggregates(scores, cases=counts, version=version)
            ]  # fmt: skip
            print_table(f"BFCL {version}; a dash where a part was not run", ("total", "score", "covered", ""), totals)

    _stream(keys, judge, show)


def _multi_turn(folder: str, line: JsonLine, case_id: str) -> Mapping[str, "MultiTurnCase"]:
    """The questions of the multi-turn category that an id is of: they are read when the first answer comes."""
    category, cases = category_of_id(case_id), dict[str, "MultiTurnCase"]()
    where = f"of {category.name}" if category else "of no category of BFCL"
    if category and category.rule == "multi_turn":
        from ttpa.benchmarks.bfcl.multi_turn import read_multi_turn

        try:
            cases.update(read_multi_turn(Path(folder), category))
        except ConfigError as error:
            raise DataError(f"{line}: {case_id} is {where}. {error}") from None
    if case_id not in cases:
        raise DataError(f"{line}: unknown id {case_id}, {where}. data= must hold the question, which is not agentic.")
    return cases


def _scorer(keys: ScorerKeys) -> None:
    syntax, scorer, samples = get_syntax(keys.syntax or "python"), _make_scorer(keys), _read_samples(keys.samples)
    total = 0.0

    def judge(line: JsonLine) -> tuple[ScoredRow, str]:
        nonlocal total
        candidate = _candidate(line, syntax)
        sample = samples.get(candidate.sample_id)
        if sample is None:
            raise DataError(f"{line}: unknown id {candidate.sample_id}. samples= must hold the sample.")
        score = scorer(sample, candidate)
        label = "" if score.exact else primary_error(six_errors(sample, candidate.calls))
        total += score.value
        return ScoredRow(sample.id, score.exact, None, label, score.value, score.explanation), sample.cluster

    def show(ours: Shares) -> None:
        exact = ours.share(ours.counts)
        answers = f"{exact['n']:,}"
        rows = [("exact", share_text(exact, 4), answers), (f"mean {keys.scorer}", f"{total / exact['n']:.4f}", answers)]
        print_table("Scores, 95 % interval over dialogues", ("", "value", "answers"), rows)

    _stream(keys, judge, show)


_NO_ROW = (KeyError, TypeError, ValueError, AttributeError, RecursionError)


def _read_samples(path: str) -> dict[str, Sample]:
    """Samples by id, with all that scorers rely on."""
    samples: dict[str, Sample] = {}
    for line in read_lines(path):
        try:
            sample = Sample.from_json(line.row)
            names = [sample.id, sample.cluster, *(call.name for call in sample.target)]
            names += [name for tool in sample.tools for name in (tool.name, *tool.required)]
            objects = [*(tool.parameters for tool in sample.tools), *(call.arguments for call in sample.target)]
            if not all(isinstance(one, str) for one in names) or not all(isinstance(one, Mapping) for one in objects):
                raise TypeError("ids and names must be text, parameters and arguments objects")
        except _NO_ROW as error:
            raise DataError(f"{line}: no sample ({type(error).__name__}: {error}). Take samples.jsonl.") from None
        if sample.id in samples:
            raise DataError(f"{line}: {sample.id} is there twice. Keep one sample of an id.")
        samples[sample.id] = sample
    return samples


def _make_scorer(keys: ScorerKeys) -> Callable[[Sample, Candidate], Any]:
    """The scorer that the options name, made as in a run."""
    import hydra

    from ttpa.run.config import instantiate
    from ttpa.run.overrides import COMPLAINTS, explained

    if wrong := [word for word in keys.overrides if not word.startswith("scorer.")]:
        known = [key for key in ScorerKeys.__dataclass_fields__ if key != "overrides"]
        raise ConfigError(f"{wrong[0]}: ttpa score has no such option with scorer=. {nearest(wrong[0], known)}")
    words = [f"scorer={keys.scorer}", *keys.overrides]
    if keys.syntax and not any(word.startswith("scorer.syntax=") for word in words):
        words.append(f"model.syntax={keys.syntax}")  # scorers that read the text take it from there
    try:
        with hydra.initialize_config_module("ttpa.conf", version_base="1.3"):
            whole = hydra.compose("config", overrides=words)
    except COMPLAINTS as error:
        raise explained(error, words) from None
    made: Callable[[Sample, Candidate], Any] = instantiate(whole.scorer, "scorer")
    return made


def _candidate(line: JsonLine, syntax: Syntax) -> Candidate:
    """The candidate of a row; calls are a candidate's own, or read from the row's text or list of {name: json}."""
    row = line.row
    if "sample_id" in row and "calls" in row and "result" not in row:
        try:
            calls = dumps(row["calls"]) if isinstance(row["calls"], list) else row["calls"]
            made = Candidate.from_json({**Candidate(sample_id="", index=0, text="").to_json(), **row, "calls": calls})
            names = (made.sample_id, made.text, *(one.name for one in made.calls or ()))
            if not all(isinstance(one, str) for one in names):
                raise TypeError("sample_id, text and the names of calls must be text")
        except _NO_ROW as error:
            raise DataError(f"{line}: no candidate ({type(error).__name__}: {error}).") from None
        return made
    answer = read_answer(line)
    result, candidate = answer.result, partial(Candidate, sample_id=answer.case_id, index=0)
    if isinstance(result, str):
        parsed = syntax.parse(result)
        if isinstance(parsed, ParseError):
            return candidate(text=result, error=str(parsed))
        return candidate(text=result, calls=parsed)
    if result is None:
        return candidate(text="", error="not readable")
    if not isinstance(result, list):
        raise DataError(f"{line}: result is neither a text nor a list.")
    if not all(isinstance(item, dict) and len(item) == 1 for item in result):
        return candidate(text=dumps(result), error="not a list of {name: json}")
    # Arguments stay JSON text: scorers read them, and say what is wrong where they cannot.
    calls = [ToolCall(name=str(name), arguments=value) for item in result for name, value in item.items()]
    readable = [one for call in calls if (one := read_call(call)) is not None]
    text = syntax.print(readable) if readable and len(readable) == len(calls) else dumps(result)
    return candidate(text=text, calls=tuple(calls))
