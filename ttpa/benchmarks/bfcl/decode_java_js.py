"""Java and JavaScript answers: the call in a text, by tree-sitter, and its arguments as Python values.

Each assignment of `[Class.method(a="x", n=5)]` becomes name -> source text, which the checker converts by the type the
function document gives. Official quirks are kept: elements are cut at every comma, an object ends at its first brace.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any

from ttpa.benchmarks.bfcl.categories import Language, need
from ttpa.benchmarks.bfcl.decode_python import WRONG_FORMAT, Call, Undecodable, as_list

MAX_SOURCE = 10_000  # longer texts are not parsed: a grammar may take time that grows with the square of the length
MAX_VALUE = 10_000  # longer values stay texts

# Another grammar reads malformed answers in another way, so its verdicts are not the official ones.
PINNED = {"tree-sitter": "0.21.3", "tree-sitter-java": "0.21.0", "tree-sitter-javascript": "0.21.4"}


@cache
def parser(language: Language) -> Any:
    """The parser of a language; see `need`."""
    install = "pip install " + " ".join(f"{name}=={number}" for name, number in PINNED.items())
    need("Java and JavaScript answers of BFCL need the extra bfcl-java-js", PINNED, install)
    import tree_sitter

    made = tree_sitter.Parser()
    made.set_language(tree_sitter.Language(import_module(f"tree_sitter_{language}").language(), language))
    return made


def read_java_js(result: Any, language: Language) -> list[Call]:
    """Reads one call, whose outer brackets may be missing; raises Undecodable where it is none."""
    source = as_list(result)[1:-1]
    if len(source) > MAX_SOURCE:
        raise Undecodable(f"longer than {MAX_SOURCE} characters")
    root = parser(language).parse(source.encode()).root_node
    try:
        if "ERROR" in root.sexp():  # but a token that is only missing does no harm
            raise Undecodable(f"not {language}")
        call = _java_call(source, root) if language == "java" else _js_call(root)
    except (RecursionError, IndexError, AttributeError) as error:  # malformed in a way the parser has mended
        raise Undecodable(f"not readable as {language} ({type(error).__name__})") from None
    if call is None:
        raise Undecodable("an expression that is no call", WRONG_FORMAT)
    return [call]


def _arguments(given: Any, text: Callable[[Any], str], value: Callable[[Any], str], *unnamed: str) -> dict[Any, Any]:
    """Assignments by name; an argument of one of the `unnamed` kinds under None, any other is dropped."""
    found: dict[Any, Any] = {}
    for node in given.children:
        named = node.type == "assignment_expression"
        if named or node.type in unnamed:
            name = text(node.children[0]) if named else None
            if name in found:
                raise Undecodable("an argument is given twice")
            found[name] = value(node.children[2] if named else node)
    return found


def _js_call(root: Any) -> Call | None:
    """The first call that is a statement of its own."""

    def text(node: Any) -> Any:
        return node.text.decode()

    statements = [one for one in root.children if one.type == "expression_statement"]
    for node in (node for one in statements for node in one.children if node.type == "call_expression"):
        name, given = node.children[:2]
        return text(name), _arguments(given, text, lambda one: _unquoted(text(one)), "identifier", "true")
    return None


_WHOLE_NODES = ("string_literal", "character_literal", "identifier", "class_literal", "type_identifier",
                "method_invocation")  # fmt: skip


def _java_call(source: str, node: Any) -> Call | None:
    """The first call in the tree."""

    def text(part: Any) -> str:
        """As the official decoder takes bytes for characters: behind one of several bytes, texts are shifted."""
        return source[part.start_byte : part.end_byte]

    def value(part: Any) -> str:
        """The tokens of an expression without the spaces between them."""
        field = part.child_by_field_name
        if part.type == "array_creation_expression":
            return f"new {value(field('type'))}[]{value(field('value'))}"
        if part.type == "object_creation_expression":  # the body of an anonymous class is left out
            given = [value(one) for one in field("arguments").children if one.type not in ("(", ",", ")")]
            return f"new {value(field('type'))}({', '.join(given)})"
        return text(part) if part.type in _WHOLE_NODES or not part.children else "".join(map(value, part.children))

    def argument(part: Any) -> str:
        return text(part)[1:-1] if part.type in ("string_literal", "character_literal") else value(part)

    if node.type != "method_invocation":
        return next((call for child in node.children if (call := _java_call(source, child))), None)
    owner, name = node.child_by_field_name("object"), text(node.child_by_field_name("name"))
    given = _arguments(node.child_by_field_name("arguments"), text, argument, "identifier", "class_literal")
    return f"{text(owner)}.{name}" if owner else name, given


Converter = Callable[[str, str | None], Any]  # text and type of elements -> value, or the text itself


def convert(text: str, kind: str, inner: str | None, language: Language) -> Any:
    """The value of a text by `kind`, one of `KINDS[language]`, and the type of a list's elements, `inner`; any other
    kind, or a wrong form, leaves the text.
    """
    _, converter = KINDS[language].get(kind, (str, None))
    return converter(text, inner) if converter and len(text) <= MAX_VALUE else text


def _number(form: str, make: type[int] | type[float]) -> Converter:
    def number(text: str, inner: str | None) -> Any:
        with suppress(ValueError):  # too many digits
            return make(text.rstrip("\n").rstrip("lLfFn")) if re.match(f"{form}$", text) else text
        return text

    return number


_BOOLEANS = {"true": True, "false": False}
_WHOLE, _REAL = r"-?\d+", r"-?\d+(\.\d+)?([eE][+-]?\d+)?"
_LONG, _JAVA_FLOAT = _number(f"{_WHOLE}[lL]", int), _number(f"{_REAL}[fF]", float)


def _unquoted(text: str, inner: str | None = None, quotes: str = "\"'") -> str:
    return text[1:-1] if text[:1] in quotes and text[:1] == text[-1:] else text


def _guess(text: str, quotes: str = "\"'", numbers: Sequence[Converter] = ()) -> Any:
    """A value whose type is not known: truth value, quoted text, number, or the text as it is."""
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    for found in (_unquoted(text, None, quotes), *(number(text, None) for number in numbers)):
        if found is not text:
            return found
    for make in (int, float):
        with suppress(ValueError):
            return make(text)
    return text


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _java_element(text: str, inner: str | None) -> Any:
    return convert(text, inner, None, "java") if inner else _guess(text, '"', (_LONG, _JAVA_FLOAT))


def _java_list(text: str, inner: str | None) -> Any:
    if found := re.search(r"new\s+ArrayList<\w*>\(Arrays\.asList\(([^\n]+?)\)\)", text):
        parts = _split(found[1])
    elif found := re.search(r"new\s+ArrayList<\w*>\(\)\s*\{\{(.+?)\}\}", text, re.DOTALL):
        parts = [part.strip() for part in re.findall(r"add\(([^\n]+?)\)", found[1])]
    else:
        return [] if re.search(r"new\s+ArrayList<\w*>\(\)", text) else text
    # Quotes are cut off unseen where the type says that there are some.
    return [part[1:-1] if inner in ("char", "String") else _java_element(part, inner) for part in parts]


def _java_array(text: str, inner: str | None) -> Any:
    found = re.search(r"new\s+\w+\[\]\s*\{([^}\n]*)\}", text)
    return [_java_element(part, inner) for part in _split(found[1]) if part] if found else text


def _java_map(text: str, inner: str | None) -> Any:
    if found := re.search(r"new\s+HashMap<.*?>\s*\(\)\s*\{([^}]*)\}", text, re.DOTALL):
        puts = [re.match(r'([^\n]*?)",\s*([^\n]*?)\)', part) for part in found[1].split('put("')[1:]]
        return {put[1]: _java_element(put[2].strip(), None) for put in puts if put}
    return {} if re.search(r"new\s+HashMap<[^\n]*?>\s*\(\)", text) else text


def _js_list(text: str, inner: str | None) -> Any:
    text = text.strip()
    opened = re.match(r"\[|new\s+Array\(", text)
    if opened is None:
        return text
    close, start = (r"\]" if text.startswith("[") else r"\)"), opened.end()
    # A row of a list of lists ends at the first `]` before the next row or the list's own closing bracket.
    row = rf"(?>[^\n]*?\](?=\s*(?:,\s*\[|{close})))"
    if found := re.compile(rf"\s*\[(?:{row}\s*,\s*\[)*+{row}\s*{close}").match(text, start):
        rows = re.findall(r"\[([^\]\n]*)\]", text[: found.end()])
        rows[0] = rows[0].strip().removeprefix("[")  # the first row begins with the bracket of the whole list
        return [[_guess(part) for part in _split(row)] for row in rows]
    if not (found := re.match(rf"([^\n]*?){close}", text[start:])):
        return text
    parts = _split(found[1]) if found[1].strip() else []
    if inner is None or not parts:
        return [_guess(part) for part in parts]
    return [convert(part, inner, None, "javascript") for part in parts] if inner in KINDS["javascript"] else text


def _js_object(text: str, inner: str | None) -> Any:
    found = re.match(r"\{([^\n]*?)\}", text.strip())
    if not found:
        return text.strip()
    pairs = {}
    for key, value in re.findall(r"([^:]+):\s*(.*?)(?:,\s*(?=[^,]+:)|$)", found[1]):
        value = value.strip()
        is_list = value.startswith("[") and value.endswith("]")
        pairs[key.strip().strip("'\"")] = _js_list(value, None) if is_list else _guess(value.strip("'\"").strip())
    return pairs


# Types in function documents -> the Python type of a value, and how a text becomes one. No question has those without.
KINDS: Mapping[Language, Mapping[str, tuple[type, Converter | None]]] = {
    "java": {
        **dict.fromkeys(("byte", "short", "integer"), (int, _number(_WHOLE, int))), "long": (int, _LONG),
        "float": (float, _JAVA_FLOAT), "double": (float, _number(_REAL, float)),
        "boolean": (bool, lambda text, _: _BOOLEANS.get(text, text)), "Array": (list, _java_array),
        "ArrayList": (list, _java_list), "HashMap": (dict, _java_map), "Set": (set, None), "Hashtable": (dict, None),
        **dict.fromkeys(("char", "String", "any"), (str, None)), **dict.fromkeys(("Queue", "Stack"), (list, None)),
    },
    "javascript": {
        "String": (str, _unquoted), "any": (str, None), "integer": (int, _number(_WHOLE, int)),
        "Bigint": (int, _number(f"{_WHOLE}n", int)), "float": (float, _number(rf"{_WHOLE}(\.\d+)?", float)),
        "Boolean": (bool, lambda text, _: _BOOLEANS.get(text, text)), "array": (list, _js_list),
        "dict": (dict, _js_object),
    },
}  # fmt: skip
