"""What is said of one answer, and how the official error types map to the six errors of this project.

The names of the error types are those of the leaderboard, so that results can be compared row by row. A renamed
required parameter is `missing_required`, since that is looked at first; an optional parameter that was left out
although its value matters is an error of value, as everywhere in this project (`ttpa.calls.six_errors`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from ttpa.calls.six_errors import show

_SIX = {
    "wrong_func_name": "tool_name",
    "missing_required": "missing_required",
    "unexpected_param": "parameter_name",
    "missing_optional": "parameter_value",
    "wrong_count": "call_count",
    "cannot_find_match": "parameter_value",  # told more exactly by its sub-errors, see `nearest`
    "inference_error": "format",  # of multi-turn conversations, as the next five: see `multi_turn`
    "force_terminated": "call_count",
    "empty_turn_model_response": "call_count",
    "instance_state_mismatch": "parameter_value",
    "execution_response_mismatch": "parameter_value",
    "execution_limit": "parameter_value",
}
_SIX_BY_FAMILY = {
    "ast_decoder": "format",
    "type_error": "parameter_type",
    "value_error": "parameter_value",
    "dict_checker": "parameter_value",
    "list_dict_checker": "parameter_value",
    "irrelevance_error": "call_count",
    "relevance_error": "call_count",
}


class Fault(NamedTuple):
    """Why a call does not fit the expected one: the official error type, and a sentence, made when it is read."""

    error_type: str
    sentence: str
    """With a `{}` for each of the values, shown as short representations."""
    values: tuple[Any, ...] = ()
    nearest: Callable[[], Fault] | None = None
    """Where no call fits an expected one: finds what is wrong with the call that comes nearest."""

    @property
    def text(self) -> str:
        """The sentence for a person."""
        text = self.sentence.format(*(show(value) for value in self.values))
        return text if self.nearest is None else text + self.nearest().text

    @property
    def six_error(self) -> str:
        """The label of `six_errors.LABELS`."""
        return six_error(self.error_type) if self.nearest is None else self.nearest().six_error


class Verdict(NamedTuple):
    """The judgement of one answer. A tuple, since judging takes little longer than making a dataclass.

    Args:
        valid: whether the official checker accepts it.
        error_type: the official name of the first error, None when valid.
        fault: what else there is to say is made from it when asked for.

    Example:
        >>> verdict = Verdict(False, "type_error:simple", Fault("type_error:simple", "type of {} is wrong", ("a",)))
        >>> verdict.six_error, verdict.explanation
        ('parameter_type', "type of 'a' is wrong")
    """

    valid: bool
    error_type: str | None
    fault: Fault

    @property
    def six_error(self) -> str:
        """One of `six_errors.LABELS`, "" when valid."""
        return "" if self.valid else self.fault.six_error

    @property
    def explanation(self) -> str:
        """One sentence for a person."""
        return self.fault.text


_ORDER = ("tool_name", "missing_required", "parameter_name", "parameter_type", "parameter_value")


@cache
def six_error(error_type: str) -> str:
    """The label of `six_errors.LABELS` for an official error type.

    Example:
        >>> six_error("value_error:string"), six_error("simple_function_checker:wrong_count")
        ('parameter_value', 'call_count')
    """
    family, _, kind = error_type.partition(":")
    return _SIX.get(kind) or _SIX_BY_FAMILY[family]


def refused(fault: Fault) -> Verdict:
    """The verdict of a fault."""
    return Verdict(False, fault.error_type, fault)


def nearest_miss(faults: list[Fault]) -> Fault:
    """The fault of the call that came furthest: names are compared first, then parameters, types and values."""
    return max(faults, key=lambda fault: _ORDER.index(fault.six_error))


def accepted(text: str) -> Verdict:
    """A verdict without an error."""
    return Verdict(True, None, Fault("", text))
