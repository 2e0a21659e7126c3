"""Files: JSON text, JSON lines, and writes that are whole or not at all. Nothing here knows what a file means."""

import csv
import gzip
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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


class Shard:
    """One append-only file of JSON objects, told apart by the text under `key`. A torn last line (without its newline,
    or not JSON: the mark of a kill) is no row, and the next `append` cuts it off. Other damage is a DataError.
    """

    def __init__(self, path: Path, key: str = "id") -> None:
        self.path, self.key = path, key
        self._ids, self._size = set[str](), -1  # bytes of whole rows; -1: read the file first

    def done_ids(self) -> set[str]:
        """Ids of the rows in the file."""
        if self._size < 0:
            ends = {row[self.key]: end for row, end in self._scan()}
            self._ids, self._size = set(ends), max(ends.values(), default=0)
        return self._ids

    def append(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Adds the rows whose id is new, with one write, and returns their number when they are on disk."""
        done = self.done_ids()
        fresh = {row[self.key]: dumps(row) + "\n" for row in rows if row[self.key] not in done}
        if fresh:
            data = "".join(fresh.values()).encode()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            size, self._size = self._size, -1  # a failure from here on makes the next call read the file again
            with self.path.open("ab") as file:
                file.truncate(size)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self._ids |= fresh.keys()
            self._size = size + len(data)
        return len(fresh)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields the rows in file order."""
        return (row for row, _ in self._scan())

    def _scan(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Yields every whole row with the offset of its end."""
        if not self.path.exists():
            return
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if isinstance(row, dict) and isinstance(row.get(self.key), str):
                    if line.endswith(b"\n"):
                        end += len(line)
                        yield row, end
                # Forgiven is a torn line that is the last one; zeros are what a crash of the machine may leave.
                elif row is not None or not line.startswith((b"{", b"\0")) or file.readline():
                    where = f"{self.path}:{number}: not a JSON object with text under {self.key!r}: {line[:80]!r}"
                    raise DataError(f"{where}. Remove the line; its sample is computed again.")
