"""Speed of BFCL's checker here against the official one, decoding included: same answers, one thread.

python experiments/speed/score.py --data DIR [--repeats 5] [--out FILE]

DIR holds the questions as published (BFCL_v4_<category>.json, possible_answer/), outputs/ with answers of models and
verdicts.jsonl.gz with perturbed ones, as tests/data/bfcl does, which is the default. The official package must be
importable (`pip install --no-deps bfcl-eval==2026.3.23`, and tenacity, filelock, tree_sitter==0.21.3,
tree-sitter-java==0.21.0, tree-sitter-javascript==0.21.4); without it there is nothing to compare with, and the script
says so. Nothing of it is needed to use ttpa.

What is timed is one pass over all answers, files read before. "first": every question new, so that preparing it is
counted (the official checker prepares nothing). "again": the same pass once more, where verdicts of the answers are
remembered. Both sides must give the published verdict for every answer.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ttpa.benchmarks.bfcl.cases import Case, read_cases
from ttpa.benchmarks.bfcl.categories import CATEGORIES, category_of_id
from ttpa.io import read_lines

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "tests" / "data" / "bfcl"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of questions, outputs/ and verdicts.jsonl.gz")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file for the numbers as JSON")
    return parser.parse_args()


def answers(folder: Path) -> Iterator[dict[str, Any]]:
    """Every answer with its published verdict, in one form."""
    for path in sorted((folder / "outputs").iterdir()):
        for line in read_lines(path):
            row = dict(line.row)
            yield {**row, "fc": row["mode"] == "fc", "dots": bool(row.get("dots_as_underscores"))}
    for line in read_lines(folder / "verdicts.jsonl.gz"):
        yield {**line.row, "id": line.row["case_id"], "result": line.row["output"], "fc": False, "dots": False}


def official(folder: Path) -> Callable[[dict[str, Any]], tuple[bool, str | None]] | None:
    """The official decoder and checker as one function, None where they are not installed."""
    os.environ["BFCL_PROJECT_ROOT"] = tempfile.mkdtemp()  # its import makes folders
    # Its table of models imports a client for every provider; the checker reads one flag of it.
    models = types.ModuleType("bfcl_eval.constants.model_config")
    flags: Any = defaultdict(lambda: types.SimpleNamespace(underscore_to_dot=False))
    flags["dots"] = types.SimpleNamespace(underscore_to_dot=True)
    models.MODEL_CONFIG_MAPPING = flags  # type: ignore[attr-defined]
    sys.modules["bfcl_eval.constants.model_config"] = models
    try:
        from bfcl_eval.constants.enums import Language, ReturnFormat
        from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker
        from bfcl_eval.model_handler.utils import default_decode_ast_prompting
        from bfcl_eval.utils import is_empty_output, is_function_calling_format_output
    except ImportError as error:
        print(f"skipped: the official checker cannot be imported ({error}). See the head of this file.")
        return None
    questions, expected = published(folder)
    python = (Language.PYTHON, ReturnFormat.PYTHON)
    others = {"simple_java": (Language.JAVA, ReturnFormat.JAVA),
              "simple_javascript": (Language.JAVASCRIPT, ReturnFormat.JAVASCRIPT)}  # fmt: skip

    def judge(row: dict[str, Any]) -> tuple[bool, str | None]:
        category = row["category"]
        language, form = others.get(category, python)
        try:
            if row["fc"]:
                calls = [{name: json.loads(item[name])} for item in row["result"] for name in list(item)[:1]]
            else:
                calls = default_decode_ast_prompting(row["result"], form)
        except Exception:  # whatever an answer makes of it, as its runner does
            calls = None
        if "relevance" in category:
            wanted = "irrelevance" not in category
            made = calls is not None and not is_empty_output(calls)
            error = "relevance_error:decoder_failed" if wanted else "irrelevance_error:decoder_success"
            return made == wanted, None if made == wanted else error
        if calls is None or not is_function_calling_format_output(calls):
            return False, "ast_decoder:decoder_failed" if calls is None else "ast_decoder:decoder_wrong_output_format"
        model = "dots" if row["dots"] else "plain"
        found = ast_checker(questions[row["id"]], calls, expected[row["id"]], language, category, model)
        return found["valid"], None if found["valid"] else found["error_type"]

    return judge


def published(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Function documents and accepted answers by id."""
    questions, expected = {}, {}
    for path in folder.glob("BFCL_v4_*.json*"):
        questions.update({line.row["id"]: line.row["function"] for line in read_lines(path)})
    for path in (folder / "possible_answer").glob("BFCL_v4_*.json*"):
        expected.update({line.row["id"]: line.row["ground_truth"] for line in read_lines(path)})
    return questions, expected


def fresh_cases(folder: Path) -> dict[str, Case]:
    questions, expected = published(folder)
    names = {case_id: category_of_id(case_id) for case_id in questions}
    return {
        case_id: Case(case_id, CATEGORIES[category.name], questions[case_id], expected.get(case_id, ()))
        for case_id, category in names.items()
        if category is not None
    }


def ours(cases: dict[str, Case]) -> Callable[[dict[str, Any]], tuple[bool, str | None]]:
    def judge(row: dict[str, Any]) -> tuple[bool, str | None]:
        verdict = cases[row["id"]].judge(row["result"], function_calling=row["fc"], dots_as_underscores=row["dots"])
        return verdict.valid, verdict.error_type

    return judge


def timed(judge: Callable[[dict[str, Any]], tuple[bool, str | None]], rows: list[dict[str, Any]]) -> float:
    """Seconds of one pass.

    Raises:
        SystemExit: a verdict differs from the published one.
    """
    gc.collect()
    started = time.perf_counter()
    found = [judge(row) for row in rows]
    seconds = time.perf_counter() - started
    wrong = [
        row["id"] for row, verdict in zip(rows, found, strict=True) if verdict != (row["valid"], row["error_type"])
    ]
    if wrong:
        raise SystemExit(f"{len(wrong)} verdicts differ from the published ones, first {wrong[0]}")
    return seconds


def main() -> None:
    options = arguments()
    reference = official(options.data)
    if reference is None:
        return
    read_cases(options.data)  # checks the folder
    rows = list(answers(options.data))
    seconds: dict[str, list[float]] = {"official": [], "first": [], "again": []}
    for _ in range(options.repeats):
        seconds["official"].append(timed(reference, rows))
        judge = ours(fresh_cases(options.data))
        seconds["first"].append(timed(judge, rows))
        seconds["again"].append(timed(judge, rows))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    load = os.getloadavg()[0]
    print(f"{len(rows)} answers, medians of {options.repeats}, Python {platform.python_version()}, load {load:.1f}")
    for name, median in medians.items():
        each, ratio = median / len(rows) * 1e6, medians["official"] / median
        print(f"{name:9s} {each:6.2f} us an answer, official / this {ratio:5.2f}")
    if options.out:
        numbers = {"answers": len(rows), "seconds": seconds, "medians": medians, "python": platform.python_version()}
        numbers |= {"machine": platform.machine(), "load": load, "date": time.strftime("%Y-%m-%d")}
        options.out.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
