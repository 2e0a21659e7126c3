"""Expressions of Java and JavaScript as trees: a recursive parser, no more than answers need.

It knows literals, names, members, calls, indices, `new`, arrays and objects of each language, operators, casts and
lambdas. Bodies of functions and classes are read over as balanced brackets. Statements other than expressions, Java's
annotations and generic casts, JavaScript's classes and regular expressions are outside; they count as malformed.

The official decoder's parser mends some slips, and what it mends decodes; of these, the ones met with are mended here
in the same way: an operand missing before a parenthesis, an array's bracket before one, keywords as names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from ttpa.benchmarks.bfcl import foreign_tokens as vocabulary
from ttpa.benchmarks.bfcl.categories import Language
from ttpa.benchmarks.bfcl.foreign_tokens import Token, tokens
from ttpa.benchmarks.bfcl.python_calls import Undecodable

MAX_NESTING = 60
MENDED_BYTES = 11


@dataclass(slots=True)
class Node:
    """A part of an expression: what it is, which characters, and the parts in order, tokens included.

    `kind` is one of token, string, char, identifier, literal, true, class_literal, field, call, args, assignment,
    augmented, paren, array_creation, creation, type, sequence, or group for all that needs no name.
    """

    kind: str
    start: int
    end: int
    parts: list[Node] = field(default_factory=list)


class Parser:
    """Reads a text as expressions separated by semicolons (JavaScript: or line ends).

    Args:
        text: the source.
        language: java or javascript.

    Raises:
        Undecodable: the text holds something else.
    """

    def __init__(self, text: str, language: Language) -> None:
        self.text = text
        self.java = language == "java"
        self.tokens = list(tokens(text, language))
        self.at = 0
        self.words = vocabulary.JAVA_WORDS if self.java else vocabulary.JS_WORDS
        self.arrow = "->" if self.java else "=>"

    def statements(self) -> list[Node]:
        """The expressions of the text, in order."""
        found: list[Node] = []
        while self._here().kind != "end":
            if self._take(";"):
                continue
            if self._here().kind == "name" and self._here().text in vocabulary.STATEMENTS:
                self._fail()
            node = self._expression(0)
            while not self.java and self._take(","):
                following = self._expression(0)
                node = Node("sequence", node.start, following.end, [node, following])
            found.append(node)
            here = self._here()
            ended = here.kind == "end" or here.text == ";" or (here.new_line and not self.java)
            if not ended and not self._stray(node):
                self._fail()
        if self.java and len(found) == 1 and not self._is(";", -1):
            self._mend(found[0])
        return found

    def _stray(self, node: Node) -> bool:
        """Reads over one last token behind a JavaScript call, unless the call is short."""
        here = self._here()
        last = here.kind in ("name", "number", "string") and self._here(1).kind == "end"
        if self.java or not last or len(self.text[node.start : node.end].encode()) < MENDED_BYTES:
            return False
        self.at += 1
        return True

    def _mend(self, node: Node) -> None:
        """Refuses what the official parser does not mend when Java's semicolon is missing, as it always is.

        A short text is cheaper to discard than to mend, and a dotted name alone may be many things.
        """
        source = self.text[self.tokens[0].start : self.tokens[-2].end]
        if len(source.encode()) < MENDED_BYTES or (
            node.kind == "field" and self._here(-len(self.tokens)).text != "this"
        ):
            self._fail()

    # --- tokens ------------------------------------------------------------------------------------------------------

    def _here(self, ahead: int = 0) -> Token:
        return self.tokens[max(0, min(self.at + ahead, len(self.tokens) - 1))]

    def _is(self, text: str, ahead: int = 0) -> bool:
        here = self._here(ahead)
        return here.text == text and here.kind in ("sign", "name")

    def _take(self, text: str) -> bool:
        if self._is(text):
            self.at += 1
            return True
        return False

    def _next(self) -> Node:
        token = self._here()
        if token.kind == "end":
            self._fail()
        self.at += 1
        return Node("token", token.start, token.end)

    def _expect(self, text: str) -> Node:
        if not self._is(text):
            self._fail()
        return self._next()

    def _fail(self) -> NoReturn:
        here = self._here()
        raise Undecodable(f"not {'java' if self.java else 'javascript'}: character {here.start}")

    def _group(self, parts: list[Node], kind: str = "group") -> Node:
        return Node(kind, parts[0].start, parts[-1].end, parts)

    def _balanced(self, parts: list[Node]) -> None:
        """Reads over a bracket and all it holds, token by token."""
        closing = []
        while True:
            token = self._here()
            if token.kind == "sign" and token.text in vocabulary.PAIRS:
                closing.append(vocabulary.PAIRS[token.text])
            elif token.kind == "sign" and token.text in (")", "]", "}") and closing.pop() != token.text:
                self._fail()
            parts.append(self._next())
            if not closing:
                return

    # --- expressions -------------------------------------------------------------------------------------------------

    def _expression(self, depth: int) -> Node:
        """One expression: operands with operators between; an operand may be an assignment."""
        if depth > MAX_NESTING:
            raise Undecodable(f"nested more than {MAX_NESTING} deep")
        binary = vocabulary.BINARY if self.java else vocabulary.JS_BINARY
        parts = [self._operand(depth)]
        while True:
            here = self._here()
            if here.kind in ("sign", "name") and here.text in binary:
                parts += [self._next(), self._operand(depth)]
            elif self._is("?"):
                parts += [self._next(), self._expression(depth + 1), self._expect(":"), self._expression(depth + 1)]
            else:
                return parts[0] if len(parts) == 1 else self._group(parts)

    def _operand(self, depth: int) -> Node:
        parts = []
        while self._here().kind in ("sign", "name") and self._here().text in (
            vocabulary.UNARY if self.java else vocabulary.JS_UNARY
        ):
            parts.append(self._next())
        if parts and self._is(")"):  # the operand is missing
            end = self._here(-1).end
            return self._group([*parts, Node("token", end, end)])
        node = self._postfix(self._primary(depth), depth)
        here = self._here()
        targets = ("identifier", "field", "index", "identifier" if self.java else "paren")
        signs = vocabulary.ASSIGN if self.java else vocabulary.JS_ASSIGN
        if not parts and node.kind in targets and here.kind == "sign" and here.text in signs:
            kind = "assignment" if self.java or here.text == "=" else "augmented"
            return self._group([node, self._next(), self._expression(depth + 1)], kind)
        return self._group([*parts, node]) if parts else node

    def _postfix(self, node: Node, depth: int) -> Node:
        while True:
            here = self._here()
            if here.kind == "template" and not self.java:
                node = self._group([node, self._next()])
            elif here.kind != "sign":
                return node
            elif here.text in (".", "?."):
                node = self._member(node)
            elif here.text == "(" and (not self.java or node.kind in ("identifier", "field")):
                node = self._group([node, self._arguments(depth)], "call")
            elif here.text == "[":
                node = self._group([node, self._next(), self._expression(depth + 1), self._expect("]")], "index")
            elif here.text == "::" and self.java:
                node = self._group([node, self._next(), self._next()])
            elif here.text in ("++", "--") and not here.new_line:
                node = self._group([node, self._next()])
            else:
                return node

    def _member(self, node: Node) -> Node:
        dot = self._next()
        here = self._here()
        if here.kind != "name" or (self.java and here.text == "new"):
            self._fail()
        kind = "class_literal" if self.java and here.text == "class" and not self._is("(", 1) else "field"
        name = self._next()
        return self._group([node, dot, Node("identifier", name.start, name.end)], kind)

    def _arguments(self, depth: int) -> Node:
        opened = self._expect("(")
        parts: list[Node] = []
        while not self._is(")"):
            if parts and (self.java or not self._is(",")):
                self._expect(",")
            while not self.java and self._take(","):  # JavaScript may leave arguments out
                pass
            if not self.java and self._is(")"):
                break
            if not self.java and self._is("..."):
                parts.append(self._group([self._next(), self._expression(depth + 1)]))
            else:
                parts.append(self._expression(depth + 1))
        return Node("args", opened.start, self._expect(")").end, parts)

    def _primary(self, depth: int) -> Node:
        here = self._here()
        if here.kind in ("string", "char", "number", "template"):
            node = self._next()
            node.kind = here.kind if here.kind in ("string", "char") else "literal"
            return node
        if here.kind == "name":
            return self._word(depth)
        if here.text == "(":
            return self._parentheses(depth)
        if here.text == "[" and not self.java:
            return self._array(depth)
        if here.text == "{" and not self.java:
            return self._object(depth)
        self._fail()

    def _word(self, depth: int) -> Node:
        here = self._here()
        if here.text == "new":
            return self._creation(depth)
        if self._is(self.arrow, 1):
            return self._lambda([self._next()], depth)
        if not self.java and here.text == "async" and (self._is("function", 1) or self._is(self.arrow, 2)):
            return self._group([self._next(), self._word(depth)])
        if not self.java and here.text == "function":
            return self._function()
        if here.text in self.words and not (
            here.text in vocabulary.PRIMITIVES and self._is(".", 1) and self._is("class", 2)
        ):
            self._fail()
        node = self._next()
        literal = here.text in vocabulary.LITERALS or (here.text == "undefined" and not self.java)
        node.kind = "true" if here.text == "true" else "literal" if literal else "identifier"
        return node

    def _function(self) -> Node:
        parts = [self._next()]
        if self._is("*"):
            parts.append(self._next())
        if self._here().kind == "name":
            parts.append(self._next())
        for bracket in "({":
            if not self._is(bracket):
                self._fail()
            self._balanced(parts)
        return self._group(parts)

    def _lambda(self, parts: list[Node], depth: int) -> Node:
        parts.append(self._expect(self.arrow))
        if self._is("{"):
            self._balanced(parts)
        else:
            parts.append(self._expression(depth + 1))
        return self._group(parts)

    def _parentheses(self, depth: int) -> Node:
        start, inside = self.at, list[Node]()
        self._balanced(inside)
        if self._is(self.arrow):
            return self._lambda(inside, depth)
        self.at = start
        parts = [self._next()]
        primitive = self.java and self._here().text in vocabulary.PRIMITIVES
        parts.append(self._next() if primitive else self._expression(depth + 1))
        while not self.java and self._is(","):
            parts += [self._next(), self._expression(depth + 1)]
        parts.append(self._expect(")"))
        here = self._here()
        operand = here.kind in ("string", "char", "number") or here.text in ("(", "!", "~")
        if self.java and (operand or (here.kind == "name" and here.text != "instanceof")):  # a cast
            return self._group([*parts, self._operand(depth + 1)])
        return self._group(parts, "paren")

    def _array(self, depth: int) -> Node:
        parts = [self._next()]
        while not self._is("]"):
            if self._is(","):  # a hole
                parts.append(self._next())
                continue
            if self._is("..."):
                parts.append(self._next())
            if self._is(")"):  # the bracket is missing
                return self._group(parts)
            parts.append(self._expression(depth + 1))
            if not self._is("]") and not self._is(")"):
                parts.append(self._expect(","))
        return self._group([*parts, self._next()])

    def _object(self, depth: int) -> Node:
        parts = [self._next()]
        while not self._is("}"):
            if self._is(")"):
                return self._group(parts)
            parts += self._property(depth)
            if not self._is("}"):
                parts.append(self._expect(","))
        return self._group([*parts, self._next()])

    def _property(self, depth: int) -> list[Node]:
        here = self._here()
        if here.text == "..." and here.kind == "sign":
            return [self._next(), self._expression(depth + 1)]
        if here.text == "[" and here.kind == "sign":
            parts = [self._next(), self._expression(depth + 1), self._expect("]")]
        elif here.kind in ("name", "string", "number"):
            parts = [self._next()]
        else:
            self._fail()
        if self._is("("):  # a method
            for bracket in "({":
                if not self._is(bracket):
                    self._fail()
                self._balanced(parts)
        elif self._is(":"):
            parts += [self._next(), self._expression(depth + 1)]
        elif here.kind != "name" or here.text in self.words:
            self._fail()
        return parts

    def _creation(self, depth: int) -> Node:
        new = self._next()
        if not self.java:
            callee = self._primary(depth + 1)
            while self._is("."):
                callee = self._member(callee)
            return self._group([new, callee, self._arguments(depth)] if self._is("(") else [new, callee])
        kind = self._type()
        if self._is("("):
            made = self._group([new, kind, self._arguments(depth)], "creation")
            if self._is("{"):
                body: list[Node] = []
                self._balanced(body)
                made.end = body[-1].end
            return made
        parts, sized = [new, kind], False
        if not self._is("["):
            self._fail()
        while self._take("["):
            if not self._is("]"):
                self._expression(depth + 1)
                sized = True
            parts.append(self._expect("]"))
        values = [] if sized else [self._initialiser(depth)]
        return Node("array_creation", new.start, (values or parts)[-1].end, [kind, *values])

    def _type(self) -> Node:
        """A type behind `new`: dotted names, each with arguments in angle brackets or not."""
        parts: list[Node] = []
        while True:
            here = self._here()
            if here.kind != "name" or here.text in ("new", "void"):
                self._fail()
            parts.append(self._next())
            depth = 0
            while self._here().kind in ("sign", "name") and (depth or self._is("<")):
                text = self._here().text
                depth += 1 if text == "<" else -len(text) if text in (">", ">>", ">>>") else 0
                if depth < 0 or not (text in "<>>>,.?&[]" or self._here().kind == "name"):
                    self._fail()
                parts.append(self._next())
            if not self._is("."):
                return self._group(parts, "type" if len(parts) == 1 else "group")
            parts.append(self._next())

    def _initialiser(self, depth: int) -> Node:
        if depth > MAX_NESTING:
            raise Undecodable(f"nested more than {MAX_NESTING} deep")
        parts = [self._expect("{")]
        while not self._is("}"):
            parts.append(self._initialiser(depth + 1) if self._is("{") else self._expression(depth + 1))
            if not self._is("}"):
                parts.append(self._expect(","))
        return self._group([*parts, self._next()])
