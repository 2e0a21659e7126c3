"""A language model behind an OpenAI-style chat endpoint, through the `openai` client (an extra).

What is secret, the key and the login of an address, goes to that host alone and stands in no error: no redirect is
followed, no proxy reads plain http, and headers that the environment has for OpenAI stay at home.
"""

import os
import re
import threading
from contextlib import suppress
from typing import Any
from unittest.mock import patch
from urllib.parse import SplitResult, unquote, urlsplit

from ttpa.errors import ConfigError


def address(base_url: str) -> SplitResult:
    """The parts of an http address without a query, whose keys would stand in logs; a ConfigError for any other."""
    with suppress(ValueError):
        parts = urlsplit(base_url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.query:
            return parts
    shown = re.sub("^(.*//)?.*@", r"\1***@", base_url).partition("?")[0]
    raise ConfigError.at("base_url", shown, "is no address of an endpoint", "Give http://HOST:PORT/v1, without a query")


class EndpointError(Exception):
    """Why no reply came, in one line without secrets. `status` is the HTTP status, 0 without one; `again`: another try
    may help; `retry_after` is what the endpoint asked for.
    """

    def __init__(self, reason: str, *, status: int = 0, again: bool = False, retry_after: str = "") -> None:
        super().__init__(reason)
        self.status, self.again, self.retry_after = status, again, retry_after


class Endpoint:
    """Sends chats; may be used from several threads. `address` is without a login; `requests` counts what was sent,
    retries included. `api_key_env` names the environment variable with the key ("": no key is needed).
    """

    def __init__(self, base_url: str, api_key_env: str, timeout_s: float, retries: int, extra: str) -> None:
        try:
            import openai
        except ImportError as error:
            raise ConfigError(f"Endpoints need the package openai ({error}): pip install 'ttpa[{extra}]'.") from None
        self._openai, self.requests, self._lock = openai, 0, threading.Lock()
        key = os.environ.get(api_key_env, "").strip() if api_key_env else "none"  # openai always sends one
        if not key:
            raise ConfigError.at("api_key_env", api_key_env, "there is no such environment variable", "Set or omit it")
        parts = address(base_url)
        self.address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
        login = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
        word = parts.password or parts.username or ""  # a token may stand in the place of the user
        self._secrets = [*filter(None, (word, unquote(word), key if api_key_env else ""))]
        transport = openai.DefaultHttpxClient(
            follow_redirects=False, event_hooks={"request": [self._count]}, auth=login,
            mounts={"http://": None} if self._secrets else None,
        )  # fmt: skip
        with patch.dict(os.environ, OPENAI_CUSTOM_HEADERS=""):
            self._client = openai.OpenAI(
                base_url=self.address, api_key=key, timeout=timeout_s, max_retries=retries, http_client=transport
            )

    def _count(self, _: object) -> None:
        with self._lock:
            self.requests += 1

    def chat(self, **body: Any) -> tuple[str, Any]:
        """The text of the reply ("" where it is none) and what the endpoint says it used. EndpointError: no reply."""
        try:
            completion = self._client.chat.completions.create(**body)
            text = completion.choices[0].message.content
        except self._openai.APIStatusError as error:
            status, wait = error.status_code, error.response.headers.get("retry-after", "")
            again = status in (408, 409, 425, 429) or status >= 500
            raise self._error(f"HTTP {status}: {error.response.text}", status, again, wait) from None
        except self._openai.OpenAIError as error:
            raise self._error(f"{error} {type(error.__cause__).__name__}", 0, True) from None
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise self._error(f"no chat completion came back: {type(error).__name__}", 0, True) from None
        return text if isinstance(text, str) else "", getattr(completion, "usage", None)

    def _error(self, reason: str, status: int, again: bool, retry_after: str = "") -> EndpointError:
        for secret in self._secrets:
            reason = reason.replace(secret, "***")
        reason = " ".join(reason.split())[:200]
        return EndpointError(reason, status=status, again=again, retry_after=retry_after)
