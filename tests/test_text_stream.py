"""Text as tokens come: nothing lost, nothing twice, no character in parts; and whether a call is open."""

import random
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ttpa.calls.syntaxes import SYNTAXES, OpenCall, get_syntax
from ttpa.prompts import CallWatch, TextStream
from ttpa.records import ToolCall

LOST = "\ufffd"


# Byte -> the letter that byte-level tokenizers write for it (GPT-2's table).
PLAIN = [*range(33, 127), *range(161, 173), *range(174, 256)]
LETTERS = {byte: chr(byte) for byte in PLAIN} | {
    byte: chr(256 + number) for number, byte in enumerate(byte for byte in range(256) if byte not in PLAIN)
}


def shown(data: bytes) -> str:
    return "".join(LETTERS[byte] for byte in data)


@cache
def misaligned() -> Any:
    """Bytes, and tokens of two to four bytes that end in the middle of one character and begin another."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocab = {letter: number for number, letter in enumerate(sorted(LETTERS.values()))}
    for data in (text.encode() for text in ("天气怎么样", "😀😃😄", "ééé", "€1€")):
        for size in (2, 3, 4):
            for at in range(len(data) - size + 1):
                vocab.setdefault(shown(data[at : at + size]), len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def cut(text: str, rng: random.Random) -> list[int]:
    """The text's bytes as tokens of `misaligned`, cut at random."""
    vocab, data, ids = misaligned().get_vocab(), text.encode(), []
    while data:
        size = rng.choice([size for size in (1, 2, 3, 4) if shown(data[:size]) in vocab])
        ids.append(vocab[shown(data[:size])])
        data = data[size:]
    return ids


def pushed(tokenizer: Any, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [stream.push(token) for token in ids]


@given(text=st.text(st.sampled_from("ab'天气怎么样😀😃😄é€1"), max_size=25), seed=st.integers(0, 99))
@example(text="天气怎么样天气怎么样" * 3, seed=1)
@settings(max_examples=100, deadline=None)
def test_tokens_may_end_within_characters_again_and_again(text: str, seed: int) -> None:
    pieces = pushed(misaligned(), cut(text, random.Random(seed)))
    assert "".join(pieces) == text
    assert all(LOST not in piece for piece in pieces)


@given(data=st.lists(st.sampled_from([*b"a\xff\x80\xe5\xf0", "😀", "天"]), max_size=12))
@example(data=[0x80, 0x80, 0x80, "😀", ord("a")])
@settings(max_examples=100, deadline=None)
def test_what_is_no_character_does_not_swallow_the_next_one(data: list[int | str]) -> None:
    single = {byte: misaligned().convert_tokens_to_ids(letter) for byte, letter in LETTERS.items()}
    whole = b"".join(part.encode() if isinstance(part, str) else bytes([part]) for part in data)
    ids = [single[byte] for byte in whole]
    found = "".join(pushed(misaligned(), ids))
    assert misaligned().decode(ids).startswith(found)
    assert "".join(pushed(misaligned(), [*ids, single[ord("z")]])) == whole.decode(errors="replace") + "z"


def test_spaces_that_a_tokenizer_takes_off_the_beginning_are_not_lost_within() -> None:

    class Words:
        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return "".join(f" w{token}" for token in ids)[1:]

    assert pushed(Words(), [1, 2, 3, 4]) == ["w1", " w2", " w3", " w4"]


def test_a_long_text_is_decoded_in_short_windows() -> None:
    class Counting:
        longest = 0

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            Counting.longest = max(Counting.longest, len(ids))
            return "x" * len(ids)

    assert pushed(Counting(), [0] * 500) == ["x"] * 500
    assert Counting.longest <= 8


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_watch_says_whether_a_call_is_open(syntax: str) -> None:
    written = get_syntax(syntax)
    call = ToolCall(name="get_weather", arguments={"city": "é 天气 😀", "days": 3})
    ids = cut(written.print((call, call)) + " and so on", random.Random(0))
    watch, seen = CallWatch(misaligned(), written), []
    for at, token in enumerate(ids):
        stream = OpenCall(written)
        stream.push(misaligned().decode(ids[:at]).rstrip(LOST))
        assert watch.inside == stream.inside
        seen.append(watch.inside)
        watch.push(token)
    assert not watch.inside and not seen[0] and any(seen)
