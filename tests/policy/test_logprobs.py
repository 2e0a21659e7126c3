"""Log-probs of given answers against the full logits of the whole model."""

import pytest
import torch

from tests.policy.architectures import PAD, plain_logps, random_model
from ttpa.policy.forward import answer_sums
from ttpa.policy.logprobs import TokenLogps, token_logps
from ttpa.policy.tree import TokenRow

ROWS = (
    TokenRow((3, 4, 5, 6, 7), (8, 9, 1)),
    TokenRow((10, 11), (12, 13, 14, 15, 16, 17, 1)),
    TokenRow((20, 21, 22, 23, 24, 25, 26, 27, 28), (1,)),
    TokenRow((30,), (31, 30, 31, 1)),
)
EMPTY = TokenRow((3, 4), ())


@pytest.mark.parametrize("with_prompt", [False, True])
@pytest.mark.parametrize("kind", ["qwen2", "llama", "gemma2", "granite", "falcon_h1"])
def test_token_logps_are_those_of_full_logits(kind: str, with_prompt: bool) -> None:
    model, rows = random_model(kind, 40, 0.3), [*ROWS[:2], EMPTY, *ROWS[2:]]
    with torch.no_grad():
        found = token_logps(model, rows, pad_id=PAD, with_prompt=with_prompt)
    assert found.logps_N.dtype == torch.float32 and found.rows == 5 and found.computed == 5 * 10
    for number, row in enumerate(rows):
        of_row = found.row_N == number
        assert found.logps_N[of_row].tolist() == pytest.approx(plain_logps(model, row, with_prompt), abs=1e-5)
        asked = len(row.prompt) - 1 if with_prompt else 0
        assert found.is_answer_N[of_row].tolist() == [False] * asked + [True] * len(row.answer)
    expected = [plain_logps(model, row) for row in rows]
    assert found.sums().tolist() == pytest.approx([sum(logps) for logps in expected], abs=1e-4)
    logps_BT, mask_BT = found.padded()
    assert logps_BT.shape == (5, 7) and mask_BT.tolist() == [[k < len(e) for k in range(7)] for e in expected]
    for padded, logps in zip(logps_BT.tolist(), expected, strict=True):
        assert padded == pytest.approx([*logps, *[0.0] * (7 - len(logps))], abs=1e-5)


@torch.no_grad()
def test_neither_padding_nor_its_id_nor_the_order_of_rows_matters() -> None:
    model = random_model("qwen2", 40, 0.3)
    together = token_logps(model, ROWS, pad_id=PAD).sums().tolist()
    assert together == pytest.approx([float(token_logps(model, [r], pad_id=PAD).sums()[0]) for r in ROWS], abs=1e-5)
    assert together == pytest.approx(token_logps(model, ROWS[::-1], pad_id=39).sums().tolist()[::-1], abs=1e-5)
    alone = token_logps(model, [EMPTY], pad_id=PAD)
    assert alone.logps_N.numel() == 0 and alone.sums().tolist() == [0.0]


@pytest.mark.parametrize("budget", [1, 20, 10_000])
def test_answer_sums_come_in_row_order_whatever_the_budget(budget: int) -> None:
    model = random_model("llama", 40, 0.3, attention_dropout=0.5).train()
    rows = [*ROWS, EMPTY, *ROWS[::-1]]
    found = answer_sums(token_logps, model, [[row] for row in rows], pad_id=PAD, budget=budget)
    assert model.training and all(p.grad is None for p in model.parameters())
    expected = [[sum(plain_logps(model.eval(), row))] for row in rows]
    assert [sums for (sums,) in found] == pytest.approx([sums for (sums,) in expected], abs=1e-4)
    answer_sums(token_logps, model, [ROWS], pad_id=PAD, budget=budget)
    assert not model.training


def test_answer_sums_keep_a_group_in_one_batch() -> None:
    """Pairs of 20 and 10 tokens, budget 40: the two short pairs share a batch, the long ones do not share one."""
    batches: list[list[int]] = []

    def recording(model: torch.nn.Module, rows: list[TokenRow], *, pad_id: int) -> TokenLogps:
        batches.append([row.prompt[0] for row in rows])
        return token_logps(model, rows, pad_id=pad_id)

    sizes = enumerate((22, 10, 22, 12), 1)
    groups = [[TokenRow([k] + [9] * (size // 2 - 2), (a,)) for a in (5, 6)] for k, size in sizes]
    answer_sums(recording, random_model("llama", 40, 0.3), groups, pad_id=PAD, budget=40)
    assert batches == [[2, 2, 4, 4], [1, 1], [3, 3]]
