"""The official package, `bfcl-eval`: whether it is there, and the messages of its default prompting mode.

The extra is optional, so it is imported inside functions only: its constants, its preparation of function documents and,
in a process of its own (`multi_turn_run`), its multi-turn backends and checks. None of these reaches its table of
models, which would load the client of every provider. Wording is taken from the installed package, never kept here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qsl

from ttpa.benchmarks.bfcl.categories import Category
from ttpa.errors import ConfigError

VERSION = "2026.3.23"
"""The release whose prompts and verdicts these are; another one has others."""
INSTALL = f"pip install --no-deps bfcl-eval=={VERSION} mpmath"
"""Without its dependencies: they pin other versions of what this project uses, and nothing of them is needed here."""


def require() -> None:
    """Refuses where the extra `bfcl` is missing or of another release.

    Raises:
        ConfigError: says how to install it.
    """
    missing = [name for name, module in (("bfcl-eval", "bfcl_eval"), ("mpmath", "mpmath")) if find_spec(module) is None]
    if missing:
        problem = f"the extra `bfcl` is needed here, and of it {' and '.join(missing)} is not installed"
        raise ConfigError(f"{problem}. Install it: {INSTALL}.")
    try:
        found = version("bfcl-eval")
    except PackageNotFoundError:
        found = "unknown"
    if found != VERSION:
        raise ConfigError.at("bfcl-eval", found, "prompts and verdicts are those of another release", INSTALL)


def data_folder() -> Path:
    """The folder of data files in the installed package."""
    require()
    spec = find_spec("bfcl_eval")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "data"


def system_prompt(functions: Sequence[Mapping[str, Any]], category: Category) -> str:
    """The system prompt of the default prompting mode.

    Args:
        functions: Documents as in the data files. They are shown with a note on the language in each description;
            parameters of Java and JavaScript are shown as texts, with their types in the descriptions.
        category: Says the language.

    Raises:
        ConfigError: the package is missing.
    """
    require()
    # Some modules of the package make folders where they are told that results go.
    with TemporaryDirectory() as scratch, patch.dict(os.environ, {"BFCL_PROJECT_ROOT": scratch}):
        from bfcl_eval.constants import default_prompts as texts
        from bfcl_eval.utils import add_language_specific_hint_to_function_doc
    # The category is read from the id, and the documents are changed in place.
    entry = {"id": f"{category.name}_0", "function": deepcopy(list(functions))}
    shown: list[dict[str, Any]] = add_language_specific_hint_to_function_doc([entry])[0]["function"]
    chosen = dict(parse_qsl(texts.DEFAULT_SYSTEM_PROMPT_FORMAT))
    if chosen["func_doc_fmt"] != "json" or chosen["tool_call_tag"] != "False":
        raise ConfigError.at("bfcl-eval", texts.DEFAULT_SYSTEM_PROMPT_FORMAT, "another default prompt", INSTALL)
    style = texts.PROMPT_STYLE_TEMPLATES[chosen["style"]]
    answer = style["tool_call_no_tag"].format(
        output_format=texts.OUTPUT_FORMAT_MAPPING[chosen["ret_fmt"]],
        param_types=texts.PARAM_TYPE_MAPPING[chosen["ret_fmt"]],
    )
    listing = style["available_tools"].format(format=chosen["func_doc_fmt"], functions=json.dumps(shown, indent=4))
    prompt: str = texts.PROMPT_TEMPLATE_MAPPING[chosen["prompt_fmt"]].format(
        persona=style["persona"],
        task=style["task"],
        tool_call_format=answer,
        multiturn_behavior=style["multiturn_behavior"],
        available_tools=listing,
    )
    return prompt


def official_messages(
    turn: Sequence[Mapping[str, Any]], functions: Sequence[Mapping[str, Any]], category: Category
) -> list[dict[str, Any]]:
    """A question's first turn as a prompted model gets it: its own system message follows the package's."""
    prompt, messages = system_prompt(functions, category), [dict(message) for message in turn]
    if messages and messages[0]["role"] == "system":
        messages[0]["content"] = f"{prompt}\n\n{messages[0]['content']}"
        return messages
    return [{"role": "system", "content": prompt}, *messages]


def added_functions_text(functions: Sequence[Mapping[str, Any]], *, listed: bool) -> str:
    """What the user says when functions that were withheld are added; `listed` puts their documents into the text."""
    require()
    from bfcl_eval.constants import default_prompts as texts

    if not listed:
        return str(texts.DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC)
    return str(texts.DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_PROMPTING.format(functions=list(functions)))


def results_text(calls: Sequence[str], results: Sequence[str]) -> str:
    """The user message that hands results back in prompting mode."""
    told = zip(calls, results, strict=True)
    return repr([{"role": "tool", "name": call, "content": result} for call, result in told])


def step_limit() -> int:
    """Steps with calls that a turn may have; one more, and the conversation is broken off."""
    require()
    from bfcl_eval.constants.default_prompts import MAXIMUM_STEP_LIMIT

    return int(MAXIMUM_STEP_LIMIT)
