"""The installed form: what the wheel holds, that it runs outside the checkout, and what an import costs.

No network: the environment that the wheel is installed into borrows third-party packages through a `.pth` file.
"""

import ast
import configparser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
# Import name -> distribution, where they differ.
DISTRIBUTION = {"hydra": "hydra-core", "hydra_plugins": "hydra-submitit-launcher", "yaml": "PyYAML"}
BORROWED = ("hydra", "omegaconf", "antlr4", "packaging", "yaml")


def command(*args: object, cwd: Path) -> str:
    """Runs a command without the variables that would lead Python back to the checkout; returns its standard output."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV"}
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    env |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1"}
    done = subprocess.run([str(arg) for arg in args], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{args} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def conf_yamls() -> set[str]:
    """Every option file that ships, relative to conf/: all but those of local/, which belong to one machine."""
    found = {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    return {path.as_posix() for path in found if path.parts[0] != "local"}


def library_files() -> set[str]:
    """Every file below ttpa/, relative to the checkout."""
    found = [path for path in (ROOT / "ttpa").rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build/ left in the checkout would lend its stale files to later wheels."""
    tree = tmp_path_factory.mktemp("tree")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("ttpa", "conf"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignore)
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    (tree / "conf" / "local").mkdir(exist_ok=True)
    (tree / "conf" / "local" / "secret.yaml").write_text("# one machine's own\nkey: value\n")
    out = tmp_path_factory.mktemp("dist")
    command(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", out, cwd=tree)
    (built,) = out.glob("*.whl")
    return built


Run = Callable[..., str]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a program of an environment that holds the wheel and nothing else of ours, in an empty directory."""
    root, cwd = tmp_path_factory.mktemp("env"), tmp_path_factory.mktemp("elsewhere")
    venv.create(root, with_pip=False, symlinks=True)
    python = root / "bin" / "python"
    command(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "-q", wheel, cwd=root)
    (site_packages,) = root.glob("lib/python*/site-packages")
    specs = [importlib.util.find_spec(name) for name in BORROWED]
    borrowed = {str(Path(spec.origin).parents[1]) for spec in specs if spec and spec.origin}
    (site_packages / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")
    where = command(python, "-c", "import ttpa; print(ttpa.__file__)", cwd=cwd).strip()
    assert Path(where).is_relative_to(root), "the checkout is used"
    return lambda name, *args: command(root / "bin" / name, *args, cwd=cwd)


def test_wheel_holds_every_file_of_the_library_and_its_options_and_no_other(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if re.match(r"ttpa/conf/.*\.yaml", name)} == {f"ttpa/conf/{y}" for y in conf_yamls()}
    missing = library_files() - names
    assert not missing, f"not in the wheel, see packages and package_data in setup.cfg: {sorted(missing)}"
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ttpa"}


def test_console_script_runs_outside_the_checkout(installed: Run) -> None:
    assert {"data", "model", "objective"} <= set(yaml.safe_load(installed("ttpa", "--cfg", "job")))


def test_setup_cfg_lists_the_packages_of_the_tree() -> None:
    folders = {path.parent for path in (ROOT / "ttpa").rglob("*.py")}
    bare = sorted(folder.relative_to(ROOT).as_posix() for folder in folders if not (folder / "__init__.py").is_file())
    assert not bare, f"without __init__.py: {bare}"
    found = {folder.relative_to(ROOT).as_posix().replace("/", ".") for folder in folders}
    assert set(setup_cfg()["options"]["packages"].split()) == found | {"ttpa.conf"}


def test_setup_cfg_says_only_where_files_are() -> None:
    """Metadata there would be ignored or crash the build, and dependencies would silently miss in the wheel."""
    config = setup_cfg()
    assert set(config.sections()) == {"options", "options.package_data", "options.exclude_package_data"}
    assert set(config["options"]) == {"include_package_data", "packages", "package_dir"}


def test_every_imported_package_is_declared() -> None:
    """Also those that another dependency happens to bring."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for lines in requirements for line in lines}
    for path in (ROOT / "ttpa").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {name.split(".")[0] for name in names} - {"ttpa"} - sys.stdlib_module_names:
                name = DISTRIBUTION.get(top, top).lower().replace("_", "-")
                assert name in declared, f"{path.relative_to(ROOT)} imports {name}, undeclared in pyproject.toml"


def test_one_version() -> None:
    import ttpa

    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert pyproject["project"]["version"] == ttpa.__version__


HEAVY = "torch transformers pytorch_lightning peft datasets wandb"


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("ttpa", "torch hydra omegaconf numpy"),
        ("ttpa.cli", HEAVY),
        ("ttpa.results.status", HEAVY),
        ("ttpa.results.sweep", HEAVY),
        ("ttpa.results.render", HEAVY),
        ("ttpa.results.report.report", "torch transformers pytorch_lightning matplotlib jinja2"),
        ("ttpa.run.tracking", "torch pytorch_lightning wandb hydra"),
        ("ttpa.results.dashboard", "torch pytorch_lightning wandb wandb_workspaces hydra"),
        ("ttpa.benchmarks.score", "torch transformers pytorch_lightning hydra datasets"),
    ],
)
def test_import_is_light(module: str, heavy: str) -> None:
    code = f"import sys, {module}; print(*sorted({set(heavy.split())!r} & set(sys.modules)))"
    loaded = command(sys.executable, "-c", code, cwd=ROOT).split()
    assert not loaded, f"import {module} also imports {loaded}; import them in the functions that need them"
