"""Length buckets: rows of similar length side by side, because padding costs as much as tokens do. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def bucket_by_tokens(rows: Iterable[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Rows in batches whose padded size (longest times count) stays within the budget, shortest first.

    Args:
        rows: Row numbers; rows of equal length keep their order.
        lengths: Tokens of each row, indexed by row number.
        budget: Padded tokens a batch. A row longer than that gets a batch of its own.

    Example:
        >>> bucket_by_tokens(range(4), [5, 100, 6, 5], budget=20)
        [[0, 3, 2], [1]]
    """
    batches: list[list[int]] = []
    for row in sorted(rows, key=lambda i: lengths[i]):
        # Ascending order: the newest member is the longest.
        if batches and lengths[row] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
