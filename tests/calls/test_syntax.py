"""Call syntaxes: what parses to what, what is refused, that printing is undone by parsing, and hostile text."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttpa.calls import SYNTAXES, ParseError, PythonSyntax, Syntax, get_syntax
from ttpa.errors import ConfigError
from ttpa.records import ToolCall

NAMES = ("hermes", "json", "python", "python_compact", "llama3_json")


def calls(*pairs: tuple[str, dict[str, Any]]) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(name=name, arguments=arguments) for name, arguments in pairs)


F1 = calls(("f", {"a": 1}))
FG = calls(("f", {"a": 1}), ("g", {}))
F0 = calls(("f", {}))


def value(text: str) -> str:
    """The python syntax around one value."""
    return f"[f(a={text})]"


GOOD: list[tuple[str, str, tuple[ToolCall, ...]]] = [
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', F1),
    ("hermes", 'Let me see.<tool_call>{"name":"f","parameters":{"a":1}}</tool_call>\n\nDone.', F1),
    ("hermes",
     '<tool_call>{"arguments":{"a":1},"name":"f"}</tool_call><tool_call>{"name":"g","arguments":{}}</tool_call>', FG),
    ("hermes", '<tool_call>{"name":"f","arguments":{"a":"</tool_call>"}}</tool_call>',
     calls(("f", {"a": "</tool_call>"}))),
    ("hermes", 'No tool fits. {"name": "f"}', ()),
    ("hermes", "", ()),
    ("json", '[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]', FG),
    ("json", ' {"name": "f", "parameters": {"a": 1}} ', F1),
    ("json", '[{"name": "f", "arguments": "{\\"a\\": 1}"}]', F1),
    ("json", '[{"id": [1, {"x": null}], "name": "f", "arguments": {"a": 1}}]', F1),
    ("json", r'[{"name":"f","arguments":{"a":"\ud83d\ude00\/\u00e9"}}]', calls(("f", {"a": "\U0001f600/\u00e9"}))),
    ("json", '[{"name":"f","arguments":{"a":-1.5e2}}]', calls(("f", {"a": -150.0}))),
    ("json", "[ ]", ()),
    ("json", 'The file says "name": 3.', ()),
    ("llama3_json", '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}', FG),
    ("llama3_json", '<|python_tag|>{"name": "f", "parameters": {"a": 1}}\n{"name": "g", "arguments": {}}', FG),
    ("llama3_json", "[]", ()),
    ("llama3_json", "It is 5; that is all.", ()),
    ("python", "[f(a=1), g()]", FG),
    ("python", "[f(a=1),g(),]", FG),
    ("python", " [\n  f( a = 1 ) ,\n  g( )\n] \n", FG),
    ("python", "[f(a=1,)]", F1),
    ("python", "[]", ()),
    ("python", "[ ]\n", ()),
    ("python", "", ()),
    ("python", "See [Vegan](https://x.org/?q=1) (free) and f(x).", ()),
    ("python", '[Get Data (v2)(x=1)]', calls(("Get Data (v2)", {"x": 1}))),
    ("python", '[Get Data [v2](x=1)]', calls(("Get Data [v2]", {"x": 1}))),
    ("python", '[pkg.mod.f(x=1), /v1/cocktail(), news/v2/list-all(strongs-number="G1")]',
     calls(("pkg.mod.f", {"x": 1}), ("/v1/cocktail", {}), ("news/v2/list-all", {"strongs-number": "G1"}))),
    ("python", "[M4.5+ Earthquakes, Past 7 Days(), Search Strong's Number API(n=1)]",
     calls(("M4.5+ Earthquakes, Past 7 Days", {}), ("Search Strong's Number API", {"n": 1}))),
    ("python", '[1 Hour / Minutely Forecast (Nowcast)(lat=1.5)]',
     calls(("1 Hour / Minutely Forecast (Nowcast)", {"lat": 1.5}))),
    ("python", '[\u5929\u6c14 API(\u57ce\u5e02="\u5df4\u9ece")]',
     calls(("\u5929\u6c14 API", {"\u57ce\u5e02": "\u5df4\u9ece"}))),
    ("python", "[f(a=1, **{'odd key=': 2, \"b\": [3]})]", calls(("f", {"a": 1, "odd key=": 2, "b": [3]}))),
    ("python_compact", "[f(a=1), g()]", FG),
]  # fmt: skip

PYTHON_VALUES: list[tuple[str, Any]] = [
    ("True", True), ("true", True), ("False", False), ("false", False), ("None", None), ("null", None),
    ("-3", -3), ("+3", 3), ("1_000", 1000), ("0x1F", 31), ("-0.5", -0.5), (".5", 0.5), ("5.", 5.0), ("1e3", 1000.0),
    ("'it'", "it"), ('"a\\"b"', 'a"b'), ("'a\\'b'", "a'b"), ('"""x "y" z"""', 'x "y" z'), ("''", ""),
    ('"a), g(b=1)]"', "a), g(b=1)]"), (r'"\n\t\x41\u00e9\101\q\/"', "\n\tA\u00e9A\\q\\/"), (r'r"\d\n"', r"\d\n"),
    (r'"\ud83d\ude00"', "\U0001f600"), ('"raw\nline\x01"', "raw\nline\x01"),
    ("[1, [2, []], ]", [1, [2, []]]), ("(1, 2)", [1, 2]), ("(1,)", [1]), ("(1)", 1), ("()", []),
    ("{'k': {\"n\": None}, }", {"k": {"n": None}}), ("{1: 2, true: 3}", {"1": 2, "true": 3}), ("{}", {}),
    ("hello", "hello"), ("pkg.CONST", "pkg.CONST"), ("nan", "nan"),
]  # fmt: skip

BAD: list[tuple[str, str, int | None]] = [
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n', 49),
    ("hermes", "<tool_call></tool_call>", 11),
    ("hermes", 'x</tool_call><tool_call>{"name":"f","arguments":{}}</tool_call>', 1),
    ("hermes", '<tool_call>{"name":"f","arguments":{}} {"name":"g","arguments":{}}</tool_call>', 39),
    ("hermes", '<tool_call>{"name":"f"}</tool_call>', 11),
    ("hermes", "<tool_call>{'name': 'f', 'arguments': {}}</tool_call>", 12),
    ("json", '[{"name": "f", "arguments": {"a": 1}}', 37),
    ("json", '[{"name": "f", "arguments": {"a": 1}}] ok', 39),
    ("json", '[{"name": "f", "arguments": {"a": 1}},]', 38),
    ("json", '[{"name": 3, "arguments": {}}]', 10),
    ("json", '[{"arguments": {}}]', 1),
    ("json", '[{"name": "f", "arguments": [1]}]', 28),
    ("json", '[{"name": "f", "arguments": "x"}]', 28),
    ("json", '[{"name": "f", "arguments": "{} {}"}]', 28),
    ("json", '[{"name": "f", "arguments": {"a": 1, "a": 2}}]', 37),
    ("json", '[{"name": "f", "arguments": {"a": {"b": 1, "b": 2}}}]', 43),
    ("json", '[{"name": "f", "arguments": {}, "parameters": {}}]', 33),
    ("json", '[{"name": "f", "arguments": {"a": NaN}}]', 34),
    ("json", '[{"name": "f", "arguments": {"a": -Infinity}}]', 34),
    ("json", '[{"name": "f", "arguments": {"a": 1e999}}]', 34),
    ("json", '[{"name": "f", "arguments": {"a": 01}}]', 35),
    ("json", '[{"name": "f", "arguments": {"a": True}}]', 34),
    ("json", r'[{"name": "f", "arguments": {"a": "\q"}}]', 35),
    ("json", '```json\n[{"name": "f", "arguments": {}}]\n```', 9),
    ("json", "[1]", 1),
    ("json", "{", 1),
    ("llama3_json", '{"name": "f", "parameters": {}} {"name": "g", "parameters": {}}', 32),
    ("llama3_json", '{"name": "f", "parameters": {}};', 32),
    ("llama3_json", '[{"name": "f", "parameters": {}}]', 1),
    ("llama3_json", "<|python_tag|>print(1)", 14),
    ("python", "[f(5)]", 4),
    ("python", "[f(5), g(a=1)]", 4),
    ("python", "[f(a=1, 5)]", 8),
    ("python", "[f(a=1, **b=2)]", 8),
    ("python", "[f(x, y)]", 7),
    ("python", "[f(a=1)", 7),
    ("python", "[f(a=1", 6),
    ("python", '[f(a="x)]', 9),
    ("python", "[f]", 3),
    ("python", "[", 1),
    ("python", "[(a=1)]", 1),
    ("python", "[f(), , g()]", 6),
    ("python", "[f()\n g()]", 6),
    ("python", "[f(a=1) g(b=2)]", 8),
    ("python", "[f(a=1)] ok", 9),
    ("python", "[f(a=1, a=2)]", 8),
    ("python", "[f(a=1, **{'a': 2})]", 12),
    ("python", "f(a=1)", 0),
    ("python", "```python\n[f(a=1)]\n```", None),
    ("python", "Sure: [f(a=1)]", 6),
    ("python", value("2*3"), 6),
    ("python", value("g(b=1)"), 6),
    ("python", value("NaN"), 5),
    ("python", value("1e999"), 5),
    ("python", value("007"), 5),
    ("python", value("1 2"), 7),
    ("python", value("New York"), 9),
    ("python", value("2024-01-15"), 9),
    ("python", value("{1, 2}"), 7),
    ("python", value("{[1]: 2}"), 6),
    ("python", value("b'x'"), 6),
    ("python", value("f'{x}'"), 6),
    ("python", value(r'"\xZZ"'), 6),
    ("python", value(""), 5),
]


@pytest.mark.parametrize(("syntax", "text", "expected"), GOOD)
def test_good_text_gives_the_calls(syntax: str, text: str, expected: tuple[ToolCall, ...]) -> None:
    assert get_syntax(syntax).parse(text) == expected


@pytest.mark.parametrize(("text", "expected"), PYTHON_VALUES)
def test_python_value(text: str, expected: Any) -> None:
    parsed = get_syntax("python").parse(value(text))
    assert isinstance(parsed, tuple), parsed
    assert repr(parsed[0].arguments["a"]) == repr(expected)  # repr tells 1 from 1.0 and from True


@pytest.mark.parametrize(("syntax", "text", "position"), BAD)
def test_malformed_text_gives_an_error_and_its_place(syntax: str, text: str, position: int | None) -> None:
    parsed = get_syntax(syntax).parse(text)
    assert isinstance(parsed, ParseError), parsed
    assert parsed.reason
    assert position is None or parsed.position == position


def test_code_stays_data() -> None:
    attack = "__import__('os').system('x')"
    for text in (f"[f(a={attack})]", f"[{attack}]", f"[f({attack})]", f"[f(a=[{attack}])]", f"[f(a=lambda: {attack})]"):
        assert isinstance(get_syntax("python").parse(text), ParseError)
    assert get_syntax("python").parse(f'[f(a="{attack}")]') == calls(("f", {"a": attack}))


PRINTED = {
    "hermes": '<tool_call>\n{"name": "f", "arguments": {"a": {"k": [1, true, null]}, "b": "\u00e9\\n"}}\n</tool_call>'
              '\n<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>',
    "json": '[{"name": "f", "arguments": {"a": {"k": [1, true, null]}, "b": "\u00e9\\n"}}, '
            '{"name": "g", "arguments": {}}]',
    "python": '[f(a={"k": [1, True, None]}, b="\u00e9\\n"), g()]',
    "python_compact": '[f(a={"k":[1,True,None]},b="\u00e9\\n"),g()]',
    "llama3_json": '{"name": "f", "parameters": {"a": {"k": [1, true, null]}, "b": "\u00e9\\n"}}; '
                   '{"name": "g", "parameters": {}}',
}  # fmt: skip


@pytest.mark.parametrize("syntax", NAMES)
def test_printed_text(syntax: str) -> None:
    assert (
        get_syntax(syntax).print(calls(("f", {"a": {"k": [1, True, None]}, "b": "\u00e9\n"}), ("g", {})))
        == PRINTED[syntax]
    )
    assert get_syntax(syntax).print(()) == ("[]" if syntax in ("json", "python", "python_compact") else "")


def test_print_raises_for_no_json_value() -> None:
    deep: Any = 0
    for _ in range(20_000):
        deep = [{"k": deep}]
    for syntax in SYNTAXES.values():
        for argument in (deep, 10**5000, "\ud83d", "\x00", -0.0, 1e308):
            text = syntax.print([ToolCall(name="f", arguments={"a": argument})])
            parsed = syntax.parse(text)
            refused = argument is deep or argument == 10**5000
            assert isinstance(parsed, ParseError) if refused else parsed == calls(("f", {"a": argument}))


ODD_TEXTS = st.sampled_from(['"', "\\", "</tool_call>", "a), b(", "'''", "}]", "\ud800", "\u2028", "**", "a b", "a\n"])
TEXTS = st.text(st.characters(), max_size=12) | ODD_TEXTS
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)
ODD_NAMES = st.sampled_from(
    ["Get Data (v2)", "a.b/c-d", "M4.5+, Past 7", "Strong's", "[x]", "]", "f (a b) g", "x)", "{", "a\tb"]
    + ["f((", "(", ")"]
)


def python_name_is_kept(name: str) -> bool:
    """The rule of the class docstring, written a second time."""
    if not name or name != name.strip() or name.startswith(",") or "\n" in name or "\r" in name:
        return False
    if re.search(r"\(\s*\)|\(\s*\*\*\s*\{|\([^()]*=", name):
        return False
    return not re.search(r"\(.*\)\s*[,\]]", name, re.DOTALL)


def call_lists(names: st.SearchStrategy[str]) -> st.SearchStrategy[list[ToolCall]]:
    call = st.builds(lambda n, a: ToolCall(name=n, arguments=a), names, st.dictionaries(TEXTS, VALUES, max_size=3))
    return st.lists(call, max_size=3)


def check_round_trip(syntax: Syntax, written: list[ToolCall]) -> None:
    text = syntax.print(written)
    read = syntax.parse(text)
    assert repr(read) == repr(tuple(written))
    spans = syntax.spans(text)
    assert [(s.start, -s.end) for s in spans] == sorted((s.start, -s.end) for s in spans)
    for index, call in enumerate(written):
        of_call = [s for s in spans if s.call_index == index]
        assert sum(s.kind == "call" for s in of_call) == 1 and sum(s.kind == "name" for s in of_call) == 1
        assert sum(s.kind == "key" for s in of_call) == sum(s.kind == "value" for s in of_call) == len(call.arguments)


@pytest.mark.parametrize("syntax", ["hermes", "json", "llama3_json"])
@settings(max_examples=100, deadline=None)
@given(written=call_lists(TEXTS | ODD_NAMES))
def test_round_trip_of_json_syntaxes_for_every_name(syntax: str, written: list[ToolCall]) -> None:
    check_round_trip(get_syntax(syntax), written)


@pytest.mark.parametrize("syntax", ["python", "python_compact"])
@settings(max_examples=100, deadline=None)
@given(written=call_lists((TEXTS | ODD_NAMES).filter(python_name_is_kept)))
def test_round_trip_of_python_syntaxes(syntax: str, written: list[ToolCall]) -> None:
    check_round_trip(get_syntax(syntax), written)


FRAGMENTS = st.sampled_from(
    [*'[](){}"\\=,:;* \n', "f", "a=", "1", "<tool_call>", "</tool_call>", "<|python_tag|>"]
    + ['{"name":', '"f"', '"arguments":', "**{"]
)


@pytest.mark.parametrize("syntax", NAMES)
@settings(max_examples=100, deadline=None)
@given(text=st.lists(FRAGMENTS, max_size=20).map("".join) | st.text(st.characters(), max_size=30))
def test_nothing_raises_and_spans_stay_inside(syntax: str, text: str) -> None:
    parsed = get_syntax(syntax).parse(text)
    assert isinstance(parsed, tuple | ParseError)
    if isinstance(parsed, ParseError):
        assert 0 <= parsed.position <= len(text)
    for span in get_syntax(syntax).spans(text):
        assert 0 <= span.start <= span.end <= len(text)


MEGA = 1_000_000
HOSTILE = [
    "[", "(", "{", "<tool_call>", "</tool_call>", '"', "\\", "[(", "[f(", "f(", "f (a ", "[f(a=", "[f(a)", "\ud800",
    "\x00", " ", "\n", "`", "a\n", "```a", '{"name":', '{"a', "((((a b ", ")", "[f(**{", '[f(a="', "[f(a='\\",
    "\\n",
]  # fmt: skip
PREFIXES = [
    "", "[", "[f(", "[f(a=", '[f(a="', "[f(a=[", '[{"name":"f","arguments":{"a":', '[{"name":"f","arguments":{"a":[',
    '<tool_call>{"name":"f","arguments":{"a":"', "```",
]  # fmt: skip


ELEMENTS = ["1,", '"x",', "{'k':1},", "null,"]  # these are read as values, which takes longer than refusing them


def test_a_megabyte_of_anything_is_answered_at_once() -> None:
    slow = []
    for unit in HOSTILE + ELEMENTS:
        size = MEGA // 10 if unit in ELEMENTS else MEGA
        for prefix in PREFIXES:
            text = (prefix + unit * (size // len(unit)))[:size]
            for syntax in SYNTAXES.values():
                start = time.process_time()
                parsed = syntax.parse(text)
                if time.process_time() - start > 0.9:
                    slow.append((syntax.name, prefix, unit))
                assert isinstance(parsed, ParseError) or parsed == ()
    assert not slow


@pytest.mark.parametrize("syntax", NAMES)
def test_limits(syntax: str) -> None:
    s = get_syntax(syntax)

    def nested(depth: int) -> str:
        return s.print([ToolCall(name="f", arguments={"a": 1})]).replace("1", "[" * depth + "]" * depth)

    assert isinstance(s.parse(nested(64)), tuple)
    assert isinstance(s.parse(nested(65)), ParseError)
    assert isinstance(s.parse(nested(100_000)), ParseError)
    assert isinstance(s.parse(nested(1).replace("[]", "9" * 4300)), tuple)
    assert isinstance(s.parse(nested(1).replace("[]", "9" * 4301)), ParseError)
    assert isinstance(s.parse(nested(1).replace("[]", "0." + "1" * 4299)), ParseError)
    assert isinstance(s.parse(" " * 1_000_001), ParseError)


def test_a_name_has_a_longest_length() -> None:
    assert get_syntax("python").parse(f"[{'n' * 512}()]") == calls(("n" * 512, {}))
    assert get_syntax("python").parse(f"[{'n' * 513}()]") == ParseError("name of more than 512 characters", 1)


SPANS: list[tuple[str, str, list[tuple[str, str, int]]]] = [
    ("python", '[Get (v2)(a="x", b-c = [1, 2]), g()]', [
        ("call", 'Get (v2)(a="x", b-c = [1, 2])', 0), ("name", "Get (v2)", 0), ("key", "a", 0), ("value", '"x"', 0),
        ("key", "b-c", 0), ("value", "[1, 2]", 0), ("call", "g()", 1), ("name", "g", 1)]),
    ("python", '[f(**{"odd key=": 1})]', [
        ("call", 'f(**{"odd key=": 1})', 0), ("name", "f", 0), ("key", "odd key=", 0), ("value", "1", 0)]),
    ("python", '[f(a=1), g(b="x', [
        ("call", "f(a=1)", 0), ("name", "f", 0), ("key", "a", 0), ("value", "1", 0), ("name", "g", 1),
        ("key", "b", 1)]),
    ("json", '[{"name": "f", "arguments": {"a": {"b": 1}}}]', [
        ("call", '{"name": "f", "arguments": {"a": {"b": 1}}}', 0), ("name", "f", 0), ("key", "a", 0),
        ("value", '{"b": 1}', 0)]),
    ("json", '{"arguments": "{}", "name": "f"}', [("call", '{"arguments": "{}", "name": "f"}', 0), ("name", "f", 0)]),
    ("hermes", 'Hi <tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', [
        ("call", '{"name": "f", "arguments": {"a": 1}}', 0), ("name", "f", 0), ("key", "a", 0), ("value", "1", 0)]),
    ("llama3_json", '{"name": "f", "parameters": {}}; {"name": "g', [("call", '{"name": "f", "parameters": {}}', 0),
    ("name", "f", 0)]),
    ("python", "plain text", []),
]  # fmt: skip


@pytest.mark.parametrize(("syntax", "text", "expected"), SPANS)
def test_spans(syntax: str, text: str, expected: list[tuple[str, str, int]]) -> None:
    assert [(s.kind, text[s.start : s.end], s.call_index) for s in get_syntax(syntax).spans(text)] == expected


def test_syntaxes_are_found_by_name() -> None:
    assert tuple(sorted(SYNTAXES)) == tuple(sorted(NAMES))
    for name in NAMES:
        assert isinstance(get_syntax(name), Syntax) and get_syntax(name).name == name
    with pytest.raises(ConfigError, match=r"xml.*hermes, json, python, python_compact, llama3_json"):
        get_syntax("xml")
    with pytest.raises(ConfigError, match="separator"):
        PythonSyntax(separator=";")
