"""table.yaml: what it means, and what it says to those who mistype it."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.results.table_cases import TABLE, changed, write_table
from ttpa.errors import ConfigError
from ttpa.results.spec import load

PRODUCT = {"product": {"sampler": ["group", "tps"], "rounds": [1, 2], "select.limit": [None]}}


def test_a_product_makes_rows_but_for_those_that_are_skipped(folder: Path) -> None:
    entry = {**PRODUCT, "skip": [{"sampler": "tps", "rounds": 2}], "overrides": ["pairs=released"]}
    write_table(folder, changed("rows", value=[*TABLE["rows"], entry]))
    rows = load(folder).rows_of("cluster")[3:]
    assert [row.key for row in rows] == ["group+1+null", "group+2+null", "tps+1+null"]
    assert rows[1].label == "group + 2 + null"
    assert rows[1].overrides == ("sampler=group", "rounds=2", "select.limit=null", "pairs=released")


def test_overrides_and_metrics_by_preset(folder: Path) -> None:
    content = changed("rows", 1, "overrides", value={"embedded": ["objective=gold"], "cluster": []})
    content["rows"][2]["presets"] = ["embedded"]
    write_table(folder, content)
    table = load(folder)
    assert [row.overrides for row in table.rows_of("embedded")][1] == ("objective=gold",)
    assert [(row.key, row.overrides) for row in table.rows_of("cluster")] == [("warm", ()), ("sft", ())]
    assert [row.warmup_only for row in table.rows_of("cluster")] == [True, False]
    assert [column.path("cluster") for column in table.columns] == ["accuracy", None]
    assert table.preset(None).name == "embedded" and not table.preset(None).comparable
    assert table.preset("cluster").comparable and table.preset("cluster").waves == [None]


def test_every_table_of_the_repository_is_read() -> None:
    folders = sorted(path.parent for path in Path(__file__).parents[2].glob("experiments/*/table.yaml"))
    assert len(folders) >= 10 and all(load(folder).rows_of("embedded") for folder in folders)


# What is wrong: path, value, and what the message says.
ROW, PRESET, COLUMN = ("rows", 1), ("presets", "embedded"), ("columns", 0)
MISTAKES: dict[str, tuple[tuple[Any, ...], Any, list[str]]] = {
    "a name, which is the folder's": (("name",), "x", ["name='x'", "unknown key"]),
    "a name of a preset": ((*PRESET, "name"), "x", ["presets.embedded.name='x'", "unknown key"]),
    "unknown key": (("colums",), 1, ["colums=1", "unknown key", "Did you mean columns?"]),
    "unknown key of a column": ((*COLUMN, "lable"), "%", ["columns[0].lable='%'", "Did you mean label?"]),
    "a scale of 0": ((*COLUMN, "scale"), 0, ["columns[0].scale=0", "every number 0", "Use 1, or 100"]),
    "metric of no preset": (("columns", 1, "metric"), {"cluste": "x"}, ["columns[1].metric='cluste'", "mean cluster?"]),
    "no override": ((*ROW, "overrides"), ["dpo"], ["rows[1].overrides[0]='dpo'", "Write key=value"]),
    "the table's own": ((*PRESET, "overrides"), ["seed=3"], ["embedded.overrides[0]='seed=3'", "seed is set by the"]),
    "same key twice": ((*ROW, "key"), "ours", ["rows: ours is there twice"]),
    "no key": (ROW, {"label": "x"}, ["rows[1]={", "a row needs key and label, or product"]),
    "unknown row": (("differences",), [["ours", "sfr"]], ["differences[0]='sfr'", "Did you mean sft?"]),
    "a row with itself": (("differences",), [["ours", "ours"]], ["differences[0]=", "must name two rows"]),
    "a difference twice": (("differences",), [["ours", "sft"], ["sft", "ours"]], ["ours and sft is there twice"]),
    "published nowhere": (("published", 0, "row"), "x", ["published[0].row='x'", "warm, sft, ours"]),
    "published twice": (("published",), TABLE["published"] * 2, ["published: all and ours is there twice"]),
    "a seed twice": ((*PRESET, "seeds"), [1, 1], ["a seed is there twice"]),
    "waves out of order": ((*PRESET, "waves"), ["explore", "warmup", None], ["in order and end with"]),
    "a preset without overrides": ((*ROW, "overrides"), {"embedded": []}, ["none for preset cluster", "cluster: []"]),
    "unknown preset of a row": ((*ROW, "presets"), ["gpu"], ["rows[1].presets='gpu'", "embedded, cluster"]),
    "skips nothing": (ROW, {"product": {"sampler": ["tps"]}, "skip": [{"sampler": "mcts"}]},
                      ["rows[1]=", "skip: sampler=mcts is not in the product"]),
    "all skipped": (ROW, {"product": {"sampler": ["tps"]}, "skip": [{"sampler": "tps"}]},
                    ["rows[1]=", "skip leaves nothing of the product", "Skip less"]),
    "a product of seeds": (ROW, {"product": {"seed": [0, 1]}}, ["rows[1].product.seed=", "seeds"]),
    "a launcher's commands": ((*PRESET, "overrides"), ["cluster.setup=[touch x]"], ["cluster.setup may run commands"]),
    "settings of Hydra": ((*PRESET, "overrides"), ["+hydra.callbacks.x._target_=y"], ["may run commands"]),
    "folders of a row": ((*ROW, "overrides"), ["paths.results=x"],
                         ["rows[1].overrides[0]='paths.results=x'", "share the folders", "command line"]),
    "folders of a row's preset": ((*ROW, "overrides"), {"embedded": ["paths=debug"], "cluster": []},
                                  ["rows[1].overrides.embedded[0]='paths=debug'", "share the folders"]),
    "a launcher of a row": ((*ROW, "overrides"), ["cluster.partition=p"],
                            ["share the launcher", "Give cluster.partition= to the preset or on the command line"]),
    "two lines of label": ((*ROW, "label"), "a\nb", ["rows[1].label='a\\nb'", "one line"]),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_file_key_and_remedy(mistake: str, folder: Path) -> None:
    path, value, said = MISTAKES[mistake]
    write_table(folder, changed(*path, value=value))
    with pytest.raises(ConfigError) as caught:
        load(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'table.yaml'}: ") and "\n" not in message and message[-1] in ".?"
    for words in said:
        assert words in message


def test_a_missing_key_is_named(folder: Path) -> None:
    write_table(folder, {key: value for key, value in TABLE.items() if key != "rows"})
    with pytest.raises(ConfigError, match=r"table.yaml: rows is missing. Add it."):
        load(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rows: [", "not YAML"),
        ("- a\n- b\n", "should be a valid dictionary"),
        ("rows: [{key: a, 'key': b}]\n", "found duplicate key key"),
        ("title: " + 3000 * "[", "nested too deeply. Close the brackets."),
    ],
)
def test_what_is_no_table_is_refused(text: str, said: str, folder: Path) -> None:
    (folder / "table.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=f"{re.escape(str(folder / 'table.yaml'))}: .*{said}") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_name_runs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "50% odd").mkdir()
    write_table(tmp_path / "50% odd", TABLE)
    with pytest.raises(ConfigError, match="the folder='50% odd': names runs and files. Name it with letters, digits"):
        load(tmp_path / "50% odd")
    with pytest.raises(ConfigError, match="no such file. Give a folder of experiments/"):
        load(tmp_path)
