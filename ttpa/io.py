"""Files: JSON text, JSON lines, and writes that are whole or not at all. Nothing here knows what a file means."""

import csv
import gzip
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttpa.errors import DataError

csv.field_size_limit(sys.maxsize)  # an answer may be longer than the 131,072 characters of the default
_SURROGATE = re.compile("[\ud800-\udfff]")
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")  # the second four are full-width
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)


def dumps(value: Any) -> str:
    """Compact JSON text. Key order and non-ASCII characters are kept, so text -> object -> text gives the same text."""
    # Half a surrogate pair, which a model may write in a string, has no UTF-8 and stays escaped.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text if text.isascii() else _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def write_lines(path: Path, lines: Iterable[str]) -> int:
    """Writes text lines (without their ends), whole or not at all, and returns their number."""
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


def csv_row(cells: Iterable[Any]) -> list[Any]:
    """Cells of a CSV file in which no text is a formula for a spreadsheet: those that could be one begin with '."""
    return [f"'{one}" if isinstance(one, str) and _FORMULA.match(one) and not _NUMBER.fullmatch(one) else one
            for one in cells]  # fmt: skip


@dataclass(frozen=True, slots=True)
class JsonLine:
    """One row of a JSON-lines file and where it stands; `str(line)` is `file:number`."""

    file: str
    number: int
    row: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.file}:{self.number}"


def read_lines(path: str | Path, loads: Callable[[str], Any] = json.loads) -> Iterator[JsonLine]:
    """Yields the rows of a JSON-lines file, plain or gzipped, that a user names; "-" is standard input. Empty lines are
    passed over. A file that cannot be read, or a line that is no JSON object in UTF-8, is a DataError with its place.
    """
    name, number = ("standard input" if str(path) == "-" else str(path)), 0
    try:
        with ExitStack() as stack:
            raw: Any = sys.stdin.buffer if str(path) == "-" else stack.enter_context(open(path, "rb"))
            zipped = raw.peek(2)[:2] == b"\x1f\x8b"
            for number, line in enumerate(stack.enter_context(gzip.GzipFile(fileobj=raw)) if zipped else raw, 1):
                if not line.strip():
                    continue
                try:
                    row = loads(line.decode("utf-8"))
                except UnicodeDecodeError as error:
                    raise DataError(f"{name}:{number}: not UTF-8 ({error}). Save the file as UTF-8.") from None
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{name}:{number}: not JSON ({error}). Write the line again.") from None
                if not isinstance(row, dict):
                    raise DataError(f"{name}:{number}: a {type(row).__name__} where a row, a JSON object, belongs.")
                yield JsonLine(name, number, row)
    except FileNotFoundError:
        raise DataError(f"{name}: no such file. Check the path.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}:{number + 1}: file cut or damaged ({error}). Write it again.") from None


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the JSON objects of a JSON-lines file; raises as `read_lines`."""
    return (dict(line.row) for line in read_lines(path))
