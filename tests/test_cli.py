"""The command line from outside: a mistake is answered at once, with value, place and remedy, before any work."""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

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


class Answer(NamedTuple):
    status: int
    out: str
    err: str
    imported: str


def ttpa(folder: Path, *words: str) -> Answer:
    command = [sys.executable, "-c", LAUNCH, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    return Answer(done.returncode, done.stdout, done.stderr, (folder / "imported").read_text())


MISTAKES = {
    "unknown option": (["objective=dop"], "no option dop of the group objective. Did you mean dpo?"),
    "unknown option in a sweep": (["-m", "objective=dpo,dop"], "no option dop of the group objective. Did you"),
    "unknown group": (["samplr=tps"], "no key samplr; did you mean sampler?"),
    "unknown key": (["sampler.tempreture=2"], "no key sampler.tempreture; did you mean sampler.temperature?"),
    "a key at its old place": (["objective.lr=1"], "no key objective.lr; did you mean recipe.align.lr?"),
    "a key of the online loss": (["objective=grpo", "objective.lr=1"], "did you mean recipe.online.lr?"),
    "a key of other trainers": (["trainer.max_steps=5"], "did you mean recipe.align.steps, "),
    "a key of several places": (["model.lr=1e-4"], "recipe.align.lr"),
    "unknown key of Hydra": (["hydra.job.nme=x"], "did you mean hydra.job.name?"),
    "unknown flag": (["--multrun"], "no flag --multrun. Did you mean --multirun?"),
    "unknown command": (["tabel", "experiments/demo"], "no command tabel. Did you mean table?"),
    "no override": (["seed=0", "objective"], "objective: not of the form key=value"),
    "a broken override": (["sampler.n=[1"], "sampler.n=[1"),
    "text for a whole number": (["recipe.align.batch_size=abc"], "recipe.align.batch_size='abc': "),
    "fraction for a whole number": (["sampler.n=2.5"], "sampler.n=2.5: "),
    "number for a mapping": (["data.warmup_mix=3"], "data.warmup_mix=3: "),
    "number for yes or no": (["scorer=ast", "scorer.partial=1"], "scorer.partial=1: "),
    "type of a control": (["experiment=demo", "controls.dpo.beta=abc"], "controls.dpo.beta='abc': "),
    "too small": (["sampler.n=0"], "sampler.n=0: "),
    "too large": (["select=perplexity", "select.keep_fraction=3"], "select.keep_fraction=3"),
    "not a number": (["data.noise.probability=nan"], "data.noise.probability=nan: "),
    "missing file": (["data=toolace", "data.path=/does/not/exist.json"], "data.path=/does/not/exist.json: no such"),
    "one answer to contrast": (["objective=dpo", "sampler.n=1"], "Use sampler.n=5 or pairs="),
    "rounds on the same targets": (["objective=gold", "rounds=2"], "objective=gold"),
    "control that cannot work": (["experiment=demo", "rounds=2"], "Use rounds=1"),
    "unknown stage": (["until=foo"], "until='foo': should be 'warmup', 'explore' or 'align'"),
    "added key of no class": (["+sampler.topk=3"], "sampler.topk=3: GroupSampler has no such option"),
    "added key of nobody": (["+topk=3"], "topk=3: is read by nothing"),
    "trainer option that decides numbers": (["+trainer.options.max_steps=3"], "max_steps"),
    "removed key": (["~sampler.n"], "sampler.n=None: is missing"),
    "no model": (["model=hf", "model.name="], "model.name="),
    "unknown syntax": (["model.syntax=foo"], "syntax="),
    "null for a count": (["rounds=null"], "rounds=None: "),
    "number for a mapping of options": (["controls=3"], "controls=3: "),
    "a name outside its folder": (["name=../x"], "name='../x': "),
    "a folder that is a file": (["paths.runs=/dev/null"], "Not a directory. Give a folder"),
    "a long folder": ([f"paths.runs={'n' * 300}"], "Give a shorter name"),
    "allowed by no command line": (["+allow=[os]"], "allow=['os']: is read by nothing"),
    "no store": (["paths.store=null"], "paths.store=None: "),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_in_one_line_with_the_remedy_before_any_work(mistake: str, tmp_path: Path) -> None:
    words, said = MISTAKES[mistake]
    answer = ttpa(tmp_path, *words)
    assert re.fullmatch(r"ttpa: error: [^\n]+[.?]\n", answer.err) and said in answer.err, answer.err
    assert (answer.status, answer.out, answer.imported) == (2, "", "")
    assert {path.name for path in tmp_path.iterdir()} <= {"imported", "runs"}


def test_the_folder_that_a_message_names_exists(tmp_path: Path) -> None:
    (place,) = re.findall(r"See (conf/\S*[\w/])", ttpa(tmp_path, "sampler.n=abc").err)
    assert (Path(__file__).resolve().parents[1] / place).exists()


def test_options_of_the_users_own_folder_are_known(tmp_path: Path) -> None:
    (tmp_path / "own" / "sampler").mkdir(parents=True)
    option = Path(__file__).resolve().parents[1] / "conf" / "sampler" / "group.yaml"
    (tmp_path / "own" / "sampler" / "mine.yaml").write_text(option.read_text())
    shown = ttpa(tmp_path, "--config-dir", "own", "sampler=mine", "--cfg", "job")
    assert yaml.safe_load(shown.out)["sampler"]["n"] == 6
    answer = ttpa(tmp_path, "--config-dir", "own", "sampler=mine", "sampler.m=3")
    assert answer.err == "ttpa: error: no key sampler.m; did you mean sampler.n?\n"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help_and_answers_a_wrong_word(command: str, tmp_path: Path) -> None:
    shown = ttpa(tmp_path, command, "--help")
    assert shown.status == 0 and f"ttpa {command}" in shown.out and shown.imported == ""
    wrong = ttpa(tmp_path, command, "-x")
    assert wrong.status == 2 and re.fullmatch(r"ttpa: error: [^\n]+[.?]\n", wrong.err), wrong.err


def test_the_configuration_is_shown_without_heavy_imports(tmp_path: Path) -> None:
    answer = ttpa(tmp_path, "--cfg", "job", "sampler=tps", "seed=3")
    shown = yaml.safe_load(answer.out)
    assert (answer.status, answer.err, answer.imported) == (0, "", "")
    assert (shown["seed"], shown["sampler"]["_target_"]) == (3, "ttpa.explore.tps.TPS")
    assert [path.name for path in tmp_path.iterdir()] == ["imported"]


def test_help_is_shown_without_heavy_imports(tmp_path: Path) -> None:
    answer = ttpa(tmp_path, "--help")
    assert (answer.status, answer.err, answer.imported) == (0, "", "")
    assert "ttpa -m objective=dpo,simpo" in answer.out and "ttpa COMMAND --help" in answer.out
    assert (
        "objective: cispo, dapo, dpo, dr_grpo, gold, grpo, gspo, hinge, ipo, orpo, rft, robust, sapo, simpo"
        in answer.out
    )
    assert "shared" not in answer.out
    assert [path.name for path in tmp_path.iterdir()] == ["imported"]


@pytest.mark.parametrize(
    ("words", "seen"), [([], ["experiment=demo"]), (["seed=1"], ["seed=1"]), (["--cfg", "job"], ["--cfg", "job"])]
)
def test_only_the_bare_command_is_the_demo(words: list[str], seen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    passed_on: list[str] = []
    monkeypatch.setattr(sys, "argv", ["ttpa", *words])
    monkeypatch.setattr(cli, "_run", lambda: passed_on.extend(sys.argv[1:]))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (passed_on, ended.value.code) == (seen, 0)


def test_a_sweep_runs_the_good_cells_and_says_that_one_failed(tmp_path: Path) -> None:
    answer = ttpa(tmp_path, "-m", "sampler.n=0,6,-1", "until=warmup", *TINY)
    assert answer.status == 2
    failed = re.findall(r"^ttpa: failed: sampler.n=(\S+) .*: should be greater.*Log: (.*)$", answer.err, re.MULTILINE)
    assert [number for number, _ in failed] == ["0", "-1"] and all(Path(log).exists() for _, log in failed)
    assert "2 cells of the sweep failed" in answer.err
    assert "sampler.n=0: " in answer.err and "Traceback" not in answer.err
    assert {path.parent.name.split("-")[0] for path in tmp_path.glob("store/*/done.json")} == {"data", "warmup"}
    runs = [yaml.safe_load(path.read_text()) for path in tmp_path.glob("runs/*/.hydra/config.yaml")]
    assert sorted(run["sampler"]["n"] for run in runs) == [-1, 0, 6]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "store/x"), "store/x: No space left on device. Free some space"),
        (OSError(30, "Read-only file system", "store"), "store: Read-only file system. Give a folder that can be"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left on device. Free some space"),
        (OSError(36, "File name too long", "n" * 300), "Give a shorter name."),
        (FileNotFoundError(2, "No such file", "x"), None),
    ],
)
def test_what_the_disk_refuses_is_said_in_one_line(
    error: Exception,
    said: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ttpa", "until=warmup", *TINY])
    monkeypatch.setattr("ttpa.run.pipeline.run", fails)
    with pytest.raises(SystemExit if said else FileNotFoundError) as ended:
        cli.main()
    if said:
        assert ended.value.args == (2,)
        assert said in capsys.readouterr().err
