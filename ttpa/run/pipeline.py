"""The graph: one function that reads like the papers' algorithm, over content-addressed stages.

Every run is `data -> warmup -> rounds of (select -> explore -> align) -> evaluate`. Which of these are computed and
which are found in the store is decided by fingerprints alone. Controls (RFT, gold) are further objectives over the
same stages. The table rows that a run leaves behind are written by `record`; nothing else is a source of numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf

from ttpa.errors import ConfigError
from ttpa.io import dumps
from ttpa.run import config, stages
from ttpa.run.ranks import joined, place
from ttpa.run.store import StageResult, Store, fingerprint
from ttpa.run.tracking import StageFacts

ROW_VERSION = 1


class View(Protocol):
    """What the pipeline tells the screen."""

    def expect(self, labels: Sequence[str]) -> None: ...
    def begin(self, label: str) -> None: ...
    def progress(self, label: str, done: int, total: int, tokens_per_s: float, note: str) -> None: ...
    def end(self, label: str, result: StageResult) -> None: ...
    def note(self, message: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Cell:
    """One objective's path through the graph, role -> stage in order (`evaluation` last), and its configuration."""

    objective: str
    stages: Mapping[str, StageResult]
    cfg: DictConfig


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gave: the data and warm-up stages, one cell an objective (the run's own first), and what was built."""

    shared: Mapping[str, StageResult]
    cells: tuple[Cell, ...]
    built: tuple[str, ...]


def build_parts(cfg: DictConfig) -> stages.Parts:
    """Instantiates every part. Cheap: imports neither torch nor transformers.

    Raises:
        ConfigError: a value that a part refuses.
    """
    config.check_scalars(cfg)
    make = config.instantiate
    parts = stages.Parts(
        data=make(cfg.data, "data"),
        model=make(cfg.model, "model"),
        recipe=make(cfg.recipe, "recipe"),
        warmup=make(cfg.warmup, "warmup"),
        select=make(cfg.select, "select"),
        sampler=make(cfg.sampler, "sampler"),
        scorer=make(cfg.scorer, "scorer"),
        pairs=make(cfg.pairs, "pairs"),
        objective=make(cfg.objective, "objective"),
        evaluation=make(cfg.eval, "eval"),
        seed=cfg.seed,
        executor=make(cfg.executor, "executor"),
        engine=lambda **extra: make(cfg.engine, "engine", **extra),
        engine_name=str(cfg.engine._target_).rsplit(".", 1)[-1],
        wave_rows=cfg.engine.rows,
        trainer=make(cfg.trainer, "trainer"),
        tracking=config.tracking(cfg),
    )
    check_compatible(parts, cfg)
    return parts


def check_compatible(parts: stages.Parts, cfg: DictConfig) -> None:
    """Refuses cells that cannot work, before any work, saying what to choose instead.

    Raises:
        ConfigError: the first problem found.
    """
    loss = parts.objective
    if loss.contrasts and parts.sampler.n < 2 and parts.pairs.gold_below == 0:
        raise ConfigError(
            f"objective={cfg_choice(cfg, 'objective')} needs a chosen and a rejected answer, but sampler.n="
            f"{parts.sampler.n} draws one and pairs never take the target. Use sampler.n=5 or pairs=released."
        )
    if loss.consumes != "pair" and cfg.rounds > 1:
        why = "targets, which do not change" if loss.consumes == "sample" else "answers it draws itself, not"
        raise ConfigError(
            f"objective={cfg_choice(cfg, 'objective')} learns from {why} between rounds={cfg.rounds}. Use rounds=1, or "
            "objective=dpo or another that learns from pairs."
        )
    if loss.consumes == "prompt":
        _check_online(parts, cfg)
    if parts.pairs.between == "siblings" and not parts.sampler.grows_trees:
        raise ConfigError(
            f"pairs={cfg_choice(cfg, 'pairs')} takes pairs from a search tree, but sampler="
            f"{cfg_choice(cfg, 'sampler')} grows none. Use sampler=mcts, or pairs=verified."
        )
    parts.executor.check()
    parts.data.check()
    parts.evaluation.check()


def _check_online(parts: stages.Parts, cfg: DictConfig) -> None:
    """What an objective that draws its answers itself asks of the sampler."""
    objective, sampler = cfg_choice(cfg, "objective"), cfg_choice(cfg, "sampler")
    if parts.sampler.policy_temperature is None:
        top_p = getattr(parts.sampler, "top_p", 1)
        which = f"sampler={sampler}" if top_p == 1 else f"sampler.top_p={top_p}"
        raise ConfigError(
            f"objective={objective} compares independent draws from the policy, and {which} gives others. Use "
            "sampler=group8 with sampler.top_p=1."
        )
    devices = cfg.trainer.devices
    if (len(devices) if OmegaConf.is_list(devices) else devices) != 1:
        raise ConfigError.at(
            "trainer.devices",
            devices,
            f"objective={objective} draws and trains in one process on one device",
            "Use 1, or engine=vllm with engine.tensor_parallel_size for drawing",
        )
    if parts.sampler.n < 2:
        raise ConfigError(
            f"objective={objective} compares the answers of a group, and sampler.n={parts.sampler.n}. Use sampler.n=8."
        )
    if parts.engine_name != "HFEngine" and parts.sampler.policy_temperature != 1:
        raise ConfigError.at(
            "sampler.temperature",
            parts.sampler.policy_temperature,
            f"{parts.engine_name} tells log-probs at temperature 1, which do not correct for it at another",
            "Use sampler.temperature=1 or engine=hf",
        )


def cfg_choice(cfg: DictConfig, group: str) -> str:
    """The name of the option chosen for a group."""
    return str(cfg.choices[group])


@dataclass(kw_only=True)
class _Graph:
    cfg: DictConfig
    parts: stages.Parts
    store: Store
    view: View

    def stage(
        self,
        label: str,
        name: str,
        inputs: Mapping[str, StageResult],
        settings: Mapping[str, Any],
        build: Callable[[Path, stages.Progress], dict[str, Any]],
    ) -> StageResult:
        """Finds or builds one stage and tells the view."""

        tracking, failed = self.parts.tracking, True
        groups = {group for one in inputs.values() for group in tracking.lineage[one.path.name]}
        groups |= {group for key in settings if (group := key.split(".")[0]) in config.IDENTITY}

        def work(workdir: Path) -> dict[str, Any]:
            self.view.begin(label)
            tracking.begin(self._facts(workdir.name.removesuffix(".part"), name, label, groups, inputs), workdir)
            return build(workdir, lambda *news: self.view.progress(label, *news))

        try:
            result = self.store.stage(
                name, version=stages.VERSIONS[name], config=settings, inputs=inputs, build=work, label=label
            )
            tracking.publish(result.path, result.metrics, self.view.note)
            failed = False
        finally:
            tracking.end(failed)
        tracking.lineage[result.path.name] = frozenset(groups)
        self.view.end(label, result)
        return result

    def _facts(
        self, key: str, name: str, label: str, groups: Collection[str], inputs: Mapping[str, StageResult]
    ) -> StageFacts:
        cfg, chosen = self.cfg, [group for group in config.IDENTITY if group in groups]
        return StageFacts(
            id=key,
            stage=name,
            label=label,
            run=cfg.name,
            seed=cfg.seed,
            choices={group: cfg_choice(cfg, group) for group in (*chosen, "experiment") if group in cfg.choices},
            config={**config.identity(cfg, *chosen), "seed": cfg.seed, "rounds": cfg.rounds, "name": cfg.name},
            inputs={role: result.path for role, result in inputs.items()},
        )

    def _benchmark(self) -> dict[str, Any]:
        settings = config.identity(self.cfg, "eval")
        settings["eval"] |= self.parts.evaluation.identity()  # what lies on disk decides the numbers too
        return settings

    def evaluate(self, label: str, policy: StageResult, data: StageResult) -> StageResult:
        return self.stage(
            label,
            "evaluate",
            {"policy": policy, "data": data},
            self._benchmark(),
            partial(stages.build_evaluate, self.parts, policy.path / "policy", data.path),
        )

    def evaluated(self, policy: StageResult, data: StageResult) -> StageResult | None:
        """The evaluation if it is in the store already."""
        inputs = {"policy": policy, "data": data}
        return self.store.find("evaluate", version=stages.VERSIONS["evaluate"], config=self._benchmark(), inputs=inputs)


@dataclass(frozen=True, slots=True)
class _Labels:
    """What the stages of one cell are called on the screen. The first round's exploration is every cell's."""

    objective: str
    rounds: int

    def of(self, stage: str, number: int = 0) -> str:
        if stage in ("select", "explore") and number == 1:
            return stage
        return f"{stage} {self.objective}" + (f" round {number}" if number and self.rounds > 1 else "")

    def path(self, parts: stages.Parts, until: str | None) -> list[str]:
        """Every label of the cell, in order."""
        steps = [
            name
            for name, here in (
                ("select", parts.select.needs_policy),
                ("explore", parts.objective.consumes == "pair"),
                ("align", True),
            )
            if here
        ]
        labels = [self.of(step, number) for number in range(1, self.rounds + 1) for step in steps]
        return labels[:-1] if until == "explore" else labels if until else [*labels, self.of("evaluate")]


def run(cfg: DictConfig, view: View) -> Outcome:
    """Runs one configuration and writes its result rows; raises as `walk`."""
    outcome = walk(cfg, view, joined(Store, Path(cfg.paths.runs)))
    if place().rank == 0:
        record(cfg, outcome)
    return outcome


def walk(cfg: DictConfig, view: View, kind: type[Store]) -> Outcome:
    """The graph of one configuration: the objective of the run, then its controls over the same stages.

    `kind` is what stages are asked of: the store, or one that only names them (`ttpa.results.status.Planner`).

    Raises:
        ConfigError, DataError, StageLocked: see the stages.
    """
    parts = build_parts(cfg)
    checked = _controls(cfg, parts)
    store = kind(Path(cfg.paths.store), wait=cfg.paths.wait_for_locks, on_wait=view.note)
    graphs = {name: _Graph(cfg=own, parts=made, store=store, view=view) for name, (own, made) in checked.items()}
    graph = graphs[cfg_choice(cfg, "objective")]
    baseline = cfg.until is None and cfg.baseline is not False
    shown = ["data", "warm-up"] + ["evaluate warm-up"] * baseline
    for name, one in graphs.items() if cfg.until != "warmup" else ():
        shown += _Labels(name, cfg.rounds).path(one.parts, cfg.until)
    view.expect(list(dict.fromkeys(shown)))

    source, start = (
        config.identity(cfg, "data"),
        config.identity(cfg, "model", "warmup", *[key for key in [parts.warmup.recipe] if key], "seed"),
    )
    # What lies on disk decides the numbers too, and no setting says it.
    source["data"] |= parts.data.identity()
    start["model"] |= parts.model.identity()
    data = graph.stage("data", "data", {}, source, partial(stages.build_data, parts))
    warmup = graph.stage("warm-up", "warmup", {"data": data}, start, partial(stages.build_warmup, parts, data.path))
    shared = {"data": data, "warmup": warmup}
    if cfg.until == "warmup":
        return Outcome(shared, (), tuple(store.executions))
    if baseline:
        shared["baseline"] = graph.evaluate("evaluate warm-up", warmup, data)
    cells = tuple(_cell(one, name, data, warmup) for name, one in graphs.items())
    # It costs nothing to show what is there, and a record does not lose what an earlier run wrote into it.
    if cfg.until is None and not baseline and (found := graph.evaluated(warmup, data)) is not None:
        shared["baseline"] = found
    return Outcome(shared, cells, tuple(store.executions))


def _controls(cfg: DictConfig, parts: stages.Parts) -> dict[str, tuple[DictConfig, stages.Parts]]:
    """Name -> configuration and parts: the run's own objective, then each control that differs from it."""
    found = {cfg_choice(cfg, "objective"): (cfg, parts)}
    for name, objective in cfg.controls.items():
        if objective == cfg.objective:
            continue
        own = cfg.copy()
        own.objective = objective
        own.choices.objective = name
        made = replace(parts, objective=config.instantiate(objective, f"controls.{name}"))
        check_compatible(made, own)
        # A control of the same name with other numbers must not take the run's own place.
        found[f"{name} (control)" if name in found else str(name)] = (own, made)
    return found


def _cell(graph: _Graph, objective: str, data: StageResult, warmup: StageResult) -> Cell:
    """Rounds of exploration and alignment, and the evaluation of what comes out."""
    cfg, parts, policy, labels = graph.cfg, graph.parts, warmup, _Labels(objective, graph.cfg.rounds)
    done: dict[str, StageResult] = {}
    for number in range(1, cfg.rounds + 1):
        start, inputs = policy.path / "policy", {"policy": policy, "data": data}
        select = explore = None
        if parts.select.needs_policy:
            select = graph.stage(
                labels.of("select", number),
                "select",
                inputs,
                config.identity(cfg, "select"),
                partial(stages.build_select, parts, start, data.path),
            )
            done[f"select{number}"], inputs = select, {**inputs, "select": select}
        picked = select.path if select else None
        # A selection without a policy has no stage of its own: its settings enter the stages that apply it.
        chosen = {} if select else config.identity(cfg, "select")
        if parts.objective.consumes == "pair":
            settings = {**config.identity(cfg, "sampler", "scorer", "pairs", "seed"), **chosen, "round": number}
            explore = graph.stage(
                labels.of("explore", number),
                "explore",
                inputs,
                settings,
                partial(stages.build_explore, parts, start, data.path, picked, number),
            )
            done[f"explore{number}"], inputs, chosen = explore, {**inputs, "explore": explore}, {}
        if cfg.until == "explore" and number == cfg.rounds:
            return Cell(objective, done, cfg)
        drawn = config.identity(cfg, "sampler", "scorer") if parts.objective.consumes == "prompt" else {}
        policy = graph.stage(
            labels.of("align", number),
            "align",
            inputs,
            {**config.identity(cfg, "objective", parts.objective.recipe, "seed"), **chosen, **drawn},
            partial(stages.build_align, parts, start, data.path, picked, explore.path if explore else None),
        )
        done[f"align{number}"] = policy
    if cfg.until is None:
        done["evaluation"] = graph.evaluate(labels.of("evaluate"), policy, data)
    return Cell(objective, done, cfg)


def record(cfg: DictConfig, outcome: Outcome) -> list[Path]:
    """Writes one result row a cell to `results/<name>-<cell id>.jsonl`; the same run writes the same file again.

    `metrics` and `baseline` (empty where nobody evaluated the warm-up) are functions of the configuration; `cost` holds
    what was measured with a clock.
    """
    folder = Path(cfg.paths.results)
    written = []
    for cell in outcome.cells:
        if "evaluation" not in cell.stages:
            continue
        every = {**outcome.shared, **cell.stages}
        evaluation = cell.stages["evaluation"]
        identity = config.identity(cell.cfg, *config.IDENTITY)  # more than the stages: a gold control reads no sampler
        key = fingerprint("row", ROW_VERSION, {"name": cfg.name, **identity}, {"evaluation": evaluation.fingerprint})
        row = {
            "run": key,
            "row_version": ROW_VERSION,
            "name": cfg.name,
            "seed": cfg.seed,
            "rounds": cfg.rounds,
            "choices": {group: cfg_choice(cell.cfg, group) for group in config.IDENTITY},
            "config": identity,
            "stages": {role: f"{stage.name}-{stage.fingerprint}" for role, stage in every.items()},
            "versions": stages.VERSIONS,
            "baseline": outcome.shared["baseline"].metrics if "baseline" in outcome.shared else {},
            "metrics": evaluation.metrics,
            "explored": {role: stage.metrics for role, stage in cell.stages.items() if role.startswith("explore")},
            "cost": {
                role: {"seconds": stage.seconds, "tokens": stage.metrics.get("tokens")} for role, stage in every.items()
            },
        }
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{cfg.name}-{key}.jsonl"
        part = path.with_name(f".{path.name}.part")
        part.write_text(dumps(row) + "\n", encoding="utf-8")
        part.replace(path)
        written.append(path)
    return written
