"""Pairs, search trees and token paths: where answers part, and which of them are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from tests.results.report.conftest import Html, Lab
from ttpa.records import Candidate, Pair, Score
from ttpa.results.report.pairs import Span, _drawn, pair_view, search_tree, token_tree
from ttpa.results.report.study import StageFolder


def letters(ids: Sequence[int]) -> list[str]:
    return [chr(token) for token in ids]


def answer(number: int, text: str, **fields: object) -> Candidate:
    ids = tuple(map(ord, text))
    return Candidate(sample_id="a", index=number, text=text, token_ids=ids, logps=(-0.5,) * len(ids), **fields)  # type: ignore[arg-type]


def scored(*answers: Candidate) -> list[tuple[Candidate, Score]]:
    values = (1.0, 0.5, 0.0)
    return [(one, Score(value=values[number], exact=not number)) for number, one in enumerate(answers)]


def shape(span: Span) -> object:
    """Texts along the chain, then what parts behind it."""
    return [span.text, *(one.text for one in span.chain), *(shape(child) for child in span.children)]


@pytest.mark.parametrize("pieces", [letters, None])
def test_a_pair_is_cut_at_the_token_where_it_parts(pieces: Callable[[Sequence[int]], list[str]] | None) -> None:
    (good, high), (bad, low) = scored(answer(0, "f(ab)"), answer(1, "f(xyz"))
    pair = Pair(sample_id="a", chosen=good, rejected=bad, chosen_score=high, rejected_score=low)
    view = pair_view(pair, {}, pieces)
    assert [side["parts"] for side in view["sides"]] == [["f(", "a", "", "b)"], ["f(", "x", "", "yz"]]
    assert [side["probability"] for side in view["sides"]] == ["0.607"] * 2  # exp(-0.5)


def test_a_pair_of_a_search_shows_its_spans_and_its_probabilities() -> None:
    (good, high), (bad, low) = scored(answer(0, "f(abcd"), answer(1, "f"))
    how = {"spans": {"chosen": 4}, "parting": {"chosen": {"probability": 0.00012}}, "search": {"values": [0.9, 0.1]}}
    pair = Pair(sample_id="a", chosen=good, rejected=bad, chosen_score=high, rejected_score=low, provenance=how)
    view = pair_view(pair, {}, letters)
    assert [side["parts"] for side in view["sides"]] == [["f", "(", "ab", "cd"], ["f", "", "", ""]]
    assert [side["probability"] for side in view["sides"]] == ["1.2e-04", ""]  # the rejected one ends where they part
    assert view["search"] == {"values": "0.9, 0.1"}


def test_answers_are_merged_by_their_tokens_and_cut_at_choices() -> None:
    other = answer(2, "fx", branches=((1, ((ord("a"), 0.5), (ord("x"), 0.4))),))
    root = token_tree(scored(answer(0, "fabc"), answer(1, "fabd"), other), letters)
    assert shape(root) == ["f", ["ab", ["c"], ["d"]], ["x"]]
    assert root.good == pytest.approx(0.5) and "3 of 3 answers" in root.facts
    assert root.note == "choice here: \u201ca\u201d 0.500, \u201cx\u201d 0.400"
    assert root.children[0].children[0].note == "1 answer ends here: score 1.000 (exact)"
    alone = token_tree(scored(answer(0, "abc", branches=((1, ((ord("b"), 0.6),)),))), letters)
    assert shape(alone) == ["a", "bc"]


def test_answers_without_a_common_beginning_and_empty_ones() -> None:
    root = token_tree(scored(answer(0, "ab"), answer(1, "c"), answer(2, "")), letters)
    assert shape(root) == ["(start of the answer)", ["ab"], ["c"]] and root.note == "an answer is empty"


def test_a_path_of_many_choices_is_no_deep_nest() -> None:
    text = "ab" * 400
    options = tuple((at, ((ord("a"), 0.5), (ord("b"), 0.5))) for at in range(1, len(text)))
    root = token_tree(scored(answer(0, text, branches=options)), letters)
    assert len(root.chain) <= 41 and not root.children
    assert "".join(one.text for one in (root, *root.chain))[:40] == text[:40]


def node(number: int, parent: int | None, text: str, answers: Sequence[int] = ()) -> dict[str, object]:
    return {"id": number, "parent": parent, "text": text, "prior": 0.5, "visits": 3, "value": 1.5, "terminal": not answers,
            "answers": list(answers)}  # fmt: skip


def test_a_search_tree_nests_where_it_had_a_choice() -> None:
    nodes = [node(0, None, ""), node(1, 0, "f("), node(2, 1, "a", [0, 9]), node(3, 1, "b", [1])]
    root = search_tree(nodes, scored(answer(0, "f(a"), answer(1, "f(b")))
    assert shape(root) == ["(start of the answer)", "f(", ["a"], ["b"]]
    assert root.good == 1.0  # a value outside [0, 1] has a full bar
    assert root.children[0].note == "answer 0, score 1.000 (exact): f(a"  # answer 9 does not exist
    deep = search_tree([node(k, k - 1 if k else None, "x") for k in range(90)], [])
    assert any(one.note == "1 span below not shown" for one in deep.chain)


def test_lines_are_drawn_evenly_and_the_same_each_time(lab: Lab) -> None:
    counts = [0] * 50
    for number in range(400):
        folder = lab.store / f"explore-{number:012x}"
        folder.mkdir(parents=True)
        (folder / "rows").write_text("".join(f'{{"at":{k}}}\n' for k in range(50)))
        drawn, total = _drawn(StageFolder(folder), "rows", 5)
        assert total == 50 and drawn == sorted(drawn, key=lambda row: row["at"]) and len(drawn) == 5
        assert drawn == _drawn(StageFolder(folder), "rows", 5)[0]
        for row in drawn:
            counts[row["at"]] += 1
    assert min(counts) > 15 and max(counts) < 70  # 40 expected, deviation 6


def test_a_page_has_pairs_trees_and_groups_of_answers(lab: Lab, report: Callable[..., str]) -> None:
    lab.row()
    text = Html(report("made", samples=3)).text
    for words in ("3 of 6 pairs", "3 search trees", "visits 4", "answer 0, score 1.000 (exact)", "2 of 2 groups",
                  "please s", "parts at", "values: 0.9, 0.2"):  # fmt: skip
        assert words in text, words
