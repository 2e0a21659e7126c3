"""`ttpa export`: what is written loads elsewhere and says the same; the snippets of docs/export.md are run."""

import base64
import contextlib
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.policy.architectures import random_model
from tests.policy.test_policy import furthest, logits, lora, shake, spec, write_base
from tests.run.test_pipeline import SMALLEST, run_here
from tests.sources import toolace, xlam
from tests.test_prompts import family
from ttpa.data.published import read_facts
from ttpa.data.rows import BadRow
from ttpa.data.source import read_split
from ttpa.data.write import LAYOUTS, sample_row
from ttpa.errors import ConfigError, DataError
from ttpa.io import read_jsonl
from ttpa.policy.export import write_adapter, write_merged
from ttpa.policy.logprobs import token_logps
from ttpa.policy.policy import Policy, create_policy, load_policy
from ttpa.policy.tree import TokenRow
from ttpa.records import Message, Pair, Sample, ToolCall, ToolSpec
from ttpa.results.export import main
from ttpa.train.losses import DPO, PairLogps

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a small finished run, which is the current one."""
    folder = tmp_path_factory.mktemp("world")
    with contextlib.chdir(folder):
        more = ("objective=dpo", "recipe.warmup.steps=40", "recipe.align.steps=4", "sampler.n=2", "logger=none")
        run_here(*more, base=SMALLEST)
        yield folder


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder beside the store of the run."""
    (tmp_path / "debug").symlink_to(world / "debug")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stage(name: str) -> str:
    (found,) = Path("debug/store").glob(f"{name}-*")
    return str(found)


def evaluation() -> str:
    (file,) = Path("debug/results").glob("*.jsonl")
    return f"debug/store/{json.loads(file.read_text())['stages']['evaluation']}"


# Policies


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


def whole_logits(folder: Path) -> torch.Tensor:
    return logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


def trained(base: Path, folder: Path, **fields: Any) -> Policy:
    policy = create_policy(spec(base, lora(**fields)), (), 0)
    policy.start_training(0)
    shake(policy, 1)
    policy.save(folder)
    return load_policy(folder)


TARGETS: dict[str, dict[str, Any]] = {
    "all linear": {}, "dora": {"dora": True}, "tied embeddings": {"targets": ["embed_tokens", "q_proj"]},
    "tied head": {"targets": ["lm_head"]},
}  # fmt: skip


@pytest.mark.parametrize("targets", TARGETS)
def test_merged_weights_in_plain_transformers_give_our_logits(targets: str, base: Path, tmp_path: Path) -> None:
    policy = trained(base, tmp_path / "policy", **TARGETS[targets])
    (tmp_path / "out").mkdir()
    notes = write_merged(tmp_path / "policy", tmp_path / "out", None)
    assert furthest(whole_logits(tmp_path / "out"), logits(policy.model)) < 1e-4
    assert bool(notes) == targets.startswith("tied")
    assert furthest(logits(create_policy(policy.spec, (), 0).model), logits(policy.model)) > 0.01
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert generation.eos_token_id == list(policy.renderer.stop_ids)


def test_bfloat16_rounds_the_merged_sum_once(base: Path, tmp_path: Path) -> None:
    policy = trained(base, tmp_path / "policy")
    (tmp_path / "out").mkdir()
    write_merged(tmp_path / "policy", tmp_path / "out", "bfloat16")
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    exact = load_policy(tmp_path / "policy", merged=True).model.state_dict()
    assert stored.dtype == torch.bfloat16
    for name, weight in stored.state_dict().items():
        assert torch.equal(weight, exact[name].to(torch.bfloat16)), name
    assert policy.spec.dtype == "float32"


def test_an_adapter_loads_on_its_base(base: Path, tmp_path: Path) -> None:
    policy = trained(base, tmp_path / "policy")
    (tmp_path / "out").mkdir()
    (note,) = write_adapter(tmp_path / "policy", tmp_path / "out")
    assert str(base) in note
    wanted = logits(policy.model)  # the test's tokenizer gets a token more when it is read as Qwen2's
    found = logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out"))[..., : wanted.shape[-1]]
    assert furthest(found, wanted) < 1e-5
    whole = create_policy(spec(base, None), (), 0)
    whole.save(tmp_path / "whole")
    with pytest.raises(ConfigError, match="as=adapter: the policy in .* is full weights. Use as=merged"):
        write_adapter(tmp_path / "whole", tmp_path / "out")


BARE = (  # takes no tools and no calls, and asks for the date
    "{{ '<system>' ~ strftime_now('%d %b %Y') ~ '<eos>' }}"
    "{% for m in messages %}{{ '<' ~ m.role ~ '>' ~ m.content ~ '<eos>' }}{% endfor %}"
    "{{ '<assistant>' if add_generation_prompt }}"
)


@pytest.mark.parametrize("kind", ["compact", "bare"])
@pytest.mark.parametrize(
    "syntax", ["hermes", "hermes_list", "json", "python", "python_compact", "llama3_json", "mistral"]
)
def test_the_exported_template_gives_our_prompts(
    kind: str,
    syntax: str,
    base: Path,
    tmp_path: Path,
    toy_samples: tuple[Sample, ...],
) -> None:
    shutil.copytree(base, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = BARE
    tokenizer.save_pretrained(tmp_path / "base")
    template = "chat" if kind == "bare" else "compact"
    policy = create_policy(spec(tmp_path / "base", None, template=template, syntax=syntax), (), 0)
    policy.save(tmp_path / "policy")
    (tmp_path / "out").mkdir()
    write_merged(tmp_path / "policy", tmp_path / "out", None)
    plain = AutoTokenizer.from_pretrained(tmp_path / "out")
    odd = {"city": 'N\'Djamena "é"', "n": None, "list": [True, {"a": 1.5}], "odd (key)": {}}
    calls = (ToolCall(name="get_weather", arguments=odd), ToolCall(name="get_weather"))
    system, asked = Message(role="system", content="Be brief."), toy_samples[0].messages[0]
    long = (system, asked, Message(role="assistant", calls=calls), Message(role="tool", content="sunny"), asked)
    for sample in (*toy_samples[:2], replace(toy_samples[0], messages=long)):
        row = LAYOUTS["messages"](sample)
        found = plain.apply_chat_template(
            row["messages"][:-1], tools=json.loads(row["tools"]), add_generation_prompt=True
        )["input_ids"]
        assert found == policy.renderer.prompts([sample])[0], plain.decode(found)


@pytest.mark.parametrize(
    "name", ["cohere", "gemma", "gemma4", "glm4moe", "gptoss", "llama3_1", "llama3_2", "phi3", "qwen2_5", "qwen3"]
)
def test_templates_of_known_families_give_our_prompts(name: str, toy_samples: tuple[Sample, ...]) -> None:
    renderer, asked = family(name), toy_samples[0].messages[0]
    system, call = Message(role="system", content="Be brief."), Message(role="assistant", calls=toy_samples[0].target)
    two = Message(role="assistant", calls=toy_samples[4].target[:2])
    results = (Message(role="tool", content="sunny"), Message(role="tool", content="rain"))
    known = ((asked,), (system, asked), (asked, call, results[0]), (system, asked, two, *results, asked))
    samples = [replace(toy_samples[0], messages=messages) for messages in known]
    wanted, tokenizer = renderer.try_prompts(samples), renderer.tokenizer
    tokenizer.chat_template, tokenizer.split_special_tokens = renderer.whole_template(), False
    for sample, ids in zip(samples, wanted, strict=True):
        row = LAYOUTS["messages"](sample)
        how = {"tools": json.loads(row["tools"]), "add_generation_prompt": True}
        if not isinstance(ids, DataError):
            assert tokenizer.apply_chat_template(row["messages"][:-1], **how)["input_ids"] == ids, sample.messages
    assert sum(isinstance(ids, list) for ids in wanted) >= 3


# Samples and pairs

words = st.text("abc é\n\"'\\[](){}<>=,:/中", min_size=1, max_size=12).filter(lambda text: text.strip() == text)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=6,
)  # fmt: skip
names = st.from_regex(r"[a-z][a-z_.]{0,8}", fullmatch=True)
schemas = st.dictionaries(
    names, st.fixed_dictionaries({"type": st.sampled_from(["string", "integer", "array"])}), max_size=3
)
tool_specs = st.builds(
    lambda name, text, schema: ToolSpec(
        name=name, description=text, parameters={"type": "object", "properties": schema, "required": sorted(schema)[:1]}
    ),
    names, words, schemas,
)  # fmt: skip


@st.composite
def any_samples(draw: st.DrawFn) -> Sample:
    tools = draw(st.lists(tool_specs, min_size=1, max_size=3, unique_by=lambda tool: tool.name))
    calls = st.lists(
        st.builds(ToolCall, name=st.sampled_from([tool.name for tool in tools]),
                  arguments=st.dictionaries(names, values, max_size=3)), min_size=1, max_size=2
    ).map(tuple)  # fmt: skip
    turns = [Message(role="system", content=draw(words))] if draw(st.booleans()) else []
    turns.append(Message(role="user", content=draw(words)))
    for _ in range(draw(st.integers(0, 2))):
        if draw(st.booleans()):
            turns += [Message(role="assistant", calls=draw(calls)), Message(role="tool", content=draw(words))]
        else:
            turns += [Message(role="assistant", content=draw(words)), Message(role="user", content=draw(words))]
    target = draw(calls) if draw(st.integers(0, 3)) else ()
    return Sample(
        id=draw(words), dialogue_id=draw(words), source="any", band=draw(st.sampled_from(["", "easy"])),
        tags=tuple(draw(st.lists(words, max_size=2))), tools=tuple(tools), messages=tuple(turns), target=target,
        target_text=None if target else draw(words),
    )  # fmt: skip


READERS = {"xlam": xlam("x.jsonl", text_turns=True), "toolace": toolace("x.jsonl", text_turns=True)}


@pytest.mark.parametrize("layout", READERS)
@settings(max_examples=150, deadline=None)
@given(sample=any_samples())
@example(
    sample=Sample(
        id="1",
        source="any",
        tools=(ToolSpec(name="a"),),
        messages=(Message(role="user", content="b"),),
        target=(ToolCall(name="a", arguments={"a": "]("}),),
    )
)  # ToolACE's reader finds no call in it
def test_a_sample_comes_back_as_it_was_or_the_layout_cannot_hold_it(layout: str, sample: Sample) -> None:
    row = sample_row(layout, sample)
    plain = len(sample.messages) == 1 and sample.target
    if isinstance(row, BadRow):
        assert not (layout == "xlam" and plain) or row.args[0] == "read differently"
        return
    row = json.loads(json.dumps(row))
    back = read_facts(row, READERS[layout].convert(row).samples)
    assert back is not None and [json.dumps(one.to_json()) for one in back] == [json.dumps(sample.to_json())]


@pytest.mark.parametrize("text", [None, "Sunny in both."])
def test_a_dialogue_of_several_call_turns_is_one_row_and_one_sample(
    text: str | None, toy_samples: tuple[Sample, ...]
) -> None:
    asked, called = toy_samples[0].messages[0], Message(role="assistant", calls=toy_samples[0].target)
    turns = (Message(role="system", content="Be brief."), asked, called, Message(role="tool", content="sunny"), asked)
    sample = replace(toy_samples[2], messages=turns, target=() if text else toy_samples[2].target, target_text=text)
    row = sample_row("toolace", sample)
    assert not isinstance(row, BadRow)
    assert read_facts(row, READERS["toolace"].convert(row).samples) == (sample,)
    if text:  # a reader that makes no samples of text finds a call turn, which is not what was exported
        assert read_facts(row, toolace("x.jsonl", text_turns=False).convert(row).samples) == ()


def test_what_a_layout_has_no_place_for(toy_samples: tuple[Sample, ...]) -> None:
    call, text = toy_samples[0], toy_samples[5]
    thinking, both = replace(call, target_thought="hm"), replace(call, target_text="Let me look.")
    told = {layout: [str(sample_row(layout, one)).partition(":")[0] for one in (text, thinking, both)]
            for layout in ("xlam", "toolace", "sharegpt")}  # fmt: skip
    assert told["xlam"] == ["text"] * 3
    assert told["toolace"][1:] == ["thoughts", "text beside calls"]
    assert told["sharegpt"][2] == "text beside calls"
    row = sample_row("messages", replace(both, target_thought="hm"))
    assert not isinstance(row, BadRow)
    assert [row["messages"][-1][key] for key in ("reasoning_content", "content")] == ["hm", "Let me look."]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_samples_load_without_a_script(layout: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from datasets import load_dataset

    main([stage("data"), f"as={layout}", "to=out"])
    assert f"out: samples as {layout}: warmup 48, explore 48, validation" in capsys.readouterr().out
    loaded = load_dataset("out", cache_dir="cache")
    splits = {name: read_split(Path(stage("data")), name) for name in ("warmup", "explore", "test", "validation")}
    assert {name: rows.num_rows for name, rows in loaded.items()} == {name: len(all_) for name, all_ in splits.items()}
    for row, sample in zip(loaded["warmup"], splits["warmup"], strict=True):
        assert row == sample_row(layout, sample)
    if layout in READERS:
        source = {"xlam": xlam, "toolace": toolace}[layout](here / "out" / "warmup.jsonl", test_fraction=0.0)
        (here / "read").mkdir()
        source.build(here / "read")
        kept = {one.id: one for name in ("warmup", "validation") for one in read_split(here / "read", name)}
        assert kept == {one.id: one for one in splits["warmup"]}


@pytest.mark.parametrize("layout", ["trl", "llamafactory", "verl"])
def test_pairs_load_without_a_script_and_are_read_as_given_pairs(layout: str, here: Path) -> None:
    from datasets import load_dataset

    from tests.datasources.test_pairs import source

    main([stage("explore"), f"as={layout}", "to=out"])
    loaded = load_dataset("out", split="train", cache_dir="cache")
    pairs = [Pair.from_json(row) for row in read_jsonl(Path(stage("explore"), "pairs.jsonl"))]
    samples = {one.id: one for one in read_split(Path(stage("data")), "explore")}
    assert [row["sample_id"] for row in loaded] == [pair.sample_id for pair in pairs] and len(pairs) > 3
    for row, pair in zip(loaded, pairs, strict=True):
        if layout == "verl":
            assert (row["chosen"], row["rejected"]) == (pair.chosen.text, pair.rejected.text)
            continue
        found = source("x.jsonl").convert(row)
        (back,), (given_pair,) = found.samples, found.pairs
        asked = samples[pair.sample_id]
        assert (back.tools, back.messages, back.target) == (asked.tools, asked.messages, pair.chosen.calls)
        rejected = given_pair.to_json()["rejected"]
        assert (rejected.get("calls") or rejected["content"]) in (
            pair.rejected.text, [call.to_json() for call in pair.rejected.calls or ()]
        )  # fmt: skip


def chat_run(folder: Path) -> None:
    """A finished run of a small model with Qwen's chat template on given pairs, in the current folder."""
    rows = [LAYOUTS["messages"](sample) for sample in read_split(Path(stage("data")), "explore")[:24]]
    wrong = ({"role": "assistant", "content": f"no {number}"} for number in range(len(rows)))
    turned = [
        {**row, "messages": row["messages"][:-1], "chosen": row["messages"][-1], "rejected": no}
        for row, no in zip(rows, wrong, strict=True)
    ]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, turned)), encoding="utf-8")
    tokenizer = family("qwen2_5").tokenizer
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 4096}
    random_model("qwen2", len(tokenizer) + 9, 0.1, **sizes).save_pretrained(folder)
    Path("debug").unlink()
    words = ["pairs=given", "data.path=pairs.jsonl", "data.test_fraction=0.2", "objective=dpo", "model=hf"]
    words += [f"model.name={folder}", "model.dtype=float32", "model.max_tokens=4096", "trainer.threads=1"]
    run_here(*words, "warmup=none", "until=align", "recipe.align.lr=0.01", "select.limit=6", base=["debug=smoke"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["embedded", "chat"])
def test_exported_pairs_give_our_loss_in_the_trainer_of_trl(
    kind: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer

    if kind == "chat":
        chat_run(here / "base")
    capsys.readouterr()
    main([stage("explore"), "as=trl", "to=pairs"])
    told = re.search(r"(\d+) pairs have an answer", capsys.readouterr().out)
    main([stage("align"), "as=merged", "to=policy"])
    main([stage("warmup"), "as=merged", "to=reference"])
    render = load_policy(Path(stage("align"), "policy")).renderer
    ours = [AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32) for name in ("policy", "reference")]
    pairs = [Pair.from_json(row) for row in read_jsonl(Path(stage("explore"), "pairs.jsonl"))]
    asked = {one.id: one for one in read_split(Path(stage("data")), "explore")}
    loss = DPO(beta=0.3, sft_weight=0.0, over="answer", label_smoothing=0.0)
    wanted = dict[int, float]()
    for number, pair in enumerate(pairs):
        sample, sides = asked[pair.sample_id], (pair.chosen, pair.rejected)
        again = render.answers([replace(sample, target=(), target_text=side.text) for side in sides])
        if [tuple(ids) for ids in again] != [side.token_ids for side in sides]:
            continue
        rows = [TokenRow(render.prompts([sample])[0], side.token_ids) for side in sides]
        with torch.no_grad():
            sums = [
                token_logps(model, [row], pad_id=render.pad_id).logps_N.sum()[None] for model in ours for row in rows
            ]
        size = torch.ones(1)
        wanted[number] = float(loss(PairLogps(sums[0], sums[1], size, size, sums[2], sums[3]))[0])
    assert len(pairs) - len(wanted) == (int(told[1]) if told else 0) and len(wanted) > 2
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained("policy", dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained("reference", dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained("policy"),
        train_dataset=load_dataset("pairs", split="train", cache_dir="cache").select(list(wanted)),
        args=DPOConfig(
            output_dir="dpo", beta=0.3, max_length=None, use_cpu=True, bf16=False, report_to="none",
            per_device_train_batch_size=1, gradient_checkpointing=False, disable_tqdm=True, disable_dropout=True,
        ),
    )  # fmt: skip
    trainer.model.eval()
    for row, value in zip(trainer.train_dataset, wanted.values(), strict=True):
        theirs = float(trainer.compute_loss(trainer.model, trainer.data_collator([row])).detach())
        assert theirs == pytest.approx(value, abs=1e-5)
    assert max(wanted.values()) - min(wanted.values()) > 1e-3


# Judged answers, the command, the hub


def test_a_result_row_names_the_stages(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = Path("debug/results").glob("*.jsonl")
    for layout in ("trl", "merged", "csv", "xlam"):
        main([str(file), f"as={layout}"])
    names = {name for name in (path.name for path in Path("export").iterdir()) if not name.startswith(".")}
    stages = [Path(one).name for one in (stage("explore"), stage("align"), evaluation(), stage("data"))]
    assert names == {f"{one}-{layout}" for one, layout in zip(stages, ("trl", "merged", "csv", "xlam"), strict=True)}
    with pytest.raises(DataError, match="nowhere/explore-.*: no folder of a finished stage"):
        main([str(file), "as=trl", "store=nowhere", "to=x"])


def test_judged_answers(here: Path) -> None:
    import pyarrow.parquet as parquet

    rows = list(read_jsonl(Path(evaluation(), "rows.jsonl")))
    for layout in ("csv", "parquet"):
        main([evaluation(), f"as={layout}", f"to={layout}"])
    with open("csv/test.csv", encoding="utf-8", newline="") as stream:
        written = list(csv.DictReader(stream))
    table = parquet.read_table("parquet/test.parquet").to_pylist()
    assert [row["id"] for row in rows] == [row["id"] for row in written] == [row["id"] for row in table]
    assert [row["exact"] for row in rows] == [row["exact"] for row in table]
    assert [";".join(row["errors"]) for row in rows] == [row["errors"] for row in table]
    first = next(one for one in read_split(Path(stage("data")), "test") if one.id == rows[0]["id"])
    assert written[0]["question"] == first.messages[-1].content and json.loads(table[0]["target"])


def test_the_card_of_a_policy_has_results_settings_and_licences(here: Path) -> None:
    main([stage("align"), "as=merged", "to=policy", "license=apache-2.0"])
    card = Path("policy/README.md").read_text(encoding="utf-8")
    accuracy = json.loads(Path(evaluation(), "metrics.json").read_text())["accuracy"]
    interval = f"{accuracy['value']:.3f} | {accuracy['low']:.3f} to {accuracy['high']:.3f} | {accuracy['n']}"
    assert card.startswith("---\nlicense: apache-2.0\n") and interval in card
    for name in ("align", "explore", "warmup", "data"):
        assert f"Stage `{Path(stage(name)).name}`" in card
    assert "made by ttpa, Apache-2.0" in card and "beta: " in card and str(here) not in card


MISTAKES = {
    "no layout": (["debug"], "as=None: is missing. Use one of messages, sharegpt"),
    "unknown layout": (["debug", "as=gguf"], "as=gguf: is no layout"),
    "no stage": (["debug", "as=csv"], "debug: no folder of a finished stage"),
    "another stage": (["WARMUP", "as=trl"], "is a stage warmup. Use as=adapter, merged"),
    "there already": (["WARMUP", "as=merged", "to=debug"], "to=debug: exists. Nothing is overwritten"),
    "no weights": (["DATA", "as=xlam", "dtype=bfloat16"], "dtype=bfloat16: as=xlam holds no full weights"),
    "no dtype": (["WARMUP", "as=merged", "dtype=int8"], "dtype='int8'"),
    "no repository": (["WARMUP", "as=merged", "push=policy"], "push=policy: is no repository. Write it as ORG/NAME"),
    "nobody": (["WARMUP", "as=merged", "push=a/b"], "push=a/b: nobody is logged in"),
    "unknown key": (["WARMUP", "as=merged", "too=x"], "ttpa export has no such option. Did you mean to?"),
    "no adapter": (["WARMUP", "as=adapter"], "is full weights. Use as=merged"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_and_leaves_nothing(mistake: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    words, said = MISTAKES[mistake]
    with pytest.raises((ConfigError, DataError), match=re.escape(said)):
        main([{"WARMUP": stage("warmup"), "DATA": stage("data")}.get(word, word) for word in words])
    assert [path.name for path in here.rglob("*") if not path.is_symlink()] in ([], ["export"])


class Hub(BaseHTTPRequestHandler):
    """A stand-in of the hub's HTTP API: makes a repository, asks for whole files, takes a commit."""

    made: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    refuse = False

    def log_message(self, *words: Any) -> None:
        pass

    def reply(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.reply(200, {"id": "org/name", "sha": "0" * 40, "siblings": [], "private": False})

    def do_POST(self) -> None:
        body, path = self.rfile.read(int(self.headers["Content-Length"])), self.path.partition("?")[0]
        if self.headers["Authorization"] != "Bearer hf_secret" or self.refuse:
            self.reply(403, {"error": f"no right to write with {self.headers['Authorization']}"})
        elif path == "/api/repos/create":
            self.made.update(json.loads(body))
            self.reply(200, {"url": f"http://127.0.0.1/{json.loads(body)['organization']}/x", "name": "org/name"})
        elif "/preupload/" in path:
            asked = json.loads(body)["files"]
            kept = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]
            self.reply(200, {"files": kept})
        elif "/commit/" in path:
            lines = [json.loads(line) for line in body.splitlines()]
            for one in (line["value"] for line in lines if line["key"] == "file"):
                self.files[f"{path.split('/')[2]}:{one['path']}"] = base64.b64decode(one["content"])
            self.reply(200, {"commitUrl": "http://127.0.0.1/org/name/commit/1", "commitOid": "1" * 40, "success": True})
        else:
            self.reply(200, {"errors": [], "warnings": []})


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.made.clear()
    Hub.files.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def ttpa(hub: str, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HF_ENDPOINT": hub, "HF_TOKEN": "hf_secret", "HF_HOME": os.getcwd() + "/hf"}
    command = [sys.executable, "-m", "ttpa.cli", "export", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_push_uploads_the_folder_and_never_shows_the_token(
    here: Path, hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = ttpa(hub, stage("data"), "as=xlam", "to=out", "push=org/name", "private=true")
    assert done.returncode == 0, done.stderr
    assert (Hub.made["type"], Hub.made["organization"], Hub.made["name"]) == ("dataset", "org", "name")
    assert Hub.made.get("private") is True or Hub.made.get("visibility") == "private"
    assert Hub.files == {f"datasets:{file.name}": file.read_bytes() for file in Path("out").iterdir()}
    assert "pushed: http" in done.stdout and "hf_secret" not in done.stdout + done.stderr
    done = ttpa(hub, stage("align"), "as=merged", "to=policy", "push=org/name")
    assert (
        done.returncode == 0 and Hub.files["models:model.safetensors"] == Path("policy/model.safetensors").read_bytes()
    )
    monkeypatch.setattr(Hub, "refuse", True)
    done = ttpa(hub, stage("data"), "as=xlam", "to=again", "push=org/name")
    assert done.returncode == 2 and "hf_secret" not in done.stdout + done.stderr
    assert re.search(r"ttpa: error: push=org/name: .*hf upload org/name again --repo-type dataset", done.stderr)
    assert Path("again/README.md").exists() and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_snippets_of_the_page(here: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(base, here / "adapted")
    Path("exported/adapter").mkdir(parents=True)
    write_adapter(here / "adapted", Path("exported/adapter"))
    exported = {"policy": (stage("align"), "merged"), "pairs": (stage("explore"), "trl"),
                "samples": (stage("data"), "messages"), "answers": (evaluation(), "csv")}  # fmt: skip
    for name, (target, layout) in exported.items():
        main([target, f"as={layout}", f"to=exported/{name}"])
    monkeypatch.setenv("HF_DATASETS_CACHE", str(here / "cache"))
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    assert len(snippets) == 4
    for code in snippets:
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            exec(compile(code, "docs/export.md", "exec"), {})
    assert Path("dpo").is_dir()
