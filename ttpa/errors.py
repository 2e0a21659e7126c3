"""The project's errors. A message says what was wrong (the value), where (file, line, key, sample id) and what to do.

Only user input raises: configuration and user data. What a model writes is data and never raises.
"""

import difflib
import errno
import logging
import os
import re
import signal
import sys
from collections.abc import Iterable
from typing import Self

FALLBACKS: list[str] = []
"""What this process does in place of what was asked, since the stage began; see `fall_back`."""

_SECRETS = re.compile(  # bounded, so that a long text takes no time
    r"(://)\S{0,400}(?=@)|([?&][^\s=&]{0,40}(?:key|token|secret|pass|sig)[^\s=&]{0,40}=)[^\s&'\"]*", re.IGNORECASE
)


def masked(text: str) -> str:
    """The text without the user:password@ and the keys of the addresses in it."""
    return _SECRETS.sub(r"\1\2***", text)


_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufffe\uffff\ud800-\udfff]"
)


def visible(text: str) -> str:
    """The text with what cannot be seen or written, steers a terminal or turns a line around as its code."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class TtpaError(Exception):
    """Base of every error a user can cause. The command line prints its message, `masked` and `visible`, and
    no traceback.
    """

    by_user = True
    """Whether the person who gave the command can mend it: the command then ends with status 2, else with 1."""

    def __init__(self, message: str = "") -> None:
        super().__init__(visible(masked(message)))


def status_of(failures: Iterable[object]) -> int:
    """The exit status of a command whose cells failed with these: 2 where all are the user's to mend."""
    kinds = {getattr(one, "by_user", False) for one in failures}
    return 0 if not kinds else 2 if kinds == {True} else 1


class ConfigError(TtpaError):
    """A configuration value, option or combination that cannot be run; `said` are the words of `at`."""

    said: tuple[str, object, str, str] | None = None

    @classmethod
    def at(cls, key: str, value: object, problem: str, remedy: str = "") -> Self:
        """Builds the message `key=value: problem. remedy.`."""
        end = "" if remedy[-1:] in ".?" else "."
        made = cls(f"{key}={value}: {problem}." + (f" {remedy}{end}" if remedy else ""))
        made.said = (key, value, problem, remedy)
        return made

    def within(self, group: str) -> Self:
        """The same error with `group.` before its key, and the folder of the options where it has no remedy."""
        if self.said is None:
            return self
        key, value, problem, remedy = self.said
        key = key if key.startswith(f"{group}.") else f"{group}.{key}"
        return type(self).at(key, value, problem, remedy or f"See conf/{group.split('.')[0]}/ for what it means")


def nearest(word: str, known: Iterable[str]) -> str:
    """ "Did you mean x?" for the known word most like `word`, else the known words."""
    words = list(known)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else f"Use one of {', '.join(words)}."


class DataError(TtpaError):
    """User data that cannot be read: names the file, the line or sample id, and the reason."""


class StageLocked(TtpaError):
    """Another live process is building the stage; the message names the holder."""


class Interrupted(BaseException):
    """A signal has asked the process to end, after so many optimiser steps where it trained. It is no error."""

    def __init__(self, signum: int = signal.SIGINT, step: int | None = None) -> None:
        at = "" if step is None else f" at step {step}"
        super().__init__(f"interrupted{at}; the same command goes on from there")
        self.signum, self.status = signum, 128 + signum


def fall_back(text: str) -> None:
    """Notes, once a stage, that something slower or larger does what was asked: in the log and the stage's metrics, and
    so on the screen and in the result row.
    """
    if text not in FALLBACKS:
        FALLBACKS.append(text)
        logging.getLogger("ttpa").warning("%s", text)


_TOLD: set[str] = set()


def tell_once(text: str) -> None:
    """Says something that a user should know: on the screen and in the log, once a process."""
    if text not in _TOLD:
        _TOLD.add(text)
        logging.getLogger("ttpa").info("%s", text)
        print(f"ttpa: note: {visible(masked(text))}", file=sys.stderr)


MEMORY = (
    "Take less at a time: trainer.micro_tokens in training, engine.rows for answers; or model.dtype=bfloat16, fewer "
    "trained weights (model.lora), a smaller model. `ttpa plan` says what a run needs."
)
DISK = {
    errno.ENOSPC: "Free some space, or set paths.store, paths.results and paths.runs to another disk.",
    errno.EDQUOT: "Free some space, or set paths.store, paths.results and paths.runs to another disk.",
    errno.ENAMETOOLONG: "Give a shorter name.",
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR),
        "Give a folder that can be written: paths.store, paths.results, paths.runs.",
    ),
}


def of_disk(error: BaseException) -> TtpaError | None:
    """A full disk, a folder that cannot be written, or memory that is used up, as an error in one line; None
    where it is something else. Libraries that write or allocate tensors say it only in their message.
    """
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        said = text.splitlines()[0][:200].rstrip(".") if text else "the system has no more"
        return TtpaError(f"out of memory: {said}. {MEMORY}")
    code = error.errno if isinstance(error, OSError) else errno.ENOSPC if "No space left" in str(error) else None
    if code not in DISK:
        return None
    name = getattr(error, "filename", None)
    place = f"{str(name)[:60]}...: " if len(str(name)) > 200 else f"{name}: " if name else ""
    return TtpaError(f"{place}{os.strerror(code)}. {DISK[code]}")
