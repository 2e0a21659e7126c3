"""Raw rows as they are read: from JSON lines, a JSON list, either gzipped, Parquet, or a hub data set.

A row that cannot be read is given with its problem, so that the reader can count it and go on. `datasets` and `pyarrow`
are imported only for a hub id or a Parquet file.
"""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ttpa.errors import DataError

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")
CUT = "file cut or damaged"  # the kind of problem that hides an unknown number of rows
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


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


def _row(file: str, line: int, value: Any) -> RawRow:
    if not isinstance(value, Mapping):
        value = BadRow("not an object", f"a {type(value).__name__} where a row is expected")
    return RawRow(file, line, value)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")  # Python would read NaN and Infinity; other readers of our files do not


DECODER = json.JSONDecoder(parse_constant=_no_constant)
"""Without NaN and Infinity. Faults are a ValueError or, where text is nested too deep, a RecursionError."""


def is_hub_id(path: str) -> bool:
    """Whether `path` is "organisation/name" on the hub: no such path, nor its folder, is here; no data file's name."""
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
    name, number = path.name, 0
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
        try:
            for number, line in enumerate(stream, 1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")  # the byte-order mark some editors write
                    if name.endswith((".json", ".json.gz")) and line.lstrip().startswith(b"["):
                        yield from _list_rows(name, (line + stream.read()).decode("utf-8"))
                        return
                try:
                    if line.strip():
                        yield _row(name, number, DECODER.decode(line.decode("utf-8")))
                except (ValueError, RecursionError) as error:
                    yield RawRow(name, number, BadRow("not JSON", str(error)))
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:  # gzip raises the first three
            yield RawRow(name, number + 1, BadRow(CUT, str(error)))


def _list_rows(name: str, text: str) -> Iterator[RawRow]:
    """Elements of one JSON list; those before a break are still given."""
    at, gap = text.index("[") + 1, re.compile(r"[\s,]*")
    for number in count(1):
        at = gap.match(text, at).end()  # type: ignore[union-attr]  # matches the empty string too
        if text.startswith("]", at):
            return
        try:
            value, at = DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            yield RawRow(name, number, BadRow(CUT, f"the JSON list breaks here ({error})"))
            return
        yield _row(name, number, value)


def _parquet_rows(path: Path) -> Iterator[RawRow]:
    import pyarrow.parquet as parquet

    try:
        rows = (row for batch in parquet.ParquetFile(path).iter_batches() for row in batch.to_pylist())
        yield from (_row(path.name, number, row) for number, row in enumerate(rows, 1))
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        yield RawRow(path.name, 1, BadRow(CUT, str(error)))


def read_rows(path: str) -> Iterator[RawRow]:
    """Rows of a file, of the data files directly in a folder, or of a hub data set (DataError: it cannot be loaded)."""
    if not is_hub_id(path):
        for file in data_files(Path(path).expanduser()):
            yield from _parquet_rows(file) if file.suffix == ".parquet" else _text_rows(file)
        return
    from datasets import load_dataset

    try:
        splits = load_dataset(path)
    except Exception as error:  # the library lets errors of its back ends through: network, permissions, formats
        raise DataError(
            f"data.path={path}: no such file or folder, nor loadable from the hub ({error}). Check the id and the "
            "network; a gated set (Salesforce/xlam-function-calling-60k is one) needs its terms accepted on its hub "
            "page and a login with `hf auth login`. Or download its file and set data.path to it."
        ) from error
    for split in sorted(splits):
        yield from (_row(f"{path}/{split}", number, row) for number, row in enumerate(splits[split], 1))
