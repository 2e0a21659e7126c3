"""The project's errors. A message says what was wrong (the value), where (file, line, key, sample id) and what to do.

Only user input raises: configuration and user data. What a model writes is data and never raises.
"""

from __future__ import annotations


class TtpaError(Exception):
    """Base of every error a user can cause. The command line prints its message without a traceback."""


class ConfigError(TtpaError):
    """A configuration value, option or combination that cannot be run."""

    @classmethod
    def at(cls, key: str, value: object, problem: str, remedy: str) -> ConfigError:
        """Builds the message `key=value: problem. remedy.`.

        Example:
            >>> str(ConfigError.at("select.keep_fraction", 3, "must be in (0, 1]", "Use 0.1 for the paper's top 10 %"))
            "select.keep_fraction=3: must be in (0, 1]. Use 0.1 for the paper's top 10 %."
        """
        return cls(f"{key}={value}: {problem}. {remedy}.")


class DataError(TtpaError):
    """User data that cannot be read: names the file, the line or sample id, and the reason."""


class StageLocked(TtpaError):
    """Another live process is building the stage; the message names the holder."""
