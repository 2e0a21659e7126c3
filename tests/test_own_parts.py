"""docs/own_parts.md: its examples are taken from the page and run; their code is a part of fingerprints."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "own_parts.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```(?:python|yaml)\n# ((?:my_pkg|mine)/\S+)\n(.*?)^```", PAGE, re.M | re.S))
KINDS = {"data": "source", "sampler": "sampler", "scorer": "scorer", "objective": "objective", "eval": "evaluation"}
SMALL = "debug=smoke model.hidden=32 model.layers=1 model.heads=2 model.feed_forward=64 model.vocab=340".split()  # noqa: SIM905
SMALL += ["trainer.threads=1", "data.path=questions.jsonl", "data.test_fraction=0.3"]
CITIES = "Rome Paris Oslo Bern Riga Kyiv Lima Baku Doha Cairo Tunis Quito Minsk Turin Milan".split()  # noqa: SIM905


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the files of the page and some rows of the layout that its source reads."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    tool = {"name": "weather", "parameters": {"city": {"type": "string"}}}
    rows = [{"ask": f"Weather in {city}?", "tools": [tool], "call": {"name": "weather", "arguments": {"city": city}}}
            for city in CITIES]  # fmt: skip
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return tmp_path


def ttpa(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ttpa.cli", *words, "--config-dir", "mine", "allow=[my_pkg]"]
    env = {"PYTHONPATH": f"{ROOT}:{place}", "PATH": "/usr/bin:/bin", "HOME": str(place)}
    return subprocess.run(command, cwd=place, env=env, capture_output=True, text=True)


def planned(place: Path, *words: str) -> dict[str, str]:
    """Stage -> folder, in a process of its own: what a package held is remembered in a process."""
    code = (
        "import sys, json\n"
        "from ttpa.results.cells import compose_run, open_hydra\n"
        "from ttpa.run import config, pipeline\n"
        "with open_hydra(): found = pipeline.plan(compose_run(config.allow(sys.argv[1:])))\n"
        "stages = {**found.shared, **found.branches[0].stages}\n"
        "print(json.dumps({role: stage.path.name for role, stage in stages.items()}))"
    )
    command = [sys.executable, "-c", code, "allow=[my_pkg]", f"hydra.searchpath=[file://{place}/mine]", *words]
    env = {"PYTHONPATH": f"{ROOT}:{place}", "PATH": "/usr/bin:/bin", "HOME": str(place)}
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_page_has_a_class_and_an_option_file_of_each_kind() -> None:
    assert set(FILES) == {f"my_pkg/{name}.py" for name in KINDS.values()} | {f"mine/{kind}/mine.yaml" for kind in KINDS}


@pytest.mark.slow
def test_a_run_of_own_parts_only(place: Path) -> None:
    done = ttpa(place, *(f"{kind}=mine" for kind in KINDS), *SMALL)
    assert done.returncode == 0, done.stderr
    (file,) = (place / "debug" / "results").glob("*.jsonl")
    row = json.loads(file.read_text())
    assert row["metrics"]["accuracy"]["n"] > 2 and row["explored"]["explore1"]["candidates"] == 6 * 8
    assert [row["config"][kind]["_target_"].partition(".")[0] for kind in KINDS] == ["my_pkg"] * 5
    config = (place / "debug" / "store" / row["stages"]["explore1"] / "config.yaml").read_text()
    assert "own_code" in config and "sha256" in config


def test_the_source_of_a_class_is_a_part_of_the_stages_that_use_it(place: Path) -> None:
    words = [*(f"{kind}=mine" for kind in ("data", "scorer")), *SMALL]
    first = planned(place, *words)
    own_scorer_only = planned(place, "scorer=mine", *SMALL[:-2])
    with (place / "my_pkg" / "scorer.py").open("a") as file:
        file.write("\n# edited\n")
    second = planned(place, *words)
    assert all(first[role] != second[role] for role in first)  # the package is hashed whole, and the source is in it
    edited = planned(place, "scorer=mine", *SMALL[:-2])
    changed = {role for role in edited if edited[role] != own_scorer_only[role]}
    assert changed == {"explore1", "align1", "evaluation"}
    (place / "my_pkg" / "notes.txt").write_text("no code")
    assert planned(place, *words) == second
    (place / "my_pkg-3.dist-info").mkdir()
    (place / "my_pkg-3.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: my_pkg\nVersion: 3\n")
    (place / "my_pkg-3.dist-info" / "RECORD").write_text("my_pkg/scorer.py,,\n")
    assert planned(place, *words)["data"] != second["data"]  # the version counts


def test_the_message_about_a_wrong_value_is_the_one_of_the_page(place: Path) -> None:
    done = ttpa(place, "scorer=mine", "scorer.for_tool=2", *SMALL[:-2])
    assert done.returncode == 2 and done.stderr.strip() in PAGE
