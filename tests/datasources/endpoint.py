"""A chat endpoint on loopback that answers by script and misbehaves as it is told."""

import hashlib
import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "islet", "jade", "knoll", "lagoon",
         "marsh", "north", "onyx", "prairie", "quartz", "ridge", "summit", "tundra")  # fmt: skip


def filled(schema: dict[str, Any], rng: random.Random) -> Any:
    """A value of a parameter of the embedded world."""
    kind = schema.get("type", "string")
    word = " ".join(rng.sample(WORDS, 2))
    return {"string": word, "integer": rng.randint(100, 99999), "number": round(rng.uniform(10, 9000), 2),
            "boolean": rng.random() < 0.5, "array": [rng.randint(100, 99999)]
            if schema.get("items", {}).get("type") == "integer" else [rng.choice(WORDS)]}.get(kind, word)  # fmt: skip


def scripted(body: dict[str, Any]) -> dict[str, Any]:
    """What a good writer replies; it depends on the request alone."""
    rng = random.Random(body["seed"])
    role, schema = body["response_format"]["json_schema"]["name"], body["response_format"]["json_schema"]["schema"]
    said = "\n".join(message["content"] for message in body["messages"])
    if role == "scenario":
        names = schema["properties"]["tools"]["items"]["enum"]
        facts = [f"The {one} is near {rng.choice(WORDS)}" for one in rng.sample(WORDS, 5)]
        return {"scenario": "a busy afternoon", "facts": facts, "tools": rng.sample(names, min(8, len(names)))}
    if role == "call":
        tools = [json.loads(line) for line in said.splitlines() if line.startswith('{"name"')]
        done = re.findall(r"^Result of (\w+):", said, re.M)
        if len(set(done)) >= 2:
            receipts = re.findall(r'"receipt":(\d+)', said)
            return {"tool": "answer", "arguments": {"text": f"All is ok, the receipts are {' and '.join(receipts)}."}}
        tool = next(one for one in tools if one["name"] not in done)
        given = {key: filled(part, rng) for key, part in tool["parameters"]["properties"].items()}
        return {"tool": tool["name"], "arguments": given}
    if role == "question":
        values = [json.loads(hit) for hit in re.findall(r" with (\{.*\})$", said, re.M)]
        parts = [str(value).strip("[]'") for given in values for value in given.values()]
        return {"question": f"{' '.join(rng.sample(WORDS, 12))}: please see to {', '.join(parts)}."}
    if role == "result":
        return {"result": {"code": f"R{rng.randint(100, 999)}", "state": "fine"}}
    return {"good": rng.random() < 0.7, "reason": "It was looked at."}


class Server(ThreadingHTTPServer):
    """`fault(number, body)` names what goes wrong with a request, or nothing. `asked` are (path, authorization, body,
    whether a reply was sent).
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault: Callable[[int, dict[str, Any]], str] = lambda number, body: ""
        self.asked: list[tuple[str, str, dict[str, Any], str]] = []
        self.elsewhere: list[str] = []  # authorizations that came where a redirect leads
        self.times: list[float] = []
        self.slow, self.lock = 0.0, threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def sold(self) -> list[str]:
        """Hashes of the requests whose whole reply was sent."""
        bodies = [json.dumps(body, sort_keys=True) for _, _, body, fault in self.asked if fault in SOLD]
        return [hashlib.sha256(body.encode()).hexdigest() for body in bodies]


SOLD = ("", "unknown", "empty", "prose", "mute", "leak")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self.server.elsewhere.append(self.headers.get("Authorization", ""))
        self._send(200, b"{}")

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.path.startswith("/v1/"):
            server.elsewhere.append(self.headers.get("Authorization", ""))
            return self._send(200, b"{}")
        with server.lock:
            number = len(server.asked)
            fault = server.fault(number, body)
            server.asked.append((self.path, self.headers.get("Authorization", ""), body, fault))
            server.times.append(time.monotonic())
        time.sleep(server.slow)
        if fault == "timeout":
            time.sleep(1.5)
        reply: Any = scripted(body) if fault in SOLD else {}
        if fault == "unknown" and "tool" in reply:
            reply = {"tool": "launch_rocket", "arguments": {}}
        if fault == "mute":
            reply = {"question": "Please do what I asked for."}
        if fault == "leak":
            names = re.findall(r"^- (\w+) \(", body["messages"][0]["content"], re.M)
            reply = {"question": f"{reply['question']} Use {names[0].replace('_', ' ').title()}."}
        text = {"empty": "", "prose": "Certainly! I would rather not."}.get(fault, json.dumps(reply))
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        whole = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [message],
            "usage": usage,
        }
        data = json.dumps(whole).encode()
        if fault.isdigit() or fault.startswith("429"):
            more = {"Retry-After": fault.partition(" ")[2]} if " " in fault else {}
            return self._send(int(fault[:3]), f'{{"error": "no, {self.headers["Authorization"]}"}}'.encode(), **more)
        if fault == "redirect":
            return self._send(307, b"", Location=f"http://localhost:{server.server_address[1]}/elsewhere")
        if fault == "broken":
            return self._send(200, b'{"choices": [{"mess')
        if fault == "cut":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:40])
            self.close_connection = True
            return None
        return self._send(200, data)

    def _send(self, status: int, data: bytes, **headers: str) -> None:
        try:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:  # whoever asked has gone
            self.close_connection = True


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
