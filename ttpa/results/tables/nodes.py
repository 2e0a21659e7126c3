"""YAML that people write, with the place of every value, so that each mistake is one line with file, key and remedy.

What this module does not do: know what a table holds (`ttpa.results.tables.spec`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]

from ttpa.errors import ConfigError


class _Loader(yaml.SafeLoader):  # type: ignore[misc,unused-ignore]
    """Refuses what YAML forbids and PyYAML does not: a key that a mapping holds twice."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"{self.name}:{line}: the key {key.value!r} is there twice. Keep one of them.")
            if isinstance(key, yaml.ScalarNode):
                seen.add((key.tag, key.value))
        return node


def read(file: Path) -> Node:
    """The whole of a file.

    Raises:
        ConfigError: it is not YAML, or holds a key twice.
    """
    try:
        with file.open(encoding="utf-8") as stream:
            return Node(yaml.load(stream, _Loader), file, "")
    except RecursionError:
        raise ConfigError(f"{file}: nested too deeply. Close the brackets.") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are no text, 5000 digits, a 13th month
        raise ConfigError(f"{file}: not YAML ({' '.join(str(error).split())}). Mend that line.") from None


@dataclass(frozen=True, slots=True)
class Node:
    """A value of the file and where it stands, for messages."""

    value: Any
    file: Path
    key: str

    def wrong(self, problem: str, remedy: str) -> ConfigError:
        return ConfigError.at(f"{self.file}: {self.key or 'the file'}", f"{self.value!r:.80}", problem, remedy)

    def mapping(self, needed: Sequence[str] = (), optional: Sequence[str] = (), free: bool = False) -> dict[str, Node]:
        """Key -> node of a mapping whose keys are known; with `free` any text is a key."""
        if not isinstance(self.value, dict):
            raise self.wrong("must be a mapping", f"Keys: {', '.join((*needed, *optional)) or 'names'}")
        for key in self.value:
            if not isinstance(key, str) or not (free or key in needed or key in optional):
                known = ", ".join((*needed, *optional)) or "text"
                raise self.at(str(key), self.value[key]).wrong("unknown key", f"Known are {known}")
        for key in needed:
            if key not in self.value:
                raise ConfigError(f"{self.file}: {self.key or 'the file'}: {key} is missing. Add it.")
        return {key: self.at(key, value) for key, value in self.value.items()}

    def at(self, key: str, value: Any) -> Node:
        return Node(value, self.file, f"{self.key}.{key}" if self.key else key)

    def items(self, what: str, empty: bool = False) -> list[Node]:
        if not isinstance(self.value, list) or not (self.value or empty):
            raise self.wrong(f"must be a list of {what}", "Write [a, b]")
        return [Node(item, self.file, f"{self.key}[{at}]") for at, item in enumerate(self.value)]

    def text(self, lines: bool = False) -> str:
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.wrong("must be text", "Quote it")
        if not lines and len(self.value.strip().splitlines()) > 1:
            raise self.wrong("must be one line", "Take the line break out")
        return self.value.strip()

    def number(self) -> float:
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self.wrong("must be a number", "Write it without a unit")
        if not abs(self.value) <= sys.float_info.max:
            raise self.wrong("not a number that can be computed with", "Write a finite one of fewer digits")
        return self.value

    def scale(self) -> float:
        if not (found := self.number()):
            raise self.wrong("makes every number 0", "Use 1, or 100 for per cent")
        return found

    def whole(self, most: float = math.inf) -> int:
        if type(self.value) is not int or not 0 <= self.value <= most:
            end = "" if most == math.inf else f" and at most {most}"
            raise self.wrong(f"must be a whole number of at least 0{end}", "For example 3")
        return self.value

    def one_of(self, known: Iterable[Any]) -> Any:
        options = list(known)
        if self.value not in options or isinstance(self.value, bool):
            shown = ", ".join("null" if option is None else str(option) for option in options)
            raise self.wrong("unknown", f"Known are {shown}")
        return self.value
