"""Reading what a data stage wrote."""

from __future__ import annotations

import json
from pathlib import Path

from ttpa.io import read_jsonl
from ttpa.records import Sample


def read_split(data: Path, name: str) -> list[Sample]:
    """The samples of a split of a finished data stage."""
    file = json.loads((data / "splits.json").read_text(encoding="utf-8"))[name]
    return [Sample.from_json(row) for row in read_jsonl(data / file)]
