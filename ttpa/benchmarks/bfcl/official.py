"""The official package `bfcl-eval`, an extra: whether it is there, and the messages of its default prompting mode."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qsl

from ttpa.benchmarks.bfcl.categories import Category, need

VERSION = "2026.3.23"  # the release whose prompts and verdicts these are
# Without its dependencies: they pin other versions of what this project uses, and nothing of them is needed here.
INSTALL = f"pip install --no-deps bfcl-eval=={VERSION} mpmath"


def require() -> None:
    """Refuses where the extra `bfcl` is missing or of another release; see `need`."""
    need("this part of BFCL needs the extra `bfcl`", {"bfcl-eval": VERSION, "mpmath": ""}, INSTALL)


def data_folder() -> Path:
    """The folder of data files in the installed package."""
    require()
    import bfcl_eval

    return Path(bfcl_eval.__path__[0]) / "data"


def texts() -> Any:
    """The package's module of texts and limits."""
    require()
    from bfcl_eval.constants import default_prompts

    return default_prompts


def reply(text: str) -> str:
    """What an answer says behind its thoughts, which is what the package judges of models that reason."""
    return re.split("(?i:</think>)", text)[-1].lstrip("\n")


def official_messages(
    turn: Sequence[Mapping[str, Any]], functions: Sequence[Mapping[str, Any]], category: Category
) -> list[dict[str, Any]]:
    """A question's first turn as a prompted model gets it: its own system message follows the package's."""
    words = texts()
    # Some modules of the package make folders where they are told that results go.
    with TemporaryDirectory() as scratch, patch.dict(os.environ, {"BFCL_PROJECT_ROOT": scratch}):
        from bfcl_eval.utils import add_language_specific_hint_to_function_doc as add_hints
    # The category is read from the id, and the documents are changed in place.
    shown = add_hints([{"id": f"{category.name}_0", "function": deepcopy(list(functions))}])[0]["function"]
    chosen = dict(parse_qsl(words.DEFAULT_SYSTEM_PROMPT_FORMAT))
    style, form = words.PROMPT_STYLE_TEMPLATES[chosen["style"]], chosen["ret_fmt"]
    listing = {"format": chosen["func_doc_fmt"], "functions": json.dumps(shown, indent=4)}
    returned = {"output_format": words.OUTPUT_FORMAT_MAPPING[form], "param_types": words.PARAM_TYPE_MAPPING[form]}
    tools, answer = style["available_tools"].format(**listing), style["tool_call_no_tag"].format(**returned)
    parts = {**style, "tool_call_format": answer, "available_tools": tools}
    prompt = words.PROMPT_TEMPLATE_MAPPING[chosen["prompt_fmt"]].format(**parts)
    messages = [dict(message) for message in turn]
    if messages and messages[0]["role"] == "system":
        prompt += f"\n\n{messages.pop(0)['content']}"
    return [{"role": "system", "content": prompt}, *messages]
