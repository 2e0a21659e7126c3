"""Tools of reversed construction: layouts, execution with limits, and the split by tool."""

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ttpa.data.reversed.sandbox import Sandbox
from ttpa.data.reversed.tools import Limits, Session, Tool, read_source, split_tools, unique
from ttpa.errors import ConfigError, DataError
from ttpa.records import ToolCall, ToolSpec

DATA = Path(__file__).resolve().parents[1] / "data"
SHOP = "python:tests.datasources.shop"
OPENAPI: dict[str, Any] = {
    "openapi": "3.1.0",
    "paths": {
        "/pets/{id}": {
            "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}}],
            "get": {"summary": "Shows a pet.", "parameters": [{"$ref": "#/components/parameters/lang"}]},
            "post": {
                "operationId": "changePet",
                "description": "Changes a pet.",
                "requestBody": {"required": True, "content": {"application/json": {
                    "schema": {"$ref": "#/components/schemas/Pet"}}}},
            },
        },
    },
    "components": {
        "parameters": {"lang": {"name": "lang", "in": "query", "description": "Language.", "schema": {
            "type": "string", "enum": ["de", "en"]}}},
        "schemas": {"Pet": {"type": "object", "required": ["name"], "properties": {
            "name": {"type": "string"}, "mother": {"$ref": "#/components/schemas/Pet"}}}},
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTPA_ALLOW", "tests")


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox(("TTPA_TEST_KEY",))
    yield made
    made.close()


def session(sandbox: Sandbox, entry: str = SHOP, seconds: float = 1.0, **states: Any) -> Session:
    return Session(read_source(entry).tools, states, Limits(seconds, 512, 200), sandbox)


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(name=name, arguments=arguments)


def written(path: Path, value: Any) -> str:
    path.write_text(yaml.safe_dump(value) if path.suffix == ".yaml" else json.dumps(value, indent=2))
    return str(path)


@pytest.mark.parametrize("name", ["api.json", "api.yaml"])
def test_an_openapi_document_gives_a_tool_an_operation(name: str, tmp_path: Path) -> None:
    show, change = [tool.spec for tool in read_source(written(tmp_path / name, OPENAPI)).tools]
    assert (show.name, show.description, show.required) == ("get_pets_id", "Shows a pet.", ("id",))
    assert show.properties["lang"] == {"type": "string", "enum": ["de", "en"], "description": "Language."}
    assert (change.name, change.required) == ("changePet", ("id", "name"))
    # A schema that holds itself ends where it begins again.
    assert change.properties == {"id": {"type": "integer"}, "name": {"type": "string"}, "mother": {}}


def test_swagger_2_bodies_and_types(tmp_path: Path) -> None:
    document = {"swagger": "2.0", "definitions": {"N": {"type": "object", "properties": {"n": {"type": "integer"}}}},
                "paths": {"/a": {"put": {"operationId": "a", "parameters": [
                    {"in": "query", "name": "q", "type": "integer"},
                    {"in": "body", "name": "b", "schema": {"$ref": "#/definitions/N"}}]}}}}  # fmt: skip
    (tool,) = read_source(written(tmp_path / "s.json", document)).tools
    assert tool.spec.properties == {"q": {"type": "integer"}, "n": {"type": "integer"}}


def test_mcp_json_schema_and_lists_of_tools(tmp_path: Path) -> None:
    parameters = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    listed = [{"name": f"t{n}", "description": "d", "inputSchema": parameters} for n in range(3)]
    for value in (
        {"result": {"tools": listed}},
        {"tools": listed, "nextCursor": None},
        listed,
        {"tools": json.dumps(listed)},
    ):
        found = read_source(written(tmp_path / "mcp.json", value)).tools
        assert [(tool.spec.name, tool.spec.required, tool.runner) for tool in found] == [
            (f"t{n}", ("x",), "") for n in range(3)
        ]
    (tool,) = read_source(written(tmp_path / "send_mail.json", parameters)).tools
    assert tool.spec == ToolSpec(name="send_mail", parameters=parameters)
    (tool,) = read_source(written(tmp_path / "m.json", {"title": "Mail", "description": "Sends.", **parameters})).tools
    assert (tool.spec.name, tool.spec.description) == ("Mail", "Sends.")


def test_tools_of_published_samples(tmp_path: Path) -> None:
    for name, least in (("xlam.jsonl.gz", 20), ("toolace_dialogues.jsonl.gz", 20)):
        source = read_source(str(DATA / name))
        tools, left_out = unique([source])
        assert len(tools) >= least and len({tool.spec.name for tool in tools}) == len(tools)
        assert len(tools) + sum(left_out.values()) >= len(source.tools)
    packed = next((DATA / "bfcl").glob("*simple_python*"))
    lines = (gzip.decompress(packed.read_bytes()) if packed.suffix == ".gz" else packed.read_bytes()).decode()
    (tmp_path / "bfcl.json").write_text(lines)
    assert len(read_source(str(tmp_path / "bfcl.json")).tools) >= 5


@pytest.mark.parametrize(("name", "text", "error", "said"), [
    ("a.json", '{"messages": []}', DataError, r"no tool is in it \(no tool 1\)"),
    ("a.json", "", DataError, r"no tool is in it"),
    ("a.yaml", "a: [", DataError, r"cannot be read"),
    ("a.jsonl", '{"name": 3}\n[1]\n', DataError, r"no tool is in it"),
])  # fmt: skip
def test_a_file_without_tools_says_why(name: str, text: str, error: type, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(error, match=said):
        read_source(str(tmp_path / name))


@pytest.mark.parametrize(("entry", "said"), [
    ("nowhere.json", "no such file"), ("bfcl:Nothing", "no such backend"), ("python:os", "this package is not allowed"),
    ("python:tests.nowhere", "cannot be imported .ModuleNotFoundError"),
])  # fmt: skip
def test_an_entry_that_names_nothing_is_refused(entry: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"data.tools=.*{said}"):
        read_source(entry)


def test_a_function_is_described_by_signature_and_docstring() -> None:
    by_name = {tool.spec.name: tool.spec for tool in read_source(SHOP).tools}
    assert "_private" not in by_name and "Literal" not in by_name and "Till" not in by_name
    price = by_name["price_of"]
    assert price.description == "Looks up a price. Over two lines of summary." and price.required == ("item",)
    assert price.properties["item"] == {"type": "string", "description": "What is bought."}
    assert price.properties["currency"]["enum"] == ["EUR", "USD"] and price.properties["currency"]["default"] == "EUR"
    assert by_name["fails"].properties["code"] == {"type": "integer", "description": "which way"}


def test_functions_run_with_limits_and_leave_nothing_behind(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTPA_TEST_KEY", "sk-1")
    shop = session(sandbox)
    assert json.loads(shop.run(call("price_of", item="boat")).text) == {"item": "boat", "price": 6.0, "currency": "EUR"}
    told = {name: shop.run(call(name)) for name in ("never_ends", "takes_memory", "says_much", "dies", "sees_key")}
    assert [result.failed for result in told.values()] == [True, True, True, True, False]
    assert [result.text for result in told.values()] == [
        "limit of time reached", "limit of memory reached", "limit of output reached", "limit of memory reached",
        "nothing"]  # fmt: skip
    assert shop.run(call("fails", code=3)).text == "ValueError: no 3"
    assert shop.run(call("price_of", wrong=1)).text.startswith("TypeError")
    assert shop.run(call("price_of", item="z" * 400)).text.endswith("characters cut]")
    deadline = time.monotonic() + 10
    while _sleepers() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _sleepers()


def _sleepers() -> list[str]:
    """Processes `sleep 600` that are alive."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [path.parent.name] if path.read_bytes() == b"sleep\x00600\x00" else []
        except OSError:
            continue
    return found


def test_a_class_keeps_its_state_and_forgets_what_failed(sandbox: Sandbox) -> None:
    till = session(sandbox, f"{SHOP}:Till", Till={"money": 5})
    calls = [call("put", amount=10), call("take", amount=12)]
    results = [till.run(one) for one in calls]
    assert [one.text for one in results] == ['{"money": 15}', '{"money": 3}']
    assert till.run(call("take", amount=99)).failed
    calls, results = [*calls, call("put", amount=1)], [*results, till.run(call("put", amount=1))]
    assert results[-1].text == '{"money": 4}'
    assert till.replays(calls, results) and not till.replays(calls[1:], results[1:])


def test_a_tool_with_other_results_each_time_does_not_replay(sandbox: Sandbox) -> None:
    shop, one = session(sandbox), call("prints_and_is_random")
    assert not shop.replays([one], [shop.run(one)])
    assert shop.replays([call("price_of", item="x")], [shop.run(call("price_of", item="x"))])


def test_groups_are_in_one_split_and_a_share_takes_at_least_one() -> None:
    tools = [Tool(ToolSpec(name=f"t{n}"), f"g{n // 3}", "") for n in range(30)]
    for seed in range(20):
        splits = split_tools(tools, seed, 0.01, 0.2)
        groups = {name: {tool.group for tool in found} for name, found in splits.items()}
        assert [len(groups[name]) for name in ("train", "validation", "test")] == [7, 1, 2]
        assert sum(map(len, splits.values())) == 30 and len(set.union(*groups.values())) == 10
    assert split_tools(tools, 0, 0.0, 0.0)["train"] == tools
