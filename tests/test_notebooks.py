"""The notebooks, executed as Jupyter would, each in an empty folder, and what they show asked once more by other means.

A cell of assertions is added behind the last one and runs in the notebook's own kernel. Numbers are compared with
values worked out by hand, a plain forward of the model, or the result rows themselves.
"""

import json
import textwrap
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from ttpa.results.cells import TableCell, read_cells
from ttpa.run import config
from ttpa.run.parts import VERSIONS

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CELL_TIMEOUT_S = 240


@pytest.fixture(autouse=True)
def own_settings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No user's profile, kernels or drawing backend, one thread, and no network for what the hub would be asked."""
    home = tmp_path_factory.mktemp("jupyter")
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(home / name.lower()))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def execute(name: str, folder: Path, check: str, parameters: str = "") -> Any:
    """Runs a notebook in a folder, with other parameters and a last cell of assertions.

    Raises:
        CellExecutionError: a cell raised; CellTimeoutError: one took too long.
    """
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    if parameters:
        (at,) = [k for k, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
        notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(parameters))
    notebook.cells.append(nbformat.v4.new_code_cell(textwrap.dedent(check)))
    NotebookClient(
        notebook, timeout=CELL_TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return notebook


def pictures(notebook: Any) -> int:
    outputs = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    return sum("image/png" in out.get("data", {}) for out in outputs)


def test_there_are_three_and_they_are_numbered() -> None:
    assert [path.name[:3] for path in NOTEBOOKS] == ["01_", "02_", "03_"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_valid_and_carries_no_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


def test_records_and_scorers(tmp_path: Path) -> None:
    check = """
        from ttpa.run import config
        from ttpa.calls.six_errors import SIX
        from ttpa.results.cells import compose_run, open_hydra

        assert [kind for (kind,) in (found for found in labels.values() if found)] == [*SIX, "call_count"]
        by_kind = {name: dict(zip(candidates, found, strict=True)) for name, found in scores.items()}
        value = {name: {kind: score.value for kind, score in found.items()} for name, found in by_kind.items()}
        assert all(score.exact == (kind == "right") for found in by_kind.values() for kind, score in found.items())

        def near(left, right):
            return abs(left - right) < 1e-12

        # esm: (3 name + 3 required + 1 key + 2 type + 2 value) / 11, two arguments
        assert near(value["esm"]["parameter_value"], (3 + 3 + 1 + 2 + 2 * 1 / 2) / 11)
        assert near(value["esm"]["parameter_type"], (3 + 3 + 1 + 2 * 1 / 2 + 2 * 1 / 2) / 11)
        assert near(value["esm"]["missing_required"], (3 + 0 + 1 / 2 + 2 / 2 + 2 / 2) / 11)
        # slm_json: 1/8 + 3/8 names + 1/2 arguments
        assert near(value["slm_json"]["parameter_type"], 1 / 8 + 3 / 8 + 1 / 2 * 1 / 2)
        assert near(value["slm_json"]["parameter_name"], 1 / 8 + 3 / 8 + 1 / 2 * 2 / 3)
        assert near(value["slm_json"]["tool_name"], 1 / 8)
        assert all(near(max(found.values()), found["right"]) for found in value.values())
        assert sum(value["ast"].values()) == 1

        with open_hydra():
            for name, scorer in scorers.items():
                option = compose_run([f"scorer={name}", "model.syntax=python"]).scorer
                assert config.instantiate(option, "scorer") == scorer, name
    """
    execute("01_records_and_scorers", tmp_path, check)
    assert not list(tmp_path.iterdir())


def test_one_sample_through_the_pipeline(tmp_path: Path) -> None:
    check = """
        import math

        assert pair.chosen_score.exact and not pair.rejected_score.exact
        assert padded.computed > merged.computed == len(tree) < sum(len(row) for row in rows)

        # Log-probs of every answer by a plain forward of each sequence alone.
        for number, row in enumerate(rows):
            ids = torch.tensor([[*row.prompt, *row.answer]])
            with torch.no_grad():
                logits = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            plain = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
            torch.testing.assert_close(merged.logps_N[merged.row_N == number], plain, atol=1e-5, rtol=0)
            nodes_of = tree.paths[number][len(prompt) :].tolist()
            assert all(math.isclose(probability[n], p.exp(), abs_tol=1e-5) for n, p in zip(nodes_of, plain))
            said = "".join(word[node] for node in nodes_of)
            assert said.removesuffix("end") == repr(renderer.text(row.answer))[1:-1]

        # The framed node is the last one that both answers go through.
        ways = [tree.paths[list(every).index(side.token_ids)].tolist() for side in (pair.chosen, pair.rejected)]
        assert parting == max(set(ways[0]) & set(ways[1]))
        assert all(sum(probability[n] for n in nodes if parent[n] == p) <= 1 + 1e-6 for p in set(parent[len(prompt) :]))
        assert len(axes.patches) == len(tree) - len(prompt) == len(word)

        # SimPO, Eq. 6, in plain floats.
        ends = [way[len(prompt) :] for way in ways]
        means = [sum(math.log(probability[node]) for node in end) / len(end) for end in ends]
        inner = loss.beta * (means[0] - means[1] - loss.gamma_beta_ratio)
        assert math.isclose(losses.item(), math.log1p(math.exp(-inner)), rel_tol=1e-4)

        assert set(found) == {"group", "tps", "mcts"} and all(found.values()) and drawn["mcts"].tree
        assert all(Path(folder.name) in stage.path.parents for stage in made.values())
    """
    notebook = execute("02_one_sample_through_the_pipeline", tmp_path, check)
    assert pictures(notebook) == 1
    assert not list(tmp_path.iterdir())


def share(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def measured(accuracy: float) -> dict[str, Any]:
    bands = {band: share(accuracy) for band in ("easy", "medium", "hard")}
    return {"accuracy": share(accuracy), "bands": bands, "errors": {"parameter_value": share(0.25)}}


GIVEN = {"sft_10": 0.50, "sft_30": 0.60, "sft_100": 0.62, "itool_10": 0.52, "itool_30": 0.64, "itool_100": 0.70}


def rows_of_the_table() -> list[TableCell]:
    return read_cells(ROOT / "experiments" / "itool_gain_decay", "embedded")[2]


def write(cell: TableCell, folder: Path, accuracy: float, **other: Any) -> None:
    """A made-up result row of the cell, with other settings in some groups."""
    groups = config.identity(cell.cfg, *config.IDENTITY)
    row = {
        "run": "", "row_version": 1, "name": "any", "seed": cell.seed, "rounds": cell.cfg.rounds, "choices": {},
        "config": {**groups, **other}, "stages": {"baseline": "evaluate-0", "evaluation": "evaluate-1"},
        "versions": dict(VERSIONS), "baseline": measured(0.4), "explored": {}, "cost": {},
        "metrics": measured(accuracy),
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / f"{cell.row.key}-{cell.seed}.jsonl").write_text(json.dumps(row) + "\n")


def test_reading_results_of_a_folder(tmp_path: Path) -> None:
    """Rows of the real table, made up here but for one cell; nothing is run, and the curves are what was given."""
    for cell in rows_of_the_table():
        if cell.row.key in GIVEN and (cell.row.key, cell.seed) != ("itool_100", 2):
            write(cell, tmp_path / "results", GIVEN[cell.row.key] + 0.01 * (cell.seed - 1))
    check = f"""
        given = {GIVEN!r}
        assert not tiny and "temporary" not in globals() and "not results" not in axes.get_title()
        for label, prefix in (("SFT", "sft"), ("iTool", "itool")):
            assert [share for share, _, _ in curves[label]] == [0, 10, 30, 100]
            for share, key, estimate in curves[label]:
                wanted = 40 if share == 0 else 100 * given[f"{{prefix}}_{{share}}"]
                wanted -= 0.5 if key == "itool_100" else 0  # its seed 2 is missing
                assert abs(estimate.value - wanted) < 1e-9
                assert estimate.n == len(seeds[key]) == (2 if key == "itool_100" else 3)
        assert abs(curves["SFT"][1][2].high - 50 - 4.302653 / 3**0.5) < 1e-5  # t with 2 degrees of freedom, deviation 1
    """
    notebook = execute("03_reading_results", tmp_path, check, 'RESULTS, STORE = Path("results"), Path("store")')
    assert pictures(notebook) == 1
    (table,) = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs
                if "text/markdown" in out.get("data", {})]  # fmt: skip
    assert "| iTool, 100 % | 2/3, no 2 |" in table.data["text/markdown"]
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_reading_kept_records_where_other_tables_share_the_warm_up(tmp_path: Path) -> None:
    """A run of another objective has the first row of the table, and no other."""
    write(rows_of_the_table()[0], tmp_path / "results", 0.5, objective={})
    check = """
        assert not tiny and RESULTS == RECORDS and (there, missing) == (21, 0)
        assert all(estimate.n == 3 for points in curves.values() for _, _, estimate in points)
    """
    execute("03_reading_results", tmp_path, check, 'RESULTS, STORE = Path("results"), Path("store")')


@pytest.mark.slow
def test_reading_results_of_tiny_runs(tmp_path: Path) -> None:
    """Without rows but of the shared warm-up the notebook makes some; the figure has what their files say."""
    write(rows_of_the_table()[0], tmp_path / "results", 0.5, objective={})
    check = """
        import json
        import statistics

        assert (there, missing) == (1, 20)
        assert tiny and "not results" in axes.get_title() and not any(row.missing for row in table.rows)
        rows = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.jsonl"))]
        assert len(rows) == 12 and STORE.is_dir()
        for label, objective in (("SFT", "gold"), ("iTool", "simpo")):
            mine = [row for row in rows if row["choices"]["objective"] == objective]
            for share, _, estimate in curves[label]:
                limit = {0: None, 10: 9, 30: 27, 100: None}[share]
                role = "metrics" if share else "baseline"
                some = [row[role]["accuracy"]["value"] for row in mine if row["config"]["select"]["limit"] == limit]
                assert abs(estimate.value - 100 * statistics.mean(some)) < 1e-9 and len(some) == 2
    """
    places = 'RESULTS, STORE, RECORDS = Path("results"), Path("store"), Path("results")'
    notebook = execute("03_reading_results", tmp_path, check, places)
    assert pictures(notebook) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
