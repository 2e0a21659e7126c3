"""`ttpa-dashboard NAME`: the W&B workspace and report of a sweep, as code.

Filters by the run's name and groups by the options that `logger=wandb` notes, so that every sweep gets the same pages
without a click. With a key both are saved on the server; without one, or with `out=`, they are written as JSON.

What this module does not do: ask the server for numbers (the pages do, when they are opened), or need W&B for anything
else; tables of papers come from `ttpa-table`. Its package (extra `dashboard`) is imported when it is used.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ttpa.calls.six_errors import LABELS
from ttpa.errors import ConfigError, TtpaError
from ttpa.run.tracking import has_key, option_key

GROUPS = ("data", "model", "warmup", "select", "sampler", "scorer", "pairs", "objective")
"""Groups whose options accuracy is compared over."""
ACCURACY = "accuracy/value"
CURVES = {
    "loss": "Loss",
    "grad_norm": "Gradient norm",
    "lr": "Learning rate",
    "rewards/margins": "Reward margin (preference losses)",
    "rewards/accuracies": "Share of pairs in order (preference losses)",
    "reward": "Reward (objectives that draw)",
    "entropy": "Entropy (objectives that draw)",
    "tokens_per_s": "Tokens a second",
}
"""Metric of the training loops -> title."""
TABLES = {"tables/six_errors": "Six errors", "tables/answers": "Some answers", "tables/pairs": "Pairs"}
KEYS = ("entity", "project", "out")

HELP = """ttpa-dashboard NAME [entity=TEAM] [project=ttpa] [out=FILE]

Builds the W&B workspace and the report of the runs with name=NAME that were followed with logger=wandb: accuracy by
option, six errors, training curves, a table of runs. With a key (WANDB_API_KEY or `wandb login`) both are saved on the
server and their addresses are printed; without one, or with out=FILE, they are written to FILE as JSON
(default NAME-dashboard.json). Needs the extra: pip install 'ttpa[dashboard]'.
"""


def parse(words: Sequence[str]) -> dict[str, str]:
    """Options of the command line, `name` among them.

    Raises:
        ConfigError: a word that is no option, or no name.

    Example:
        >>> parse(["demo", "project=tools"])
        {'name': 'demo', 'entity': '', 'project': 'tools', 'out': ''}
    """
    found = {"name": "", "entity": "", "project": "ttpa", "out": ""}
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in KEYS:
            found[key] = value
        elif equals or found["name"]:
            raise ConfigError.at("ttpa-dashboard", word, "is no option", f"Options are {', '.join(KEYS)}; see --help")
        else:
            found["name"] = word
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", found["name"]):
        raise ConfigError.at("ttpa-dashboard NAME", found["name"], "must be the name= of a run", "For example demo")
    return found


def _packages() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ConfigError(
            f"ttpa-dashboard needs the package wandb-workspaces ({error}): pip install 'ttpa[dashboard]'."
        ) from None
    return reports, workspaces


def _layout(wr: Any, number: int, columns: int) -> Any:
    """Place of a panel in a report's grid, which is 24 wide."""
    width = 24 // columns
    return wr.Layout(x=number % columns * width, y=number // columns * 8, w=width, h=8)


def panels(wr: Any) -> dict[str, list[Any]]:
    """Section -> its panels; the same in the workspace and in the report."""
    accuracy = [
        wr.BarPlot(
            title=f"Accuracy by {group}",
            metrics=[ACCURACY],
            groupby=wr.Config(option_key(group)),
            groupby_aggfunc="mean",
            groupby_rangefunc="stderr",
            title_x="exact-call accuracy",
        )
        for group in GROUPS
    ]
    errors = [
        wr.BarPlot(
            title=f"Share of answers with {label.replace('_', ' ')}",
            metrics=[f"errors/{label}/value"],
            groupby=wr.Config(option_key("objective")),
            groupby_aggfunc="mean",
            groupby_rangefunc="stderr",
        )
        for label in LABELS
    ]
    curves = [wr.LinePlot(title=title, x="Step", y=[metric], title_x="step") for metric, title in CURVES.items()]
    tables = [wr.WeavePanelSummaryTable(table_name=name) for name in TABLES]
    return {
        "Accuracy by option": accuracy,
        "Six errors": errors,
        "Training curves": curves,
        "Runs": [wr.RunComparer(diff_only="split"), *tables],
    }


def workspace(wr: Any, ws: Any, options: dict[str, str]) -> Any:
    """The workspace: all stages of the sweep, its table of runs on the left with options and accuracy in front."""
    columns = [f"config:{option_key(group)}.value" for group in GROUPS]
    return ws.Workspace(
        entity=options["entity"],
        project=options["project"],
        name=f"{options['name']} ablation",
        sections=[
            ws.Section(name=name, panels=found, is_open=number < 3)
            for number, (name, found) in enumerate(panels(wr).items())
        ],
        runset_settings=ws.RunsetSettings(
            filters=f"Metric('Group') == '{options['name']}'",
            groupby=[ws.Metric("JobType")],
            order=[ws.Ordering(ws.Summary(ACCURACY), ascending=False)],
            pinned_columns=["run:displayName", f"summary:{ACCURACY}", *columns, "config:seed.value"],
        ),
    )


def report(wr: Any, options: dict[str, str], *, online: bool) -> Any:
    """The report: a page a section, each over the stages it is about."""
    name, blocks = options["name"], [wr.TableOfContents()]
    # A run set that names its project is looked up on the server.
    place = {"entity": options["entity"], "project": options["project"]} if online else {}
    for section, found in panels(wr).items():
        kinds = {"Training curves": "warmup, align", "Runs": "all stages"}.get(section, "evaluate")
        filters = f"Metric('Group') == '{name}'"
        if kinds != "all stages":
            filters += f" and Metric('JobType') in {kinds.split(', ')}"
        for number, panel in enumerate(found):
            panel.layout = _layout(wr, number, 2 if section == "Accuracy by option" else 3)
        blocks += [
            wr.H2(section),
            wr.P(TEXTS[section]),
            wr.PanelGrid(runsets=[wr.Runset(name=f"{name}: {kinds}", filters=filters, **place)], panels=found),
        ]
    return wr.Report(
        entity=options["entity"],
        project=options["project"],
        title=f"{name}: ablation",
        description="One run a stage, grouped by the options that decided it. Made by ttpa-dashboard.",
        blocks=blocks,
        width="fluid",
    )


TEXTS = {
    "Accuracy by option": "Exact-call accuracy on the evaluation split, averaged over every other option and over "
    "seeds; bars show the standard error over runs. A difference between options is only fair where the rest of the "
    "grid is complete: ttpa-table shows holes as holes and tests paired differences.",
    "Six errors": "Share of answers that show each error of TTPA (2505.20016), and answers with calls missing or too "
    "many. An answer can show several.",
    "Training curves": "Warm-up and align stages. A stage that went on after a kill goes on with its curve.",
    "Runs": "Configurations side by side, the six errors with intervals, some answers of each policy and some pairs.",
}


def as_json(options: dict[str, str]) -> dict[str, Any]:
    """Both pages as the server would store them."""
    wr, ws = _packages()
    made = {"workspace": workspace(wr, ws, options), "report": report(wr, options, online=False)}
    pages = {
        page: json.loads(one._to_model().model_dump_json(by_alias=True, exclude_none=True))
        for page, one in made.items()
    }
    return {**{key: options[key] for key in ("name", "entity", "project")}, **pages}


def _save(options: dict[str, str]) -> list[str]:
    """Saves both on the server; their addresses."""
    wr, ws = _packages()
    import wandb_workspaces.reports.v2.interface as interface

    if not options["entity"]:
        options = {**options, "entity": interface._get_api().default_entity}
    try:
        return [workspace(wr, ws, options).save().url, report(wr, options, online=True).save().url]
    except Exception as error:
        raise TtpaError(
            f"W&B refused the pages of project {options['entity']}/{options['project']}: {error}. Check entity=, "
            "project= and the key, or write them to disk with out=FILE."
        ) from None


def main() -> None:
    """Entry point of the `ttpa-dashboard` script."""
    words = sys.argv[1:]
    if not words or words[0] in ("--help", "-h", "help"):
        print(HELP, end="")
        return
    try:
        options = parse(words)
        if has_key() and not options["out"]:
            print("\n".join(_save(options)))
            return
        path = Path(options["out"] or f"{options['name']}-dashboard.json")
        pages = as_json(options)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(pages, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError.at(
                "out", path, f"cannot be written ({error.strerror})", "Give a file in a folder"
            ) from None
        print(path)
    except TtpaError as error:
        print(f"ttpa-dashboard: error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


if __name__ == "__main__":
    main()
