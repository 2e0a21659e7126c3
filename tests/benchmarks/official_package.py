"""The official package `bfcl-eval` for tests to compare with, without the clients of models that it would load.

Modules that are missing are stood in for while it is imported, and only then. Its executor evaluates text: it is only
given calls that a test wrote.
"""

import atexit
import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

import pytest

_STAND_INS = ("dotenv", "openai", "overrides", "tenacity", "tree_sitter", "tree_sitter_java", "tree_sitter_javascript")


@cache
def package() -> SimpleNamespace:
    """Modules of the package by short names; skips the test where it is not installed."""
    pytest.importorskip("bfcl_eval")
    pytest.importorskip("mpmath")
    scratch = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    stand_ins: dict[str, Any] = {name: MagicMock() for name in _STAND_INS if find_spec(name) is None}
    plain = ModuleType("overrides")
    plain.final = plain.override = lambda method: method  # type: ignore[attr-defined]
    models = ModuleType("bfcl_eval.constants.model_config")
    models.MODEL_CONFIG_MAPPING = defaultdict(SimpleNamespace)  # type: ignore[attr-defined]
    stand_ins |= {"overrides": plain, models.__name__: models}
    names = {
        "utils": "utils",
        "prompts": "constants.default_prompts",
        "models": "model_handler.utils",
        "backends": "eval_checker.multi_turn_eval.multi_turn_utils",
        "client": "model_handler.api_inference.openai_completion",
    }
    with patch.dict(sys.modules, stand_ins), patch.dict(os.environ, {"BFCL_PROJECT_ROOT": scratch}):
        return SimpleNamespace(**{short: import_module(f"bfcl_eval.{name}") for short, name in names.items()})


@cache
def entries(category: str) -> dict[str, dict[str, Any]]:
    """The package's questions of a category, prepared as it prepares them."""
    return {entry["id"]: entry for entry in package().utils.load_dataset_entry(category)}


def _forget() -> None:
    """Ends all of the package's instances of backends, which it keeps by the name of model and question."""
    kept = vars(package().backends)
    for name in [name for name in kept if name.endswith("_instance")]:
        del kept[name]


def conversation(
    case_id: str, answer: Callable[[Sequence[dict[str, Any]]], Any], *, function_calling: bool
) -> tuple[list[tuple[list[dict[str, Any]], list[str]]], list[list[Any]]]:
    """Has the package lead a conversation, with `answer` as the model: messages so far to a text or list of calls.

    Returns messages and names of tools at every step, and the result.
    """
    official, asked = package(), []

    class Scripted(official.client.OpenAICompletionsHandler):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            self.model_name = self.registry_name = self.model_name_underline_replaced = "ttpa"
            self.is_fc_model = function_calling
            self.model_style = official.client.ModelStyle.OPENAI_COMPLETIONS

        def _query_prompting(self, inference_data: dict[str, Any]) -> tuple[Any, float]:
            messages = deepcopy(inference_data["message"])
            asked.append((messages, [tool["function"]["name"] for tool in inference_data.get("tools", ())]))
            return answer(messages), 0.0

        def _parse_query_response_prompting(self, api_response: Any) -> dict[str, Any]:
            given = api_response if isinstance(api_response, list) else ()
            return {
                "model_responses": api_response,
                "model_responses_message_for_chat_history": {"role": "assistant", "content": api_response},
                "tool_call_ids": [str(at) for at in range(len(given))],
                "input_token": 0,
                "output_token": 0,
            }

        _query_FC = _query_prompting
        _parse_query_response_FC = _parse_query_response_prompting

    _forget()
    entry = deepcopy(entries(case_id.rsplit("_", 1)[0])[case_id])
    with contextlib.redirect_stdout(io.StringIO()):
        result, _ = Scripted().inference(entry, False, True)
    _forget()
    return asked, result
