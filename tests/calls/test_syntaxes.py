"""Call syntaxes: what parses, what is refused, printing undone by parsing, spans, cuts, open calls, hostile text."""

import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttpa.calls.syntaxes import SYNTAXES, OpenCall, ParseError, get_syntax, token_cuts
from ttpa.errors import ConfigError
from ttpa.records import ToolCall

NAMES = ("hermes", "json", "python", "python_compact", "llama3_json", "hermes_list", "mistral")


def calls(*pairs: tuple[str, dict[str, Any]]) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(name=name, arguments=arguments) for name, arguments in pairs)


F1 = calls(("f", {"a": 1}))
FG = calls(("f", {"a": 1}), ("g", {}))


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
    ("hermes", 'No tool fits. {"name": "f"}', ()), ("hermes", "", ()),
    ("json", '[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]', FG),
    ("json", ' {"name": "f", "parameters": {"a": 1}} ', F1),
    ("json", '[{"name": "f", "arguments": "{\\"a\\": 1}"}]', F1),
    ("json", '[{"id": [1, {"x": null}], "name": "f", "arguments": {"a": 1}}]', F1),
    ("json", r'[{"name":"f","arguments":{"a":"\ud83d\ude00\/\u00e9"}}]', calls(("f", {"a": "\U0001f600/\u00e9"}))),
    ("json", '[{"name":"f","arguments":{"a":-1.5e2}}]', calls(("f", {"a": -150.0}))),
    ("json", 'The file says "name": 3.', ()),
    ("llama3_json", '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}', FG),
    ("llama3_json", '<|python_tag|>{"name": "f", "parameters": {"a": 1}}\n{"name": "g", "arguments": {}}', FG),
    ("llama3_json", "[]", ()), ("llama3_json", "It is 5; that is all.", ()), ("python", "[f(a=1), g()]", FG),
    ("python", "[f(a=1),g(),]", FG), ("python", " [\n  f( a = 1 ) ,\n  g( )\n] \n", FG), ("python", "", ()),
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
    ("hermes_list", 'So:<tool_call>[{"name": "f", "arguments": {"a": 1}},\n'
     '{"name": "g", "arguments": {}}]</tool_call>', FG),
    ("hermes_list", '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', F1),
    ("hermes_list", "<tool_call>[]</tool_call>", ()), ("hermes_list", "[]", ()),
    ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "call00000"}]', F1),
    ("mistral", ' [TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}] ', FG),
    ("mistral", "No tool fits.", ()),
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
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n', 49), ("hermes", "<tool_call></tool_call>", 11),
    ("hermes", 'x</tool_call><tool_call>{"name":"f","arguments":{}}</tool_call>', 1),
    ("hermes", '<tool_call>{"name":"f","arguments":{}} {"name":"g","arguments":{}}</tool_call>', 39),
    ("hermes", '<tool_call>{"name":"f"}</tool_call>', 11),
    ("hermes", '<tool_call>[{"name":"f","arguments":{}}]</tool_call>', 11),
    ("hermes_list", '<tool_call>[{"name":"f","arguments":{}}</tool_call>', 39),
    ("hermes_list", '<tool_call>[{"name":"f","arguments":{}}]', 40),
    ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}', 50),
    ("mistral", 'Sure. [TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]', 6),
    ("mistral", '[{"name": "f", "arguments": {"a": 1}}]', 1),
    ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {}}] ok', 46),
    ("hermes", "<tool_call>{'name': 'f', 'arguments': {}}</tool_call>", 12),
    ("json", '[{"name": "f", "arguments": {"a": 1}}', 37), ("json", '[{"name": "f", "arguments": {"a": 1}}] ok', 39),
    ("json", '[{"name": "f", "arguments": {"a": 1}},]', 38), ("json", '[{"arguments": {}}]', 1),
    ("json", '[{"name": "f", "arguments": [1]}]', 28), ("json", '[{"name": "f", "arguments": "x"}]', 28),
    ("json", '[{"name": "f", "arguments": "{} {}"}]', 28),
    ("json", '[{"name": "f", "arguments": {"a": 1, "a": 2}}]', 37),
    ("json", '[{"name": "f", "arguments": {"a": {"b": 1, "b": 2}}}]', 43),
    ("json", '[{"name": "f", "arguments": {}, "parameters": {}}]', 33),
    ("json", '[{"name": "f", "arguments": {"a": NaN}}]', 34),
    ("json", '[{"name": "f", "arguments": {"a": 1e999}}]', 34),
    ("json", '[{"name": "f", "arguments": {"a": 01}}]', 35), ("json", '[{"name": "f", "arguments": {"a": True}}]', 34),
    ("json", r'[{"name": "f", "arguments": {"a": "\q"}}]', 35),
    ("json", r'[{"name": "f", "arguments": {"a": "\x41"}}]', 35),
    ("json", '```json\n[{"name": "f", "arguments": {}}]\n```', 9), ("json", "[1]", 1),
    ("llama3_json", '{"name": "f", "parameters": {}} {"name": "g", "parameters": {}}', 32),
    ("llama3_json", '{"name": "f", "parameters": {}};', 32), ("llama3_json", '[{"name": "f", "parameters": {}}]', 1),
    ("llama3_json", "<|python_tag|>print(1)", 14), ("python", "[f(5)]", 4), ("python", "[f(a=1, 5)]", 8),
    ("python", "[f(a=1, **b=2)]", 8), ("python", "[f(x, y)]", 7), ("python", "[f(a=1)", 7), ("python", '[f(a="x)]', 9),
    ("python", "[f]", 3), ("python", "[(a=1)]", 1), ("python", "[f(), , g()]", 6), ("python", "[f()\n g()]", 6),
    ("python", "[f(a=1)] ok", 9), ("python", "[f(a=1, a=2)]", 8), ("python", "[f(a=1, **{'a': 2})]", 12),
    ("python", "f(a=1)", 0), ("python", "```python\n[f(a=1)]\n```", None), ("python", value("2*3"), 6),
    ("python", value("g(b=1)"), 6), ("python", value("NaN"), 5), ("python", value("1e999"), 5),
    ("python", value("007"), 5), ("python", value("1 2"), 7), ("python", value("New York"), 9),
    ("python", value("{1, 2}"), 7), ("python", value("{[1]: 2}"), 6), ("python", value("b'x'"), 6),
    ("python", value(r'"\xZZ"'), 6), ("python", value(""), 5),
]  # fmt: skip


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


THOUGHTS = [  # %c is a call, %w one that only thoughts make; the last two begin inside a thought, or so it turns out
    "<think>I call %w</think>%c", "<THINK>\n%w?</Think>\n\n %c", "<think>a</think><think>%w</think> %c",
    "%c\n<think>%w</think>", "%c <think>and %w", "<think>Not %w.</think>No tool fits.", "<think>First %w. %w",
    "Text. <think>%w</think>", "Or %w?</think>\n%c", "<think>a <think>b</think> %w</think>%c",
]  # fmt: skip


@pytest.mark.parametrize("form", THOUGHTS)
@pytest.mark.parametrize("syntax", NAMES)
def test_a_thought_makes_no_call(syntax: str, form: str) -> None:
    right, wrong = (get_syntax(syntax).print(calls((name, {"a": 1}))) for name in "fg")
    text, made = form.replace("%w", wrong).replace("%c", right), calls(("f", {"a": 1})) * ("%c" in form)
    assert get_syntax(syntax).parse(text) == made
    assert [text[s.start : s.end] for s in get_syntax(syntax).spans(text) if s.kind == "name"] == ["f"] * len(made)
    open_call, opened = OpenCall(get_syntax(syntax)), []
    for char in text:
        was = open_call.inside
        open_call.push(char)
        opened += [char] * (open_call.inside > was)
    assert len(opened) == len(made) or form in THOUGHTS[-2:]


@pytest.mark.parametrize("text", ["</think>", "a</think>b", "<think>x</think>", "<THINK>"])
@pytest.mark.parametrize("syntax", NAMES)
def test_tags_of_thoughts_in_a_call_are_text(syntax: str, text: str) -> None:
    made = calls(("f", {"a": text, text: 1}), ("g", {}))
    assert get_syntax(syntax).parse(get_syntax(syntax).print(made)) == made
    assert isinstance(get_syntax("python").parse(f'[f(a="{text}", 5)]'), ParseError)


QUOTED = [
    ('The customer is {"name": "Alice", "age": 31}. Anything else?', False),
    ('It sent {"name": "x", "tags": {"arguments": 1}} and {"parameters": {"name": {}}}.', False),
    ('I looked: {"arguments": {}} }, "name": "f"', False),
    ('Call: {"type": "function", "function": {"name": "f", "arguments": {"a', True),
    ('Call: {"parameters": {"a": {}}, "id": 3, "name": "f"}', True),
]


@pytest.mark.parametrize(("text", "call"), QUOTED)
@pytest.mark.parametrize("syntax", ["json", "llama3_json"])
def test_a_text_may_quote_an_object_that_is_no_call(syntax: str, text: str, call: bool) -> None:
    assert isinstance(get_syntax(syntax).parse(text), ParseError) is call


def test_code_stays_data() -> None:
    attack = "__import__('os').system('x')"
    for text in (f"[f(a={attack})]", f"[{attack}]", f"[f({attack})]", f"[f(a=[{attack}])]"):
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
    "hermes_list": '<tool_call>[{"name": "f", "arguments": {"a": {"k": [1, true, null]}, "b": "\u00e9\\n"}}, '
                   '{"name": "g", "arguments": {}}]</tool_call>',
    "mistral": '[TOOL_CALLS] [{"name": "f", "arguments": {"a": {"k": [1, true, null]}, "b": "\u00e9\\n"}}, '
               '{"name": "g", "arguments": {}}]',
}  # fmt: skip


@pytest.mark.parametrize("syntax", NAMES)
def test_printed_text(syntax: str) -> None:
    written = calls(("f", {"a": {"k": [1, True, None]}, "b": "\u00e9\n"}), ("g", {}))
    assert get_syntax(syntax).print(written) == PRINTED[syntax]
    assert get_syntax(syntax).print(()) == ("[]" if PRINTED[syntax].startswith("[") and syntax != "mistral" else "")


@pytest.mark.parametrize("value", ["\ud83d", "\x00", -0.0, 1e308, 10**4000, {1: 2, None: True}])
def test_odd_values_are_printed_and_read_back(value: Any) -> None:
    for syntax in SYNTAXES.values():
        parsed = syntax.parse(syntax.print([ToolCall(name="f", arguments={"a": value})]))
        expected = {"1": 2, "null": True} if isinstance(value, dict) else value
        assert repr(parsed) == repr(calls(("f", {"a": expected})))


ODD_TEXTS = st.sampled_from(['"', "\\", "</tool_call>", "a), b(", "'''", "}]", "\ud800", "\u2028", "**", "a b", "a\n"])
TEXTS = st.text(st.characters(), max_size=12) | ODD_TEXTS
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)
PLAIN_NAMES = ["Get Data (v2)", "a.b/c-d", "Strong's", "[x]"]
ODD_NAMES = st.sampled_from([*PLAIN_NAMES, "M4.5+, Past 7", "]", "f (a b) g", "x)", "{", "a\tb", "f((", "(", ")"])


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


@pytest.mark.parametrize("syntax", NAMES)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_round_trip(syntax: str, data: st.DataObject) -> None:
    names = TEXTS | ODD_NAMES
    names = names.filter(python_name_is_kept) if syntax.startswith("python") else names
    written = data.draw(call_lists(names))
    text = get_syntax(syntax).print(written)
    assert repr(get_syntax(syntax).parse(text)) == repr(tuple(written))
    spans = get_syntax(syntax).spans(text)
    assert [(s.start, -s.end) for s in spans] == sorted((s.start, -s.end) for s in spans)
    open_call, inside = OpenCall(get_syntax(syntax)), []
    for char in text if all(call.name in PLAIN_NAMES for call in written) else "":
        open_call.push(char)
        inside.append(open_call.inside)
    assert not open_call.inside
    whole = [span for span in spans if span.kind == "call"]
    for call, around in zip(written, whole, strict=True):
        assert all(inside[around.start : around.end - 1])
        kinds = [s.kind for s in spans if around.start <= s.start and s.end <= around.end]
        assert kinds.count("name") == 1 and kinds.count("key") == kinds.count("value") == len(call.arguments)


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


HOSTILE = [
    "[", "(", "{", "<tool_call>", '"', "\\", "[(", "f(", "f (a ", "[f(a=", "[f(a)", " ", "\n", "`", "a\n",
    '{"name":', '{"a', "((((a b ", ")", "[f(**{", "[f(a='\\", "\\n", "1,", '"x",', "{'k':1},",
]  # fmt: skip
PREFIXES = ["", "[f(", '[f(a="', '[{"name":"f","arguments":{"a":[', '<tool_call>{"name":"f","arguments":{"a":"', "```"]


def test_hostile_text_is_read_in_linear_time() -> None:
    slow = []
    for unit in HOSTILE:
        for prefix in PREFIXES:
            text = prefix + unit * (100_000 // len(unit))
            for name in ("hermes", "json", "python", "llama3_json"):
                start = time.process_time()
                parsed = get_syntax(name).parse(text)
                if time.process_time() - start > 3:  # 0.07 s on an idle machine; quadratic reading takes minutes
                    slow.append((name, prefix, unit))
                assert isinstance(parsed, ParseError) or parsed == ()
    assert not slow


@pytest.mark.parametrize("syntax", NAMES)
def test_nesting_and_numbers_have_limits(syntax: str) -> None:
    frame = get_syntax(syntax).print([ToolCall(name="f", arguments={"a": 1})])

    def read(value: str) -> object:
        return get_syntax(syntax).parse(frame.replace("1", value))

    assert isinstance(read("[" * 64 + "]" * 64), tuple)
    for value in ("[" * 65 + "]" * 65, "[" * 100_000, "9" * 4301):
        assert isinstance(read(value), ParseError)


SPANS: list[tuple[str, str, list[tuple[str, str]]]] = [
    ("python", '[Get (v2)(a="x", b-c = [1, 2]), g()]', [
        ("call", 'Get (v2)(a="x", b-c = [1, 2])'), ("name", "Get (v2)"), ("key", "a"), ("value", '"x"'),
        ("key", "b-c"), ("value", "[1, 2]"), ("call", "g()"), ("name", "g")]),
    ("python", '[f(**{"odd key=": 1})]', [
        ("call", 'f(**{"odd key=": 1})'), ("name", "f"), ("key", "odd key="), ("value", "1")]),
    ("python", '[f(a=1), g(b="x', [
        ("call", "f(a=1)"), ("name", "f"), ("key", "a"), ("value", "1"), ("name", "g"),
        ("key", "b")]),
    ("json", '[{"name": "f", "arguments": {"a": {"b": 1}}}]', [
        ("call", '{"name": "f", "arguments": {"a": {"b": 1}}}'), ("name", "f"), ("key", "a"),
        ("value", '{"b": 1}')]),
    ("json", '{"arguments": "{}", "name": "f"}', [("call", '{"arguments": "{}", "name": "f"}'), ("name", "f")]),
    ("hermes", 'Hi <tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', [
        ("call", '{"name": "f", "arguments": {"a": 1}}'), ("name", "f"), ("key", "a"), ("value", "1")]),
    ("llama3_json", '{"name": "f", "parameters": {}}; {"name": "g', [("call", '{"name": "f", "parameters": {}}'),
    ("name", "f")]),
    ("python", "plain text", []),
]  # fmt: skip


@pytest.mark.parametrize(("syntax", "text", "expected"), SPANS)
def test_spans(syntax: str, text: str, expected: list[tuple[str, str]]) -> None:
    assert [(s.kind, text[s.start : s.end]) for s in get_syntax(syntax).spans(text)] == expected


def test_a_syntax_is_found_by_name() -> None:
    assert [get_syntax(name).name for name in NAMES] == list(NAMES) and set(SYNTAXES) == set(NAMES)
    with pytest.raises(
        ConfigError, match=r"xml.*hermes, hermes_list, mistral, json, python, python_compact, llama3_json"
    ):
        get_syntax("xml")


PIECES = ["[", "f", "(a", "=1", ", b", "='x", "'), g", "", "(", ")", "]", ""]


def test_cuts_worked_out_by_hand() -> None:
    python = get_syntax("python")
    # f | 1 | 'x' and f(...) and g, which end inside the seventh token | g() behind an empty token and "("
    assert token_cuts(PIECES, python) == [2, 4, 7, 10]
    assert token_cuts(PIECES, python, ("key",)) == [3, 5]
    assert token_cuts(PIECES, python, ["call"]) == [7, 10]
    assert token_cuts(PIECES[:10], python) == [2, 4, 7]  # not behind the last token
    assert token_cuts(PIECES[:7], python) == [2, 4]  # an unfinished answer: the second name may go on
    assert token_cuts([*PIECES[:6], "' oops", *PIECES[6:]], python) == [2, 4, 7]  # up to the fault
    assert token_cuts(["No ", "tool ", "fits."], python) == token_cuts([], python) == []
    # f ends before its quote, with the second token; 1 with the fifth; the call with the last
    assert token_cuts(['{"name', '": "f', '", ', '"arguments": {', '"a": 1', "}", "}"], get_syntax("json")) == [2, 5]


# A text and, below each character, whether the next one is written inside a call (#).
OPEN: list[tuple[str, str, str]] = [
    ("python", " [f(a=1), g()] x [",
               ".############....."),
    ("python", "[f[v2](c=[1, ')]'], d=\"]\\\"]\"), Strong's()].",
               "#########################################.."),
    ("python", "x[f(a=1)]",
               "........."),
    ("python", "[f(5 [ ]) ok] [",
               "############..#"),
    ("json", '[{"name":"]"}]',
             "#############."),
    ("json", '{"name":"f}","arguments":{}} ',
             "###########################.."),
    ("json", "No [1].",
             "......."),
    ("hermes", 'a<tool_call>{"a":"</tool_call>"} </tool_call>b<tool_call>',
               "...........#################################............#"),
    ("llama3_json", '{"name":"}","parameters":{}} ; {"',
                    "###########################....##"),
    ("llama3_json", '\n<|python_tag|>{"a":{}} {',
                    "..............########..#"),
    ("llama3_json", "<|py{",
                    "....."),
    ("python", "<think>[f(</THINK>\n[g()]<think>[ '",
               "...................####............"),
    ("hermes", "a<think><tool_call></think><tool_call>b<think>",
               ".....................................#########"),
    ("json", "[no]?</think>[{",
             "###..........##"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "expected"), OPEN)
@pytest.mark.parametrize("size", [1, 3])
def test_whether_a_call_is_open_after_each_piece(name: str, text: str, expected: str, size: int) -> None:
    call, found = OpenCall(get_syntax(name)), ""
    for at in range(0, len(text), size):
        call.push(text[at : at + size])
        found += "#" if call.inside else "."
    assert found == "".join(expected[min(at + size, len(text)) - 1] for at in range(0, len(text), size))
