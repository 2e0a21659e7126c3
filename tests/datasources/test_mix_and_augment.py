"""`data=mix`, `data.augment` and `ttpa data show`."""

from pathlib import Path
from typing import Any

import pytest

from tests.datasources.test_dialogues import ASK, DATA, DONE, MESSAGES, SHAREGPT, TOOL
from tests.datasources.test_published import file_of, row
from tests.sources import augment, messages, sharegpt, xlam
from ttpa.calls.schema import call_problems
from ttpa.data.mix import Mix
from ttpa.data.source import read_split
from ttpa.errors import ConfigError, DataError
from ttpa.records import Sample
from ttpa.results.show import main
from ttpa.results.view import glance
from ttpa.run.store import StageResult

NEWS = {"name": "news", "description": "News.", "parameters": {"type": "object", "properties": {}}}
SAMPLE = messages("x").convert({**MESSAGES["OpenAI"], "tools": [TOOL, NEWS]}).samples[0]
LAST = messages("x").convert({**MESSAGES["OpenAI"], "tools": [TOOL, NEWS]}).samples[1]


def mix(sources: dict[str, Any], **more: Any) -> Mix:
    return Mix(**({"sources": sources, "weights": {}, "seed": 0, "limit": None} | more))


def test_a_twin_without_the_right_tool_has_a_reply_in_words() -> None:
    same, twin = augment(irrelevance=1).apply(SAMPLE, train=False)
    assert same == SAMPLE and [tool.name for tool in twin.tools] == ["news"]
    assert (twin.kind, twin.target_text, twin.id) == ("text", augment().irrelevance_text, f"{SAMPLE.id}-irrelevance")
    assert list(augment(irrelevance=1).apply(LAST, train=True)) == [LAST]  # it has no call
    alone = messages("x").convert(MESSAGES["OpenAI"]).samples[0]  # no other tool would be left
    assert list(augment(irrelevance=1).apply(alone, train=True)) == [alone]


def test_masked_names_fit_their_calls_and_say_nothing() -> None:
    (made,) = augment(mask_names=1).apply(SAMPLE, train=True)
    assert made != SAMPLE and list(augment(mask_names=1).apply(SAMPLE, train=True)) == [made]
    assert list(augment(mask_names=1).apply(SAMPLE, train=False)) == [SAMPLE]
    tools = {tool.name: tool for tool in made.tools}
    assert not {"weather", "news"} & tools.keys() and not any("city" in tool.properties for tool in made.tools)
    for call in made.target:
        assert not list(call_problems(call, tools[call.name]))
    assert [list(one.arguments.values()) for one in made.target] == [["Rome", 2], ["Oslo", 2]]
    assert list(augment(mask_names=1, seed=1).apply(SAMPLE, train=True)) != [made]


def test_shares_are_drawn_by_sample(tmp_path: Path) -> None:
    path = DATA / "xlam.jsonl.gz"
    made = {}
    for share in (0.3, 0.8):
        (out := tmp_path / str(share)).mkdir()
        options = augment(irrelevance=share, mask_names=share)
        counts = xlam(path, augment=options, max_bad_fraction=1).build(out)["augmented"]
        made[share] = {one.id for one in read_split(out, "warmup") if "masked" in one.tags}
        assert counts["masked"] >= len(made[share]) > 0 and counts["irrelevance"] > 0
    assert made[0.3] < made[0.8]


def test_a_mix_has_the_samples_of_all_by_weight_without_clashes(tmp_path: Path) -> None:
    fractions = {"validation_fraction": 0.1, "test_fraction": 0.1}
    one = xlam(file_of(tmp_path, [row(number) for number in range(200)], "a.jsonl"), **fractions)
    two = sharegpt(DATA / "glaive_toolcall.jsonl.gz", **fractions)
    again = xlam(file_of(tmp_path, [row(number) for number in range(20)], "b.jsonl"), **fractions)
    (tmp_path / "all").mkdir()
    metrics = mix({"one": one, "two": two, "again": again}).build(tmp_path / "all")
    found = [sample for split in ("warmup", "validation", "test") for sample in read_split(tmp_path / "all", split)]
    assert metrics["duplicates_between_sources"] == 20 and sum(metrics["samples"].values()) == len(found)
    assert len({sample.id for sample in found}) == len(found)
    assert metrics["kinds"]["text"] == sum(sample.kind == "text" for sample in found) > 0
    data = StageResult(name="data", fingerprint="f", path=tmp_path, metrics=metrics, seconds=0.0, cached=False)
    assert f"warmup {metrics['samples']['warmup']}" in glance(data)
    assert {sample.id.split(".")[0] for sample in found} == {"one", "two"}
    (tmp_path / "some").mkdir()
    made = mix({"one": one, "two": two}, weights={"one": 3.0, "two": 1.0})
    counts = made.build(tmp_path / "some")["samples_of"]["warmup"]
    assert abs(counts["one"] - 3 * counts["two"]) <= 3 and counts["one"] > 100
    assert [one.id for one in read_split(tmp_path / "some", "warmup")][:20] != sorted(
        one.id for one in read_split(tmp_path / "some", "warmup")
    )[:20]
    assert read_split(tmp_path / "some", "warmup") == read_split(tmp_path / "some", "explore")


def test_a_mix_that_cannot_work_is_refused(tmp_path: Path) -> None:
    one, two = xlam(DATA / "xlam.jsonl.gz"), xlam(DATA / "xlam.jsonl.gz", split_seed=1)
    for given, said in (
        (({}, {}), "sources="), (({"a": one, "b": two}, {}), r"sources\.\*\.split_seed=.*in train here and in test"),
        (({"a": one}, {"b": 1.0}), "weights="),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            mix(given[0], weights=given[1])
    with pytest.raises(ConfigError, match=r"data\.sources\.a\.path=.*no such file"):
        mix({"a": xlam(tmp_path / "none.jsonl")}).check()


def shown(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = main(["show", *words])
    return status, capsys.readouterr().out


def test_data_show_says_what_a_file_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[Any] = [{"messages": [{**ASK, "content": f"{n}?"}, DONE], "tools": [TOOL]} for n in range(8)]
    bad = {"messages": [ASK, {"role": "assistant", "tool_calls": [{"name": "x", "arguments": {}}]}], "tools": []}
    path = file_of(tmp_path, [MESSAGES["OpenAI"], *rows, rows[0], bad, SHAREGPT["Hermes"]])
    status, out = shown([f"data.path={path}", "data.max_bad_fraction=0.1"], capsys)
    assert status == 1 and "read by data=messages" in out
    assert "rows: 12 read, 2 rejected, 1 there twice" in out and "samples: 10 (1 with calls, 9 without)" in out
    assert out.count("--- sample") == 3 and "Rome and Oslo?" in out and "tokens of 10 prompts" in out
    assert "rejected, tool not in list: 1, first rows.jsonl:11: " in out and "rows.jsonl:12: other layout" in out
    assert shown([f"data.path={path}", "data.max_bad_fraction=0.2"], capsys)[0] == 0
    with pytest.raises(DataError, match="no layout is recognised"):
        shown([f"data.path={file_of(tmp_path, [{'a': 1}], 'odd.jsonl')}"], capsys)
    with pytest.raises(ConfigError, match="data.path"):
        shown([f"data.path={tmp_path / 'none.jsonl'}"], capsys)


def test_samples_of_published_files_are_recognised(capsys: pytest.CaptureFixture[str]) -> None:
    for name, option in (("xlam", "xlam"), ("toolace_dialogues", "toolace"), ("rlla_sft", "sharegpt")):
        status, out = shown([f"data.path={DATA / f'{name}.jsonl.gz'}", "data.max_bad_fraction=0.1"], capsys)
        assert status == 0 and f"read by data={option}\n" in out
    assert isinstance(SAMPLE, Sample)
