"""A real model behind a real server: SmolLM2-135M-Instruct through `transformers serve`, and through our engine.

TTPA_SMOLLM2 is a folder with the model; the server needs fastapi and uvicorn. What is tested is the protocol: so small
a model writes no dialogue that passes the gates, and its drafts must be rejected for that reason and for no other.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.options import made
from tests.sources import dialogues
from ttpa.data.reversed.dialogues import Dialogues, OpenAIDialogues, PolicyDialogues
from ttpa.errors import DataError
from ttpa.io import read_jsonl

pytestmark = pytest.mark.slow
pytest.importorskip("datasketch")
MODEL = os.environ.get("TTPA_SMOLLM2", "")
FEW = {"samples": 2, "validation_samples": 0, "test_samples": 0, "max_tokens": 160, "temperature": 0.7}
SCRIPT = {"window": 4, "offered": [2, 4], "facts": [1, 3], "reasks": 1}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    pytest.importorskip("fastapi", reason="transformers serve needs fastapi and uvicorn")
    pytest.importorskip("uvicorn")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    words = ["serve", MODEL, "--port", str(port), "--host", "127.0.0.1", "--device", "cpu"]
    command = [sys.executable, "-m", "transformers.cli.transformers", *words]
    url = f"http://127.0.0.1:{port}/v1"
    with subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stderr=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{url}/models", timeout=5).read()
                break
            except OSError:
                time.sleep(0.5)
        yield url
        child.terminate()


def drafted(source: Dialogues, out: Path) -> dict[str, Any]:
    """Gate -> rejected drafts. Every draft is kept or rejected, and each asked the model at least once."""
    try:
        source.build(out)
    except DataError as error:
        assert "no dialogue passed the gates" in str(error)
    rows = list(read_jsonl(out / "rejected.jsonl"))
    assert rows and all(row["used"] and row["problem"] for row in rows)
    assert all(usage[1] > 100 and usage[2] > 0 for row in rows for usage in row["used"])
    return {row["gate"]: row for row in rows}


@pytest.mark.skipif(not MODEL, reason="TTPA_SMOLLM2 names no folder")
def test_a_served_model_writes_and_its_drafts_meet_the_gates(address: str, tmp_path: Path) -> None:
    out = tmp_path / "data-x.part"
    out.mkdir()
    more = {"base_url": address, "api_key_env": None, "model": MODEL, "structured": None, "concurrency": 2}
    source = dialogues(OpenAIDialogues, "reversed_openai", **FEW, **more, script=SCRIPT)
    gates = drafted(source, out)
    assert gates.keys() <= {"format", "scenario", "schema", "calls", "restart", "answer"}, gates
    replies = list(read_jsonl(next((tmp_path / "replies").glob("*.jsonl"))))
    assert len({row["key"] for row in replies}) == len(replies) >= 12
    (out / "rejected.jsonl").unlink()
    drafted(source, out)
    assert list(read_jsonl(next((tmp_path / "replies").glob("*.jsonl")))) == replies  # nothing was asked again


@pytest.mark.skipif(not MODEL, reason="TTPA_SMOLLM2 names no folder")
def test_the_same_model_writes_through_the_engine(tmp_path: Path) -> None:
    more = {"model": MODEL, "context": 4096, "engine": made("engine", "hf", rows=4)}
    gates = drafted(dialogues(PolicyDialogues, "reversed_policy", **FEW, **more, script=SCRIPT), tmp_path)
    assert gates.keys() <= {"format", "scenario", "schema", "calls", "restart", "answer"}, gates
