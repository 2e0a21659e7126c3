"""The project's errors. A message says what was wrong (the value), where (file, line, key, sample id) and what to do.

Only user input raises: configuration and user data. What a model writes is data and never raises.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TtpaError(Exception):
    """Base of every error a user can cause. The command line prints its message without a traceback."""


class ConfigError(TtpaError):
    """A configuration value, option or combination that cannot be run.

    `key` is the option it is about, where there is one; `within` puts a group before it.
    """

    key: str | None = None

    @classmethod
    def at(cls, key: str, value: object, problem: str, remedy: str) -> ConfigError:
        """Builds the message `key=value: problem. remedy.`.

        Example:
            >>> str(ConfigError.at("keep_fraction", 3, "must be in (0, 1]", "Use 0.1 for the paper's top 10 %"))
            "keep_fraction=3: must be in (0, 1]. Use 0.1 for the paper's top 10 %."
        """
        made = cls(f"{key}={value}: {problem}. {remedy}" + "." * (remedy[-1:] not in ".?"))
        made.key = key
        return made

    def within(self, group: str) -> ConfigError:
        """The same error with `group.` before its key; itself where it has none or has the group already."""
        if self.key is None or self.key.startswith(f"{group}."):
            return self
        made = type(self)(f"{group}.{self}")
        made.key = f"{group}.{self.key}"
        return made


def nearest(word: str, known: Iterable[str]) -> str:
    """ "Did you mean x?" for the known word most like `word`, else the known words.

    Example:
        >>> nearest("temprature", ["n", "temperature"])
        'Did you mean temperature?'
    """
    words = list(known)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else f"Use one of {', '.join(words)}."


class DataError(TtpaError):
    """User data that cannot be read: names the file, the line or sample id, and the reason."""


class StageLocked(TtpaError):
    """Another live process is building the stage; the message names the holder."""
