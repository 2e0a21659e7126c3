"""Calls read while they are written: events equal the spans of the whole text, however it is cut, and come in time."""

from __future__ import annotations

import copy
import doctest
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttpa.calls import SYNTAXES, ParseError, Syntax, get_syntax, pieces, stream
from ttpa.calls.base import MAX_CHARS
from ttpa.calls.stream import CallStream, Event, stream_of, token_cuts
from ttpa.records import ToolCall

NAMES = ("hermes", "json", "python", "python_compact", "llama3_json")
SPAN_KINDS = ("name", "key", "value", "call")
LETTERS = {"o": "open", "n": "name", "k": "key", "v": "value", "c": "call", "x": "close"}


def events_of(syntax: Syntax, parts: list[str]) -> list[Event]:
    """All events of a text that arrives in these parts."""
    reader = stream_of(syntax)
    found = [event for part in parts for event in reader.feed(part)]
    return found + reader.close()


def span_ends(syntax: Syntax, text: str) -> list[tuple[int, str]]:
    # A call ends with a bracket, but python's spans also hold the white space behind `)`.
    return sorted((len(text[: s.end].rstrip()) if s.kind == "call" else s.end, s.kind) for s in syntax.spans(text))


def of_spans(events: list[Event]) -> list[tuple[int, str]]:
    return sorted((event.end, event.kind) for event in events if event.kind in SPAN_KINDS)


def marked(drawing: str) -> tuple[str, list[Event]]:
    """`[\u00a6o f\u00a6n` and so on: a text with the letters of the events (see LETTERS) where the parts end."""
    text, *rest = drawing.split("\u00a6")
    events = []
    for part in rest:
        events.append(Event(LETTERS[part[0]], len(text)))
        text += part[1:]
    return text, events


# Each text with a bar where a part ends, and the first letter of what it is (x: close).
MARKED: list[tuple[str, str]] = [
    ("python", "[¦of¦n(a¦k=1¦v, b¦k='x, )'¦v)¦c, g¦n()¦c]¦x"),
    ("python", " [¦o\n f¦n ( a¦k = 1¦v ,\n b-c¦k =  [1, (2, {'k': \")\"})]¦v , )¦c , \n g¦n( )¦c ]¦x \n"),
    ("python", '[¦oGet (v2) [a], b¦n(x¦k=1¦v)¦c]¦x'),
    ("python", "[¦of (a b) (c)¦n(x¦k=-1.5e3¦v)¦c]¦x"),
    ("python", "[¦of¦n(**{'odd (key)=¦k': 1¦v, \"b¦k\" : None¦v, 3¦k: x.y¦v}, c¦k=()¦v)¦c]¦x"),
    ("python", "[¦of¦n(a¦k=''¦v,b¦k=\"\"\"x \"y\" ''' \\\"\"\"\"¦v,c¦k=r'\\'"),
    ("python", "[¦of¦n(a¦k=r'\\''¦v, b¦k=u\"\\u00e9\"¦v, c¦k=''''''¦v)¦c]¦x"),
    ("python", "[¦of(a=="),  # `==` makes no key, and so no argument list
    ("python", "[¦of(a==b) g¦n(a¦k=1¦v)¦c]¦x"),
    ("python", "[¦o]¦x \n"),
    ("python", "[¦of¦n()¦c, ]¦x"),
    ("python", "[¦o] f¦n()¦c]¦x"),
    ("python", "[¦o]¦x\n \n"),
    ("python", "[¦o]\nf()]"),
    ("python", "[¦o]\n f()]"),
    ("python", "[¦of"),
    ("python", "[¦of¦n(a¦k=\u00a01¦v)¦c\x0b]¦x"),
    ("python", "[¦of¦n(name¦k=1¦v, **{'parameters¦k': 3¦v}, arguments¦k=2¦v)¦c]¦x"),
    ("python", "[¦of¦n(**{[1]: 2})]"),
    ("python", "<|python_tag|>[f()]"),
    ("python", "[¦of\n(a=1)]"),
    ("python", "[¦of(\n5) g(a=1)]"),
    ("python", "[¦of(\r5) g(a=1)]"),
    ("python", "[¦of(a\nb=1)]"),
    ("python", "[¦of(*a=1)]"),
    ("python", "[¦of¦n(a¦k=1¦v"),
    ("python", "[¦of¦n(a¦k="),
    ("python", "[¦of(a"),
    ("python", "[¦of¦n(a¦k=''¦v"),
    ("python", "[¦of¦n(a¦k='"),
    ("python", "[¦of¦n(a¦k='''a'b'c''d\\''''¦v)¦c]¦x"),
    ("python", "[¦of¦n(a¦k=[1"),
    ("python", "[¦of¦n(a¦k=1¦vx)]"),
    ("python", "[¦of¦n(**{1x: 2})]"),
    ("python", "[¦of¦n(a¦k=007)]"),
    ("python", "[¦of(5)]"),
    ("python", "[¦o(a=1)]"),
    ("python", "[¦of¦n(a¦k=1¦v, a=2)]"),
    ("python", "[¦of¦n()¦c]¦x ok [f()]"),
    ("python", "f(a=1)"),
    ("python_compact", '[¦of¦n(a¦k={"k":[1,True]}¦v,b¦k="\u00e9\\n"¦v)¦c,g¦n()¦c]¦x'),
    ("json", '[¦o{"name": "f¦n", "arguments": {"a¦k": {"k": [1, "]"]}¦v, "b¦k" : -2¦v}}¦c, '
             '{"name":"g¦n","arguments":{}}¦c]¦x'),
    ("json", ' {¦o"parameters": {"a¦k": null¦v}, "id": [{"x": 1}], "name": "f¦n"}¦c¦x\n'),
    ("json", '[¦o{"name":"f \\"¦n","arguments":"{\\"a\\": 1}"}¦c]¦x'),
    ("json", '[¦o{"name":"f¦n","arguments":"{\\"a\\": 1"}]'),
    ("json", '[¦o{"n\\u0061me":"f¦n","arguments":{"name¦k":1¦v}}¦c]¦x'),
    ("json", '[¦o{"name":"f¦n","name":"g","arguments":{}}]'),
    ("json", '[¦o{"name":"f¦n","arguments":{},"parameters":{"a":1}}]'),
    ("json", '[¦o{"name":"f¦n"}, {"name":"g","arguments":{}}]'),
    ("json", '[¦o{"name":"f¦n","arguments":{"a¦k":"\\q"}}]'),
    ("json", '[¦o{"name":"f¦n","arguments":{"a¦k":{"b":1,"b":2}}}]'),
    ("json", '[¦o{"name":"f¦n","arguments":{"a¦k":1¦v,}}]'),
    ("json", '[¦o{"name":"f¦n","arguments":{"a¦k":tru'),
    ("json", '[¦o{"name":"f¦n","arguments":{"a¦k":12¦v'),
    ("json", "[¦o ]¦x"),
    ("json", '[¦o{"arguments":{}}]'),
    ("json", "[¦o\u00a0]"),
    ("json", '[¦o{"name":"f¦n","arguments":{1:2}}]'),
    ("json", '[¦o{"name":"\\q","arguments":{}}]'),
    ("json", '[¦o{"name":"f¦n"\x0b,"arguments":{}}]'),
    ("json", '<|python_tag|>{"name":"f","arguments":{}}'),
    ("json", '```json\n[{"name": "f", "arguments": {}}]\n```'),
    ("hermes", 'Hi <<tool_call>¦o\n{"name": "f¦n", "arguments": {"a¦k": "</tool_call>"¦v}}¦c\n</tool_call>¦x\nand '
               '<tool_call>¦o{"arguments":{},"name":"g¦n"}¦c</tool_call>¦x'),
    ("hermes", '{"name": "f", "arguments": {}}'),
    ("hermes", '<tool_call>¦o{"name":"f¦n","arguments":{}}¦c</tool_call>¦x{"name":"g","arguments":{}}'),
    ("hermes", '<tool_call>¦o{"name":"f¦n","arguments":{}}¦c x</tool_call>'),
    ("hermes", '<tool_call>¦o{"name":"f¦n","arguments":{}}¦c</tool_ call>'),
    ("hermes", '<tool_call>¦o{"name":"f¦n","arguments":{}}¦c</tool_tool_call>'),
    ("hermes", 'x</tool_call><tool_call>¦o{"name":"f¦n","arguments":{}}¦c</tool_call>¦x'),  # spans stops at the first
    ("hermes", '<tool_call>¦o[1]</tool_call> <tool_call>¦o{"name":"f¦n","arguments":{}}¦c<tool_call>¦o{"name":"g¦n"'),
    ("hermes", '<tool_call>¦o{"name":"f¦n","arguments":{}}¦c</tool_<tool_call>¦o{"name":"g¦n"'),
    ("llama3_json", '{¦o"name": "f¦n", "parameters": {"a¦k": 1¦v}}¦c¦x; {¦o"name": "g¦n", "parameters": {}}¦c¦x'),
    ("llama3_json", ' <|python_tag|>¦o {"name":"f¦n","parameters":{}}¦c¦x \n {¦o"name":"g¦n","parameters":{}}¦c¦x ;'),
    ("llama3_json", '{¦o"name":"f¦n","parameters":{}}¦c¦x {"name":"g","parameters":{}}'),
    ("llama3_json", "<|python_tag>{"),
    ("llama3_json", '[{"name":"f","parameters":{}}]'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "drawing"), MARKED)
def test_ends_worked_out_by_hand(name: str, drawing: str) -> None:
    text, expected = marked(drawing)
    syntax = get_syntax(name)
    assert events_of(syntax, [text]) == expected
    assert events_of(syntax, list(text)) == expected
    assert events_of(syntax, ["", *(text[n : n + 3] for n in range(0, len(text), 3)), ""]) == expected


# A text and, below each character, whether the next one is written inside a call (#), may begin one (?), or neither.
STATES: list[tuple[str, str, str]] = [
    ("python", " [f(a=1), g()] x",
               "?############..."),
    ("python", "x[f(a=1)]",
               "........."),
    ("python", "[]\n",
               "###"),
    ("python", "[f(5)]",
               "#####."),
    ("json", '[{"name":3}]',
             "#########..."),
    ("json", '{"name":"f","arguments":{}} ',
             "##########################.."),
    ("json", '{"arguments":[',
             "#############."),
    ("json", '{"id":r" ',
             "#######.."),
    ("json", '{"id":( ',
             "######.."),
    ("json", """{"id":['] """,
             "########.."),
    ("json", "No.",
             "..."),
    ("hermes", 'a<tool_call>{"name":"f","arguments":{}} </tool_call>b',
               "???????????########################################??"),
    ("hermes", "<tool_call>{]<tool_call>",
               "??????????##???????????#"),
    ("llama3_json", '\n<|python_tag|>{"name":"f","parameters":{}} ; {"',
                    "??????????????############################????##"),
    ("llama3_json", '{"name":"f","parameters":{}} {',
                    "###########################??."),
    ("llama3_json", "<|py(",
                    "????."),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "expected"), STATES)
def test_inside_and_possible(name: str, text: str, expected: str) -> None:
    reader = stream_of(get_syntax(name))
    assert (reader.inside, reader.possible) == (False, True)
    found = ""
    for char in text:
        reader.feed(char)
        assert reader.possible or not reader.inside
        found += "#" if reader.inside else "?" if reader.possible else "."
    assert found == expected
    reader.close()
    assert (reader.inside, reader.possible) == (False, False)


# A text cut where the event of the second part must arrive: with that part's first character, and not before.
PROMPT: list[tuple[str, str, str, Event]] = [
    ("python", "", "[", Event("open", 1)),
    ("python", "[f(a=", "1", Event("name", 2)),
    ("python", "[f(", ")", Event("name", 2)),
    ("python", "[f(**", "{", Event("name", 2)),
    ("python", "[f(x=1, b=", "'", Event("key", 9)),
    ("python", "[f(x='a", "'", Event("value", 8)),
    ("python", "[f(x=''", ",", Event("value", 7)),
    ("python", "[f(x=12", ")", Event("value", 7)),
    ("python", "[f(x=a", "'", Event("value", 6)),  # no prefix of a string, as r and u are
    ("python", "[f(x=ru", "'", Event("value", 7)),
    ("python", "[f(x=ab", "[", Event("value", 7)),
    ("python", "[f(x=[1,(2)", "]", Event("value", 12)),
    ("python", "[f(x=1", ")", Event("call", 7)),
    ("python", "[f()", "]", Event("close", 5)),
    ("json", '[{"name":"f', '"', Event("name", 11)),
    ("json", '[{"name":"f","arguments":{"a"', ":", Event("key", 28)),
    ("json", '[{"name":"f","arguments":{"a":"x', '"', Event("value", 33)),
    ("json", '[{"name":"f","arguments":{"a":"', '"', Event("value", 32)),
    ("json", '[{"name":"f","arguments":{"a":1', "}", Event("value", 31)),
    ("json", '[{"name":"f","arguments":{}', "}", Event("call", 28)),
    ("hermes", "<tool_call", ">", Event("open", 11)),
    ("hermes", '<tool_call>{"name":"f","arguments":{}}</tool_call', ">", Event("close", 50)),
    ("llama3_json", '{"name":"f","parameters":{}', "}", Event("close", 28)),
    ("llama3_json", "<|python_tag|", ">", Event("open", 14)),
]


@pytest.mark.parametrize(("name", "before", "then", "event"), PROMPT)
def test_an_event_comes_as_soon_as_it_is_sure(name: str, before: str, then: str, event: Event) -> None:
    reader = stream_of(get_syntax(name))
    assert event not in reader.feed(before)
    assert event in reader.feed(then)


WRITTEN = [
    ToolCall(name="f", arguments={"a": {"k": [1, True, None, -0.5, "]}"]}, "b": "\u00e9\n", "c": [], "d": 12}),
    ToolCall(name="Get (v2)", arguments={}),
    ToolCall(name="g.h/i", arguments={"odd (key)": "(", "x": ""}),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_beginning_of_a_text_has_the_spans_of_that_beginning(name: str) -> None:
    syntax = get_syntax(name)
    text = syntax.print(WRITTEN)
    assert isinstance(syntax.parse(text), tuple)
    for length in range(len(text) + 1):
        assert of_spans(events_of(syntax, [text[:length]])) == span_ends(syntax, text[:length]), text[:length]


TEXTS = st.text(st.characters(), max_size=12) | st.sampled_from(
    ['"', "\\", "</tool_call>", "<tool_call>", "a), b(", "'''", "}]", "\u2028", "**", "a b", "a\n", "x=1", "{["]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)
TOOL_NAMES = TEXTS | st.sampled_from(["f", "Get Data (v2)", "a.b/c-d", "M4.5+, Past 7", "[x]", "]", "f (a b) g", "f(("])
CALLS = st.lists(
    st.builds(lambda n, a: ToolCall(name=n, arguments=a), TOOL_NAMES, st.dictionaries(TEXTS, VALUES, max_size=3)),
    max_size=3,
)
CUTS = st.lists(st.integers(0, 400), max_size=8)


def cut_at(text: str, places: list[int]) -> list[str]:
    ends = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[first:last] for first, last in pairwise(ends)]


def check_against_spans(syntax: Syntax, text: str, places: list[int]) -> None:
    events = events_of(syntax, [text])
    assert events == events_of(syntax, list(text)) == events_of(syntax, cut_at(text, places))
    assert [event.end for event in events] == sorted(event.end for event in events)
    found, expected = of_spans(events), span_ends(syntax, text)
    if syntax.name == "hermes" and isinstance(syntax.parse(text), ParseError):  # it goes on with later blocks
        found = found[: len(expected)]
    assert found == expected
    opened = 0
    for event in events:
        opened += {"open": 1, "close": -1}.get(event.kind, 0)
        assert opened > 0 or event.kind == "close"


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150, deadline=None)
@given(written=CALLS, places=CUTS)
def test_printed_calls_give_the_ends_of_their_spans(name: str, written: list[ToolCall], places: list[int]) -> None:
    syntax = get_syntax(name)
    check_against_spans(syntax, syntax.print(written), places)


BEGINNINGS = {
    "hermes": ["<tool_call>", '<tool_call>{"name":"f","arguments":{'],
    "json": ["[", "{", '[{"name":"f","arguments":{', '[{"name":"f","arguments":{"a":'],
    "python": ["[", "[f(", "[f(a=", "[f(**{", "[f(a={"],
    "python_compact": ["[", "[f(a=1,", "[f(a=["],
    "llama3_json": ["{", "<|python_tag|>", '{"name":"f","parameters":{}}'],
}
FRAGMENTS = st.sampled_from(
    [*"[](){}\"'\\=,:;*_-. \n\r\t<>", "f", "a=", "1", "r'", '"""', "'''", "\\u00e9", "\\x4", "True", "null", "1e5"]
    + ['{"name":', '"f"', '"arguments":', '"parameters":{', '"a":', '"id":3,', '"{}"', "}}", ")]", '{"k":[1,"x"]}']
    + ["<tool_call>", "</tool_call>", "</tool_call", "<|python_tag|>", "f (x) ", "x" * 600, "**{"]
)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=400, deadline=None)
@given(data=st.data(), places=CUTS)
def test_any_text_gives_the_ends_of_its_spans(name: str, data: st.DataObject, places: list[int]) -> None:
    begin = data.draw(st.sampled_from(["", *BEGINNINGS[name]]))
    rest = data.draw(st.lists(FRAGMENTS, max_size=14).map("".join) | st.text(st.characters(), max_size=20))
    check_against_spans(get_syntax(name), begin + rest, places)


DEPTHS = [("1", 1), ("[" * 64 + "]" * 64, 1), ("[" * 65 + "]" * 65, 0), ("9" * 4300, 1), ("9" * 4301, 0)]


@pytest.mark.parametrize("name", NAMES)
def test_limits_are_those_of_the_parser(name: str) -> None:
    syntax = get_syntax(name)
    frame = syntax.print([ToolCall(name="f", arguments={"a": 1})])
    for value, values in DEPTHS:
        text = frame.replace("1", value)
        assert of_spans(events_of(syntax, [text])) == span_ends(syntax, text)
        assert sum(event.kind == "value" for event in events_of(syntax, [text])) == values
    for depth in (63, 64):  # of a member that is not read
        text = frame.replace('{"name"', '{"id": ' + "[" * depth + "]" * depth + ', "name"')
        assert of_spans(events_of(syntax, [text])) == span_ends(syntax, text)
    for size in (512, 513):
        text = syntax.print([ToolCall(name="n" * size, arguments={})])
        assert of_spans(events_of(syntax, [text])) == span_ends(syntax, text)


def test_python_escapes_and_long_names_at_their_limits() -> None:
    syntax = get_syntax("python")
    values = [r"'\U0010FFFF'", r"'\U00110000'", r"'\N{x}'", r"'\400'", r"'\xZZ'", r"r'\xZZ'", "'\\\n'", "1__0", "1_0"]
    for value in values:
        text = f"[f(a={value}, b=2)]"
        assert of_spans(events_of(syntax, list(text))) == span_ends(syntax, text)
    for name in ("n" * 509 + " (x)", "n" * 511 + " (x)", "n" * 510 + "\n", "n" * 512 + " "):
        text = f"[{name}()]"
        assert of_spans(events_of(syntax, list(text))) == span_ends(syntax, text)


HOSTILE = [
    "[", "(", "{", '"', "'", "\\", '\\"', "<", "<tool_call>", "</tool_call>", "[(", "f(", "(a ", "[f(a=", "\ud800",
    "\x00", " ", "\n", "a", "1", "a,", "=", "**", ")", '{"name":', '"a":1,', '{"a":', "a=1,", "f(),", "],", "[],",
]  # fmt: skip
PREFIXES = [
    "", "[", "[f(", "[f(a=", "[f(a='", "[f(a=[", "[f(**{", "[f(a='''", '[{"name":"f","arguments":{"a":',
    '[{"name":"f","arguments":{"a":[', '[{"name":"f","arguments":"', '<tool_call>{"name":"f","arguments":{"a":"',
    '{"id":', '{"name":"f","parameters":{}}',
]  # fmt: skip


def test_hostile_text_is_read_in_linear_time() -> None:
    """Each text takes some tens of milliseconds; read again from its beginning for each part, it would take hours."""
    for unit in HOSTILE:
        for prefix in PREFIXES:
            text = prefix + unit * (100_000 // len(unit))
            for name in ("hermes", "json", "python", "llama3_json"):
                ends = [event.end for event in events_of(get_syntax(name), [text])]
                assert ends == sorted(ends) and all(end <= len(text) for end in ends)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("python", "[f(a='" + "\\'" * 50_000),
        ("python", "[f(" + "a" * 100_000),
        ("python", "[f(a=" + "1" * 100_000),
        ("python", "[f(a='" + "x" * 100_000),
        ("python", "[f(a=['" + '"' * 100_000),
        ("json", '[{"name":"f","arguments":"' + "x" * 100_000),
        ("json", '[{"name":"f","arguments":{"a":[' + "1," * 50_000),
        ("hermes", "<tool_call" * 10_000),
    ],
)
def test_a_long_part_fed_by_the_character_is_read_in_linear_time(name: str, text: str) -> None:
    """A text that is joined again for each character takes minutes."""
    assert events_of(get_syntax(name), list(text)) == events_of(get_syntax(name), [text])


def test_reading_ends_with_the_longest_text() -> None:
    syntax = get_syntax("hermes")
    block = syntax.print([ToolCall(name="f", arguments={})])
    for parts in ([" " * (MAX_CHARS - len(block)), block + block], [" " * (MAX_CHARS - len(block)) + block + block]):
        reader = stream_of(syntax)
        found = [event for part in parts for event in reader.feed(part)]
        assert [event.kind for event in found] == ["open", "name", "call", "close"]
        assert found[-1].end == MAX_CHARS
        assert not reader.possible
        assert reader.feed(block) == reader.close() == []
    whole = stream_of(get_syntax("python"))
    whole.feed(" " * (MAX_CHARS - 6) + "[f(a=1")
    assert whole.close() == [Event("value", MAX_CHARS)]


def test_nothing_is_read_after_the_end() -> None:
    reader = stream_of(get_syntax("python"))
    reader.feed("[f(a=1")
    assert reader.close() == [Event("value", 6)]
    assert reader.close() == reader.feed(")]") == []


@pytest.mark.parametrize("name", NAMES)
def test_copies_go_on_separately(name: str) -> None:
    syntax = get_syntax(name)
    text = syntax.print(WRITTEN)
    for length in range(len(text)):
        reader = stream_of(syntax)
        before = reader.feed(text[:length])
        copies = [copy.deepcopy(reader) for _ in range(2)]
        copies[0].feed('x"')
        for branch in (copies[1], reader):
            assert before + branch.feed(text[length:]) == events_of(syntax, [text])


def test_only_the_syntaxes_of_the_package_are_read() -> None:
    class Other:
        name = "other"

    other: Any = Other()
    with pytest.raises(TypeError, match=r"no stream reads Other: use one of ttpa\.calls\.SYNTAXES"):
        CallStream(other)
    for syntax in SYNTAXES.values():
        assert isinstance(stream_of(syntax), CallStream)


PIECES = ["[", "f", "(a", "=1", ", b", "='x", "'), g", "", "(", ")", "]", ""]


def test_cuts_worked_out_by_hand() -> None:
    python = get_syntax("python")
    # f | 1 | 'x' and f(...) and g, which end inside the seventh token | g() behind an empty token and "("
    assert token_cuts(PIECES, python) == [2, 4, 7, 10]
    assert token_cuts(PIECES, python, ("key",)) == [3, 5]
    assert token_cuts(PIECES, python, ["call"]) == [7, 10]
    assert token_cuts(PIECES, python, ("open", "close")) == [1, 11]
    assert token_cuts(PIECES[:10], python) == [2, 4, 7]  # not behind the last token
    assert token_cuts(PIECES[:4], python, ("value",)) == []
    assert token_cuts(["No ", "tool ", "fits."], python) == token_cuts([], python) == []
    # f ends before its quote, with the second token; 1 with the fifth; the call with the last
    assert token_cuts(['{"name', '": "f', '", ', '"arguments": {', '"a": 1', "}", "}"], get_syntax("json")) == [2, 5]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=50, deadline=None)
@given(written=CALLS, places=CUTS, kinds=st.sets(st.sampled_from(SPAN_KINDS)))
def test_cuts_are_the_first_ends_of_tokens_behind_spans(
    name: str, written: list[ToolCall], places: list[int], kinds: set[Any]
) -> None:
    syntax = get_syntax(name)
    text = syntax.print(written)
    parts = cut_at(text, places)
    ends = [end for end, kind in span_ends(syntax, text) if kind in kinds]
    if isinstance(syntax.parse(text), ParseError):
        return
    expected = set()
    for end in ends:
        expected.add(next(count for count in range(1, len(parts) + 1) if len("".join(parts[:count])) >= end))
    assert token_cuts(parts, syntax, kinds) == sorted(expected - {len(parts)})


def test_examples_in_the_documentation() -> None:
    assert doctest.testmod(stream).failed == 0
    assert doctest.testmod(pieces).failed == 0
