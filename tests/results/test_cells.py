"""Cells are composed as the command line composes them, and find their records by what was run."""

import re
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from tests.results.table_cases import changed, found, metrics, row_of, write, write_table
from ttpa.errors import ConfigError
from ttpa.results.cells import Composer, Records, TableCell, compose_run, open_hydra
from ttpa.results.records import Record, number_at
from ttpa.results.stats import Estimate
from ttpa.run.parts import VERSIONS


def record_of(cells: list[TableCell], at: int) -> Record | None:
    return Records(cells, Path("results")).find(cells[at])


def test_the_seed_is_in_the_data_and_nowhere_else(folder: Path) -> None:
    """What is replaced in a key is the seed: the key of a seed is that of a row composed with it."""
    cells = found(folder)
    assert [cell.seed for cell in cells] == [0, 1, 2] * 3 and len({cell.key for cell in cells}) == 9
    assert cells[4].overrides == ("objective=gold", "seed=1")
    assert cells[4].cfg.seed == 1 == cells[4].cfg.data.seed and cells[3].cfg.data.seed == 0
    assert Record.model_validate(row_of(cells[4])).key == cells[4].key


def test_seeds_and_overrides_of_the_command_line(folder: Path) -> None:
    """They come after those of the row."""
    write_table(folder, changed("rows", 2, "overrides", value=["objective=simpo", "sampler.n=3"]))
    cells = found(folder, "seed=7,0", "sampler.n=4")
    assert [cell.seed for cell in cells] == [7, 0] * 3
    assert cells[-1].overrides == ("objective=simpo", "sampler.n=3", "sampler.n=4", "seed=0")
    assert cells[-1].cfg.sampler.n == 4
    with pytest.raises(ConfigError, match="seed=x: must be whole numbers"):
        found(folder, "seed=x")
    for word in ("until=warmup", "baseline=false", "name=mine"):
        with pytest.raises(ConfigError, match=f"{word}: is set by the table"):
            found(folder, word)


def test_rows_that_share_compositions_are_what_hydra_composes(folder: Path) -> None:
    """Options alone, options that select others (a model its recipe), values, overlays, groups left out."""
    words = ["sampler=group objective=dpo", "sampler=tps objective=dpo", "sampler=group objective=gold"]
    words += ["sampler=tps objective=gold sampler.n=1 sampler.n=3 +data.more=1", "model=tiny", "model=hf model.name=x"]
    words += ["model=hf recipe=full model.name=y", "sampler={n: 7} rounds=2", "experiment=ttpa select=perplexity"]
    with open_hydra():
        composer = Composer()
        for row in [re.split(r" (?=[a-z+])", one) for one in words]:
            assert OmegaConf.to_yaml(composer(row)) == OmegaConf.to_yaml(compose_run(row)), row
        assert composer._compose.cache_info().misses == len(words) - 1  # the fourth is put together
        with pytest.raises(HydraException):
            composer(["sampler=tps", "sampler.nn=3"])


def test_what_runs_the_cells_decides_nothing(folder: Path) -> None:
    """The launcher of a cluster need not be installed where the table is made."""
    words = ("cluster=slurm", "cluster.jobs=3", "hydra/launcher=nowhere", "trainer=gpu")
    assert [cell.key for cell in found(folder, *words)] == [cell.key for cell in found(folder)]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        *(("objective=foo", "objective"), ("sampler.nn=3", "sampler.n"), ("nothing=1", "nothing")),
        *(
            ("scorer._target_=torch.hub.load", "may not be made"),
            ("engine._target_=os.mkdir", "engine._target_=os.mkdir"),
        ),
        ("sampler.n='${oc.env:HOME}'", "oc.env:HOME"),
    ],
)
def test_a_row_that_cannot_be_composed_is_named_in_one_line(word: str, said: str, folder: Path) -> None:
    write_table(folder, changed("rows", 2, "overrides", value=[word]))
    with pytest.raises(ConfigError, match="table.yaml: row ours, preset embedded: ") as caught:
        found(folder)
    assert "\n" not in str(caught.value) and said in str(caught.value).rpartition("embedded: ")[2]


def test_a_record_is_found_by_its_configuration(folder: Path) -> None:
    cells = found(folder)
    write(cells[6], name="sft")  # names lie
    record = record_of(cells, 6)
    assert record is not None and record.run == "ours0" and record_of(cells, 3) is None
    assert record_of(cells, 7) is None  # another seed
    for change in ({"seed": 1}, {"rounds": 2}, {"config": row_of(cells[3])["config"]}):
        write(cells[6], name="sft", **change)
        assert record_of(cells, 6) is None


def test_a_warm_up_row_reads_any_run_over_the_same_warm_up(folder: Path) -> None:
    cells = found(folder)
    write(cells[6], baseline=metrics(0.125))
    record = record_of(cells, 0)
    assert record is not None and record.measured(True)["accuracy"]["value"] == 0.125
    for group in ("data", "model", "warmup", "eval"):
        other = row_of(cells[6])["config"]
        other[group]["more"] = 1
        write(cells[6], config=other)
        assert record_of(cells, 0) is None
    write(cells[6], baseline={}, stages={"evaluation": "evaluate-0"})
    assert record_of(cells, 0) is None and record_of(cells, 6) is not None  # a sweep that evaluated no warm-up


def test_two_records_of_a_cell_agree_or_are_named(folder: Path) -> None:
    cells = found(folder)
    write(cells[6], name="a"), write(cells[6], name="b")
    assert Records(cells).warnings == []
    write(cells[6], name="b", metrics=metrics(0.9))
    records = Records(cells, Path("results"))
    record = records.find(cells[6])
    assert record is not None and record.path.name == "a.jsonl"
    (warning,) = records.warnings
    assert "a.jsonl and" in warning and "b.jsonl" in warning and "ours seed=0" in warning


def test_a_record_of_todays_stages_comes_first(folder: Path) -> None:
    cells = found(folder)
    write(cells[6], name="a", versions={**VERSIONS, "align": 0}, metrics=metrics(0.1))
    old = record_of(cells, 6)
    assert old is not None and old.outdated() == {"align": 0} and old.outdated(warmup_only=True) == {}
    write(cells[6], name="b", metrics=metrics(0.9))
    record = record_of(cells, 6)
    assert record is not None and record.path.name == "b.jsonl" and Records(cells).warnings == []


def test_a_stage_that_there_is_no_more_is_outdated(folder: Path) -> None:
    cells = found(folder)
    stages = row_of(cells[6])["stages"] | {"data": "reverse-0", "align1": "polish-0"}
    write(cells[6], stages=stages, versions={**VERSIONS, "polish": 3})
    record = record_of(cells, 6)
    assert record is not None and record.outdated() == {"polish": 3, "reverse": None}


ODD: list[tuple[Any, str]] = [
    ("{", "EOF"),
    ("[1]", "object"),
    ("\x00\xff", "no result row"),
    ("[" * 100_000, "recursion"),
    ({"row_version": 9}, "row_version 9, not 1"),
    ({"seed": True}, "seed"),
    ({"config": {}}, "lacks data, model"),
    ({"stages": {}}, "lacks evaluation, baseline"),
    ({"stages": {"baseline": "evaluate-0", "evaluation": 3}}, "stages.evaluation"),
    ({"versions": {"data": "1"}}, "versions.data"),
    ({"cost": {"data": {"seconds": float("nan")}}}, "cost.data.seconds"),
]


def test_what_is_no_record_is_named_and_left_out(folder: Path) -> None:
    cells = found(folder, "seed=0,1")
    write(cells[5])
    for odd, why in ODD:
        path = write(cells[4], name="odd", **(odd if isinstance(odd, dict) else {}))
        if isinstance(odd, str):
            path.write_bytes(odd.encode("latin-1"))
        (warning,) = Records(cells).warnings
        assert warning.startswith("results/odd.jsonl:1: no result row (") and why in warning and "left out" in warning
        assert record_of(cells, 4) is None and record_of(cells, 5) is not None


def test_the_number_at_a_path() -> None:
    measured = {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3}, "levels": {"1": {"value": None}}, "x": 3}
    assert number_at(measured, "accuracy") == Estimate(value=0.5, low=0.4, high=0.6, kind="bootstrap")
    assert number_at(measured, "levels.1") is None and number_at(measured, "x") == Estimate(value=3)
    assert number_at({"a": {"value": 1, "low": None, "high": None}}, "a") == Estimate(value=1)
    odd = [{"value": "x"}, {"value": float("nan")}, {"value": True}, {"value": 0.5, "low": "a"}, {"value": 10**400}, {}]
    for measured, path in (*(({"a": one}, "a") for one in [*odd, "x", [1]]), ({}, "a"), ({"a": 1}, "a.b")):
        with pytest.raises(KeyError):
            number_at(measured, path)
