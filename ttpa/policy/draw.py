"""How one token a row is drawn from logits: greedy, temperature and nucleus, or token-level preference sampling.

Pure functions. Sampling is a race: token v waits for a time E_v / p_v, E_v exponential, and the first one wins, which
is a draw from p (the Gumbel-max trick in other words). E_v is a function of (answer, position, token) alone.

Rounding differs in the last bits with the number of rows computed side by side, so each draw also says whether it was
*close*: whether logits a hair away could have given another token. The engine then computes that row once more by
itself, which makes answers independent of the batch. In a race that is rare whatever the distribution: the gap between
the first two times does not shrink with the size of the vocabulary.
Shapes: R rows, V vocabulary, K top tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ttpa.policy.engine import Sampling, TokenRule

NOISE = 4e-5
"""Differences of log-probs below which a decision is called close; float32 rounding is about a tenth of it."""
ROUNDING = 1e-6
"""Probabilities computed in float32 differ from the true ones by less."""
_ODD = (-7046029254386353131, -4658895280553007687, -7723592293110705685)
"""Odd 64-bit constants: the golden ratio's and the two of the splitmix64 finaliser (Steele et al. 2014), as signed."""


@dataclass(slots=True)
class Drawn:
    """Token ids (R,), their log-probs under the model (R,), which draws were close (R,), and what a rule chose among:
    ids (R, K), probabilities (R, K) and which of them were candidates (R, K), or None.
    """

    token_R: Tensor
    logp_R: Tensor
    close_R: Tensor
    options: tuple[Tensor, Tensor, Tensor] | None = None


def candidates_of(logps_RV: Tensor, rule: TokenRule) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens a rule may draw: C = {v in top k : p_1 - p_v <= delta}, equality up to rounding.

    Args:
        logps_RV: Natural-log probabilities.
        rule: k and delta.

    Returns:
        The top k by probability, descending: ids (R, K), probabilities (R, K), and which are in C (R, K); the first is.
    """
    top_RK, ids_RK = logps_RV.double().topk(min(rule.k, logps_RV.shape[-1]), -1)
    probs_RK = top_RK.exp()
    return ids_RK, probs_RK, probs_RK[:, :1] - probs_RK <= rule.delta + ROUNDING


def _mixed(x: Tensor) -> Tensor:
    """The splitmix64 finaliser: int64 to int64, every bit of the result depends on every bit of x."""
    x = _folded(x, 30).mul_(_ODD[1])
    x = _folded(x, 27).mul_(_ODD[2])
    return _folded(x, 31)


def _folded(x: Tensor, shift: int) -> Tensor:
    """x ^ (x >> shift), the shift without the sign; in place where it can be, since V is large."""
    return (x >> shift).bitwise_and_((1 << 64 - shift) - 1).bitwise_xor_(x)


def random_bits(key_R: Tensor, position: int, count: int) -> Tensor:
    """32 random bits for each of `count` tokens at a position of each answer, int64 (R, count)."""
    at_R1 = _mixed(key_R + (position + 1) * _ODD[0] % (1 << 63))[:, None]
    tokens_V = torch.arange(1, count + 1, device=key_R.device) * _ODD[0]
    return _mixed(at_R1 ^ tokens_V).bitwise_right_shift_(32).bitwise_and_(0xFFFFFFFF)


def draw(
    logits_RV: Tensor,
    key_R: Tensor,
    position: int,
    sampling: Sampling,
    *,
    inside_R: Tensor | None = None,
    seen_RV: Tensor | None = None,
) -> Drawn:
    """One token a row.

    Args:
        logits_RV: Float32 logits of the model.
        key_R: The answers' random keys (`key_of`), int64.
        position: Number of the token in the answer.
        sampling: How to draw.
        inside_R: Rows that are inside a call; None where the rule acts everywhere, or there is none.
        seen_RV: Which tokens prompt and answer hold, for the repetition penalty.
    """
    logps_RV = torch.log_softmax(logits_RV, -1)
    options = None
    if sampling.rule is not None:
        token_R, close_R, options = _by_rule(logps_RV, key_R, position, sampling.rule, inside_R)
    else:
        if seen_RV is not None:
            punished = torch.where(
                logits_RV > 0, logits_RV / sampling.repetition_penalty, logits_RV * sampling.repetition_penalty
            )
            logits_RV = torch.where(seen_RV, punished, logits_RV)
        if sampling.temperature == 0:
            token_R, close_R = _greedy(logits_RV)
        else:
            scores_RV = logits_RV / sampling.temperature
            noise = NOISE / min(1.0, sampling.temperature)
            token_R, close_R = _race(scores_RV, key_R, position, None, None, noise)
            if sampling.top_p < 1:
                _leave_out(token_R, close_R, scores_RV, key_R, position, sampling.top_p, noise)
    return Drawn(token_R, logps_RV.gather(-1, token_R[:, None])[:, 0], close_R, options)


def _race(
    scores_RV: Tensor, key_R: Tensor, position: int, kept_RV: Tensor | None, open_RV: Tensor | None, noise: float
) -> tuple[Tensor, Tensor]:
    """The winner among the kept tokens, and whether rounding could have made another one win.

    `open_RV` are tokens of which rounding decides whether they are kept.
    """
    uniform_RV = random_bits(key_R, position, scores_RV.shape[-1]).float().add_(0.5).mul_(2.0**-32)
    uniform_RV.clamp_(max=1 - 2.0**-24)  # the largest would round to 1, which never arrives
    # log(p / E) with E = -log(1 - u); log1p is exact for small u, where the winners are.
    speed_RV = scores_RV - uniform_RV.neg_().log1p_().neg_().log_()
    able_RV = speed_RV if kept_RV is None else speed_RV.masked_fill(~kept_RV, float("-inf"))
    token_R = able_RV.argmax(-1)
    best_R1 = able_RV.gather(-1, token_R[:, None])
    # Tokens that are perhaps in the race count as well, and so does the winner if it is perhaps not.
    rivals_RV = able_RV if open_RV is None else torch.where(open_RV, speed_RV, able_RV)
    close_R = (rivals_RV > best_R1 - 2 * noise).sum(-1) > 1
    if open_RV is not None:
        close_R |= open_RV.gather(-1, token_R[:, None])[:, 0]
    return token_R, close_R


def _greedy(logits_RV: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable token; of several within rounding, the decision is called close."""
    top_R2 = logits_RV.topk(min(2, logits_RV.shape[-1]), -1).values
    if top_R2.shape[-1] == 1:
        return logits_RV.argmax(-1), torch.zeros(len(logits_RV), dtype=torch.bool, device=logits_RV.device)
    # argmax gives the lowest id of exactly equal ones on every device that matters; close ones are looked at again.
    return logits_RV.argmax(-1), top_R2[:, 0] - top_R2[:, 1] < 2 * NOISE


def _leave_out(
    token_R: Tensor, close_R: Tensor, scores_RV: Tensor, key_R: Tensor, position: int, top_p: float, noise: float
) -> None:
    """Runs the race again without what lies outside the nucleus, for the rows where that may matter; changes both.

    A winner clearly inside the nucleus wins there too. On a GPU, all rows run again: to find out which need it would
    wait for the device.
    """
    if scores_RV.device.type == "cpu":
        logps_RV = torch.log_softmax(scores_RV.double(), -1)
        score_R1 = logps_RV.gather(-1, token_R[:, None])
        before_R = (logps_RV.exp() * (logps_RV > score_R1 - 2 * noise)).sum(-1) - score_R1[:, 0].exp()
        again = (close_R | (before_R > top_p - noise)).nonzero()[:, 0]
    else:
        again = torch.arange(len(token_R), device=token_R.device)
    if len(again):
        kept_RV, open_RV = _nucleus(scores_RV[again], top_p, noise)
        token_R[again], close_R[again] = _race(scores_RV[again], key_R[again], position, kept_RV, open_RV, noise)


def _nucleus(scores_RV: Tensor, top_p: float, noise: float) -> tuple[Tensor, Tensor]:
    """The smallest set of most probable tokens whose mass reaches top_p (1904.09751), and the tokens at its edge of
    which rounding decides.
    """
    logps_RV = torch.log_softmax(scores_RV.double(), -1)
    sorted_RV, order_RV = logps_RV.sort(dim=-1, descending=True, stable=True)
    before_RV = sorted_RV.exp().cumsum(-1) - sorted_RV.exp()
    # A token is kept while the mass before it is below top_p, so at least one always is.
    kept_RV = (before_RV < top_p) | (torch.arange(before_RV.shape[-1], device=before_RV.device) == 0)
    # The edge: the last kept token if the mass before it nearly reaches top_p, the first one left out if the mass
    # before it hardly does; and with either, all tokens that are nearly as probable.
    near_RV = (before_RV - top_p).abs() < noise
    last_R1 = sorted_RV.gather(-1, kept_RV.sum(-1, keepdim=True) - 1)
    beside_RV = (sorted_RV - last_R1).abs() < 2 * noise
    # Alone, the last kept token has nobody to change places with.
    beside_RV &= (beside_RV & ~kept_RV).any(-1, keepdim=True)
    open_RV = near_RV | beside_RV
    blank = torch.zeros_like(kept_RV)
    return blank.scatter(-1, order_RV, kept_RV), blank.scatter(-1, order_RV, open_RV)


def _by_rule(
    logps_RV: Tensor, key_R: Tensor, position: int, rule: TokenRule, inside_R: Tensor | None
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Among the candidates inside the span, the most probable token outside."""
    ids_RK, probs_RK, mask_RK = candidates_of(logps_RV, rule)
    gap_RK = probs_RK[:, :1] - probs_RK
    close_R = ((gap_RK - rule.delta).abs() < NOISE)[:, 1:].any(-1)  # the best token is a candidate whatever happens
    # At the edge of the top k a near tie decides which token is a candidate at all.
    if rule.k < logps_RV.shape[-1]:
        edge_R2 = logps_RV.topk(rule.k + 1, -1).values[:, -2:]
        close_R |= mask_RK[:, -1] & (edge_R2[:, 0] - edge_R2[:, 1] < 2 * NOISE)
    if inside_R is not None:
        greedy_R, near_R = _greedy(logps_RV)
        first_K = torch.arange(ids_RK.shape[-1], device=ids_RK.device) == 0
        outside_RK = ~inside_R[:, None] & first_K
        # Of several best ones, the top k need not hold the lowest id.
        ids_RK = torch.where(outside_RK, greedy_R[:, None], ids_RK)
        mask_RK = torch.where(inside_R[:, None], mask_RK, first_K)
        close_R = torch.where(inside_R, close_R, near_R)
    weights_RK = probs_RK.log() if rule.draw == "renormalised" else torch.zeros_like(probs_RK)
    weights_RK = weights_RK.masked_fill(~mask_RK, float("-inf")).to(logps_RV.dtype)
    scores_RV = torch.full_like(logps_RV, float("-inf")).scatter_reduce(-1, ids_RK, weights_RK, "amax")
    drawn_R, tie_R = _race(scores_RV, key_R, position, None, None, NOISE)
    return drawn_R, close_R | tie_R, (ids_RK, probs_RK, mask_RK)
