"""Quality gates of generated dialogues: what a draft must pass. Each problem is a sentence that its writer can be told.

Grounded means said: words of a text in any order, numbers by value (1,500 and 5 % and twenty too), dates and times also
in words. True, false, null and empty values need no words.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any

from ttpa.errors import ConfigError

GATES = ("format", "endpoint", "scenario", "schema", "repeated", "calls", "restart", "answer", "grounding", "tool_name",
         "judge", "replay", "duplicate")  # fmt: skip
"""Names of the gates. format: no JSON object as asked for; endpoint: the endpoint refuses the request; scenario: it is
empty or names a tool; schema: a call does not fit its tool; repeated: a call with its result is there already; calls:
too few tools; restart: the writer gave up; replay: the calls do not give the recorded results again.
"""
_WORD = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|(?<![\w.])[-+\u2212]?\.\d+")
_BEHIND = re.compile(r"\s*(%|percent\b|k\b|thousand\b|million\b|billion\b)", re.IGNORECASE)
_SCALE = {"%": 0.01, "percent": 0.01, "k": 1e3, "thousand": 1e3, "million": 1e6, "billion": 1e9}
_ORDINAL = re.compile(r"^(\d+)(?:st|nd|rd|th)$")
_DATE = re.compile(r"(\d{4})[-/](\d{1,2})[-/](\d{1,2})(?:[T ](\d{1,2}):(\d{2})(?::\d{2})?(?:Z|[+-]\d{2}:?\d{2})?)?")
_TIME = re.compile(r"(\d{1,2}):(\d{2})")
_UNITS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen""".split()  # noqa: SIM905
_SPELLED: dict[str, float] = {word: number for number, word in enumerate(_UNITS)}
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
_SPELLED |= {word: 10 * number for number, word in enumerate(_TENS, 2)}
_FILLER = frozenset(["a", "an", "the", "of", "in", "on", "at", "to", "and", "or", "for", "with", "by", "from"])
SMALL = 10  # an answer may count up to here by itself


def _words(text: str) -> list[str]:
    return [_ORDINAL.sub(r"\1", word) for word in _WORD.findall(text.casefold())]


def _numbers(text: str) -> Iterator[float]:
    for hit in _NUMBER.finditer(text):
        number = float(hit[0].replace(",", "").replace("\u2212", "-"))
        yield from (number, abs(number))  # a hyphen before a number need not be its sign
        if scale := _BEHIND.match(text, hit.end()):
            yield number * _SCALE[scale[1].lower()]


class Said:
    """What texts say, to look values up in."""

    def __init__(self, *texts: str) -> None:
        self.text = "\n".join(texts).casefold()
        self.words = set(_words(self.text))
        self.numbers = [*_numbers(self.text)]
        self.numbers += [_SPELLED[word] for word in self.words & _SPELLED.keys()]
        self.numbers += [float(word) for word in self.words if word.isdecimal() and len(word) < 20]

    def number(self, value: float) -> bool:
        """Whether a number is said; a negative one also as minus 5 or negative 5."""
        found = any(abs(value - one) <= 1e-9 * max(1.0, abs(value)) for one in self.numbers)
        return found or (value < 0 and bool(self.words & {"minus", "negative", "below"}) and self.number(-value))

    def rounded(self, value: float, digits: int) -> bool:
        """Whether a number that rounds to this one is said."""
        return any(abs(one - value) <= 0.5000001 * 10**-digits for one in self.numbers)

    def holds(self, value: Any) -> bool:
        """Whether a JSON value is said; in lists and objects, every value."""
        if isinstance(value, Mapping | list | tuple):
            return all(map(self.holds, value.values() if isinstance(value, Mapping) else value))
        if value is None or isinstance(value, bool) or value == "":
            return True
        if isinstance(value, int | float):
            return self.number(value)
        return self._text(str(value))

    def _text(self, value: str) -> bool:
        words = [word for word in _words(value) if word not in _FILLER]
        if not words:
            return value.casefold().strip() in self.text
        if all(word in self.words for word in words):
            return True
        if hit := _DATE.fullmatch(value.strip()):
            year, month, day = map(int, hit.groups()[:3])
            names = (
                {date(2000, month, 1).strftime(form).casefold() for form in ["%B", "%b"]} if 0 < month < 13 else set()
            )
            known = self.number(year) and self.number(day) and (bool(self.words & names) or self.number(month))
            return known and (hit[4] is None or self._clock(int(hit[4]), int(hit[5])))
        if hit := _TIME.fullmatch(value.strip()):
            return self._clock(int(hit[1]), int(hit[2]))
        with_number = _NUMBER.fullmatch(value.strip())
        return bool(with_number) and self.number(float(value.replace(",", "")))

    def _clock(self, hour: int, minute: int) -> bool:
        text, half = self.text, "am" if hour < 12 else "pm"
        other = "p" if half == "am" else "a"
        spelled = [rf"0?{one}:{minute:02d}(?!\s*{other}\.?m)" for one in {hour, hour % 12 or 12}]
        spelled += [rf"0?{hour % 12 or 12}\s*{half[0]}\.?m\b"] * (minute == 0)
        named = {0: "midnight", 12: "noon"}.get(hour) if minute == 0 else None
        return any(re.search(rf"(?<!\d){one}", text) for one in spelled) or (named in self.words if named else False)


def leaves(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every value inside the arguments, with its parameter."""
    for key, value in arguments.items():
        todo = [value]
        while todo:
            one = todo.pop(0)
            if isinstance(one, Mapping | list | tuple):
                todo = [*(one.values() if isinstance(one, Mapping) else one), *todo]
            else:
                yield key, one


def ungrounded(arguments: Mapping[str, Any], said: Said) -> tuple[str, Any] | None:
    """The first value of a call, with its parameter, that is not said."""
    return next(((key, value) for key, value in leaves(arguments) if not said.holds(value)), None)


def name_pattern(name: str) -> re.Pattern[str]:
    """Finds a tool's name as whole words, in any case and with anything between its parts: `get_user`, "get user"."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_A-Za-z]+", name) or [name]
    inner = r"[\W_]*".join(map(re.escape, parts))
    return re.compile(rf"(?<![^\W_]){inner}(?![^\W_])", re.IGNORECASE)


def named_tool(text: str, names: Sequence[str]) -> str | None:
    """The first of the tools that a text names."""
    return next((name for name in names if name_pattern(name).search(text)), None)


def unsupported(answer: str, results: Said, known: Said) -> str | None:
    """What is wrong with an answer: it says nothing of the results and what is `known` besides (facts, arguments), or
    a number or code that neither has (counts up to `SMALL` aside; numbers may be rounded).
    """
    words = set(_words(answer)) - _FILLER
    both = Said(results.text, known.text)
    if not words & both.words and not any(both.rounded(number, 0) for number in _numbers(answer)):
        return "it says nothing of the calls and results"
    for hit in _NUMBER.finditer(answer):
        number = float(hit[0].replace(",", "").replace("\u2212", "-"))
        digits = len(hit[0].partition(".")[2])
        small = digits == 0 and abs(number) <= SMALL
        if not small and not both.rounded(number, digits) and not both.rounded(abs(number), digits):
            return f"{hit[0]} is in no result"
    for word in words:
        code = re.search(r"\d", word) and re.search(r"[^\W\d_]", word) and not re.fullmatch(r"\d+[a-z]{1,3}", word)
        if code and word not in both.words:
            return f"{word} is in no result"
    return None


class NearDuplicates:
    """Remembers texts and finds near-copies: an estimated Jaccard similarity of word triples from `similarity` on."""

    def __init__(self, similarity: float) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            raise ConfigError(f"Near-duplicates need datasketch ({error}): pip install 'ttpa[generate]'.") from None
        self._make, self._similarity, self._kept = MinHash, similarity, dict[str, Any]()
        self._index = MinHashLSH(threshold=min(similarity, 0.99), num_perm=128)

    def near(self, key: str, text: str) -> str | None:
        """The key of an earlier text that this one nearly repeats; else None, and this one is remembered."""
        words = _words(text)
        made = self._make(num_perm=128)
        made.update_batch([" ".join(words[at : at + 3]).encode() for at in range(max(1, len(words) - 2))])
        found = sorted(self._index.query(made))
        close = next((one for one in found if self._kept[one].jaccard(made) >= self._similarity), None)
        if close is None:
            self._index.insert(key, made)
            self._kept[key] = made
        return close
