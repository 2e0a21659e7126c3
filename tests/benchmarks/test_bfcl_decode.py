"""Decoding of answers: the two readers against each other, the documented forms, and texts made to break a reader."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from ttpa.benchmarks.bfcl import python_calls
from ttpa.benchmarks.bfcl.decode import FAILED, WRONG_FORM, Undecoded, decode
from ttpa.benchmarks.bfcl.fold import MAX_BITS
from ttpa.benchmarks.bfcl.foreign_calls import read_foreign_call
from ttpa.benchmarks.bfcl.python_calls import MAX_CHARS, MAX_DEPTH, Undecodable, read_calls


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("[f(a=1)]", [("f", {"a": 1})]),
        ("f(a=1)", [("f", {"a": 1})]),
        ("```\n[f(a=1)]\n```", [("f", {"a": 1})]),
        ("[f(a=1), g.h.i(b='x')]", [("f", {"a": 1}), ("g.h.i", {"b": "x"})]),
        ("[]", []),
        ("", []),
        ("[f()]", [("f", {})]),
        ("[f(5, 'x', a=1)]", [("f", {"a": 1})]),  # positional arguments are dropped
        ("[f(a=1, a=2)]", [("f", {"a": 2})]),
        ("[f(a=-1, b=-1.5, c=+2, d=not True)]", [("f", {"a": -1, "b": -1.5, "c": -2, "d": -1})]),
        ("[f(a=True, b=None, c=true, d=Paris)]", [("f", {"a": True, "b": None, "c": "true", "d": "Paris"})]),
        ("[f(a=(1, 2), b=[1, (2,)])]", [("f", {"a": (1, 2), "b": [1, (2,)]})]),
        ("[f(a={'x': [1, {'y': null}]})]", [("f", {"a": {"x": [1, {"y": "null"}]}})]),
        ('[f(a={"x": [1, {"y": "z"}]}, b=["u", "v"])]', [("f", {"a": {"x": [1, {"y": "z"}]}, "b": ["u", "v"]})]),
        ("[f(a=['x', \"it's\"], )]", [("f", {"a": ["x", "it's"]})]),
        ("[f(a=2*3, b='a' + 'b', c=[0] * 2, d=7 // 2, e=2 ** -1)]",
         [("f", {"a": 6, "b": "ab", "c": [0, 0], "d": 3, "e": 0.5})]),
        ("[f(a=g(b=1), c=h(2), d=x[0], e=...)]", [("f", {"a": {"g": {"b": 1}}, "c": "h(2)", "d": "x[0]", "e": "..."})]),
        ("[f(**{'a': 1})]", [("f", {None: {"a": 1}})]),
        ("[f(a='x' 'y', b='''z''', c=r'\\d', d=1_000, e=0x10)]",
         [("f", {"a": "xy", "b": "z", "c": "\\d", "d": 1000, "e": 16})]),
        ("[f(a='\\u00e9\\n')]", [("f", {"a": "é\n"})]),
        ("[año(vehículo='é')]", [("año", {"vehículo": "é"})]),
        ("[f(a=1) # end\n]", [("f", {"a": 1})]),
        ("[f(a=007)]", None),
        ("[f(a=1]", None),
        ("[f(a=1)]\n[g(b=2)]", None),
        ("```python\n[f(a=1)]\n```", None),
        ("Sure: [f(a=1)]", None),
        ("I'm sorry, I cannot do that.", None),
        ('[{"name": "f", "arguments": {"a": 1}}]', None),
        ("[f g(a=1)]", None),
        ("[f-g(a=1)]", None),
        ("[f(a=1), 5]", None),
        ("[f(a=A.B)]", None),
        ("[f(a=lambda x: x)]", None),
        ("[f(a=1 < 2)]", None),
        ("[f(a={1, 2})]", None),
        ("[f(a={[1]: 2})]", None),
        ("[f(class='x')]", None),
        ("[f(a=1/0)]", None),
        ("[f(a=x + 1)]", None),
        ("[f(a=f'{x}')]", None),
        ("[*f(a=1)]", None),
        ("[f(a=1) for x in y]", None),
        ("[f(a=1)", [("f", {"a": 1})]),
    ],
)  # fmt: skip
def test_python(text: str, calls: list[Any] | None) -> None:
    found = decode(text)
    if calls is None:
        assert isinstance(found, Undecoded) and found.error_type == FAILED and found.reason
    else:
        assert found == calls
        assert [type(v) for _, given in found for v in given.values()] == [
            type(v) for _, given in calls for v in given.values()
        ]


WORDS = [
    "f", "a", "g.h", "True", "None", "true", "if", "1", "-2", "3.5", "-0", "007", "1e5", "1_0", "'x'", '"y"',
    "'it\\'s'", "''", '"a, b) c"', "(", ")", "[", "]", "{", "}", ",", "=", ":", " ", "\n", "\t", "f(a=1)", "a=",
    "b=[1, 'x']", "c={'k': 1}", 'd={"k": [1, 2]}', "é", "\u00a0", "#", "\\", "*", "-", "'", '"', "...", "5j", "b'x'",
    "\r", "\f",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_quick_reader_agrees_with_the_careful_one(seed: int) -> None:
    """Wherever the quick reader gives an answer, Python's parser gives the same, types and order included."""
    rng = random.Random(seed)
    quick = 0
    for _ in range(4000):
        inner = ", ".join(
            f"{rng.choice('abc')}={''.join(rng.choices(WORDS, k=rng.randrange(1, 4)))}" for _ in range(rng.randrange(4))
        )
        text = f"[{rng.choice(('f', 'g.h', 'x'))}({inner})]"
        if rng.random() < 0.3:
            at = rng.randrange(len(text))
            text = "[" + text[:at] + rng.choice(WORDS) + text[at + 1 :] + "]"
        found = python_calls._quick(text)
        if found is not None:
            quick += 1
            assert repr(found) == repr(python_calls._careful(text)), text
    assert quick > 500


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ([{"f": '{"a": 1}'}], [("f", {"a": 1})]),
        ([{"f": "{}"}, {"g": '{"b": [true, null]}'}], [("f", {}), ("g", {"b": [True, None]})]),
        ([], []),
        ("", []),
        ({}, []),
        ("f(a=1)", FAILED),
        ([{}], FAILED),
        ([{"f": {"a": 1}}], FAILED),
        ([{"f": "a=1"}], FAILED),
        (["f"], FAILED),
        (None, FAILED),
        (7, FAILED),
        ({"f": "{}"}, FAILED),
        ([{"f": "[1]"}], WRONG_FORM),
        ([{"f": "7"}], WRONG_FORM),
        ([{"f": "[" * 100_000}], FAILED),
    ],
)
def test_function_calling(result: Any, expected: Any) -> None:
    found = decode(result, function_calling=True)
    assert (found.error_type if isinstance(found, Undecoded) else found) == expected


def test_form_is_told_by_type_unless_said() -> None:
    assert decode("f(a=1)") == [("f", {"a": 1})]
    assert isinstance(decode("f(a=1)", function_calling=True), Undecoded)
    assert isinstance(decode([{"f": "{}"}], function_calling=False), Undecoded)


@pytest.mark.parametrize(
    ("language", "text", "call"),
    [
        ("java", "[A.f(x=\"s\", y='abc', z=5, u=true, v=null)]",
         ("A.f", {"x": "s", "y": "abc", "z": "5", "u": "true", "v": "null"})),
        ("java", "A.f(x=5L, y=2.0f, z=-1.5e3)", ("A.f", {"x": "5L", "y": "2.0f", "z": "-1.5e3"})),
        ("java", "A.f(x=new int[]{1, 2, 3})", ("A.f", {"x": "new int[]{1,2,3}"})),
        ("java", "A.f(x=new ArrayList<>(Arrays.asList(1, 2)))", ("A.f", {"x": "new ArrayList<>(Arrays.asList(1, 2))"})),
        ("java", 'A.f(x=new HashMap<String, A>() {{ put("a", b); }})', ("A.f", {"x": "new HashMap<String,A>()"})),
        ("java", "A.f(x=y -> y.z(1, 2), u=B.class)", ("A.f", {"x": "y->y.z(1, 2)", "u": "B.class"})),
        ("java", 'A.f(x="a" + b, y=(int) 5)', ("A.f", {"x": '"a"+b', "y": "(int)5"})),
        ("java", "A.f(1, \"x\", y)", ("A.f", {None: "y"})),
        ("java", "A.f(x=[1, 2], y=3)", FAILED),
        ("java", 'A.f(x={"a": 1}, y=3)', FAILED),
        ("java", "A.f(x=1, x=2)", FAILED),
        ("java", "A.f(x=1), A.f(x=2)", FAILED),
        ("java", "A.f(x=new int[3], y=1)", FAILED),
        ("java", "f(x=1)", FAILED),  # shorter than what the official parser mends
        ("java", "The answer is 5.", FAILED),
        ("java", "[[A.f(x='y', z=5)]]", ("A.f", {"x": "y", "z": "5"})),
        ("java", "[ [A.f(x=12)] ;]", ("A.f", {"x": "12"})),
        ("java", "[[A.f(x=1)]]", FAILED),
        ("java", "[[A.f(x=1)];]", ("A.f", {"x": "1"})),
        ("java", "[[A.f(x='y', z=5);]]", FAILED),
        ("java", "[[[A.f(x='y', z=5)]]]", FAILED),
        ("java", "[[A.f(x='y')], [A.f(x='z')]]", FAILED),
        ("java", "", WRONG_FORM),
        ("java", "new Thing(x=1)", WRONG_FORM),
        ("javascript", "f(a=[1, 'x'], b={k: 1, 'l': [2]}, c=\"s\")",
         ("f", {"a": "[1, 'x']", "b": "{k: 1, 'l': [2]}", "c": "s"})),
        ("javascript", "f(a=x => x + 1, b=function(y) { return y; })",
         ("f", {"a": "x => x + 1", "b": "function(y) { return y; }"})),
        ("javascript", "f(a=`t${x}`, b=new Array(1, 2), c=undefined)",
         ("f", {"a": "`t${x}`", "b": "new Array(1, 2)", "c": "undefined"})),
        ("javascript", "f(a=1); g(b=2)", ("f", {"a": "1"})),
        ("javascript", "f(a=1), g(b=2)", WRONG_FORM),
        ("javascript", "hello", WRONG_FORM),
        ("javascript", "", WRONG_FORM),
        ("javascript", "f(x, y)", FAILED),
        ("javascript", "f(a: 1)", FAILED),
        ("javascript", "f(a=1", FAILED),
        ("javascript", "I cannot do that.", FAILED),
    ],
)  # fmt: skip
def test_java_and_javascript(language: Any, text: str, call: Any) -> None:
    found = decode(text, language=language)
    assert (found.error_type if isinstance(found, Undecoded) else found[0]) == call


@pytest.mark.parametrize("language", ["java", "javascript"])
def test_quick_foreign_reader_agrees_with_the_parser(language: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The short cut for plain arguments gives what the parser gives."""
    from ttpa.benchmarks.bfcl import foreign_calls

    rng = random.Random(5)
    words = [
        "x",
        "'s'",
        '"t"',
        "5",
        "-1.5",
        "true",
        "new",
        "if",
        "",
        "''",
        "a.b",
        "[1]",
        "null",
        "class",
        "in",
        "async",
    ]
    texts = [
        f"[A.method(p={rng.choice(words)}, {key}={rng.choice(words)}{end})]"
        for key in ("q", "in", "new", "p")
        for end in ("", ",", " ")
        for _ in range(50)
    ]

    def read(text: str) -> Any:
        try:
            return read_foreign_call(text, language)
        except Undecodable:
            return "undecodable"

    found = [read(text) for text in texts]
    monkeypatch.setattr(foreign_calls, "_quick", lambda text, language: None)
    assert found == [read(text) for text in texts]


HOSTILE = {
    "parentheses": "(" * 1_000_000,
    "lists": "[" * 150_000,
    "nested calls": "f(a=" * 40_000,
    "closed lists": "f(a=" + "[" * 5_000 + "]" * 5_000 + ")",
    "dicts": "f(a=" + "{1:" * 3_000 + "1" + "}" * 3_000 + ")",
    "minus signs": "f(a=" + "-" * 100_000 + "1)",
    "sum": "f(a=" + "1+" * 50_000 + "1)",
    "attributes": "f" + ".a" * 60_000 + "(b=1)",
    "megabyte of words": "word " * 250_000,
    "megabyte of commas": "f(" + "a=1," * 250_000 + ")",
    "many items": "f(a=[" + "1," * 90_000 + "])",
    "open quotes": "f(a=" + "'" * 99_999,
    "backslashes": "f(a='" + "\\" * 99_999 + "')",
    "power of a power": "f(a=9**9**9**9)",
    "shift": "f(a=1 << 10**9)",
    "long string": "f(a='x' * 10**9)",
    "long list": "f(a=[0] * 10**9)",
    "padded format": "f(a='%999999999d' % 1)",
    "long number": "f(a=" + "9" * 100_000 + ")",
    "long hexadecimal": "f(a=0x" + "f" * 100_000 + ", b=2)",
    "null character": "f(a='\0')",
    "surrogate": "f(a='\ud800')",
    "surrogates in a name": "\udfff(a=1)",
    "control characters": "".join(map(chr, range(32))) + "f(a=1)",
    "byte-order mark": "\ufefff(a=1)",
    "import": "__import__('os').system(command='echo evaluated')",
    "import in arithmetic": "f(a=__import__('os').getpid() + 1)",
    "exit in a comprehension": "f(a=[exit() for _ in '1'])",
    "lambda": "f(a=(lambda: exit())())",
    "subscript with a call": "f(a=x[exit()])",
    "nested f-strings": "f(a=" + "f'{" * 100 + "}'" * 100 + ")",
    "brackets of a Java array": "Foo.f(a=new int[]" + "{" * 10_000 + "}" * 10_000 + ")",
    "angle brackets": "Foo.f(a=new A" + "<A" * 3_000 + ">" * 3_000 + "())",
    "open comment": "Foo.f(a=1) /*" + "*" * 100_000,
    "ternaries": "Foo.f(a=" + "b ? " * 20_000 + ")",
    "arrows": "f(a=" + "x => " * 20_000 + "1)",
    "new": "f(a=" + "new " * 20_000 + "X)",
    "async": "f(a=" + "async " * 20_000 + "x => 1)",
    "casts": "Foo.f(a=" + "(int) " * 20_000 + "1)",
    "member chain": "Foo.f(a=" + "b.c()." * 2_000 + "d)",
    "templates": "f(a=" + "`x`" * 4_000 + ")",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("language", ["python", "java", "javascript"])
def test_hostile_texts(language: Any, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing raises, hangs or is evaluated."""
    started = time.perf_counter()
    found = decode(HOSTILE[name], language=language)
    assert isinstance(found, list | Undecoded)
    assert time.perf_counter() - started < 5
    assert "evaluated" not in "".join(capfd.readouterr())


def test_limits() -> None:
    with pytest.raises(Undecodable, match="longer than"):
        read_calls("f(a='" + "x" * MAX_CHARS + "')")
    deep = "[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2)
    assert isinstance(read_calls(f"f(a={deep}, b=g())")[0][1]["a"], list)
    with pytest.raises(Undecodable, match="nested"):
        read_calls(f"f(a=[[{deep}]], b=g())")
    for inner in (deep[1:-1], f"x, {deep[1:-1]}"):  # as JSON is read, and with a name
        assert isinstance(read_calls(f"f(a=[{inner}])")[0][1]["a"], list)
        with pytest.raises(Undecodable, match="nested"):
            read_calls(f"f(a=[[{inner}]])")
    assert read_calls(f"f(a='{'(' * 500}', b=g())")[0][1]["a"] == "(" * 500  # brackets in strings do not count
    assert read_calls(f"f(a=2**{MAX_BITS // 2})")[0][1]["a"] == 2 ** (MAX_BITS // 2)
    with pytest.raises(Undecodable, match="too many digits"):
        read_calls(f"f(a=2**{MAX_BITS})")


def test_json_is_read_as_python_reads_it() -> None:
    """What JSON and Python spell alike but mean differently goes to Python's reader."""
    texts = [
        "[true]",
        '["\\/"]',
        '["\\ud83d\\ude00"]',
        "[NaN]",
        "[Infinity]",
        "[1.]",
        "[01]",
        '["a" "b"]',
        "[1,]",
        "['true']",
    ]
    for text in texts:
        call = f"f(a={text}, b={json.dumps(text)})"
        try:
            expected = python_calls._careful(f"[{call}]")
        except Undecodable:
            with pytest.raises(Undecodable):
                read_calls(call)
        else:
            assert repr(read_calls(call)) == repr(expected)
