"""`ttpa dashboard NAME`: the W&B workspace and report of a sweep, as code.

Both filter by the run's name and group by the options that `logger=wandb` notes. Nothing here asks the server for
numbers: the pages do, when they are opened.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field
from pydantic.dataclasses import dataclass

from ttpa.calls.six_errors import LABELS
from ttpa.errors import ConfigError, TtpaError
from ttpa.io import write_text
from ttpa.options import arguments
from ttpa.results.wandb import has_key
from ttpa.run.tracking import option_key

PAGES: Mapping[str, Any] = yaml.safe_load((resources.files("ttpa.results") / "dashboard.yaml").read_text("utf-8"))
ACCURACY = "accuracy/value"

HELP = """\
ttpa dashboard NAME [entity=TEAM] [project=ttpa] [out=FILE]

Builds the W&B workspace and the report of the runs with name=NAME that were followed with logger=wandb: accuracy by
option, six errors and call count, training curves, a table of runs. With a key (WANDB_API_KEY or `wandb login`) both
are saved on the server and their addresses are printed; without one, or with out=FILE, they are written to FILE as
JSON (default NAME-dashboard.json). Needs the extra: pip install 'ttpa[dashboard]'.
"""


@dataclass(frozen=True, kw_only=True)
class DashboardKeys:
    """The words of the command."""

    target: Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # the `name=` of a run
    entity: str = ""
    project: str = "ttpa"
    out: Path | None = None


def packages() -> tuple[Any, Any]:
    """The modules of reports and of workspaces."""
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        problem = f"ttpa dashboard needs the package wandb-workspaces ({error})"
        raise ConfigError(f"{problem}: pip install 'ttpa[dashboard]'.") from None
    return reports, workspaces


def panels(wr: Any) -> dict[str, list[Any]]:
    """Section -> its panels; the same in the workspace and in the report."""

    def bars(title: str, metric: str, group: str, **more: Any) -> Any:
        mean = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}
        return wr.BarPlot(title=title, metrics=[metric], groupby=wr.Config(option_key(group)), **mean, **more)

    curves = PAGES["curves"].items()
    errors = {f"errors/{label}/value": f"Share of answers with {label.replace('_', ' ')}" for label in LABELS}
    accuracy = [bars(f"Accuracy by {one}", ACCURACY, one, title_x="exact-call accuracy") for one in PAGES["groups"]]
    return {
        "Accuracy by option": accuracy,
        "Six errors and call count": [bars(title, metric, "objective") for metric, title in errors.items()],
        "Training curves": [wr.LinePlot(title=title, x="Step", y=[key], title_x="step") for key, title in curves],
        "Runs": [
            wr.RunComparer(diff_only="split"),
            *(wr.WeavePanelSummaryTable(table_name=name) for name in PAGES["tables"]),
        ],
    }


def workspace(wr: Any, ws: Any, keys: DashboardKeys) -> Any:
    """The workspace: all stages of the sweep, its table of runs on the left with options and accuracy in front."""
    columns = [f"config:{option_key(group)}.value" for group in PAGES["groups"]]
    runs = ws.RunsetSettings(
        filters=f"Metric('Group') == '{keys.target}'",
        groupby=[ws.Metric("JobType")],
        order=[ws.Ordering(ws.Summary(ACCURACY), ascending=False)],
        pinned_columns=["run:displayName", f"summary:{ACCURACY}", *columns, "config:seed.value"],
    )
    sections = [ws.Section(name=name, panels=some, is_open=name != "Runs") for name, some in panels(wr).items()]
    names = {"entity": keys.entity, "project": keys.project, "name": f"{keys.target} ablation"}
    return ws.Workspace(**names, sections=sections, runset_settings=runs)


def report(wr: Any, keys: DashboardKeys, *, online: bool) -> Any:
    """The report: a grid a section, each over the stages it is about."""
    blocks = [wr.TableOfContents()]
    # A run set that names its project is looked up on the server.
    source = {"entity": keys.entity, "project": keys.project} if online else {}
    for section, some in panels(wr).items():
        stages = PAGES["stages"][section]
        filters = f"Metric('Group') == '{keys.target}'" + f" and Metric('JobType') in {stages}" * bool(stages)
        for panel in some:  # the grid is 24 wide; the package moves panels that would lie on one another
            panel.layout = wr.Layout(w=12 if section == "Accuracy by option" else 8, h=8)
        runset = wr.Runset(name=f"{keys.target}: {', '.join(stages) or 'all stages'}", filters=filters, **source)
        blocks += [wr.H2(section), wr.P(PAGES["texts"][section]), wr.PanelGrid(runsets=[runset], panels=some)]
    about = "One run a stage, grouped by the options that decided it. Made by `ttpa dashboard`."
    names = {"entity": keys.entity, "project": keys.project, "title": f"{keys.target}: ablation"}
    return wr.Report(**names, description=about, blocks=blocks, width="fluid")


def main(words: Sequence[str]) -> int:
    """Saves both pages on the server and prints their addresses, or writes them as JSON and prints the file."""
    keys = arguments(words, DashboardKeys, "dashboard")
    wr, ws = packages()
    if has_key() and not keys.out:
        import wandb_workspaces.reports.v2.interface as interface

        try:
            if not keys.entity:
                keys = replace(keys, entity=interface._get_api().default_entity)
            print(workspace(wr, ws, keys).save().url, report(wr, keys, online=True).save().url, sep="\n")
        except Exception as error:
            refused = f"W&B refused the pages of project {keys.entity}/{keys.project}: {error}"
            raise TtpaError(f"{refused}. Check entity=, project= and the key, or write them with out=FILE.") from None
        return 0
    whole: dict[str, Any] = {"name": keys.target, "entity": keys.entity, "project": keys.project}
    for name, page in {"workspace": workspace(wr, ws, keys), "report": report(wr, keys, online=False)}.items():
        whole[name] = json.loads(page._to_model().model_dump_json(by_alias=True, exclude_none=True))
    path = keys.out or Path(f"{keys.target}-dashboard.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(whole, indent=1, ensure_ascii=False))
    except OSError as error:
        raise ConfigError.at("out", path, f"cannot be written ({error.strerror})", "Give a file in a folder") from None
    print(path)
    return 0
