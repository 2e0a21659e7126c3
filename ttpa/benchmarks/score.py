"""The command line `ttpa-score`: verdicts on answers that are already there. Imports neither torch nor transformers.

`ttpa-score benchmark=bfcl outputs=FILE data=DIR out=FILE` scores answers to BFCL's questions as the leaderboard does;
`ttpa-score scorer=esm samples=FILE outputs=FILE out=FILE` scores answers to samples of this project with a scorer of
`conf/scorer/`. Rows are read, scored and written one at a time, in the order in which they come, so that any number of
them fits into memory and what was scored before an error is kept. Exit status: 0; 1 for a file that cannot be scored to
its end; 2 for arguments that cannot work. What this module does not do: ask a model for answers.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttpa.benchmarks.bfcl.cases import Case
from ttpa.benchmarks.bfcl.categories import category_of_id
from ttpa.benchmarks.bfcl.files import answer_row, read_answer, read_cases, unknown_id
from ttpa.benchmarks.bfcl.totals import Summary, interval
from ttpa.benchmarks.scored import Scored, Shares, compared, read_shares, writer
from ttpa.calls.six_errors import LABELS, primary_error, read_call, six_errors
from ttpa.calls.syntaxes import ParseError, Syntax, get_syntax
from ttpa.errors import ConfigError, DataError, TtpaError
from ttpa.io import JsonLine, dumps, read_lines
from ttpa.records import Candidate, Sample, ToolCall

if TYPE_CHECKING:
    from ttpa.benchmarks.bfcl.multi_turn import MultiTurnCase

HELP = """\
ttpa-score: verdicts on answers, one row a case, and a table.

  ttpa-score benchmark=bfcl data=DIR outputs=FILE [out=FILE] [against=FILE] [mode=prompt|fc] [dots_as_underscores=true]
  ttpa-score scorer=NAME samples=FILE outputs=FILE [out=FILE] [against=FILE] [syntax=NAME] [scorer.KEY=VALUE ...]
  ttpa-score benchmark=toolbench outputs=FOLDER base_url=URL model=NAME ...: `ttpa-score benchmark=toolbench` tells more

  benchmark  bfcl: the Berkeley Function Calling Leaderboard without its agentic part, official verdicts; multi-turn
             rows need the extra bfcl, whose backends run the calls
  data       folder with BFCL_v4_<category>.json (or BFCL_v3_) and possible_answer/, as published
  scorer     an option of conf/scorer/, such as esm or ast; an unknown name is answered with their list
  samples    JSON lines of samples (samples of a data stage in the store)
  outputs    JSON lines with id and result (BFCL result files: a text, or a list of {name: json}; multi-turn: a list of
             turns of such steps), or candidates of this project (sample_id and text); - is standard input; may be
             gzipped
  out        one row a case: id, valid, error_type, six_error, score, explanation; .gz is gzipped
  against    rows written by out= for another policy: the paired difference over the questions that both answered
  mode       what a text in BFCL's outputs is: calls of a prompted model, or words of a function-calling one; rows may
             say it themselves (mode)
  dots_as_underscores  names were sent to the model with _ for every dot; rows may say it themselves
  syntax     of calls in texts, where rows hold no parsed calls: python (default), json, hermes, llama3_json
"""

BENCHMARK_KEYS = ("benchmark", "data", "outputs", "out", "against", "mode", "dots_as_underscores")
SCORER_KEYS = ("scorer", "samples", "outputs", "out", "against", "syntax")


def parse(words: Sequence[str]) -> dict[str, str]:
    """`key=value` words as a dict.

    Raises:
        ConfigError: a word of another form, a key twice, an unknown or a missing key; lists the keys.

    Example:
        >>> parse(["benchmark=bfcl", "data=d", "outputs=-"])
        {'benchmark': 'bfcl', 'data': 'd', 'outputs': '-'}
    """
    found: dict[str, str] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise ConfigError(f"{word}: not of the form key=value. `ttpa-score --help` shows the keys.")
        if key in found:
            raise ConfigError.at(key, value, "given twice", "Give it once")
        found[key] = value
    if ("benchmark" in found) == ("scorer" in found):
        raise ConfigError("Give one of benchmark=bfcl and scorer=NAME. `ttpa-score --help` shows both forms.")
    if found.get("benchmark") == "toolbench":
        return found  # ttpa.benchmarks.toolbench.cli knows its keys
    keys = BENCHMARK_KEYS if "benchmark" in found else SCORER_KEYS
    needed = (keys[1], "outputs")
    for key, value in found.items():
        if key not in keys and not (key.startswith("scorer.") and "scorer" in found):
            raise ConfigError.at(key, value, "unknown key", f"Known are {', '.join(keys)}")
    for key in needed:
        if not found.get(key):
            raise ConfigError.at(key, "", "is missing", f"Needed are {', '.join((keys[0], *needed))}")
    if found.get("benchmark", "bfcl") != "bfcl":
        raise ConfigError.at("benchmark", found["benchmark"], "unknown benchmark", "Known are bfcl and toolbench")
    return found


def main() -> None:
    """Entry point of the `ttpa-score` script."""
    words = sys.argv[1:]
    if not words or words[0] in ("--help", "-h", "help"):
        print(HELP, end="")
        return
    try:
        options = parse(words)
        {"bfcl": _benchmark, "toolbench": _toolbench}.get(options.get("benchmark", ""), _scorer)(options)
    except TtpaError as error:
        print(f"ttpa-score: error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt:
        print("ttpa-score: interrupted. What was scored is in out=.", file=sys.stderr)
        sys.exit(130)


# --- rows in, rows out -----------------------------------------------------------------------------------------------


def _counted(lines: Iterable[JsonLine]) -> Iterator[JsonLine]:
    """The lines, with a count on a terminal."""
    if not sys.stderr.isatty():
        yield from lines
        return
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.completed:,} rows"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("rows", total=None)
        count = 0
        for count, line in enumerate(lines, 1):
            yield line
            if count % 500 == 0:
                progress.update(task, completed=count)


# --- benchmarks ------------------------------------------------------------------------------------------------------


def _benchmark(options: dict[str, str]) -> None:
    modes = {"": None, "prompt": False, "fc": True}
    if (mode := options.get("mode", "")) not in modes:
        raise ConfigError.at("mode", mode, "unknown mode", "Use prompt or fc")
    truth = {"true": True, "false": False}
    if (dots := options.get("dots_as_underscores", "false").lower()) not in truth:
        raise ConfigError.at("dots_as_underscores", dots, "must be true or false", "See `ttpa-score --help`")
    cases: dict[str, Case | MultiTurnCase] = {**read_cases(options["data"])}
    theirs = read_shares(options["against"]) if options.get("against") else None
    summary, ours = Summary(), Shares()
    try:
        with writer(options.get("out", ""), (options["outputs"], options.get("against", ""))) as write:
            for line in _counted(read_lines(options["outputs"], answer_row)):
                answer = read_answer(line)
                if answer.case_id not in cases:
                    cases |= _multi_turn(options["data"], line, answer.case_id)
                case = cases[answer.case_id]
                calling, underscores = answer.function_calling, answer.dots_as_underscores
                verdict = case.judge(
                    answer.result,
                    function_calling=modes[mode] if calling is None else calling,
                    dots_as_underscores=truth[dots] if underscores is None else underscores,
                )
                summary.add(case.case_id, case.category, verdict)
                ours.add(case.case_id, verdict.valid)
                write(
                    Scored(
                        id=case.case_id,
                        valid=verdict.valid,
                        error_type=verdict.error_type,
                        six_error=verdict.six_error,
                        score=float(verdict.valid),
                        explanation=verdict.explanation,
                    )
                )
    finally:
        _print_benchmark(summary)
    if theirs is not None:
        print(compared(ours, theirs))


def _toolbench(options: dict[str, str]) -> None:
    from ttpa.benchmarks.toolbench.cli import HELP as KEYS
    from ttpa.benchmarks.toolbench.cli import score

    if set(options) == {"benchmark"}:
        print(KEYS, end="")
        return
    score(options)


def _multi_turn(folder: str, line: JsonLine, case_id: str) -> Mapping[str, MultiTurnCase]:
    """The questions of the multi-turn category that an id is of: they are read when the first answer comes."""
    category = category_of_id(case_id)
    if category is None or category.rule != "multi_turn":
        raise unknown_id(line, case_id)
    from ttpa.benchmarks.bfcl.multi_turn import read_multi_turn

    try:
        cases = read_multi_turn(Path(folder), category)
    except ConfigError as error:
        raise DataError(f"{line}: {case_id} is of {category.name}. {error}") from None
    if case_id not in cases:
        raise unknown_id(line, case_id)
    return cases


def _print_benchmark(summary: Summary) -> None:
    if not summary.answers:
        print("no answers were scored")
        return
    rows = [
        (found.category, _share(found.value, found.low, found.high), f"{found.answers:,}",
         f"{found.cases:,} of {found.published or found.cases:,}")
        for found in summary.accuracies()
    ]  # fmt: skip
    _print_table("Accuracy, 95 % interval over questions", ("category", "accuracy", "answers", "questions"), rows)
    for version in ("v4", "v3"):
        totals = [
            ("  " * total.depth + total.name.replace("_", " "),
             "-" if total.value is None else f"{total.value:.4f}", f"{total.covered:.1%}",
             "" if total.counts else "not in the overall score")
            for total in summary.aggregates(version)
        ]  # fmt: skip
        _print_table(f"BFCL {version}; a dash where a part was not run", ("total", "score", "covered", ""), totals)
    _print_errors(summary.errors, summary.answers)


def _share(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.4f}" if low is None or high is None else f"{value:.4f} [{low:.4f}, {high:.4f}]"


def _print_errors(errors: Counter[str], answers: int) -> None:
    rows = [(label.replace("_", " "), f"{errors[label]:,}", f"{errors[label] / answers:.4f}") for label in LABELS]
    _print_table("First errors", ("error", "answers", "share"), rows)


def _print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for at, name in enumerate(columns):
        table.add_column(name, justify="left" if at == 0 or not name else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(title, table, "", sep="\n", soft_wrap=True)


# --- scorers ---------------------------------------------------------------------------------------------------------


def _scorer(options: dict[str, str]) -> None:
    syntax = get_syntax(options.get("syntax", "python"))
    scorer = _make_scorer(options)
    samples = {}
    for line in read_lines(options["samples"]):
        sample = _sample(line)
        if sample.id in samples:
            raise DataError(f"{line}: {sample.id} is there twice. Keep one sample of an id.")
        samples[sample.id] = sample
    errors: Counter[str] = Counter()
    counts: dict[str, list[float]] = {}
    theirs, ours = read_shares(options["against"]) if options.get("against") else None, Shares()
    try:
        read = (options["outputs"], options["samples"], options.get("against", ""))
        with writer(options.get("out", ""), read) as write:
            for line in _counted(read_lines(options["outputs"], answer_row)):
                candidate = _candidate(line, syntax)
                sample_of = samples.get(candidate.sample_id)
                if sample_of is None:
                    raise DataError(f"{line}: unknown id {candidate.sample_id}. samples= must hold the sample.")
                score = scorer(sample_of, candidate)
                label = "" if score.exact else primary_error(six_errors(sample_of, candidate.calls))
                errors[label] += 1
                count = counts.setdefault(sample_of.cluster, [0, 0, 0.0])
                count[0] += 1
                count[1] += score.exact
                count[2] += score.value
                ours.add(sample_of.id, score.exact, sample_of.cluster)
                write(
                    Scored(
                        id=candidate.sample_id,
                        valid=score.exact,
                        error_type=None,
                        six_error=label,
                        score=score.value,
                        explanation=score.explanation,
                    )
                )
    finally:
        _print_scorer(options["scorer"], counts, errors)
    if theirs is not None:
        print(compared(ours, theirs))


def _sample(line: JsonLine) -> Sample:
    """The sample of a row, with all that scorers rely on."""
    try:
        sample = Sample.from_json(line.row)
        names = [sample.id, sample.cluster, *(call.name for call in sample.target)]
        names += [name for tool in sample.tools for name in (tool.name, *tool.required)]
        objects = [*(tool.parameters for tool in sample.tools), *(call.arguments for call in sample.target)]
        if not all(isinstance(one, str) for one in names) or not all(isinstance(one, Mapping) for one in objects):
            raise TypeError("ids and names must be text, parameters and arguments objects")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{line}: no sample ({type(error).__name__}: {error}). Take samples.jsonl.") from None
    return sample


def _print_scorer(name: str, counts: dict[str, list[float]], errors: Counter[str]) -> None:
    answers = int(sum(count[0] for count in counts.values()))
    if not answers:
        print("no answers were scored")
        return
    exact = interval([[int(count[0]), int(count[1])] for count in counts.values()])
    mean = sum(count[2] for count in counts.values()) / answers
    rows = [("exact", _share(*exact), f"{answers:,}"), (f"mean {name}", f"{mean:.4f}", f"{answers:,}")]
    _print_table("Scores, 95 % interval over dialogues", ("", "value", "answers"), rows)
    _print_errors(errors, answers)


def _make_scorer(options: dict[str, str]) -> Callable[[Sample, Candidate], Any]:
    """The scorer that the options name, made as in a run."""
    import hydra
    from hydra.errors import HydraException

    from ttpa.run import config

    chosen = [f"scorer={options['scorer']}"]
    keys = [key for key in options if key.startswith("scorer.")]
    if "syntax" in options and "scorer.syntax" not in options:
        chosen.append(f"model.syntax={options['syntax']}")  # scorers that read the text take it from there
    try:
        with hydra.initialize_config_module("ttpa.conf", version_base="1.3"):
            default = hydra.compose("config", overrides=chosen)
            whole = hydra.compose("config", overrides=[*chosen, *(f"{key}={options[key]}" for key in keys)])
    except HydraException as error:
        raise ConfigError(f"{' '.join(chosen + keys)}: {' '.join(str(error).split())}") from None
    config.check_types(whole, default, keys)
    made: Callable[[Sample, Candidate], Any] = config.instantiate(whole.scorer, "scorer")
    return made


_UNSAID = {"index": 0, "text": "", "token_ids": (), "logps": (), "error": None, "finish": "stop", "branches": ()}
"""What a candidate need not say to be scored."""


def _candidate(line: JsonLine, syntax: Syntax) -> Candidate:
    """The candidate of a row; calls are a candidate's own, or read from the row's text or list of {name: json}."""
    row = line.row
    if "sample_id" in row and "calls" in row and "result" not in row:
        calls = row["calls"]
        try:
            found = Candidate.from_json({**_UNSAID, **row, "calls": dumps(calls) if isinstance(calls, list) else calls})
            texts = (found.sample_id, found.text, *(call.name for call in found.calls or ()))
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("sample_id, text and the names of calls must be text")
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise DataError(f"{line}: no candidate ({type(error).__name__}: {error}).") from None
        return found
    answer = read_answer(line)
    if isinstance(answer.result, list):
        pairs = [next(iter(item.items())) for item in answer.result if isinstance(item, dict) and len(item) == 1]
        whole = len(pairs) == len(answer.result)
        # Arguments stay JSON text: scorers read them, and say what is wrong where they cannot.
        calls = tuple(ToolCall(name=str(name), arguments=value) for name, value in pairs) if whole else None
        reason = None if whole else "not a list of {name: json}"
        readable = [made for call in calls or () if (made := read_call(call)) is not None]
        text = syntax.print(readable) if readable and len(readable) == len(pairs) else dumps(answer.result)
        return Candidate(sample_id=answer.case_id, index=0, text=text, calls=calls, error=reason)
    if answer.result is None:
        return Candidate(sample_id=answer.case_id, index=0, text="", error="not readable")
    if not isinstance(answer.result, str):
        raise DataError(f"{line}: result is neither a text nor a list.")
    read = syntax.parse(answer.result)
    if isinstance(read, ParseError):
        return Candidate(sample_id=answer.case_id, index=0, text=answer.result, error=str(read))
    return Candidate(sample_id=answer.case_id, index=0, text=answer.result, calls=read)
