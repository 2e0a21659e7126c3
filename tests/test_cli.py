"""The command line from outside: a mistake is answered at once, with value, place and remedy, before any work."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from ttpa import cli

HEAVY = ("torch", "transformers", "pytorch_lightning", "peft", "datasets", "pyarrow", "wandb")
# Runs the module as `python -m ttpa.cli` does, and leaves word of the heavy packages that were imported by its end.
LAUNCH = (
    "import pathlib, runpy, sys\n"
    "try:\n"
    "    runpy.run_module('ttpa.cli', run_name='__main__', alter_sys=True)\n"
    "finally:\n"
    f"    pathlib.Path('imported').write_text(' '.join(name for name in {HEAVY!r} if name in sys.modules))\n"
)
TINY = (
    "data.warmup_samples=50", "data.explore_samples=4", "data.test_per_band=2", "data.test_unseen=1",
    "data.validation_per_band=1", "warmup=none", "model.hidden=16", "model.heads=2", "model.layers=1", "logger=none",
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    status: int
    out: str
    err: str
    imported: str


def ttpa(folder: Path, *words: str) -> Answer:
    command = [sys.executable, "-c", LAUNCH, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    return Answer(done.returncode, done.stdout, done.stderr, (folder / "imported").read_text())


MISTAKES = {
    "unknown option": (["objective=foo"], ["objective/foo", "dpo", "gold", "rft", "simpo"]),
    "unknown group": (["sampling=tps"], ["sampling"]),
    "unknown key": (["sampler.topk=3"], ["sampler.topk", "not in struct"]),
    "text for a whole number": (["recipe.align.batch_size=abc"], ["recipe.align.batch_size=abc", "a whole number", "conf/"]),
    "fraction for a whole number": (["sampler.n=2.5"], ["sampler.n=2.5", "a whole number", "conf/sampler/"]),
    "text for a number": (["data.noise.share=high"], ["data.noise.share=high", "a number", "0.16", "conf/data/"]),
    "number for text": (["data.generator=3"], ["data.generator=3", "text", "simulator", "conf/data/"]),
    "number for a mapping": (["data.warmup_mix=3"], ["data.warmup_mix=3", "a mapping", "conf/data/"]),
    "number for yes or no": (["scorer=ast", "scorer.partial=1"], ["scorer.partial=1", "true or false", "conf/scorer/"]),
    "type of a control": (["experiment=demo", "controls.dpo.batch_size=abc"],
                          ["controls.dpo.batch_size=abc", "a whole number"]),
    "too small": (["sampler.n=0"], ["sampler.n=0", "at least 1"]),
    "too large": (["select=perplexity", "select.keep_fraction=3"], ["select.keep_fraction=3", "less than or equal to 1"]),
    "not a number": (["data.noise.probability=nan"], ["data.noise.probability=nan", "[0, 1]"]),
    "missing file": (["data=toolace", "data.path=/does/not/exist.json"],
                     ["data.path=/does/not/exist.json", "no such file", "Set data.path to"]),
    "one answer to contrast": (["objective=dpo", "sampler.n=1"],
                               ["objective=dpo", "sampler.n=1", "Use sampler.n=5 or pairs="]),
    "rounds on the same targets": (["objective=gold", "rounds=2"], ["objective=gold", "rounds=2", "Use rounds=1"]),
    "control that cannot work": (["experiment=demo", "rounds=2"], ["gold", "rounds=2", "Use rounds=1"]),
    "unknown stage": (["until=foo"], ["until=foo", "warmup, explore or align"]),
    "no rounds": (["rounds=0"], ["rounds=0", "at least 1"]),
    "added key of no class": (["+sampler.topk=3"], ["'topk': 3", "unexpected keyword", "conf/sampler/"]),
    "added key of nobody": (["+topk=3"], ["topk=3", "read by nothing", "--cfg job"]),
    "added trainer option": (["+trainer.max_steps=3"], ["trainer.max_steps=3", "steps"]),
    "removed key": (["~sampler.n"], ["sampler", "'n'", "conf/sampler/"]),
    "no model": (["model=hf", "model.name="], ["model.name=", "is empty", "model.name=Qwen/"]),
    "unknown syntax": (["model.syntax=foo"], ["syntax=foo", "hermes, json, python"]),
    "null for a count": (["rounds=null"], ["rounds=None", "a whole number"]),
    "number for a mapping of options": (["controls=3"], ["controls=3", "conf/"]),
    "no store": (["paths.store=null"], ["paths.store=None", "a folder"]),
    "not an override": (["objective"], ["objective", "EQUAL"]),
}  # fmt: skip
ANSWERED_BY_HYDRA = ("unknown option", "unknown group", "unknown key", "not an override")


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_place_and_remedy_before_any_work(mistake: str, tmp_path: Path) -> None:
    overrides, said = MISTAKES[mistake]
    answer = ttpa(tmp_path, *overrides)
    if mistake in ANSWERED_BY_HYDRA:
        assert answer.status == 1
    else:
        assert answer.status == 2
        assert re.fullmatch(r"ttpa: error: [^\n]+\.\n", answer.err)
    for words in said:
        assert words in answer.err
    assert "Traceback" not in answer.err
    assert answer.out == ""
    assert answer.imported == ""
    assert not list(tmp_path.glob("store/*"))
    assert {path.name for path in tmp_path.iterdir()} <= {"imported", "runs", "store"}


@pytest.mark.parametrize("override", ["seed=abc", "controls.dpo.batch_size=abc"])
def test_the_place_that_a_message_names_exists(override: str, tmp_path: Path) -> None:
    (place,) = re.findall(r"See (conf/\S*[\w/])", ttpa(tmp_path, "experiment=demo", override).err)
    assert (Path(__file__).resolve().parents[1] / place).exists()


def test_the_advice_for_an_unknown_key_leads_to_an_answer(tmp_path: Path) -> None:
    """Hydra's advice is to add the key with +; whoever follows it learns that the option has no such value."""
    assert "+sampler.topk=3" in ttpa(tmp_path, "sampler.topk=3").err
    assert "unexpected keyword argument 'topk'" in ttpa(tmp_path, "+sampler.topk=3").err


def test_the_type_of_a_forced_key_is_checked_too(tmp_path: Path) -> None:
    assert "sampler.n=2.5: must be a whole number" in ttpa(tmp_path, "++sampler.n=2.5", "until=foo").err


def test_the_configuration_is_shown_without_heavy_imports(tmp_path: Path) -> None:
    answer = ttpa(tmp_path, "--cfg", "job", "sampler=tps", "seed=3")
    shown = yaml.safe_load(answer.out)
    assert (answer.status, answer.err, answer.imported) == (0, "", "")
    assert (shown["seed"], shown["sampler"]["_target_"]) == (3, "ttpa.explore.tps.TPS")
    assert [path.name for path in tmp_path.iterdir()] == ["imported"]


def test_help_is_shown_without_heavy_imports(tmp_path: Path) -> None:
    answer = ttpa(tmp_path, "--help")
    assert (answer.status, answer.err, answer.imported) == (0, "", "")
    for words in (
        "ttpa -m objective=dpo,simpo",
        "the same command again resumes",
        "objective: cispo, dapo, dpo, dr_grpo, gold, grpo, gspo, hinge, ipo, orpo, rft, robust, sapo, simpo",
    ):
        assert words in answer.out
    assert [path.name for path in tmp_path.iterdir()] == ["imported"]


@pytest.mark.parametrize(
    ("words", "seen"), [([], ["experiment=demo"]), (["seed=1"], ["seed=1"]), (["--cfg", "job"], ["--cfg", "job"])]
)
def test_only_the_bare_command_is_the_demo(words: list[str], seen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    monkeypatch.setattr(sys, "argv", ["ttpa", *words])
    monkeypatch.setattr(cli, "_main", lambda: found.extend(sys.argv[1:]))
    cli.main()
    assert found == seen


def test_the_demo_exists_and_compares_objectives_with_controls(tmp_path: Path) -> None:
    shown = yaml.safe_load(ttpa(tmp_path, "--cfg", "job", "experiment=demo").out)
    assert shown["name"] == "demo"
    assert {"rft", "gold"} <= set(shown["controls"])


def test_a_sweep_runs_the_good_cells_and_says_that_one_failed(tmp_path: Path) -> None:
    answer = ttpa(tmp_path, "-m", "sampler.n=0,6", "until=warmup", *TINY)
    assert answer.status != 0
    assert "sampler.n=0: must be at least 1" in answer.err + answer.out
    assert {path.parent.name.split("-")[0] for path in tmp_path.glob("store/*/done.json")} == {"data", "warmup"}
    runs = [yaml.safe_load(path.read_text()) for path in tmp_path.glob("runs/*/.hydra/config.yaml")]
    assert sorted(run["sampler"]["n"] for run in runs) == [0, 6]
