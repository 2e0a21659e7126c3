"""The option files: all reachable, commented and instantiable, in every cell; which of their values name a result."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf, open_dict

from ttpa.data.reversed.dialogues import OpenAIDialogues, PolicyDialogues
from ttpa.errors import ConfigError
from ttpa.run import config, pipeline
from ttpa.run.parts import build_parts
from ttpa.run.pipeline import plan
from ttpa.run.store import Planner

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
OVERLAYS = ("experiment", "hparams_search", "debug", "local")
YAMLS = sorted(path for path in CONF.rglob("*.yaml") if path.relative_to(CONF).parts[0] != "local")
GROUPS = sorted({path.parent.name for path in YAMLS if path.parent != CONF})


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


IDENTITY_OPTIONS = [(group, option) for group in config.IDENTITY for option in options(group)]
BESIDE = {
    ("pairs", "siblings"): ("sampler=mcts",),
    **{("data", f"reversed_{name}"): ("data.tools=[world]",) for name in ("openai", "policy", "bfcl")},
    **{place: ("data.path=some/pairs",) for place in (("data", "pairs"), ("pairs", "given"))},
    ("eval", "bfcl"): (f"eval.path={ROOT}/tests/data/bfcl",),
    ("eval", "apibank"): (f"eval.path={ROOT}/tests/data/apibank",),
}
"""What an option cannot do without."""
HOW_FAST = [f"data.{key}" for key in (*OpenAIDialogues.waits, *PolicyDialogues.waits)]
NOT_DRAWN = r" compares independent draws from the policy, and sampler=\w+ gives others\. Use sampler=group8 "


@pytest.fixture(scope="module", autouse=True)
def hydra_of_the_package() -> Iterator[None]:
    with initialize_config_module("ttpa.conf", version_base="1.3"):
        yield


@pytest.fixture(autouse=True)
def empty_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub id is told from a path by what exists here; stores, results and runs are relative to it."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@cache
def _composed(*overrides: str) -> tuple[DictConfig, dict[str, str]]:
    cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
    choices = dict(cfg.hydra.runtime.choices)
    with open_dict(cfg):
        del cfg["hydra"]
        cfg.choices = {group: name for group, name in choices.items() if group in config.IDENTITY}
    return cfg, choices


def composed(*overrides: str) -> DictConfig:
    """The configuration of a command line, with the choices that the command line fills in."""
    return _composed(*overrides)[0].copy()


def relative(path: Path) -> str:
    return path.relative_to(CONF).as_posix()


def targets(path: Path) -> list[str]:
    return re.findall(r"_target_:\s*([\w.]+)", path.read_text(encoding="utf-8"))


# ---- the files ------------------------------------------------------------------------------------------------------


def test_every_folder_is_an_identity_group_an_execution_group_or_an_overlay() -> None:
    kinds = (*config.IDENTITY, *config.EXECUTION, *OVERLAYS)
    assert len(set(kinds)) == len(kinds)
    assert set(GROUPS) <= set(kinds)
    assert set(config.IDENTITY) | set(config.EXECUTION) <= set(GROUPS)


@pytest.mark.parametrize("path", YAMLS, ids=relative)
def test_every_file_is_reachable_from_the_command_line(path: Path) -> None:
    group = path.parent.relative_to(CONF).as_posix()
    if group == ".":  # the run, and what options of a group have in common
        included = [option.read_text(encoding="utf-8") for option in YAMLS]
        assert path.stem == "config" or any(f"[/{path.stem}@_here_, _self_]" in text for text in included)
        return
    assert _composed(f"{group}={path.stem}")[1][group] == path.stem


@pytest.mark.parametrize("path", [path for path in YAMLS if targets(path)], ids=relative)
def test_every_target_is_an_allowed_class_that_imports(path: Path) -> None:
    for target in targets(path):
        config.check_target(f"{path.parent.name}._target_", target)
        assert isinstance(hydra.utils.get_object(target), type)


BAD_TARGETS = (
    *("os.system", "subprocess.Popen", "torch.utils.collect_env.run", "torch.hub.load", "torch.load", "pickle.loads"),
    *("ttpa.run.store.os.mkdir", "ttpa.run.store.Path", "ttpa.run.config.instantiate", "ttpa.run.cluster.Leader"),
    *("ttpa.explore.sampler.option", "ttpa.run.parts.Sampler", "pytorch_lightning.loggers.CSVLogger", "ttpa", "", 3),
    *("pytorch_lightning.loggers.csv_logs.os.mkdir", "hydra.utils.instantiate", "builtins.eval", "my_pkg.Mine"),
)


@pytest.mark.parametrize("target", BAD_TARGETS)
def test_an_option_names_no_other_class(target: Any) -> None:
    with pytest.raises(ConfigError, match=r"scorer\._target_="):
        config.instantiate(OmegaConf.create({"_target_": target}), "scorer")


@pytest.mark.parametrize(
    "node",
    [
        {"x": {"_target_": "os.system"}},
        {"x": [{"y": {"_target_": "os.system", "_recursive_": False}}]},
        *({"_target_": "ttpa.explore.select.SelectAll", **more} for more in ({"_partial_": True}, {"_args_": ["x"]})),
        {"_target_": "${oc.decode:os.system}"},
    ],
    ids=str,
)
def test_no_way_around_the_class_of_an_option(node: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^scorer\..*(may not be made|is not for options)"):
        config.instantiate(OmegaConf.create(node), "scorer")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hydra.launcher._target_=os.system"], "hydra.launcher._target_=os.system"),
        (["+hydra.callbacks.x._target_=os.system"], "hydra.callbacks.x._target_=os.system"),
        (["hydra.sweeper._target_=${oc.env:HOME}"], "hydra.sweeper._target_="),
        (["+hydra.hydra_logging.formatters.x.class=os.system"], "hydra.hydra_logging.formatters.x.class"),
        (["hydra.job_logging.handlers.file.filename=ext://antigravity"], "handlers.file.filename"),
        (["+hydra.job_logging.x=${paths.store}"], "hydra.job_logging.x"),
        (["+hydra.job.env_set.TTPA_ALLOW=os"], "hydra.job.env_set"),
        (["sampler.temperature=${oc.env:HOME}"], "oc.env:HOME"),
        (["paths.store=${oc.env:HOME}", "data.noise.probability=${paths.store}"], "oc.env:HOME"),
        (["name=${oc.env:HOME}"], "oc.env:HOME"),
        (["+controls.x.y='a${oc.env:HOME}'"], "oc.env:HOME"),
        (["name=../x"], "name='../x'"),
        ([f"name={'n' * 300}"], "at most 100 characters"),
    ],
)
def test_what_hydra_would_run_or_make_is_refused_when_it_is_composed(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        composed(*words)
    assert said in str(refused.value)
    assert composed("paths.store=${oc.env:HOME}").paths.store == os.environ["HOME"]  # the environment serves the rest


def test_a_factory_of_a_log_is_refused() -> None:
    logs = {"formatters": {"x": {"()": "os.system"}}}
    with pytest.raises(ConfigError, match=r"hydra.job_logging.formatters.x.\(\)=os.system"):
        config.check_composed(OmegaConf.create({"hydra": {"job_logging": logs}}))


def test_a_package_is_allowed_on_the_command_line_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_pkg").mkdir()
    (tmp_path / "my_pkg" / "__init__.py").write_text("import os\nfrom my_pkg.own import Mine\nfrom pathlib import Path")
    (tmp_path / "my_pkg" / "own.py").write_text("class Mine:\n    pass\ndef make():\n    pass")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(config, "_allowed", ())
    monkeypatch.setenv(config.ALLOW, "")
    make = lambda target: config.instantiate(OmegaConf.create({"_target_": target}), "scorer")  # noqa: E731
    with pytest.raises(ConfigError, match="my_pkg"):
        make("my_pkg.Mine")
    assert config.allow(["-m", "allow=[my_pkg]", "seed=0"]) == ["-m", "seed=0"]
    assert os.environ[config.ALLOW] == "my_pkg"  # for the processes of a sweep
    assert type(make("my_pkg.Mine")).__name__ == type(make("my_pkg.own.Mine")).__name__ == "Mine"
    for target in ("my_pkg.os.system", "my_pkg.Path", "my_pkg.own.make"):
        with pytest.raises(ConfigError, match="my_pkg"):
            make(target)
    with pytest.raises(ConfigError, match="allow=a-b: must name packages"):
        config.allow(["allow=a-b"])


@pytest.mark.parametrize("name", options("experiment"))
def test_an_experiment_sets_only_what_exists_whatever_is_selected(name: str) -> None:
    content = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert set(content) <= {"defaults", "name", "seed", "rounds", "until", "baseline", "controls"}
    assert content["name"] == name
    for entry in content["defaults"]:
        ((key, option),) = entry.items()
        group = re.fullmatch(r"override /(\w+)|/(objective)@controls\.\w+", key)
        assert group and option in options(group[1] or group[2]), f"{key}: selects no option and names no control"


@pytest.mark.parametrize("overlay", ["paths=debug", *(f"debug={name}" for name in options("debug"))])
def test_debug_runs_share_no_folder_with_real_runs(overlay: str) -> None:
    """Execution options enter no fingerprint: in the same store a real run would find what a debug run left."""
    real, debug = composed().paths, composed(overlay).paths
    for key in ("store", "results", "runs"):
        assert debug[key] != real[key]
        assert not Path(debug[key]).is_relative_to(real[key])
        assert not Path(real[key]).is_relative_to(debug[key])


def test_help_explains_every_group() -> None:
    done = subprocess.run([sys.executable, "-m", "ttpa.cli", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    explained = set(re.findall(r"^ +(\w+)  +[a-zA-Z]", done.stdout, re.MULTILINE))
    assert set(GROUPS) <= explained


# ---- the cells ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("group", "option"), IDENTITY_OPTIONS)
def test_every_option_composes_and_makes_its_class(group: str, option: str) -> None:
    cfg = composed(f"{group}={option}", *BESIDE.get((group, option), ()))
    assert cfg.choices[group] == option
    parts = build_parts(cfg)
    made = parts.evaluation if group == "eval" else getattr(parts, group)
    assert type(made) is hydra.utils.get_object(cfg[group]._target_)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("overlay", [f"{group}={name}" for group in ("experiment", "debug") for name in options(group)])
def test_every_overlay_makes_its_parts(overlay: str) -> None:
    assert set(plan(composed(overlay, "model=tiny")).shared) >= {"data", "warmup"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective=dpo", "sampler=group", "sampler.n=1"], r"=dpo .*sampler\.n=1 .*Use sampler\.n=5 or pairs="),
        (["objective=gold", "rounds=2"], r"objective=gold .*rounds=2\. Use rounds=1, or objective="),
        (["objective=gspo", "rounds=2"], r"gspo draws its own .*rounds=2 must be 1\. Use rounds=1, or objective="),
        (["experiment=itool", "objective=gold"], r"objective=gold .* rounds=3\. Use rounds=1, or objective="),
        (["experiment=itool", "sampler=tps"], r"pairs=siblings .*, but sampler=tps grows none\. Use sampler=mcts, or "),
        (["experiment=slm_grpo", "sampler=mcts"], rf"objective=grpo{NOT_DRAWN}"),
        (["eval=bfcl"], r"eval\.path=bfcl: no such folder"),
        (["objective=dapo", "sampler=tps"], rf"objective=dapo{NOT_DRAWN}"),
        (["objective=dr_grpo", "sampler.top_p=0.9"], r".*Use sampler=group8 with sampler\.top_p=1\."),
        (["objective=grpo", "sampler.n=1"], r"objective=grpo .*sampler\.n=1\. Use sampler\.n=8"),
    ],
)
def test_cells_that_cannot_work_are_refused_with_what_to_choose(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_parts(composed(*overrides))


@pytest.mark.parametrize(
    "override", ["name=a/b", "name=..", "name=null", "seed=null", "rounds=null", "key=1", "objective.over=null",
                 "objective.sft_weight=nan", "objective.gamma_beta_ratio=nan", "recipe.align.lr=0"],
)  # fmt: skip
def test_values_that_cannot_work_are_refused_by_name(override: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(override.split('=')[0])}="):
        build_parts(composed(f"++{override}" if override == "key=1" else override))


@pytest.mark.parametrize(
    ("word", "value"),
    [("[q_proj,v_proj]", ["q_proj", "v_proj"]), ("'.*(q|v)_proj'", ".*(q|v)_proj"), ("all-linear", "all-linear")],
)
def test_target_modules_are_a_list_an_expression_or_all_linear(word: str, value: Any) -> None:
    parts = build_parts(composed("model=hf", f"model.lora.target_modules={word}"))
    assert parts.model.lora is not None and parts.model.lora.target_modules == value


def test_the_ancestral_mode_of_tps_draws_from_the_policy() -> None:
    parts = build_parts(composed("objective=grpo", "sampler=tps", "sampler.mode=ancestral"))
    assert parts.sampler.policy_temperature == 1


@pytest.mark.parametrize("overrides", [["objective=rft", "sampler.n=1"], ["sampler.n=1", "pairs=released"]])
def test_one_answer_a_sample_is_enough_without_contrast_or_with_the_target(overrides: list[str]) -> None:
    assert build_parts(composed(*overrides)).sampler.n == 1


def test_parts_are_made_without_loading_a_model_or_a_heavy_package() -> None:
    code = (
        "import sys; from hydra import compose, initialize_config_module; from ttpa.run.parts import build_parts\n"
        "with initialize_config_module('ttpa.conf', version_base='1.3'):\n"
        "    cfg = compose('config', overrides=['model=hf', 'data=xlam'])\n"
        "parts = build_parts(cfg)\n"
        "heavy = {'torch', 'transformers', 'pytorch_lightning', 'peft', 'datasets', 'pyarrow'} & set(sys.modules)\n"
        "print(type(parts.model).__name__, parts.model.name, sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split("\n")[0] == "HFModel Qwen/Qwen2.5-0.5B-Instruct []", done.stderr


# ---- identity and execution -----------------------------------------------------------------------------------------


def names(outcome: pipeline.Outcome) -> dict[str, str]:
    """Role -> stage directory, over all cells of a run."""
    found = {role: stage.path.name for role, stage in outcome.shared.items()}
    for branch in outcome.branches:
        found |= {f"{branch.objective}/{role}": stage.path.name for role, stage in branch.stages.items()}
    return found


def changed(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    kinds = {int: lambda: value + 1, float: lambda: value + 1, str: lambda: value + "x", list: lambda: [*value, 1]}
    return kinds.get(type(value), lambda: 1)()


def leaves(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}")
    else:
        yield prefix


EXECUTION_CHANGES = [f"{group}={option}" for group in config.EXECUTION for option in options(group)] + [
    "trainer.threads=3", "trainer.micro_tokens=1", "trainer.checkpoint_every_steps=7",
    "trainer.devices=2", "engine.rows=3", "paths.store=elsewhere", "paths.wait_for_locks=false",
]  # fmt: skip


@pytest.mark.parametrize("change", EXECUTION_CHANGES)
def test_execution_options_change_no_stage_and_no_run_id(change: str) -> None:
    base, other = composed("select=perplexity"), composed("select=perplexity", change)
    assert names(plan(other)) == names(plan(base))
    assert config.run_id(other) == config.run_id(base)


@pytest.mark.parametrize(("group", "option"), IDENTITY_OPTIONS)
def test_every_value_of_an_identity_option_enters_a_stage_and_the_run_id(
    group: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a recipe too: by the stage that reads the block, and by the options that refer to the rest."""
    bases = {"": composed(f"{group}={option}", *BESIDE.get((group, option), ()))}
    if group == "recipe":
        bases |= {key: composed(f"recipe={option}", "objective=grpo") for key in ("recipe.online.", "recipe.num_it")}
    # The changed values need not make sense.
    parts = {cfg.choices.objective: build_parts(cfg) for cfg in bases.values()}
    monkeypatch.setattr(pipeline, "build_parts", lambda cfg: parts[cfg.choices.objective])
    known = {start: (names(plan(cfg)), config.run_id(cfg)) for start, cfg in bases.items()}
    keys = list(leaves(OmegaConf.to_container(bases[""][group]), group))
    assert keys
    for key in keys:
        if key in ("eval.path", "recipe._target_", "data.tools", *HOW_FAST):
            continue  # the content of the files enters; a recipe enters by its blocks
        start = max((start for start in bases if key.startswith(start)), key=len)
        other, (before, run_id) = bases[start].copy(), known[start]
        value = OmegaConf.select(other, key)
        value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        OmegaConf.update(other, key, changed(value), merge=False)
        assert names(plan(other)) != before, f"{key} is in no fingerprint"
        assert config.run_id(other) != run_id, f"{key} is not in the run id"


@pytest.mark.parametrize("group", [group for group in config.IDENTITY if len(options(group)) > 1])
def test_options_of_an_identity_group_are_told_apart(group: str) -> None:
    chosen = [option for option in options(group) if option != "qwen2.5-0.5b"]  # what hf is by default
    beside = {option: BESIDE.get((group, option), ()) for option in chosen}
    if group == "pairs":
        beside |= {option: ("sampler=mcts",) for option in chosen if option != "given"}
    made = [tuple(names(plan(composed(f"{group}={option}", *beside[option]))).values()) for option in chosen]
    assert len(set(made)) == len(made)


def test_a_stage_is_named_by_what_it_is_made_from_and_by_nothing_later() -> None:
    base = names(plan(composed("select=perplexity", "pairs=released")))
    assert [role.split("/")[-1] for role in base] == [
        "data", "warmup", "baseline", "select1", "explore1", "align1", "evaluation"]  # fmt: skip
    for change, first in {
        "warmup=curriculum": "warmup", "select.per_kind=true": "select1", "sampler=tps": "explore1",
        "scorer=ast": "explore1", "pairs.min_margin=0.1": "explore1", "recipe.align.batch_size=3": "align1",
    }.items():  # fmt: skip
        other = names(plan(composed("select=perplexity", "pairs=released", change)))
        roles = list(base)
        at = [role.split("/")[-1] for role in roles].index(first)
        same = {role for role in roles if base[role] == other[role]}
        assert {role for role in roles[:at] if role != "baseline"} <= same, change
        assert not same & {role for role in roles[at:] if role != "baseline"}, change


def test_a_later_round_starts_from_the_stages_of_a_shorter_run() -> None:
    one, two = names(plan(composed("rounds=1"))), names(plan(composed("rounds=2")))
    assert one["simpo/align1"] == two["simpo/align1"]
    assert one["simpo/evaluation"] != two["simpo/evaluation"]


def test_seeds_share_data_that_is_read_and_nothing_that_is_drawn() -> None:
    base, other = (names(plan(composed("data=toolace", f"seed={seed}"))) for seed in (0, 1))
    assert [role.split("/")[-1] for role in base if base[role] == other[role]] == ["data"]
    drawn, again = (names(plan(composed(f"seed={seed}"))) for seed in (0, 1))
    assert not set(drawn.values()) & set(again.values())


def test_the_name_of_a_run_names_no_stage() -> None:
    assert names(plan(composed("name=other"))) == names(plan(composed()))


def test_a_control_that_shares_the_name_of_the_objective_does_not_take_its_place() -> None:
    overrides = ("objective=dpo", "objective.beta=0.5")
    demo = plan(composed("experiment=demo", *overrides))
    assert names(plan(composed(*overrides)))["dpo/align1"] == names(demo)["dpo/align1"]


def test_a_control_equal_to_the_objective_is_not_run_twice() -> None:
    simpo, dpo = plan(composed("experiment=demo")), plan(composed("experiment=demo", "objective=dpo"))
    assert [cell.objective for cell in simpo.branches] == ["simpo", "dpo", "rft", "gold"]
    assert [cell.objective for cell in dpo.branches] == ["dpo", "rft", "gold"]


def test_a_control_that_cannot_work_is_refused_by_name_before_any_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Planner, "stage", lambda *_, **__: pytest.fail("a stage was asked for"))
    with pytest.raises(ConfigError, match=r"gold .*rounds=2"):
        plan(composed("experiment=demo", "rounds=2"))
