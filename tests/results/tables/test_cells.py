"""Cells are composed as the command line composes them, and find their records by what was run."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.results.tables.conftest import TABLE, found, metrics, row_of, write_table
from ttpa.errors import ConfigError
from ttpa.results.tables import cells, spec
from ttpa.results.tables.cli import table
from ttpa.run import config
from ttpa.run.stages import VERSIONS

CONF = Path(__file__).resolve().parents[3] / "conf"
OPTIONS = {group: sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in config.IDENTITY}
SHARED = ["data.explore_samples=7", "recipe.align.steps=3"]


def plainly(composer: cells.Composer, *words: str) -> dict[str, Any]:
    """The identity configuration by Hydra and OmegaConf alone."""
    cfg = composer.whole(words).copy()
    cfg.seed = cells._SEED
    return config.identity(cfg, *config.IDENTITY)


@pytest.mark.parametrize("group", config.IDENTITY)
def test_every_option_is_resolved_as_omegaconf_resolves_it(group: str) -> None:
    with cells.Composer() as composer:
        for option in OPTIONS[group]:
            ours, rounds = composer.identity([], [f"{group}={option}"])
            assert ours == plainly(composer, f"{group}={option}") and rounds == 1


def test_rows_put_together_are_the_rows_that_hydra_composes() -> None:
    """Overrides of several keys, with values inside options, of recipes that others refer to, and of scalars."""
    axes = (
        ["sampler=tps", "sampler=mcts sampler.max_new_tokens=9", "sampler.n=3"],
        ["objective=dpo objective.beta=0.3", "objective=gold"],
        ["recipe.align.lr=0.5 model.hidden=64", "model=hf"],
        ["rounds=2", "select=perplexity select.limit=4"],
    )
    with cells.Composer() as composer:
        rows = [[word for words in chosen for word in words.split()] for chosen in itertools.product(*axes)]
        found = [composer.identity(SHARED, own) for own in rows]
        assert composer.composed == 1 + sum(map(len, axes))  # and not 24
        for own, (ours, rounds) in zip(rows, found, strict=True):
            assert ours == plainly(composer, *SHARED, *own)
            assert rounds == (2 if "rounds=2" in own else 1)


@pytest.mark.parametrize(
    "own",
    [
        ["experiment=demo", "objective=dpo"],
        ["debug=smoke", "sampler=tps"],
        ["sampler=tps", "+sampler.more=3"],
        ["data.noise.share=${recipe.sft_weight}", "sampler=tps"],
        ["data.generator='a ${name} b'", "sampler=tps"],
    ],
)
def test_what_cannot_be_put_together_is_composed_whole(own: list[str]) -> None:
    with cells.Composer() as composer:
        ours, _ = composer.identity(SHARED, own)
        assert ours == plainly(composer, *SHARED, *own)


def test_rows_of_a_table_are_composed_together(tmp_path: Path) -> None:
    """Six calls of Hydra in place of one for each of the 13 overrides, and what each row is alone."""
    samplers = ["sampler=tps", "sampler=mcts_small", "sampler=group8", "sampler=tps sampler.n=6", "sampler.n=3"]
    others = ["objective=dpo objective.beta=0.3", "objective=grpo", "scorer=ast_partial", "pairs=released",
              "data.noise.scope=kind", "rounds=2", "select=perplexity", "eval=bfcl"]  # fmt: skip
    rows = [f"{a} {b}".split() for a, b in itertools.product(samplers, others)]
    with cells.Composer() as composer:
        composer.join(SHARED, rows)
        assert composer.composed == 1 + len(samplers)
        found = [composer.identity(SHARED, own) for own in rows]
        assert composer.composed == 1 + len(samplers)
    with cells.Composer() as composer:
        for own, (ours, rounds) in zip(rows, found, strict=True):
            assert ours == plainly(composer, *SHARED, *own) and rounds == (2 if "rounds=2" in own else 1)


def test_an_option_that_reaches_out_of_its_key_is_not_composed_with_others(tmp_path: Path) -> None:
    """It sets the scorer: joined with a row's own scorer that would be hidden."""
    for group, text in (("sampler", "# @package _global_\nscorer: {reached: 1}\nsampler: {n: 2}\n"),
                        ("pairs", "defaults: [/scorer@scorer: ast, _self_]\nn: 1\n")):  # fmt: skip
        (tmp_path / group).mkdir()
        (tmp_path / group / "odd.yaml").write_text(text)
    shared = [f"hydra.searchpath=[file://{tmp_path}]"]
    rows = [["sampler=odd", "objective=dpo"], ["scorer=toolrl", "objective=rft"], ["pairs=odd", "select=perplexity"]]
    with cells.Composer() as composer:
        composer.join(shared, rows)
        for own in rows:
            assert composer.identity(shared, own)[0] == plainly(composer, *shared, *own)


def test_the_folders_need_no_composition_of_their_own(folder: Path) -> None:
    write_table(folder, {**TABLE, "rows": TABLE["rows"][2:], "differences": []})
    wanted = spec.load(folder)
    with cells.Composer() as composer:
        every = cells.cells_of(composer, wanted, wanted.preset(None), ["paths.store=${paths.results}/x"])
        composed = composer.composed
        assert cells.paths(every, wanted, wanted.preset(None))["store"] == "results/x"
        assert composer.composed == composed


def test_a_preset_may_set_a_key_of_the_rows_option() -> None:
    with cells.Composer() as composer:
        ours, _ = composer.identity(["data.path=x.json"], ["data=toolace", "sampler=tps"])
        assert ours == plainly(composer, "data.path=x.json", "data=toolace", "sampler=tps")


def test_the_seed_is_in_the_data_and_nowhere_else(folder: Path) -> None:
    every = found(folder)
    assert [cell.seed for cell in every] == [0, 1, 2] * 3
    first, second = every[3], every[4]
    differing = [g for g, a, b in zip(config.IDENTITY, first.key.groups, second.key.groups, strict=True) if a != b]
    assert differing == ["data"] and json.loads(second.key.groups[0])["seed"] == 1
    assert second.cfg().seed == 1 and second.cfg().data.seed == 1 and first.cfg().data.seed == 0
    assert second.overrides == ("objective=gold", "seed=1")


def test_seeds_and_overrides_of_the_command_line(folder: Path) -> None:
    every = found(folder, "seed=7,0", "sampler.n=4")
    assert [cell.seed for cell in every] == [7, 0] * 3
    assert every[-1].overrides == ("objective=simpo", "sampler=tps", "sampler.n=4", "seed=0")
    assert every[-1].cfg().sampler.n == 4
    with pytest.raises(ConfigError, match="seed=x: must be whole numbers"):
        found(folder, "seed=x")
    for word in ("until=warmup", "baseline=false", "name=mine"):
        with pytest.raises(ConfigError, match=f"{word}: is set by the table"):
            found(folder, word)


def test_what_runs_the_cells_decides_nothing(folder: Path) -> None:
    """The launcher of a cluster need not be installed where the table is made."""
    words = ("cluster=slurm", "cluster.jobs=3", "hydra/launcher=nowhere", "trainer=gpu")
    assert [cell.key for cell in found(folder, *words)] == [cell.key for cell in found(folder)]


@pytest.mark.parametrize("word", ["objective=foo", "sampler.nn=3", "nothing=1", "sampler=tps,group"])
def test_a_row_that_cannot_be_composed_is_named_in_one_line(word: str, folder: Path) -> None:
    content = copy.deepcopy(TABLE)
    content["rows"][2]["overrides"] = [word]
    write_table(folder, content)
    with pytest.raises(ConfigError, match="row ours, preset embedded: ") as caught:
        found(folder)
    assert "\n" not in str(caught.value) and word.split("=")[0] in str(caught.value)
    assert str(caught.value).endswith(f". Correct the preset's overrides, or {word}.") and "path" not in str(
        caught.value
    )


def test_a_record_is_found_by_its_configuration(folder: Path, write: Callable[..., Path]) -> None:
    every = found(folder)
    sft, ours = every[3], every[6]
    write(ours, name="sft")  # names lie
    records = cells.read_records(Path("results"), every)
    assert records.of(ours).row["run"] == "ours0" and records.of(sft) is None
    assert records.of(every[7]) is None  # another seed
    for change in ({"seed": 1}, {"rounds": 2}, {"config": row_of(sft)["config"]}):
        write(ours, name="sft", **change)
        assert cells.read_records(Path("results"), every).of(ours) is None


def test_a_warm_up_row_reads_any_run_over_the_same_warm_up(folder: Path, write: Callable[..., Path]) -> None:
    every = found(folder)
    warm, ours = every[0], every[6]
    write(ours, baseline=metrics(0.125))
    records = cells.read_records(Path("results"), every)
    assert records.of(warm).row["baseline"]["accuracy"]["value"] == 0.125
    for group in ("data", "model", "warmup", "eval"):
        other = row_of(ours)["config"]
        other[group]["more"] = 1
        write(ours, config=other)
        assert cells.read_records(Path("results"), every).of(warm) is None


def test_two_records_of_a_cell_agree_or_are_named(folder: Path, write: Callable[..., Path]) -> None:
    every = found(folder)
    ours = every[6]
    write(ours, name="a"), write(ours, name="b")
    records = cells.read_records(Path("results"), every)
    assert records.of(ours).path.name == "a.jsonl" and records.warnings == []
    write(ours, name="b", metrics=metrics(0.9))
    records = cells.read_records(Path("results"), every)
    assert records.of(ours).path.name == "a.jsonl"
    (warning,) = records.warnings
    assert "a.jsonl and" in warning and "b.jsonl" in warning and "ours seed=0" in warning


def test_a_record_of_todays_stages_comes_first(folder: Path, write: Callable[..., Path]) -> None:
    every = found(folder)
    ours = every[6]
    write(ours, name="a", versions={**VERSIONS, "align": 0}, metrics=metrics(0.1))
    old = cells.read_records(Path("results"), every).of(ours)
    assert old.outdated() == {"align": 0} and old.outdated(("data", "warmup", "baseline")) == {}
    write(ours, name="b", metrics=metrics(0.9))
    records = cells.read_records(Path("results"), every)
    assert records.of(ours).path.name == "b.jsonl" and records.warnings == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting"),
        ('{"a": 1}', "lacks 'row_version'"),
        ("[1]", "list"),
        ("\x00\xff", "no run record"),
        ('{"row_version": 9}', "row_version 9, not 1"),
    ],
)
def test_a_file_that_is_no_record_is_named_and_left_out(
    text: str, why: str, folder: Path, write: Callable[..., Path]
) -> None:
    every = found(folder)
    write(every[6])
    (Path("results") / "odd.jsonl").write_bytes(text.encode("latin-1"))
    records = cells.read_records(Path("results"), every)
    (warning,) = records.warnings
    assert "odd.jsonl:1: no run record" in warning and why in warning
    assert records.of(every[6]) is not None


NUMBERS = [{"value": "x", "low": "a", "high": "b"}, {"value": float("nan"), "low": 0.1, "high": float("inf")},
           {"value": True, "low": 0.1, "high": 0.2}, {"value": 0.5, "low": "a", "high": 1},
           {"value": 10**400}]  # fmt: skip
ODD: list[tuple[dict[str, Any], str]] = [
    ({"seed": [0]}, "seed is no whole number"),
    ({"seed": True}, "seed is no whole number"),
    ({"rounds": {}}, "rounds is no whole number"),
    ({"config": []}, "config is no mapping"),
    ({"stages": {}}, "lacks 'stages.evaluation'"),
    ({"stages": {"evaluation": "evaluate-1"}}, "lacks 'stages.baseline'"),
    ({"stages": {"baseline": "evaluate-0", "evaluation": 3}}, "stages.evaluation is no text"),
    ({"versions": {"data": "1"}}, "versions.data is no whole number"),
    ({"cost": {"data": {}}}, "cost.data.seconds is no number"),
    ({"cost": {"data": 3}}, "cost.data.seconds is no number"),
    ({"cost": {"data": {"seconds": 1, "tokens": "x"}}}, "cost.data.tokens is no number"),
    *(({part: {"accuracy": one}}, f"{part}.accuracy.") for one in NUMBERS for part in ("metrics", "baseline")),
]


@pytest.mark.parametrize(("changes", "why"), ODD)
def test_a_record_of_another_form_is_named_and_left_out(
    changes: dict[str, Any], why: str, folder: Path, write: Callable[..., Path]
) -> None:
    every = found(folder)
    write(every[6], name="odd", **changes)
    write(every[7])
    records = cells.read_records(Path("results"), every)
    (warning,) = records.warnings
    assert warning.startswith("results/odd.jsonl:1: no run record (") and why in warning and "left out" in warning
    assert records.of(every[6]) is None and records.of(every[7]) is not None
    text, warnings = table(["experiments/demo", "cost=true"])
    assert warnings == [warning] and "ours" in text


def test_a_stage_that_there_is_no_more_is_outdated(folder: Path, write: Callable[..., Path]) -> None:
    every = found(folder)
    stages = row_of(every[6])["stages"] | {"data": "reverse-0", "align1": "polish-0"}
    write(every[6], stages=stages, versions={**VERSIONS, "polish": 3})
    records = cells.read_records(Path("results"), every)
    assert records.of(every[6]).outdated() == {"polish": 3, "reverse": None} and records.warnings == []
    text, _ = table(["experiments/demo"])
    assert "ours: built by other stage versions: polish 3 (now no stage), reverse of no version (now no stage)." in text


def test_deep_nesting_is_no_record(folder: Path, write: Callable[..., Path]) -> None:
    every = found(folder)
    write(every[6])
    (Path("results") / "deep.jsonl").write_text("[" * 100_000)
    records = cells.read_records(Path("results"), every)
    assert "deep.jsonl:1: no run record" in records.warnings[0] and records.of(every[6]) is not None


def test_a_cut_record_is_named(folder: Path, write: Callable[..., Path]) -> None:
    every = found(folder)
    path = write(every[6])
    path.write_bytes(path.read_bytes()[:-40])
    records = cells.read_records(Path("results"), every)
    assert records.of(every[6]) is None and "x-ours-0.jsonl:1" in records.warnings[0]
