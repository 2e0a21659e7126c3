"""Length buckets: rows of similar length side by side, because padding costs as much as tokens do. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Bundles = tuple[list[list[int]], list[int]]


def bundle(rows: Sequence[int], units: Sequence[int], lengths: Sequence[int], own: Sequence[int]) -> Bundles:
    """Rows that share prefixes, kept together: the turns of one dialogue.

    Args:
        rows: Row numbers.
        units: Unit of each row, indexed by row number; rows of one unit make one bundle.
        lengths: Tokens of each row.
        own: Tokens of each row that no other row of its unit has (its answer).

    Returns:
        The bundles in order of their first rows, and the tokens of each when shared ones count once: the longest row
        and what the others add, which is an upper bound.
    """
    members: dict[int, list[int]] = {}
    for row in rows:
        members.setdefault(units[row], []).append(row)
    bundles = list(members.values())
    costs = []
    for group in bundles:
        longest = max(group, key=lambda row: lengths[row])
        costs.append(lengths[longest] + sum(own[row] for row in group if row != longest))
    return bundles, costs


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
