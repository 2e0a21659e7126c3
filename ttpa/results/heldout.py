"""`eval=heldout`: exact-call accuracy on a data source's own held-out split, by band and for unseen tools."""

from collections.abc import Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from ttpa.calls.schema import calls_equal
from ttpa.calls.six_errors import LABELS, six_errors
from ttpa.data.source import read_split
from ttpa.options import Count, option
from ttpa.records import Candidate, Sample
from ttpa.results.stats import share
from ttpa.run.parts import Evaluation


def answer_row(sample: Sample, candidate: Candidate, exact: bool, errors: Sequence[str]) -> dict[str, Any]:
    """The row of a judged answer to a sample, with the keys of every evaluation."""
    return {
        "id": sample.id,
        "cluster": sample.cluster,
        "band": sample.band,
        "kind": sample.kind,
        "tags": list(sample.tags),
        "exact": exact,
        "errors": list(errors),
        "finish": candidate.finish,
        "tokens": len(candidate.token_ids),
        "text": candidate.text,
    }


@option
class Heldout(Evaluation):
    """Evaluation on a split of the run's own data."""

    split: Literal["test", "validation"]
    max_new_tokens: Count
    limit: Count | None

    def samples(self, data: Path) -> list[Sample]:
        """The split, or its beginning."""
        return read_split(data, self.split)[: self.limit]

    def judge(self, sample: Sample, candidate: Candidate) -> dict[str, Any]:
        """One row: was the answer right, and in which of the six ways was it wrong."""
        calls = candidate.calls
        right = calls is not None and calls_equal(sample.target, calls)
        return answer_row(sample, candidate, right, six_errors(sample, calls))

    def summarise(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Shares of right answers: all with seen tools, those where a call is right and those where none is, by band,
        with unseen tools; and of answers with each error.
        """
        seen = [row for row in rows if "unseen_tool" not in row["tags"]]
        unseen = [row for row in rows if "unseen_tool" in row["tags"]]
        bands = [band for band in ("easy", "medium", "hard") if any(row["band"] == band for row in seen)]
        right = itemgetter("exact")
        calls, texts = ([row for row in seen if row.get("kind", "call") == kind] for kind in ("call", "text"))
        return {
            "accuracy": share(seen, right),
            "calls": share(calls, right) if calls else None,
            "non_calls": share(texts, right) if texts else None,
            "bands": {band: share([row for row in seen if row["band"] == band], right) for band in bands},
            "unseen_tool": share(unseen, right) if unseen else None,
            "errors": {label: share(seen, partial(_shows, label)) for label in LABELS},
            "split": self.split,
        }


def _shows(label: str, row: Mapping[str, Any]) -> bool:
    return label in row["errors"]
