"""Raw rows as they are read: from JSON lines, a JSON list, CSV, all of them gzipped or not, Parquet, or a hub data set.

A row that cannot be read is given with its problem, so that the reader can count it and go on. `datasets` and `pyarrow`
are imported only for a hub id or a Parquet file.
"""

import csv
import gzip
import hashlib
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ttpa.calls.literals import MAX_DEPTH
from ttpa.errors import DataError

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")
CUT = "file cut or damaged"  # the kind of problem that hides an unknown number of rows
MAX_BYTES = 250_000  # of a row: more than 60,000 tokens, and read in less than a second whatever is in it
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?")


class BadRow(Exception):
    """Why a row cannot be used: a kind to count by, and a detail about this row."""

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.args[1]}"


def need(holds: object, kind: str, detail: str) -> None:
    """BadRow where a condition does not hold."""
    if not holds:
        raise BadRow(kind, detail)


def need_object(value: Any, kind: str, detail: str) -> dict[str, Any]:
    """The value; BadRow, with its type behind the detail, where it is no JSON object."""
    need(isinstance(value, dict), f"{kind} not an object", f"{detail} a {type(value).__name__}")
    return dict(value)


class RawRow(NamedTuple):
    """One row: where it stood (line, place in a list or row of a table, from 1), and its content or its problem."""

    file: str
    line: int
    value: Mapping[str, Any] | BadRow


def _row(file: str, line: int, value: Any, size: int = 0) -> RawRow:
    if size > MAX_BYTES:
        value = BadRow("row too long", f"{size} bytes, and {MAX_BYTES} are read at most")
    elif not isinstance(value, Mapping):
        value = BadRow("not an object", f"a {type(value).__name__} where a row is expected")
    elif _deep(value):
        value = BadRow("nested too deep", f"more than {MAX_DEPTH} levels of lists and objects")
    return RawRow(file, line, value)


def _deep(value: Any) -> bool:
    """Whether a JSON value has more than `MAX_DEPTH` levels, which code behind the reader may not walk recursively."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        lists = [
            one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list | tuple)
        ]
        level = list(chain.from_iterable(lists))
        if not level:
            return False
    return True


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")  # Python would read NaN and Infinity; other readers of our files do not


def _finite(text: str) -> float:
    return number if math.isfinite(number := float(text)) else _no_constant(text)


DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def decode(text: str, start: int | None = None) -> Any:
    """The value of a JSON text without NaN and Infinity or, with `start`, the value that begins there and where it
    ends. Faults, deep nesting among them, are a ValueError.
    """
    try:
        found = DECODER.decode(text) if start is None else DECODER.raw_decode(text, start)
        if not _deep(found if start is None else found[0]):
            return found
    except RecursionError:
        pass
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def is_hub_id(path: str) -> bool:
    """Whether `path` is "organisation/name" on the hub, perhaps with ":configuration": no such path, nor its folder, is
    here, and it is no data file's name.
    """
    local = Path(path).expanduser()
    return bool(_HUB_ID.fullmatch(path)) and not (local.exists() or local.parent.is_dir() or path.endswith(SUFFIXES))


def data_files(path: Path) -> list[Path]:
    """The file itself, or the data files directly in the folder, sorted by name."""
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES) and file.is_file())
    return [path]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text_rows(path: Path) -> Iterator[RawRow]:
    name, number, first = path.name, 0, True
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
        try:
            while line := stream.readline(MAX_BYTES + 1):
                number += 1
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")  # the byte-order mark some editors write
                if first and line.lstrip().startswith(b"["):  # a list of rows, since no row is a list
                    yield from _list_rows(name, (line + stream.read()).decode("utf-8"))
                    return
                first, size = first and not line.strip(), len(line)
                while len(line) > MAX_BYTES and not line.endswith(b"\n"):  # the rest is passed over, not held
                    line = stream.readline(MAX_BYTES + 1)
                    size += len(line)
                size -= line.endswith(b"\n")
                try:
                    if size > MAX_BYTES:
                        yield _row(name, number, None, size)
                    elif line.strip():
                        yield _row(name, number, decode(line.decode("utf-8")))
                except ValueError as error:
                    yield RawRow(name, number, BadRow("not JSON", str(error)))
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:  # gzip raises the first three
            yield RawRow(name, number + 1, BadRow(CUT, str(error)))


def _csv_rows(path: Path) -> Iterator[RawRow]:
    """Rows of a table with a head. A cell that is a JSON list or object is read; an empty one is left out."""
    name, number = path.name, 1
    csv.field_size_limit(4 * MAX_BYTES)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            for cells in reader:
                number, size = reader.line_num, sum(len(cell) for cell in cells.values() if isinstance(cell, str))
                if None in cells or None in cells.values():
                    problem = f"{len(reader.fieldnames or ())} columns are named, and this row has more or fewer"
                    yield RawRow(name, number, BadRow("not a row of the table", problem))
                    continue
                yield _row(name, number, {key: _cell(cell) for key, cell in cells.items() if cell}, size)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        yield RawRow(name, number + 1, BadRow(CUT, str(error)))


def _cell(text: str) -> Any:
    with suppress(ValueError):
        return decode(text) if text.lstrip()[:1] in ("[", "{") else text
    return text


def _list_rows(name: str, text: str) -> Iterator[RawRow]:
    """Elements of one JSON list; those before a break are still given."""
    at, gap = text.index("[") + 1, re.compile(r"[\s,]*")
    for number in count(1):
        at = start = gap.match(text, at).end()  # type: ignore[union-attr]  # matches the empty string too
        if text.startswith("]", at):
            if text[at + 1 :].strip():
                yield RawRow(name, number, BadRow(CUT, "text behind the JSON list"))
            return
        try:
            value, at = DECODER.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            yield RawRow(name, number, BadRow(CUT, f"the JSON list breaks here ({error})"))
            return
        yield _row(name, number, value, at - start)


def _table_row(file: str, line: int, row: Mapping[str, Any]) -> RawRow:
    """A row of a columnar reader, which gives each object the keys of all others in its column, with null: a null in an
    object, or NaN, is taken for that. What is no JSON (dates) becomes text.
    """
    text = json.dumps(row, default=str)
    if len(text) <= MAX_BYTES:
        row = json.loads(text, object_hook=_without_nulls, parse_constant=lambda _: None)
    return _row(file, line, row, len(text))


def _without_nulls(given: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if value is not None}


def _parquet_rows(path: Path) -> Iterator[RawRow]:
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    try:
        rows = (row for batch in parquet.ParquetFile(path).iter_batches() for row in batch.to_pylist())
        yield from (_table_row(path.name, number, row) for number, row in enumerate(rows, 1))
    except (OSError, ValueError, ArithmeticError, ArrowException) as error:
        yield RawRow(path.name, 1, BadRow(CUT, str(error)))


def read_rows(path: str) -> Iterator[RawRow]:
    """Rows of a file, of the data files directly in a folder, or of a hub data set (DataError: it cannot be loaded)."""
    if not is_hub_id(path):
        for file in data_files(Path(path).expanduser()):
            table = ".csv" in file.suffixes[-2:]
            yield from _parquet_rows(file) if file.suffix == ".parquet" else (_csv_rows if table else _text_rows)(file)
        return
    from datasets import load_dataset

    try:
        name, _, configuration = path.partition(":")
        splits = load_dataset(name, configuration) if configuration else load_dataset(name)
    except Exception as error:  # the library lets errors of its back ends through: network, permissions, formats
        raise DataError(
            f"data.path={path}: no such file or folder, nor loadable from the hub ({error}). Check the id and the "
            "network; a gated set (Salesforce/xlam-function-calling-60k is one) needs its terms accepted on its hub "
            "page and a login with `hf auth login`. Or download its file and set data.path to it."
        ) from error
    for split in sorted(splits):
        yield from (_table_row(f"{path}/{split}", number, row) for number, row in enumerate(splits[split], 1))
