"""A language model as judge: any OpenAI-style chat endpoint, asked with the standard library, every verdict on disk.

A verdict is one reply to one prompt for one vote. It is appended to a file of JSON lines under the hash of all that
decides it (`Judge.key`) as soon as it is there, so whoever runs again asks only what is missing: a query with one of
its four votes is not done, and no vote is asked twice. Words that hold no verdict are asked for again; after that they
are kept as malformed, which their reader counts as unsure and reports. An endpoint that cannot be reached, or answers
with something that is no chat completion, stops the run instead: verdicts that nobody gave would look like results.

What this module does not do: write prompts or know what a verdict means (`ttpa.benchmarks.toolbench.prompts`).
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttpa.errors import ConfigError, DataError
from ttpa.io import dumps
from ttpa.run.waves import Shard

MAX_REPLY_BYTES = 1 << 20
"""A longer reply is no verdict and is not read to its end."""

_BRACES_TRIED = 32
_AGAIN = frozenset({408, 409, 425, 429})  # client errors that pass by themselves


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Who judges, and how patiently it is asked.

    Args:
        base_url: Up to and without `/chat/completions`, such as `http://localhost:8000/v1`.
        model: The name that the endpoint knows.
        api_key_env: Environment variable with the key; "" sends none. The key itself is never written anywhere.
        temperature: Above 0, since votes of a model without chance would be one vote.
        max_tokens: Longest reply.
        timeout_s: Seconds after which a request has failed.
        retries: How often a failed request is sent again.
        backoff_s: Seconds before the first of these; doubled each time, at most a minute.
        reasks: How often a reply that cannot be read is asked again.

    Raises:
        ConfigError: a value that cannot be used.

    Example:
        >>> Endpoint(base_url="http://localhost:8000/v1/", model="m").url
        'http://localhost:8000/v1/chat/completions'
    """

    base_url: str
    model: str
    api_key_env: str = ""
    temperature: float = 0.2
    max_tokens: int = 512
    timeout_s: float = 60.0
    retries: int = 4
    backoff_s: float = 1.0
    reasks: int = 2

    def __post_init__(self) -> None:
        def need(key: str, holds: bool, problem: str, remedy: str) -> None:
            if not holds:
                raise ConfigError.at(f"eval.endpoint.{key}", getattr(self, key), problem, remedy)

        url = isinstance(self.base_url, str) and self.base_url.startswith(("http://", "https://"))
        need("base_url", url, "must be an http address", "Use for example http://localhost:8000/v1")
        need("model", isinstance(self.model, str) and bool(self.model), "must be text", "Name the judge's model")
        need("api_key_env", isinstance(self.api_key_env, str), "must be text", "Use OPENAI_API_KEY, or '' for no key")
        for key, least in (("temperature", 0.0), ("timeout_s", 0.001), ("backoff_s", 0.0)):
            value = getattr(self, key)
            good = type(value) in (int, float) and least <= value < float("inf")
            need(key, good, f"must be a number of at least {least}", "Raise it")
        for key, smallest in (("max_tokens", 1), ("retries", 0), ("reasks", 0)):
            value = getattr(self, key)
            need(key, type(value) is int and value >= smallest, f"must be at least {smallest}", "Raise it")

    @property
    def url(self) -> str:
        """Where requests go."""
        return self.base_url.rstrip("/") + "/chat/completions"

    def headers(self) -> dict[str, str]:
        """Headers of a request.

        Raises:
            ConfigError: the environment has no key under the name that was given.
        """
        headers = {"Content-Type": "application/json"}
        if self.api_key_env:
            key = os.environ.get(self.api_key_env, "").strip()
            if not key:
                problem = "there is no such environment variable"
                raise ConfigError.at("api_key_env", self.api_key_env, problem, "Set it, or use ''")
            headers["Authorization"] = f"Bearer {key}"
        return headers


class Unreachable(Exception):
    """A request failed. `again` says whether another try may help."""

    def __init__(self, reason: str, again: bool) -> None:
        super().__init__(reason)
        self.again = again


Transport = Callable[[str, Mapping[str, str], bytes, float], bytes]
"""(url, headers, body, timeout in seconds) -> body of the reply, at most `MAX_REPLY_BYTES` + 1. Raises Unreachable."""


def post(url: str, headers: Mapping[str, str], body: bytes, timeout_s: float) -> bytes:
    """Sends a request with urllib; the usual transport.

    Raises:
        Unreachable: no connection, a timeout, a connection that broke, or a status that is no success.
    """
    end = time.monotonic() + timeout_s
    try:
        request = urllib.request.Request(url, data=body, headers=dict(headers), method="POST")
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:
            found = bytearray()
            while len(found) <= MAX_REPLY_BYTES and (part := reply.read1(1 << 16)):
                found += part
                if time.monotonic() > end:  # a byte now and then is no reply either
                    raise TimeoutError(f"no whole reply in {timeout_s} s")
            return bytes(found[: MAX_REPLY_BYTES + 1])
    except urllib.error.HTTPError as error:
        with error:
            said = _said(error, headers)
        raise Unreachable(f"HTTP {error.code}{said}", error.code >= 500 or error.code in _AGAIN) from None
    except ValueError as error:  # a header or an address that cannot be sent; its message might show the key
        raise Unreachable(type(error).__name__, again=False) from None
    except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        raise Unreachable(f"{type(error).__name__}: {error}", again=True) from None


def _said(error: urllib.error.HTTPError, headers: Mapping[str, str]) -> str:
    """The beginning of what a refusal says, without the key."""
    try:
        text = " ".join(error.read(2000).decode("utf-8", "replace").split())
    except (OSError, http.client.HTTPException):
        return ""
    key = headers.get("Authorization", "").removeprefix("Bearer ")
    return f": {(text.replace(key, '***') if key else text)[:200]}" if text else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What the judge is asked: a prompt, the field of its JSON reply that counts, and the values it may have."""

    prompt: str
    field: str
    choices: tuple[str, ...]


def content_of(body: bytes) -> str:
    """The text of a chat completion; "" where the model gave none.

    Raises:
        Unreachable: a body that is no chat completion, such as the page of a proxy.

    Example:
        >>> content_of(b'{"choices": [{"message": {"role": "assistant", "content": "solved"}}]}')
        'solved'
    """
    try:
        if len(body) > MAX_REPLY_BYTES:
            raise ValueError("too long")
        message = json.loads(body)["choices"][0]["message"]
        text = message.get("content")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Unreachable(f"no chat completion but {len(body)} bytes, {body[:60]!r}", again=True) from None
    return text if isinstance(text, str) else ""


def read_verdict(text: str, question: Question) -> str | None:
    """The choice in the judge's words; None where there is none to be read.

    The words hold, anywhere, a JSON object with the field; its case does not matter. A text that is nothing but a
    choice is read too. The last readable object counts, since a model may quote what it judges before it decides.

    Example:
        >>> question = Question(prompt="?", field="status", choices=("solved", "unsolved"))
        >>> read_verdict('Well: {"status": "Solved"}', question)
        'solved'
    """
    if (bare := text.strip().strip(".").lower()) in question.choices:
        return bare
    at, decoder = len(text), json.JSONDecoder()
    for _ in range(_BRACES_TRIED):
        at = text.rfind("{", 0, at)
        if at < 0:
            return None
        try:
            value, _ = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            continue
        said = value.get(question.field) if isinstance(value, Mapping) else None
        if isinstance(said, str) and said.strip().lower() in question.choices:
            return said.strip().lower()
    return None


class Judge:
    """Asks an endpoint and remembers. Safe to use from several threads, by one process a cache.

    Args:
        endpoint: Who is asked.
        cache: File of verdicts; made when the first one comes. A malformed verdict stays there: remove its line (its
            choice is null) to have it asked again.
        transport: Sends a request; tests give their own.
        sleep: Waits between tries; tests give their own.

    Raises:
        ConfigError: the cache is a file of another kind.
        DataError: a line behind the first is no row; names file and line.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        cache: Path,
        transport: Transport = post,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.requests = 0
        """Requests sent by this object, retries included."""
        self._shard = Shard(cache, key="key")
        self._known: dict[str, str | None] = {}
        try:
            for row in self._shard.rows():
                self._known[row["key"]] = row["choice"]
        except (KeyError, DataError) as error:
            if self._known and isinstance(error, DataError):
                raise
            problem, remedy = "holds rows that are no verdicts", "Give a file of its own, or one that is not there yet"
            raise ConfigError.at("cache", cache, problem, remedy) from None
        self._transport, self._lock, self._stopped = transport, threading.Lock(), threading.Event()
        self._sleep = sleep or self._stopped.wait

    def stop(self) -> None:
        """Nothing more is asked; requests on their way are still remembered."""
        self._stopped.set()

    def key(self, question: Question, vote: int) -> str:
        """What a verdict is remembered under: who was asked and how, what was asked, and how it was read."""
        one = self.endpoint
        parts = [one.url, one.model, one.temperature, one.max_tokens, vote]
        parts += [question.prompt, question.field, list(question.choices)]
        return hashlib.sha256(dumps(parts).encode("utf-8", "surrogatepass")).hexdigest()

    def ask(self, question: Question, vote: int) -> str | None:
        """The verdict of one vote: a choice of the question, or None where no reply could be read.

        Raises:
            ConfigError: the key is not in the environment, or the cache holds a verdict that nobody can give.
            DataError: the endpoint cannot be reached or refuses; what was judged so far is kept.
        """
        key = self.key(question, vote)
        with self._lock:
            if key in self._known:
                return self._kept(key, question)
        body = self._body(question.prompt, vote)
        choice, asked = None, 0
        while choice is None and asked <= self.endpoint.reasks:
            choice, asked = read_verdict(self._send(body), question), asked + 1
        row = {"key": key, "model": self.endpoint.model, "vote": vote, "field": question.field}
        with self._lock:
            if key not in self._known:
                self._shard.append([{**row, "choice": choice, "asked": asked}])
                self._known[key] = choice
            return self._known[key]

    def _kept(self, key: str, question: Question) -> str | None:
        choice = self._known[key]
        if choice not in (None, *question.choices):
            problem = f"holds {choice!r:.60} where one of {', '.join(question.choices)} belongs"
            raise ConfigError.at("cache", self._shard.path, problem, f"Remove the line of key {key}")
        return choice

    def _body(self, prompt: str, vote: int) -> bytes:
        request: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": self.endpoint.temperature,
            "max_tokens": self.endpoint.max_tokens,
            "seed": vote,  # endpoints that take seeds give each vote its own
        }
        return json.dumps(request).encode()

    def _send(self, body: bytes) -> str:
        headers = self.endpoint.headers()
        for attempt in range(self.endpoint.retries + 1):
            if self._stopped.is_set():
                raise DataError("the judge was stopped. Verdicts so far are kept; run the same command to go on.")
            with self._lock:
                self.requests += 1
            try:
                return content_of(self._transport(self.endpoint.url, headers, body, self.endpoint.timeout_s))
            except Unreachable as problem:
                if problem.again and attempt < self.endpoint.retries:
                    self._sleep(min(60.0, self.endpoint.backoff_s * 2**attempt))
                    continue
                raise DataError(
                    f"base_url={self.endpoint.base_url}: the judge cannot be asked ({problem}, after "
                    f"{attempt + 1} tries). Verdicts so far are in {self._shard.path}; run the same command to go on."
                ) from None
        raise AssertionError("the last try returns or raises")
