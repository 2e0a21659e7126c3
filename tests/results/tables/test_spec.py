"""table.yaml: what it means, and what it says to those who mistype it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.results.tables.conftest import TABLE, write_table
from ttpa.errors import ConfigError
from ttpa.results.tables import spec


def test_a_product_makes_rows_but_for_those_that_are_skipped(folder: Path) -> None:
    content = copy.deepcopy(TABLE)
    content["rows"].append(
        {
            "product": {"sampler": ["group", "tps"], "rounds": [1, 2], "select.limit": [None]},
            "skip": [{"sampler": "tps", "rounds": 2}],
            "overrides": ["pairs=released"],
        }
    )
    write_table(folder, content)
    rows = spec.load(folder).rows[3:]
    assert [row.key for row in rows] == ["group+1+null", "group+2+null", "tps+1+null"]
    assert rows[1].label == "group + 2 + null"
    assert rows[1].of("cluster") == ("sampler=group", "rounds=2", "select.limit=null", "pairs=released")


def test_overrides_and_metrics_by_preset(folder: Path) -> None:
    content = copy.deepcopy(TABLE)
    content["rows"][1]["overrides"] = {"embedded": ["objective=gold"], "cluster": []}
    content["rows"][2]["presets"] = ["embedded"]
    write_table(folder, content)
    table = spec.load(folder)
    assert table.rows[1].of("embedded") == ("objective=gold",) and table.rows[1].of("cluster") == ()
    assert [row.key for row in table.rows_of("cluster")] == ["warm", "sft"]
    assert [column.path("cluster") for column in table.columns] == ["accuracy", None]
    assert table.preset(None).name == "embedded" and not table.preset(None).comparable
    assert table.preset("cluster").comparable and table.preset("cluster").waves == (None,)


def test_the_unit_of_a_published_number(folder: Path) -> None:
    content = copy.deepcopy(TABLE)
    content["published"][0] |= {"value": 0.581, "unit_scale": 100}
    write_table(folder, content)
    assert spec.load(folder).published[0].value == pytest.approx(58.1)


def set_at(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


MISTAKES: dict[str, tuple[Callable[[dict[str, Any]], None], list[str]]] = {
    "unknown key": (set_at("colums", value=1), ["colums=1", "unknown key", "columns"]),
    "missing key": (lambda content: content.pop("rows"), ["rows is missing", "Add it"]),
    "unknown key of a column": (set_at("columns", 0, "unit", value="%"), ["columns[0].unit", "unknown key", "digits"]),
    "text for a number": (set_at("columns", 0, "scale", value="x"), ["columns[0].scale='x'", "a number"]),
    "negative digits": (set_at("columns", 0, "digits", value=-1), ["columns[0].digits=-1", "at least 0"]),
    "unknown direction": (set_at("columns", 0, "better", value="up"), ["columns[0].better='up'", "high, low"]),
    "metric of no preset": (set_at("columns", 1, "metric", value={"gpu": "x"}), ["metric.gpu", "embedded, cluster"]),
    "unknown policy": (set_at("rows", 0, "policy", value="sft"), ["rows[0].policy='sft'", "aligned, warm-up"]),
    "no override": (set_at("rows", 1, "overrides", value=["dpo"]), ["rows[1].overrides[0]='dpo'", "key=value"]),
    "the table's own": (set_at("presets", "embedded", "overrides", value=["seed=3"]), ["seed is set by the table"]),
    "same key twice": (set_at("rows", 1, "key", value="ours"), ["'ours' is there twice"]),
    "unknown row": (set_at("differences", value=[["ours", "x"]]), ["differences[0][1]='x'", "warm, sft, ours"]),
    "three rows": (set_at("differences", value=[["ours", "sft", "warm"]]), ["must name two rows"]),
    "published nowhere": (set_at("published", 0, "row", value="x"), ["published[0].row='x'", "warm, sft, ours"]),
    "unknown trust": (set_at("published", 0, "trust", value="high"), ["trust='high'", "printed, secondary, unclear"]),
    "no seeds": (set_at("presets", "embedded", "seeds", value=[]), ["presets.embedded.seeds=[]", "a list of seeds"]),
    "a seed twice": (set_at("presets", "embedded", "seeds", value=[1, 1]), ["a seed is there twice"]),
    "unknown wave": (set_at("presets", "embedded", "waves", value=["sft"]), ["waves[0]='sft'", "warmup, explore"]),
    "waves without end": (set_at("presets", "embedded", "waves", value=["warmup"]), ["whole run", "End with null"]),
    "no presets": (set_at("presets", value={}), ["presets={}", "holds no preset"]),
    "a preset without overrides": (set_at("rows", 1, "overrides", value={"embedded": []}), ["preset cluster", "[...]"]),
    "skips nothing": (set_at("rows", 1, value={"product": {"sampler": ["tps"]}, "skip": [{"sampler": "mcts"}]}),
                      ["rows[1].skip[0]", "sampler=mcts is not in the product"]),
    "no number": (set_at("columns", 0, "scale", value=float("nan")), ["columns[0].scale=nan", "a number"]),
    "too great a number": (set_at("columns", 0, "scale", value=10**400), ["columns[0].scale=1000", "fewer digits"]),
    "too many digits": (set_at("columns", 0, "digits", value=400), ["columns[0].digits=400", "at most 17"]),
    "no published number": (set_at("published", 0, "value", value=float("nan")), ["published[0].value=nan"]),
    "a scale of 0": (set_at("columns", 0, "scale", value=0), ["columns[0].scale=0", "every number 0", "100"]),
    "a unit of 0": (set_at("published", 0, "unit_scale", value=0), ["published[0].unit_scale=0", "every number 0"]),
    "published twice": (lambda content: content["published"].append({**content["published"][0], "value": 3}),
                        ["published[1]=", "row ours has a number in column all already", "Keep one"]),
    "a product of seeds": (set_at("rows", 1, value={"product": {"seed": [0, 1]}}), ["product.seed=[0, 1]", "seeds"]),
    "a product of waves": (set_at("rows", 1, value={"product": {"until": ["warmup"]}}), ["product.until=", "waves"]),
    "a warm-up outright": (set_at("rows", 1, "overrides", value=["baseline=true"]), ["baseline is set", "policy"]),
    "a product of names": (set_at("rows", 1, value={"product": {"name": ["a"]}}), ["product.name=", "set by"]),
    "a product of folders": (set_at("rows", 1, value={"product": {"paths.store": ["a"]}}), ["product.paths.store="]),
    "folders of a row": (set_at("rows", 1, "overrides", value=["paths.results=x"]),
                         ["rows[1].overrides[0]='paths.results=x'", "share the folders", "command line"]),
    "folders of a row's preset": (set_at("rows", 1, "overrides", value={"embedded": ["paths=debug"], "cluster": []}),
                                  ["rows[1].overrides.embedded[0]='paths=debug'", "share the folders"]),
    "a launcher of a row": (set_at("rows", 1, "overrides", value=["cluster.partition=p"]),
                            ["rows[1].overrides[0]='cluster.partition=p'", "share the launcher",
                             "Give cluster.partition= to the preset or on the command line"]),
    "a launcher of Hydra": (set_at("rows", 1, "overrides", value=["hydra/launcher=joblib"]), ["share the launcher"]),
    "a product of launchers": (set_at("rows", 1, value={"product": {"cluster": ["local"]}}), ["share the launcher"]),
    "two lines of label": (set_at("rows", 1, "label", value="a\nb"), ["rows[1].label='a\\nb'", "one line", "break"]),
    "two lines of title": (set_at("title", value="a\u2028b"), ["title='a\\u2028b'", "one line"]),
    "a difference twice": (set_at("differences", value=[["ours", "sft"], ["sft", "ours"]]),
                           ["differences[1]=", "compared already", "once"]),
    "a row with itself": (set_at("differences", value=[["ours", "ours"]]), ["differences[0]=", "with itself"]),
    "all skipped": (set_at("rows", 1, value={"product": {"sampler": ["tps"]}, "skip": [{"sampler": "tps"}]}),
                    ["rows[1].skip=", "leaves nothing of the product", "Skip less"]),
    "waves out of order": (set_at("presets", "embedded", "waves", value=["explore", "warmup", None]),
                           ["waves=", "not in the order of a run", "warmup, explore, align"]),
    "no group": (set_at("rows", 1, value={"product": {}}), ["rows[1].product={}", "holds no group"]),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_file_key_and_remedy(mistake: str, folder: Path) -> None:
    change, said = MISTAKES[mistake]
    content = copy.deepcopy(TABLE)
    change(content)
    write_table(folder, content)
    with pytest.raises(ConfigError) as caught:
        spec.load(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'table.yaml'}: ") and "\n" not in message and message.endswith(".")
    for words in said:
        assert words in message


@pytest.mark.parametrize("text", ["rows: [", "- a\n- b\n", "", "title: \udc80", "a: 2026-13-01", "a: " + 5000 * "1"])
def test_what_is_no_table_is_refused(text: str, folder: Path) -> None:
    (folder / "table.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=re.escape(str(folder / "table.yaml"))):
        spec.load(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title: a\nclaim: b\ntitle: c\n", ":3: the key 'title' is there twice. Keep one of them."),
        ("presets:\n  embedded: {}\n  embedded: {}\n", ":3: the key 'embedded' is there twice. Keep one of them."),
        ("rows: [{key: a, 'key': b}]\n", ":1: the key 'key' is there twice. Keep one of them."),
        ("title: " + 3000 * "[", ": nested too deeply. Close the brackets."),
    ],
)
def test_what_yaml_forbids_is_refused(text: str, said: str, folder: Path) -> None:
    (folder / "table.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        spec.load(folder)
    assert str(caught.value) == f"{folder / 'table.yaml'}{said}"


def test_a_key_that_a_mapping_takes_over_may_be_set_again(folder: Path) -> None:
    """A merge (`<<`) of a merge: the keys that come with it are not the mapping's own."""
    content = {key: value for key, value in TABLE.items() if key not in ("presets", "title")}
    write_table(folder, content)
    with (folder / "table.yaml").open("a") as file:
        file.write("presets:\n  embedded: &a {overrides: [], seeds: [0]}\n  more: &b {<<: *a, seeds: [1]}\n")
        file.write("  cluster: {<<: *b, seeds: [2]}\ntitle: t\n")
    assert [preset.seeds for preset in spec.load(folder).presets.values()] == [(0,), (1,), (2,)]


@pytest.mark.parametrize("name", ["50% odd_name", "-x", "ä"])
def test_a_folder_that_cannot_name_runs_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    write_table(tmp_path / name, TABLE)
    with pytest.raises(ConfigError) as caught:
        spec.load(tmp_path / name)
    assert str(caught.value) == (
        f"{tmp_path / name / 'table.yaml'}: the folder={name!r}: names runs and files. "
        "Name it with letters, digits, '.', '_' and '-'."
    )


def test_a_folder_without_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file. Give a folder of experiments/"):
        spec.load(tmp_path)
