"""One token a row from logits: greedy, temperature and nucleus, or token-level preference sampling. Pure functions.

Sampling is a race: token v arrives after E_v / p_v, where E_v is exponential, and the first token wins. That is a draw
from p (the Gumbel-max trick). E_v depends on (answer, position, token) alone, so equal logits give equal draws.
Shapes: R rows, V vocabulary, K top tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ttpa.policy.engine import Sampling, TokenRule

ROUNDING = 1e-6  # probabilities computed in float32 differ from the true ones by less
_ODD = (-7046029254386353131, -4658895280553007687, -7723592293110705685)
"""Odd 64-bit constants: the golden ratio's and the two of the splitmix64 finaliser (Steele et al. 2014), as signed."""
Options = tuple[Tensor, Tensor, Tensor]
"""What a rule chose among, (R, K) each: the top k, their probabilities (descending), and which were candidates."""


class Drawn(NamedTuple):
    """Tokens, their log-probs under the model, and what a rule chose among."""

    token_R: Tensor
    logp_R: Tensor
    options: Options | None = None


def draw(
    logits_RV: Tensor, key_R: Tensor, position: int, sampling: Sampling, inside_R: Tensor | None, seen_RV: Tensor | None
) -> Drawn:
    """One token a row, for float32 logits and the answers' keys (`key_of`). `inside_R` says which rows are inside a
    call, for a rule; `seen_RV` which tokens prompt and answer hold, for a penalty.
    """
    logps_RV, options = torch.log_softmax(logits_RV, -1), None
    if sampling.rule is not None:
        weights_RV, options = by_rule(logps_RV, sampling.rule, inside_R)
        token_R = _speeds(weights_RV, key_R, position).argmax(-1)
    else:
        if seen_RV is not None:
            penalty = sampling.repetition_penalty
            punished_RV = torch.where(logits_RV > 0, logits_RV / penalty, logits_RV * penalty)
            logits_RV = torch.where(seen_RV, punished_RV, logits_RV)
        if sampling.temperature == 0:
            token_R = logits_RV.argmax(-1)
        else:
            token_R = _sampled(logits_RV / sampling.temperature, key_R, position, sampling.top_p)
    return Drawn(token_R, logps_RV.gather(-1, token_R[:, None])[:, 0], options)


def by_rule(logps_RV: Tensor, rule: TokenRule, inside_R: Tensor | None = None) -> tuple[Tensor, Options]:
    """Log-weights that a rule draws by: minus infinity outside of C = {v in top k : p_1 - p_v <= delta}, equality up to
    rounding; in rows that are not inside, only the most probable token is left. And what it chooses among.
    """
    top_RK, ids_RK = logps_RV.double().topk(min(rule.k, logps_RV.shape[-1]), -1)
    probs_RK = top_RK.exp()
    mask_RK = probs_RK[:, :1] - probs_RK <= rule.delta + ROUNDING
    if inside_R is not None:
        first_K = torch.arange(ids_RK.shape[-1], device=ids_RK.device) == 0
        # Of several best tokens, the top k need not hold the lowest id, which greedy decoding takes.
        ids_RK = torch.where(~inside_R[:, None] & first_K, logps_RV.argmax(-1, keepdim=True), ids_RK)
        mask_RK = torch.where(inside_R[:, None], mask_RK, first_K)
    weights_RK = probs_RK.log() if rule.draw == "renormalised" else torch.zeros_like(probs_RK)
    weights_RK = weights_RK.masked_fill(~mask_RK, float("-inf")).to(logps_RV.dtype)
    weights_RV = torch.full_like(logps_RV, float("-inf")).scatter_reduce(-1, ids_RK, weights_RK, "amax")
    return weights_RV, (ids_RK, probs_RK, mask_RK)


def _sampled(scores_RV: Tensor, key_R: Tensor, position: int, top_p: float) -> Tensor:
    speeds_RV = _speeds(scores_RV, key_R, position)
    token_R = speeds_RV.argmax(-1)
    if top_p == 1:
        return token_R
    # The winner of all wins in the nucleus too, if it is in there; only for the other rows the nucleus is needed.
    probs_RV = torch.softmax(scores_RV.double(), -1)
    own_R1 = probs_RV.gather(-1, token_R[:, None])
    before_R = (probs_RV * (probs_RV >= own_R1)).sum(-1) - own_R1[:, 0]
    again = (before_R > top_p - ROUNDING).nonzero()[:, 0]
    # The fewest most probable tokens whose mass reaches top_p (1904.09751); of equal ones, the lowest ids.
    sorted_RV, order_RV = probs_RV[again].sort(dim=-1, descending=True, stable=True)
    before_RV = sorted_RV.cumsum(-1) - sorted_RV
    before_RV[:, :1] = -1.0  # the first is always kept
    outside_RV = torch.zeros_like(sorted_RV, dtype=torch.bool).scatter(-1, order_RV, before_RV >= top_p)
    token_R[again] = speeds_RV[again].masked_fill_(outside_RV, float("-inf")).argmax(-1)
    return token_R


def _speeds(scores_RV: Tensor, key_R: Tensor, position: int) -> Tensor:
    """log(p / E) of each token, up to a constant a row."""
    uniform_RV = random_bits(key_R, position, scores_RV.shape[-1]).float().add_(0.5).mul_(2.0**-32)
    uniform_RV.clamp_(max=1 - 2.0**-24)  # the largest would round to 1, which never arrives
    # E = -log(1 - u); log1p is exact for small u, where the winners are.
    return scores_RV - uniform_RV.neg_().log1p_().neg_().log_()


def random_bits(key_R: Tensor, position: int, count: int) -> Tensor:
    """32 random bits for each of `count` tokens at a position of each answer, int64 (R, count)."""
    at_R1 = _mixed(key_R + (position + 1) * _ODD[0] % (1 << 63))[:, None]
    tokens_V = torch.arange(1, count + 1, device=key_R.device) * _ODD[0]
    return _mixed(at_R1 ^ tokens_V).bitwise_right_shift_(32).bitwise_and_(0xFFFFFFFF)


def _mixed(x: Tensor) -> Tensor:
    """The splitmix64 finaliser: int64 to int64, every bit of the result depends on every bit of x."""
    return _folded(_folded(_folded(x, 30).mul_(_ODD[1]), 27).mul_(_ODD[2]), 31)


def _folded(x: Tensor, shift: int) -> Tensor:
    """x ^ (x >> shift), the shift without the sign."""
    return (x >> shift).bitwise_and_((1 << 64 - shift) - 1).bitwise_xor_(x)
