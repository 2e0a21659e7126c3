"""The official package at arm's length: prompts equal to its own, its absence, and what an import leaves behind."""

import json
import subprocess
import sys
from copy import deepcopy
from importlib import metadata

import pytest

from tests.benchmarks.official_package import entries, package
from ttpa.benchmarks.bfcl import categories, official
from ttpa.benchmarks.bfcl.categories import CATEGORIES
from ttpa.errors import ConfigError
from ttpa.io import read_lines

INSTALL = "pip install --no-deps bfcl-eval==2026.3.23 mpmath"


@pytest.mark.parametrize(("name", "found"), [("bfcl-eval", None), ("mpmath", None), ("bfcl-eval", "2025.1.1")])
def test_a_missing_package_or_another_release(monkeypatch: pytest.MonkeyPatch, name: str, found: str | None) -> None:
    def version(asked: str) -> str:
        if asked == name and found is None:
            raise metadata.PackageNotFoundError
        return found if asked == name else official.VERSION

    monkeypatch.setattr(categories, "version", version)
    for asked in (official.require, lambda: official.official_messages([], [], CATEGORIES["multiple"])):
        with pytest.raises(ConfigError, match=f"{name}={found or 'not installed'}: .*extra `bfcl`.*{INSTALL}"):
            asked()


@pytest.mark.parametrize(
    "category",
    ["simple_python", "simple_java", "simple_javascript", "parallel_multiple", "live_simple", "live_irrelevance"],
)
def test_prompts_are_those_of_the_package(category: str) -> None:
    """The first questions of a category, and all whose user brought a system message."""
    prepare = package().models.system_prompt_pre_processing_chat_model
    raw = {line.row["id"]: line.row for line in read_lines(official.data_folder() / f"BFCL_v4_{category}.json")}
    with_system = 0
    for at, (case_id, entry) in enumerate(entries(category).items()):
        own = entry["question"][0][0]["role"] == "system"
        if at >= 40 and not own:
            continue
        with_system += own
        asked = raw[case_id]["question"][0], raw[case_id]["function"]
        expected = prepare(deepcopy(entry["question"][0]), entry["function"], case_id)
        for _ in range(2):  # what is asked is not changed
            assert official.official_messages(*asked, CATEGORIES[category]) == expected
    assert with_system or category != "live_simple"


def test_nothing_is_left_behind() -> None:
    """No client of a provider is loaded, no folder made, and the environment is as before."""
    package()
    code = """
import json, os, sys
from ttpa.benchmarks.bfcl import official
from ttpa.benchmarks.bfcl.categories import CATEGORIES
from ttpa.benchmarks.bfcl.multi_turn import read_multi_turn
folder = official.data_folder()
before = [*os.listdir(folder.parents[1]), *os.listdir(folder.parent)]
official.official_messages([{"role": "user", "content": "hi"}], [], CATEGORIES["multiple"])
case = next(iter(read_multi_turn(folder, CATEGORIES["multi_turn_base"]).values()))
case.judge([[] for _ in case.truth])
after = [*os.listdir(folder.parents[1]), *os.listdir(folder.parent)]
loaded = [name for name in ("bfcl_eval.constants.model_config", "openai", "anthropic", "torch") if name in sys.modules]
print(json.dumps([before == after, "BFCL_PROJECT_ROOT" in os.environ, loaded]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True, False, []] and done.stderr == ""
