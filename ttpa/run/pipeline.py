"""The graph: one function that reads like the papers' algorithm, over content-addressed stages.

Every run is `data -> warmup -> rounds of (select -> explore -> align) -> evaluate`. Which stages are computed and which
are found in the store is decided by fingerprints alone. Controls (RFT, gold) are further objectives over the same
stages. `record` writes the result rows; tables read nothing else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig

from ttpa.io import write_jsonl
from ttpa.run import config
from ttpa.run.cluster import joined, place
from ttpa.run.parts import VERSIONS, Parts, Progress, build_data, build_parts, check_compatible
from ttpa.run.stages.decoding import build_evaluate, build_explore, build_select
from ttpa.run.stages.training import build_align, build_warmup
from ttpa.run.store import Planner, StageResult, Store, fingerprint
from ttpa.run.tracking import StageFacts

ROW_VERSION = 1


Builder = Callable[[Path, Progress], Mapping[str, Any]]
"""Fills a stage's working directory and returns metrics."""


class View(Protocol):
    """What the pipeline tells the screen. Labels name stages for people."""

    def expect(self, labels: Sequence[str]) -> None: ...
    def begin(self, label: str) -> None: ...
    def progress(self, label: str, done: int, total: int, tokens_per_s: float, note: str) -> None: ...
    def end(self, label: str, result: StageResult) -> None: ...
    def note(self, message: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Branch:
    """One objective's path through the graph: role -> stage in order (`evaluation` last), and its configuration."""

    objective: str
    stages: Mapping[str, StageResult]
    cfg: DictConfig


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gave: the stages that all branches share, a branch an objective (the run's own first), what
    was built.
    """

    shared: Mapping[str, StageResult]
    branches: tuple[Branch, ...]
    built: tuple[str, ...]


class _Graph:
    """Finds or builds the stages of one configuration and tells view and tracker."""

    def __init__(self, cfg: DictConfig, parts: Parts, store: Store, view: View | None) -> None:
        self.cfg, self.parts, self.store, self.view = cfg, parts, store, view

    def key(
        self, name: str, inputs: Mapping[str, StageResult], groups: Sequence[str], more: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What decides a stage, as the store asks for it. What lies on disk decides too, and no setting says it."""
        settings = {**config.identity(self.cfg, *groups), **more}
        for group in settings.keys() & self.parts.on_disk.keys():
            settings[group] |= self.parts.on_disk[group]
        return {"version": VERSIONS[name], "config": settings, "inputs": inputs}

    def stage(
        self,
        label: str,
        name: str,
        inputs: Mapping[str, StageResult],
        groups: Sequence[str],
        build: Builder,
        **more: Any,
    ) -> StageResult:
        """The stage `name` of these inputs. `groups` and `more` are the settings that decide it."""
        tracking, failed = self.parts.tracking, True
        chosen = {group.split(".")[0] for group in groups} & set(config.IDENTITY)
        chosen = chosen.union(*(tracking.lineage[one.path.name] for one in inputs.values()))

        def work(workdir: Path) -> Mapping[str, Any]:
            view = self.view
            assert view is not None, "a plan builds nothing"
            view.begin(label)
            tracking.begin(self.facts(workdir.name.removesuffix(".part"), name, label, chosen, inputs), workdir)
            return build(workdir, lambda *news: view.progress(label, *news))

        try:
            result = self.store.stage(name, build=work, label=label, **self.key(name, inputs, groups, more))
            tracking.publish(result.path, result.metrics, self.view.note if self.view else print)
            failed = False
        finally:
            tracking.end(failed)
        tracking.lineage[result.path.name] = frozenset(chosen)
        if self.view:
            self.view.end(label, result)
        return result

    def evaluate(self, label: str, policy: StageResult, data: StageResult) -> StageResult:
        """The evaluation of a policy."""
        build = partial(build_evaluate, self.parts, policy.path / "policy", data.path)
        return self.stage(label, "evaluate", {"policy": policy, "data": data}, ["eval"], build)

    def facts(self, id_: str, name: str, label: str, groups: set[str], inputs: Mapping[str, StageResult]) -> StageFacts:
        """What a tracker is told of a stage before it is built."""
        cfg, chosen = self.cfg, [group for group in config.IDENTITY if group in groups]
        return StageFacts(
            id=id_,
            stage=name,
            name=f"{label}, {cfg.name}, seed {cfg.seed}",
            run=cfg.name,
            choices={group: str(cfg.choices[group]) for group in (*chosen, "experiment") if group in cfg.choices},
            config={**config.identity(cfg, *chosen), "seed": cfg.seed, "rounds": cfg.rounds, "name": cfg.name},
            inputs={role: result.path for role, result in inputs.items()},
        )


def walk(cfg: DictConfig, branches: Mapping[str, tuple[DictConfig, Parts]], store: Store, view: View | None) -> Outcome:
    """The graph of one configuration: the objective of the run, then its controls, over the same data and warm-up.

    `branches` come from `branches_of`. The store builds and finds stages, or only names them (`Planner`).
    """
    graphs = {name: _Graph(own, parts, store, view) for name, (own, parts) in branches.items()}
    graph = next(iter(graphs.values()))
    parts = graph.parts
    data = graph.stage("data", "data", {}, ["data"], partial(build_data, parts))
    recipe = [parts.warmup.recipe] if parts.warmup.recipe else []
    build = partial(build_warmup, parts, data.path)
    warmup = graph.stage("warm-up", "warmup", {"data": data}, ["model", "warmup", *recipe, "seed"], build)
    shared = {"data": data, "warmup": warmup}
    if cfg.until == "warmup":
        return Outcome(shared, (), tuple(store.executions))
    if cfg.until is None and cfg.baseline is not False:
        shared["baseline"] = graph.evaluate("evaluate warm-up", warmup, data)
    done = tuple(_branch(one, name, data, warmup) for name, one in graphs.items())
    if cfg.until is None and "baseline" not in shared:
        # It costs nothing to show what is there, and a result row does not lose what an earlier run wrote into it.
        found = store.find("evaluate", **graph.key("evaluate", {"policy": warmup, "data": data}, ["eval"], {}))
        shared |= {"baseline": found} if found else {}
    return Outcome(shared, done, tuple(store.executions))


def _branch(graph: _Graph, objective: str, data: StageResult, warmup: StageResult) -> Branch:
    """Rounds of exploration and alignment, and the evaluation of what comes out."""
    cfg, parts, policy = graph.cfg, graph.parts, warmup
    done: dict[str, StageResult] = {}

    def label(stage: str, number: int) -> str:
        if stage in ("select", "explore") and number == 1:
            return stage  # the same for every branch
        return f"{stage} {objective}" + (f" round {number}" if cfg.rounds > 1 else "")

    for number in range(1, cfg.rounds + 1):
        start, inputs = policy.path / "policy", {"policy": policy, "data": data}
        # A selection without a policy has no stage of its own: its settings enter the stages that apply it.
        selection, selected, explored = ["select"], None, None
        if parts.select.needs_policy:
            build = partial(build_select, parts, start, data.path)
            select = graph.stage(label("select", number), "select", inputs, ["select"], build)
            inputs["select"] = done[f"select{number}"] = select
            selection, selected = [], select.path
        if parts.objective.consumes == "pair":
            groups = ["sampler", "scorer", "pairs", "seed", *selection]
            build = partial(build_explore, parts, start, data.path, selected, number)
            explore = graph.stage(label("explore", number), "explore", inputs, groups, build, round=number)
            inputs["explore"] = done[f"explore{number}"] = explore
            selection, explored = [], explore.path
        if cfg.until == "explore" and number == cfg.rounds:
            return Branch(objective, done, cfg)
        drawn = ["sampler", "scorer"] if parts.objective.consumes == "prompt" else []
        groups = ["objective", parts.objective.recipe, "seed", *selection, *drawn]
        build = partial(build_align, parts, start, data.path, selected, explored)
        policy = done[f"align{number}"] = graph.stage(label("align", number), "align", inputs, groups, build)
    if cfg.until is None:
        done["evaluation"] = graph.evaluate(f"evaluate {objective}", policy, data)
    return Branch(objective, done, cfg)


def branches_of(cfg: DictConfig) -> dict[str, tuple[DictConfig, Parts]]:
    """Objective -> configuration and parts: the run's own objective, then each control that differs from it.

    Raises:
        ConfigError: a value or a combination that cannot work.
    """
    parts = build_parts(cfg)
    branches = {str(cfg.choices.objective): (cfg, parts)}
    for name, objective in cfg.controls.items():
        if objective == cfg.objective:
            continue
        own = cfg.copy()
        own.objective, own.choices.objective = objective, name
        made = replace(parts, objective=config.instantiate(objective, f"controls.{name}"))
        check_compatible(made, own)
        # A control of the same name with other numbers must not take the run's own place.
        branches[f"{name} (control)" if name in branches else str(name)] = (own, made)
    return branches


def plan(cfg: DictConfig) -> Outcome:
    """The stages of a configuration with their names and folders; nothing is built.

    Raises:
        ConfigError, DataError: the configuration cannot be run, or a file that it names cannot be read.
    """
    return walk(cfg, branches_of(cfg), Planner(Path(cfg.paths.store)), None)


def run(cfg: DictConfig, view: View) -> Outcome:
    """Runs one configuration and writes its result rows.

    Raises:
        ConfigError, DataError, StageLocked: see the stages.
    """
    branches, folder = branches_of(cfg), Path(cfg.paths.store)
    planner = Planner(folder)
    walk(cfg, branches, planner, None)
    view.expect(list(dict.fromkeys(planner.labels)))
    store = joined(Store, Path(cfg.paths.runs))(folder, wait=cfg.paths.wait_for_locks, on_wait=view.note)
    outcome = walk(cfg, branches, store, view)
    if place().rank == 0:
        record(cfg, outcome)
    return outcome


def record(cfg: DictConfig, outcome: Outcome) -> list[Path]:
    """Writes one result row a branch to `results/<name>-<id>.jsonl`; the same run writes the same file again.

    `metrics` and `baseline` (empty where nobody evaluated the warm-up) are functions of the configuration; `cost` holds
    what was measured with a clock.
    """
    folder = Path(cfg.paths.results)
    written = []
    for branch in outcome.branches:
        if "evaluation" not in branch.stages:
            continue
        every = {**outcome.shared, **branch.stages}
        evaluation = branch.stages["evaluation"]
        identity = config.identity(branch.cfg, *config.IDENTITY)  # more than the stages: gold reads no sampler
        key = fingerprint("row", ROW_VERSION, {"name": cfg.name, **identity}, {"evaluation": evaluation.fingerprint})
        row = {
            "run": key,
            "row_version": ROW_VERSION,
            "name": cfg.name,
            "seed": cfg.seed,
            "rounds": cfg.rounds,
            "choices": {group: str(branch.cfg.choices[group]) for group in config.IDENTITY},
            "config": identity,
            "stages": {role: stage.path.name for role, stage in every.items()},
            "versions": VERSIONS,
            "baseline": outcome.shared["baseline"].metrics if "baseline" in outcome.shared else {},
            "metrics": evaluation.metrics,
            "explored": {role: stage.metrics for role, stage in branch.stages.items() if role.startswith("explore")},
            "cost": {
                role: {"seconds": stage.seconds, "tokens": stage.metrics.get("tokens")} for role, stage in every.items()
            },
        }
        folder.mkdir(parents=True, exist_ok=True)
        written.append(folder / f"{cfg.name}-{key}.jsonl")
        write_jsonl(written[-1], [row])
    return written
