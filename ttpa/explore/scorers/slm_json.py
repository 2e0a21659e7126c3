"""The reward of SLM-GRPO (arXiv 2509.04518, "capability-aware reward modelling") for small models that write JSON.

    R = 0                                       any text outside the JSON, or empty, or invalid JSON
    R = w_json + scale (R_name + R_args)        otherwise
    R_name = w_name / max(n_exp, 1) * n_correct_names
    R_args = w_args / max(n_exp, 1) * sum A_i   over the calls with the right name
    A_i    = correct arguments of call i / arguments of call i
    scale  = n_exp / max(n_pred, 1) if n_pred > n_exp, else 1

w_json = 0.125 and w_args = 0.5 are printed. Reconstructed, where the public text lost the formula: w_name = 0.375 (the
three then add up to 1), both terms of A_i, and both terms of the scale. Where it says nothing:

* The arguments of call i are those of the target's or of the answer's call, whichever has more; with none, A_i = 1.
* Calls of equal names are matched one-to-one, at best; order is free. 1 == 1.0, but "1" != 1 (`values_equal`).
* "Empty" is an answer without any character, and a list without calls (`[]`) where the target has some.
* A target without a call, which the paper's data do not have: an answer without a call is worth all three weights,
  whatever it says; calls and nothing else w_json; all the rest 0, and an empty answer, unless the target is empty too.

The rule for text holds for any syntax: calls and white space, and nothing else. A code fence is text, and
so is a thought.
"""

import math
from dataclasses import replace

from ttpa.calls.schema import values_equal
from ttpa.calls.six_errors import explain, is_exact, matched, read_calls
from ttpa.calls.syntaxes import SYNTAXES, ParseError
from ttpa.errors import ConfigError
from ttpa.options import Fraction, option
from ttpa.records import Candidate, Sample, Score, ToolCall

ANY = "any"
NOT_ALONE = "the text is not calls alone"


def check_syntax(name: str) -> None:
    """Refuses a syntax that `bare_calls` does not know."""
    if name not in (ANY, *SYNTAXES):
        raise ConfigError.at("syntax", name, "no such call syntax", f"Use {ANY} or one of {', '.join(SYNTAXES)}")


def bare_calls(candidate: Candidate, syntax: str) -> tuple[ToolCall, ...] | None:
    """The calls of an answer: () where it has none, None when it is malformed or says more than calls and white space.

    "any" takes `candidate.calls` and asks only that some syntax reads the text whole.
    """
    if syntax != ANY:
        return _read_whole(candidate.text, syntax)
    if candidate.calls and not any(_read_whole(candidate.text, name) for name in SYNTAXES):
        return None
    return candidate.calls


def _read_whole(text: str, name: str) -> tuple[ToolCall, ...] | None:
    syntax = SYNTAXES[name]
    calls = syntax.parse(text)
    if isinstance(calls, ParseError):
        return None
    for span in reversed(syntax.spans(text) if calls else ()):
        if span.kind == "call":
            text = text[: span.start] + "\n" + text[span.end :]
    for opening, closing in syntax.markers.items():
        text = text.replace(opening, "").replace(closing, "")
    # Without prose, only thoughts may stand beside the calls.
    around = " \t\r\n[,]" if name == "hermes_list" else None
    return None if calls and (text.strip(around) if syntax.prose else "think>" in text.lower()) else calls


@option
class SLMJson:
    """The scorer; see the module header for the equation."""

    w_json: Fraction
    w_name: Fraction
    w_args: Fraction
    scale_extra: bool
    syntax: str

    def __post_init__(self) -> None:
        check_syntax(self.syntax)
        weights = (self.w_json, self.w_name, self.w_args)
        if not 0 < math.fsum(weights) <= 1 + 1e-9:
            problem, remedy = "must add up to more than 0 and at most 1", "The paper has 0.125, 0.375 and 0.5"
            raise ConfigError.at("w_json, w_name, w_args", weights, problem, remedy)

    def __call__(self, sample: Sample, candidate: Candidate) -> Score:
        """`detail` holds `json`, `name` and `arguments`, each in [0, 1] and already scaled.

        `exact` is about the calls alone: an answer with text around the right calls is exact and worth 0.
        """
        calls = bare_calls(candidate, self.syntax)
        json, name, arguments = self._parts(sample, candidate, calls)
        read = candidate if calls is None else replace(candidate, calls=calls)
        alone = "" if calls is not None or not candidate.calls else f"{NOT_ALONE}; "
        return Score(
            value=min(self.w_json * json + self.w_name * name + self.w_args * arguments, 1.0),
            exact=is_exact(sample, read.calls),
            detail={"json": json, "name": name, "arguments": arguments},
            explanation=alone + explain(sample, read),
        )

    def _parts(
        self, sample: Sample, candidate: Candidate, calls: tuple[ToolCall, ...] | None
    ) -> tuple[float, float, float]:
        """What the three weights are multiplied by."""
        made, expected = read_calls(calls), len(sample.target)
        silent = not candidate.text.strip() and bool(expected or (sample.target_text or "").strip())
        if made is None or silent or (expected and not made):
            return 0.0, 0.0, 0.0
        if not expected:
            return (1.0, 0.0, 0.0) if made else (1.0, 1.0, 1.0)
        # Every pair of equal names is worth at least 1, so the best matching has as many of them as there can be.
        found = matched(sample.target, made, _share, lambda share: 0.0 if share is None else 1 + share)
        shares = [share for share in found if share is not None]
        scale = expected / len(made) if self.scale_extra and len(made) > expected else 1.0
        return 1.0, scale * len(shares) / expected, scale * math.fsum(shares) / expected


def _share(gold: ToolCall, call: ToolCall) -> float | None:
    """A_i of a call against a target call; None when the names differ."""
    if call.name != gold.name:
        return None
    wanted, given = gold.arguments, call.arguments
    size = max(len(wanted), len(given))
    equal = sum(key in wanted and values_equal(given[key], wanted[key]) for key in given)
    return equal / size if size else 1.0
