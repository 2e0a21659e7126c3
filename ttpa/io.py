"""Files: JSON text, JSON lines, and writes that are whole or not at all. Nothing here knows what a file means."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from ttpa.errors import DataError

_SURROGATE = re.compile("[\ud800-\udfff]")


def dumps(value: Any) -> str:
    """Compact JSON text. Key order and non-ASCII characters are kept, so text -> object -> text gives the same text."""
    # Half a surrogate pair, which a model may write in a string, has no UTF-8 and stays escaped.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text if text.isascii() else _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def write_lines(path: Path, lines: Iterable[str]) -> int:
    """Writes text lines (without their ends) through a file beside `path` that is renamed when whole. Returns their
    number.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    count = 0
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            for line in lines:
                file.write(line + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return count


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all; a final newline is added where there is none."""
    write_lines(path, [text.removesuffix("\n")])


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Writes records (or plain JSON objects), one a line, whole or not at all. Returns the number of lines."""
    return write_lines(path, (dumps(row.to_json() if hasattr(row, "to_json") else row) for row in rows))


def open_text(path: Path) -> IO[str]:
    """Opens a text file for reading; a name that ends in .gz is unpacked on the way."""
    return (
        cast(IO[str], gzip.open(path, "rt", encoding="utf-8")) if path.suffix == ".gz" else path.open(encoding="utf-8")
    )


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the JSON objects of a JSON-lines file, gzipped or plain.

    Raises:
        DataError: a line is not JSON; names file and line.
    """
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise DataError(
                    f"{path}:{number}: not a JSON line ({error}). Remove the line or write the file again."
                ) from None
