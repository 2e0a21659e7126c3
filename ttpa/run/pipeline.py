"""The graph: `data -> warmup -> rounds of (select -> explore -> align) -> evaluate`, over content-addressed stages.

Controls (RFT, gold) are further objectives over the same stages.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig

from ttpa.errors import FALLBACKS, DataError
from ttpa.io import write_jsonl
from ttpa.run import config
from ttpa.run.cluster import joined, place
from ttpa.run.parts import VERSIONS, Parts, build_data, build_parts, check_compatible
from ttpa.run.stages.decoding import build_evaluate, build_explore, build_given, build_select
from ttpa.run.stages.training import build_align, build_warmup
from ttpa.run.store import Inputs, Planner, StageResult, Store, fingerprint
from ttpa.run.tracking import StageFacts

ROW_VERSION = 1
Builder = Callable[..., Mapping[str, Any]]
"""Fills a stage's working directory and returns metrics; takes parts, its own arguments, the directory and progress."""


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
    """The stages that all branches share, a branch an objective (the run's own first), names of what was built, and
    where a logger left curves (sentences for people).
    """

    shared: Mapping[str, StageResult]
    branches: tuple[Branch, ...]
    built: tuple[str, ...]
    places: tuple[str, ...] = ()


class _Graph:
    """Finds or builds the stages of one configuration and tells view and tracker."""

    def __init__(self, cfg: DictConfig, parts: Parts, store: Store, view: View | None) -> None:
        self.cfg, self.parts, self.store, self.view = cfg, parts, store, view

    def key(self, name: str, inputs: Inputs, groups: Sequence[str], **more: Any) -> dict[str, Any]:
        """What decides a stage, as the store asks for it. What lies on disk decides too, and no setting says it."""
        settings = {**config.identity(self.cfg, *groups), **more}
        own = config.own_code(settings)
        for group in settings.keys() & self.parts.on_disk.keys():
            settings[group] = _merged(settings[group], self.parts.on_disk[group])
        settings |= own
        return {"version": VERSIONS[name], "config": settings, "inputs": inputs}

    def stage(
        self, label: str, name: str, inputs: Inputs, groups: Sequence[str], build: Builder, *given: Any, **more: Any
    ) -> StageResult:
        """The stage `name` of these inputs, built with `given`. `groups` and `more` are the settings that decide it."""
        cfg, view, tracking, failed = self.cfg, self.view, self.parts.tracking, True
        decided = {group.split(".")[0] for group in groups} & set(config.IDENTITY)
        decided = decided.union(*(tracking.lineage[one.path.name] for one in inputs.values()))
        chosen = [group for group in config.IDENTITY if group in decided]

        def work(workdir: Path) -> Mapping[str, Any]:
            assert view is not None, "a plan builds nothing"
            view.begin(label)
            facts = StageFacts(
                id=workdir.name.removesuffix(".part"),
                stage=name,
                name=f"{label}, {cfg.name}, seed {cfg.seed}",
                run=cfg.name,
                choices={group: str(cfg.choices[group]) for group in (*chosen, "experiment") if group in cfg.choices},
                config=config.identity(cfg, *chosen, "seed", "rounds", "name"),
                inputs={role: result.path for role, result in inputs.items()},
            )
            tracking.begin(facts, workdir)
            FALLBACKS.clear()
            metrics = dict(build(self.parts, *given, workdir, lambda *news: view.progress(label, *news)))
            return metrics | ({"fallbacks": list(FALLBACKS)} if FALLBACKS else {})

        try:
            key = self.key(name, inputs, groups, **more)
            result = self.store.stage(name, build=work, label=label, **key)
            tracking.publish(result.path, result.metrics, view.note if view else print)
            failed = False
        finally:
            tracking.end(failed)
        tracking.lineage[result.path.name] = frozenset(decided)
        if view:
            view.end(label, result)
        return result

    def evaluate(self, label: str, policy: StageResult, data: StageResult) -> StageResult:
        inputs, given = {"policy": policy, "data": data}, (policy.path / "policy", data.path)
        return self.stage(label, "evaluate", inputs, ["eval"], build_evaluate, *given)


def _merged(settings: Any, found: Any) -> Any:
    """Settings with what was found in their place, key by key where both are objects."""
    if not (isinstance(settings, dict) and isinstance(found, Mapping)):
        return found
    return settings | {key: _merged(settings.get(key), value) for key, value in found.items()}


def walk(cfg: DictConfig, branches: Mapping[str, tuple[DictConfig, Parts]], store: Store, view: View | None) -> Outcome:
    """The graph of one configuration: its objective, then its controls (`branches_of`), over one data and warm-up. The
    store builds and finds stages, or only names them (`Planner`, with no view).
    """
    graphs = {name: _Graph(own, parts, store, view) for name, (own, parts) in branches.items()}
    graph = next(iter(graphs.values()))
    data = graph.stage("data", "data", {}, ["data"], build_data)
    split = getattr(graph.parts.evaluation, "split", None)
    if view and cfg.until is None and not data.metrics["samples"].get(split, 1):
        raise DataError(
            f"eval.split={split}: the data has no sample in this split. Raise data.{split}_fraction or data.max_rows, "
            f"give more rows, or choose another eval. How the rows were split is in {data.path}."
        )
    groups = ["model", "warmup", *filter(None, [graph.parts.warmup.recipe]), "seed"]
    warmup = graph.stage("warm-up", "warmup", {"data": data}, groups, build_warmup, data.path)
    shared = {"data": data, "warmup": warmup}
    if cfg.until == "warmup":
        return Outcome(shared, (), tuple(store.executions))
    if cfg.until is None and cfg.baseline is not False:
        shared["baseline"] = graph.evaluate("evaluate warm-up", warmup, data)
    done = tuple(_branch(one, name, data, warmup) for name, one in graphs.items())
    if cfg.until is None and "baseline" not in shared and view:
        # It costs nothing to show what is there, and a result row does not lose what an earlier run wrote into it.
        found = store.find("evaluate", **graph.key("evaluate", {"policy": warmup, "data": data}, ["eval"]))
        shared |= {"baseline": found} if found else {}
    return Outcome(shared, done, tuple(store.executions))


def _branch(graph: _Graph, objective: str, data: StageResult, warmup: StageResult) -> Branch:
    """Rounds of exploration and alignment, and the evaluation of what comes out."""
    cfg, parts, policy = graph.cfg, graph.parts, warmup
    done: dict[str, StageResult] = {}
    for number in range(1, cfg.rounds + 1):
        # What explores in the first round is the same for every branch.
        mine = f" {objective}" + (f" round {number}" if cfg.rounds > 1 else "")
        shown = "" if number == 1 else mine
        start, inputs = policy.path / "policy", {"policy": policy, "data": data}
        # A selection without a policy has no stage of its own: its settings enter the stages that apply it.
        selection, selected, explored = ["select"], None, None
        if parts.select.needs_policy:
            select = graph.stage(f"select{shown}", "select", inputs, ["select"], build_select, start, data.path)
            inputs["select"] = done[f"select{number}"] = select
            selection, selected = [], select.path
        given = (start, data.path, selected)
        if parts.objective.consumes == "pair":
            groups, more = ["sampler", "scorer", "pairs", "seed", *selection], {"round": number}
            build: Builder = build_explore
            told: tuple[Any, ...] = (*given, number)
            if parts.pairs.given:
                groups, more, build, told = ["pairs", *selection], {}, build_given, given
            explore = graph.stage(f"explore{shown}", "explore", inputs, groups, build, *told, **more)
            inputs["explore"] = done[f"explore{number}"] = explore
            selection, explored = [], explore.path
        if cfg.until == "explore" and number == cfg.rounds:
            return Branch(objective, done, cfg)
        drawn = ["sampler", "scorer"] if parts.objective.consumes == "prompt" else []
        groups = ["objective", parts.objective.recipe, "seed", *selection, *drawn]
        policy = graph.stage(f"align{mine}", "align", inputs, groups, build_align, *given, explored)
        done[f"align{number}"] = policy
    if cfg.until is None:
        done["evaluation"] = graph.evaluate(f"evaluate {objective}", policy, data)
    return Branch(objective, done, cfg)


def branches_of(cfg: DictConfig) -> dict[str, tuple[DictConfig, Parts]]:
    """Objective -> configuration and parts: the run's own objective, then each control that differs from it."""
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
    """The stages of a configuration with their names and folders; nothing is built."""
    return walk(cfg, branches_of(cfg), Planner(Path(cfg.paths.store)), None)


def run(cfg: DictConfig, view: View) -> Outcome:
    """Runs one configuration and writes its result rows; tables read nothing else."""
    branches, folder = branches_of(cfg), Path(cfg.paths.store)
    planner = Planner(folder)
    walk(cfg, branches, planner, None)
    view.expect(list(dict.fromkeys(planner.labels)))
    store = joined(folder, Path(cfg.paths.runs), wait=cfg.paths.wait_for_locks, on_wait=view.note)
    outcome = walk(cfg, branches, store, view)
    if place().rank == 0:
        record(cfg, outcome)
    return replace(outcome, places=tuple(next(iter(branches.values()))[1].tracking.places))


def _row(cfg: DictConfig, branch: Branch) -> tuple[str, Path, dict[str, Any]]:
    """Key, file and identity configuration of a branch's result row."""
    identity = config.identity(branch.cfg, *config.IDENTITY)  # more than the stages: gold reads no sampler
    inputs = {"evaluation": branch.stages["evaluation"].fingerprint}
    key = fingerprint("row", ROW_VERSION, {"name": cfg.name, **identity}, inputs)
    return key, Path(cfg.paths.results) / f"{cfg.name}-{key}.jsonl", identity


def is_recorded(cfg: DictConfig, outcome: Outcome) -> bool:
    """Whether the result rows that a run would write are there, with the stages of the plan."""
    for branch in (branch for branch in outcome.branches if "evaluation" in branch.stages):
        names = {role: stage.path.name for role, stage in {**outcome.shared, **branch.stages}.items()}
        try:
            row = json.loads(_row(cfg, branch)[1].read_text(encoding="utf-8"))
            if not names.items() <= row["stages"].items():
                return False
        except (OSError, ValueError, LookupError):
            return False
    return True


def record(cfg: DictConfig, outcome: Outcome) -> None:
    """Writes one result row a branch to `results/<name>-<id>.jsonl`; only `cost` holds what a clock measured."""
    for branch in (branch for branch in outcome.branches if "evaluation" in branch.stages):
        every, evaluation = {**outcome.shared, **branch.stages}, branch.stages["evaluation"]
        key, file, identity = _row(cfg, branch)
        row = {
            "run": key,
            "row_version": ROW_VERSION,
            **config.identity(cfg, "name", "seed", "rounds"),
            "choices": {group: str(branch.cfg.choices[group]) for group in config.IDENTITY},
            "config": identity,
            "stages": {role: stage.path.name for role, stage in every.items()},
            "versions": VERSIONS,
            "baseline": outcome.shared["baseline"].metrics if "baseline" in outcome.shared else {},
            "metrics": evaluation.metrics,
            "explored": {role: stage.metrics for role, stage in branch.stages.items() if role.startswith("explore")},
            "cost": {r: {"seconds": one.seconds, "tokens": one.metrics.get("tokens")} for r, one in every.items()},
        }
        if fallbacks := {r: one.metrics["fallbacks"] for r, one in every.items() if "fallbacks" in one.metrics}:
            row["fallbacks"] = fallbacks
        file.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(file, [row])
