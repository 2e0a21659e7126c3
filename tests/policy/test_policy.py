"""Policies in memory and on disk: the embedded model, pretrained models, and one adapter trained stage by stage."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

from tests.policy.architectures import random_model
from ttpa.errors import ConfigError, DataError
from ttpa.policy.engines import HFOptions, VLLMOptions
from ttpa.policy.models import HFModel, Lora, TinyModel
from ttpa.policy.policy import Policy, _context, create_policy, load_policy, snapshot, train_tokenizer
from ttpa.records import Sample

TEXTS = ("get_weather(city,days:int)", '[get_weather(city="Paris")]', "Weather in Paris?")
TINY_FIELDS: dict[str, Any] = {
    "hidden": 16, "layers": 1, "heads": 2, "feed_forward": 24, "vocab": 300, "max_tokens": 64, "dtype": "float32",
    "syntax": "python_compact", "template": "compact",
}  # fmt: skip
HF_FIELDS: dict[str, Any] = {
    "name": "a/b", "max_tokens": 512, "dtype": "float32", "quantization": None, "revision": None, "syntax": "hermes",
    "template": "chat", "lora": None,
}  # fmt: skip
VLLM_FIELDS: dict[str, Any] = {
    "rows": 8, "gpu_memory_utilization": 0.9, "tensor_parallel_size": 1, "max_model_len": None, "rules": True,
}  # fmt: skip
TINY = TinyModel(**TINY_FIELDS)
TEMPLATE = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("untied"), tie_word_embeddings=False)


def write_base(folder: Path, **fields: Any) -> Path:
    """A folder with a random Qwen2, its head tied to its embeddings, and a tokenizer whose template takes tools."""
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 512}
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    random_model("qwen2", len(tokenizer), 0.1, **sizes, **ends, **fields).save_pretrained(folder)
    return folder


def lora(r: int = 2, alpha: int = 4, targets: str | list[str] = "all-linear", dora: bool = False) -> Lora:
    return Lora(r=r, alpha=alpha, target_modules=targets, dora=dora)


def spec(base: Path, adapter: Lora | None, **fields: Any) -> HFModel:
    return HFModel(**{**HF_FIELDS, "name": str(base), "lora": adapter, **fields})


def logits(model: torch.nn.Module) -> Tensor:
    training = model.training
    model.eval()
    with torch.no_grad():
        found: Tensor = model(input_ids=torch.arange(7, 40)[None]).logits
    model.train(training)
    return found


def furthest(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max())


def shake(policy: Policy, seed: int) -> None:
    """Stands in for training: moves every trainable weight."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=generator)


def trainable(policy: Policy) -> set[str]:
    return {name for name, p in policy.model.named_parameters() if p.requires_grad}


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def test_tiny_model_is_decided_by_its_seed_and_texts() -> None:
    first = create_policy(TINY, TEXTS, 1)
    torch.manual_seed(99)
    again, other = create_policy(TINY, iter(TEXTS), 1), create_policy(TINY, TEXTS, 2)
    assert torch.equal(logits(first.model), logits(again.model))
    assert not torch.equal(logits(first.model), logits(other.model))
    assert first.tokenizer.get_vocab() == again.tokenizer.get_vocab() == other.tokenizer.get_vocab()


def test_tiny_model_starts_from_the_recipe() -> None:
    """Embeddings 0.02, matrices 1 / sqrt(fan in), half of it into the residual stream; biases 0, norms 1."""
    model = create_policy(TinyModel(**{**TINY_FIELDS, "hidden": 128, "feed_forward": 256}), TEXTS, 0).model
    weights = dict(model.named_parameters())
    layer = "model.layers.0."
    for name, std in (
        (f"{layer}self_attn.q_proj.weight", 128**-0.5),
        (f"{layer}mlp.gate_proj.weight", 128**-0.5),
        (f"{layer}self_attn.o_proj.weight", 0.5 * 128**-0.5),
        (f"{layer}mlp.down_proj.weight", 0.5 * 256**-0.5),
        ("model.embed_tokens.weight", 0.02),
    ):
        assert float(weights[name].detach().std()) == pytest.approx(std, rel=0.03), name
    assert not weights[f"{layer}self_attn.q_proj.bias"].any() and (weights["model.norm.weight"] == 1).all()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_tiny_model_round_trip(tmp_path: Path, tiny_policy: Policy, toy_samples: tuple[Sample, ...]) -> None:
    shake(tiny_policy, 0)
    tiny_policy.save(tmp_path / "policy")
    back = load_policy(tmp_path / "policy")
    assert back.spec == tiny_policy.spec
    assert torch.equal(logits(back.model), logits(tiny_policy.model))
    for read in (lambda r: r.prompts(toy_samples), lambda r: r.answers(toy_samples), lambda r: (r.stop_ids, r.pad_id)):
        assert read(back.renderer) == read(tiny_policy.renderer)


def test_full_weights_round_trip(base: Path, tmp_path: Path) -> None:
    policy = create_policy(spec(base, None), (), 0)
    start = logits(policy.model)
    policy.model.eval().requires_grad_(False)
    policy.start_training(0)
    assert trainable(policy) == {name for name, _ in policy.model.named_parameters()} and policy.model.training
    shake(policy, 0)
    policy.save(tmp_path)
    back = load_policy(tmp_path)
    assert furthest(logits(back.model), logits(policy.model)) < 1e-6 and furthest(logits(back.model), start) > 0.01
    assert (tmp_path / "model").is_dir() and not (tmp_path / "adapter").exists()


ADAPTERS = [lora(), lora(dora=True), lora(3, 3, ["q_proj", "down_proj"])]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=["lora", "dora", "some modules"])
def test_stages_train_one_adapter_which_is_saved_alone(base: Path, tmp_path: Path, adapter: Lora) -> None:
    policy = create_policy(spec(base, adapter), (), 0)
    ends = [logits(policy.model)]
    for stage in range(2):
        policy.start_training(stage)
        assert trainable(policy) and all("lora_" in name for name in trainable(policy))
        assert furthest(logits(policy.model), ends[-1]) < 1e-5  # a fresh adapter changes nothing
        shake(policy, stage)
        ends.append(logits(policy.model))
        folder = tmp_path / str(stage)
        policy.save(folder)
        assert [file.name for file in folder.rglob("*.safetensors")] == ["adapter_model.safetensors"]
        assert size(folder) < 0.25 * size(base)
        merged = load_policy(folder, merged=True)
        assert isinstance(merged.model, Qwen2ForCausalLM) and furthest(logits(merged.model), ends[-1]) < 1e-5
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        assert furthest(logits(PeftModel.from_pretrained(plain, str(folder / "adapter"))), ends[-1]) < 1e-5
        policy = load_policy(folder)
        assert policy.spec == spec(base, adapter) and len(policy.model.peft_config) == 1
    assert furthest(ends[0], ends[1]) > 0.01 and furthest(ends[1], ends[2]) > 0.01


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "adapter",
    [
        lora(targets=".*q_proj|.*lm_head"), lora(targets=["q_proj", "lm_head"]), lora(targets=["embed_tokens"]),
        lora(targets=["embed_tokens", "lm_head"]), lora(targets=["lm_head"], dora=True),
    ],
    ids=["expression", "head", "embeddings", "both", "dora"],
)  # fmt: skip
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_an_adapter_on_tied_embeddings_is_the_trained_one_when_it_comes_back(
    base: Path,
    untied: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    adapter: Lora,
    quantization: Any,
    tied: bool,
) -> None:
    """Merged into the one weight of both, what the head learned would change the embeddings too."""
    load = AutoModelForCausalLM.from_pretrained
    loaded = lambda name, dtype, **_: load(name, dtype=dtype)  # noqa: E731, nothing here can quantise
    monkeypatch.setattr("ttpa.policy.policy.AutoModelForCausalLM.from_pretrained", loaded)
    policy = create_policy(spec(base if tied else untied, adapter, quantization=quantization), (), 0)
    start = logits(policy.model)
    policy.start_training(0)
    shake(policy, 0)
    policy.save(tmp_path)
    for merged in (True, False):
        back = load_policy(tmp_path, merged=merged).model
        assert furthest(logits(back), logits(policy.model)) < 1e-4 < furthest(logits(back), start)
        assert hasattr(back, "peft_config") == (tied or bool(quantization) or not merged)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ".*(q|v)_proj", "all-linear"])
def test_target_modules_are_names_an_expression_or_all_linear(base: Path, targets: Any) -> None:
    policy = create_policy(spec(base, lora(targets=targets)), (), 0)
    policy.start_training(0)
    parts = {name.split(".lora_")[0].rpartition(".")[2] for name in trainable(policy)}
    every = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert parts == (every if targets == "all-linear" else {"q_proj", "v_proj"})


@pytest.mark.parametrize("targets", [["q_prj"], [], "q_proj", "((", ["norm"]])
def test_target_modules_that_are_not_there_are_refused_with_those_that_are(base: Path, targets: Any) -> None:
    policy = create_policy(spec(base, lora(targets=targets)), (), 0)
    with pytest.raises(ConfigError, match=r"^model\.lora\.target_modules=.*Use names among down_proj, .*all-linear\.$"):
        policy.start_training(0)


@pytest.mark.parametrize("adapter", [lora(), lora(dora=True), None], ids=["lora", "dora", "full"])
def test_a_snapshot_is_the_policy_that_a_stage_started_from(base: Path, tmp_path: Path, adapter: Lora | None) -> None:
    first = create_policy(spec(base, adapter), (), 0)
    first.start_training(0)
    shake(first, 0)
    first.save(tmp_path)
    policy = load_policy(tmp_path)
    policy.start_training(1)
    reference = snapshot(policy.model)
    shake(policy, 1)
    now = logits(policy.model)
    with pytest.raises(KeyError), reference():
        assert furthest(logits(policy.model), logits(first.model)) < 1e-5
        raise KeyError
    assert torch.equal(logits(policy.model), now) and furthest(now, logits(first.model)) > 0.01
    policy.model(input_ids=torch.arange(7, 40)[None]).logits.sum().backward()
    with reference():  # between a backward pass and a step
        pass
    assert all(p.grad is not None for p in policy.model.parameters() if p.requires_grad)


def test_a_loaded_policy_is_saved_as_it_was_loaded(base: Path, tmp_path: Path) -> None:
    policy = create_policy(spec(base, lora()), (), 0)
    policy.save(tmp_path / "zero")
    assert size(tmp_path) == 0 and torch.equal(logits(load_policy(tmp_path / "zero").model), logits(policy.model))
    policy.start_training(0)
    shake(policy, 0)
    policy.save(tmp_path / "one")
    for number, merged in enumerate((True, False)):
        load_policy(tmp_path / "one", merged=merged).save(tmp_path / f"again{number}")
        again = load_policy(tmp_path / f"again{number}")
        assert furthest(logits(again.model), logits(policy.model)) < 1e-6


def test_an_adapter_on_a_four_bit_base_is_never_merged(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    load = AutoModelForCausalLM.from_pretrained

    def loaded(name: str, quantization_config: Any = None, **options: Any) -> Any:
        asked.append(quantization_config.bnb_4bit_quant_type)
        return load(name, **options)

    monkeypatch.setattr("ttpa.policy.policy.AutoModelForCausalLM.from_pretrained", loaded)
    policy = create_policy(spec(base, lora(), quantization="nf4"), (), 0)
    for stage in range(2):
        policy.start_training(stage)
        assert all("lora_" in name for name in trainable(policy))
        shake(policy, stage)
        policy.save(tmp_path / str(stage))
        after, policy = logits(policy.model), load_policy(tmp_path / str(stage), merged=True)
        assert hasattr(policy.model, "peft_config") and furthest(logits(policy.model), after) < 1e-5
    assert set(asked) == {"nf4"}


def test_a_fresh_adapter_is_decided_by_its_seed(base: Path) -> None:
    def started(seed: int) -> Tensor:
        policy = create_policy(spec(base, lora()), (), 0)
        policy.start_training(seed)
        return torch.cat([p.flatten() for p in policy.model.parameters() if p.requires_grad])

    assert torch.equal(started(1), started(1)) and not torch.equal(started(1), started(2))


def test_a_name_that_is_no_model_is_an_error_with_a_remedy(base: Path, tmp_path: Path) -> None:
    for name in (tmp_path / "nothing", tmp_path):  # no such folder; a folder without a model
        with pytest.raises(ConfigError, match=r"^model\.name=.*cannot be loaded .* Give a folder that holds a"):
            create_policy(spec(base, None, name=str(name)), (), 0)


def write_gguf(base: Path, folder: Path) -> Path:
    """A Llama in float32 as a GGUF file, with a byte-level vocabulary, and beside it as a folder of transformers."""
    gguf = pytest.importorskip("gguf")
    model = random_model("llama", 300, 0.1, hidden_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=32)
    folder.mkdir()
    model.save_pretrained(base)
    writer, config = gguf.GGUFWriter(folder / "small.gguf", "llama"), model.config
    for name, value in (
        ("context_length", 512), ("embedding_length", 64), ("block_count", config.num_hidden_layers),
        ("feed_forward_length", config.intermediate_size), ("head_count", 2), ("head_count_kv", 1),
        ("layer_norm_rms_eps", config.rms_norm_eps), ("vocab_size", 300), ("rope_dimension_count", 32),
    ):  # fmt: skip
        getattr(writer, f"add_{name}")(value)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    tokenizer = train_tokenizer(TEXTS, 300)
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = [token for token, _ in vocab] + [f"<unused{n}>" for n in range(300 - len(vocab))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges([" ".join(m) for m in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]])
    writer.add_eos_token_id(1)
    writer.add_chat_template(TEMPLATE)
    parts = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attn_output"}
    parts |= {f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"}
    parts |= {f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")}
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    names["lm_head.weight"] = "output.weight"
    for key, value in model.state_dict().items():
        weight = value.float().numpy()
        if found := re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", key):
            names[key] = f"blk.{found[1]}.{parts[found[2]]}.weight"
            if (heads := {"self_attn.q_proj": 2, "self_attn.k_proj": 1}.get(found[2])) is not None:  # llama.cpp's order
                weight = weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(names[key], np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def test_a_gguf_file_is_the_model_it_was_written_from(tmp_path: Path) -> None:
    """With an adapter and with all weights, which are saved as transformers' own."""
    folder = write_gguf(tmp_path / "plain", tmp_path / "gguf")
    expected = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32))
    for adapter in (lora(), None):
        policy = create_policy(spec(folder, adapter, gguf="small.gguf"), (), 0)
        assert furthest(logits(policy.model), expected) < 1e-5
        policy.start_training(0)
        shake(policy, 0)
        policy.save(tmp_path / str(adapter))
        assert furthest(logits(load_policy(tmp_path / str(adapter)).model), logits(policy.model)) < 1e-5
    with pytest.raises(ConfigError, match=r"^model\.gguf=smal\.gguf: no such file in .*Files there: small\.gguf\.$"):
        create_policy(spec(folder, None, gguf="smal.gguf"), (), 0)
    with pytest.raises(ConfigError, match=r"^model\.name=.*cannot be loaded.* add model\.gguf=small\.gguf\.$"):
        create_policy(spec(folder, None), (), 0)


def test_a_model_may_come_in_an_installed_package(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = spec(base, None, name="package:some_small_model")
    with pytest.raises(ConfigError, match=r"no such package is installed\. Install it \(pip .* some-small-model\)"):
        create_policy(missing, (), 0)
    assert missing.identity() == {}
    shutil.copytree(base, tmp_path / "some_small_model")
    (tmp_path / "some_small_model" / "__init__.py").write_text("raise RuntimeError")  # nothing of it is run
    monkeypatch.syspath_prepend(tmp_path)
    found = create_policy(missing, (), 0)
    assert torch.equal(logits(found.model), logits(create_policy(spec(base, None), (), 0).model))
    assert {name for name, _ in missing.identity()["files"]} > {"config.json", "model.safetensors"}


def test_an_adapter_of_another_base_is_refused_in_one_line(base: Path, tmp_path: Path) -> None:
    policy = create_policy(spec(base, lora()), (), 0)
    policy.start_training(0)
    policy.save(tmp_path / "policy")
    other = write_base(tmp_path / "other", num_key_value_heads=4)
    file = tmp_path / "policy" / "policy.json"
    file.write_text(file.read_text().replace(str(base), str(other)))
    with pytest.raises(DataError, match=r"adapter: the adapter does not fit .*size mismatch.*base model that it was"):
        load_policy(tmp_path / "policy").model  # noqa: B018


@pytest.mark.parametrize("more", [[2], [3, 4, 4]])
def test_all_end_tokens_of_a_model_stop_its_answers(base: Path, tmp_path: Path, more: list[int]) -> None:
    shutil.copytree(base, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": more if more[1:] else more[0]}))
    policy = create_policy(spec(tmp_path, None), (), 0)
    end = policy.tokenizer.eos_token_id
    assert policy.renderer.stop_ids == (end, *dict.fromkeys(more))
    policy.save(tmp_path / "saved")
    assert set(load_policy(tmp_path / "saved").renderer.stop_ids) == {end, *more}


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (transformers.GPT2Config(n_positions=128), 128),
        (transformers.Qwen2Config(max_position_embeddings=512), 512),
        (transformers.BloomConfig(), math.inf),
        (transformers.Qwen2Config(max_position_embeddings=100, rope_parameters={"rope_type": "yarn", "factor": 4.0,
         "rope_theta": 1e4, "original_max_position_embeddings": 100}), 400),
    ],
)  # fmt: skip
def test_the_context_of_a_model_is_what_its_configuration_says(config: Any, positions: float) -> None:
    assert _context(config) == positions


def test_more_tokens_than_a_model_knows_positions_are_lowered_and_told(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("ttpa.policy.policy.fall_back", told.append)
    assert create_policy(spec(base, None, max_tokens=512), (), 0).spec.max_tokens == 512 and not told
    assert create_policy(spec(base, None, max_tokens=8192), (), 0).spec.max_tokens == 512
    assert told == [f"model.max_tokens=8192: {base} knows 512 positions, which stand in"]


def test_a_folder_without_a_policy_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no policy\.json .* Give the folder of a trained stage\."):
        load_policy(tmp_path)


def test_a_model_without_a_chat_template_is_refused_as_chat(tmp_path: Path) -> None:
    policy = create_policy(TINY, TEXTS, 0)
    policy.model.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"^model\.template=chat: .* has no chat template.* model\.template=compact"):
        create_policy(spec(tmp_path, None), (), 0)
    compact = create_policy(spec(tmp_path, None, template="compact"), (), 0)
    assert furthest(logits(compact.model), logits(policy.model)) < 1e-6


def test_adapters_of_an_older_version_are_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text(json.dumps({"spec": {}, "adapters": ["adapter-0"], "full": False}))
    with pytest.raises(DataError, match=r"adapters of an older version.* Delete the stage"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    ("kind", "fields", "key"),
    [
        (TinyModel, {**TINY_FIELDS, "heads": 3}, "heads"),
        (TinyModel, {**TINY_FIELDS, "heads": 16}, "heads"),  # heads of one number each: odd
        (TinyModel, {**TINY_FIELDS, "template": "chat"}, "template"),
        (TinyModel, {**TINY_FIELDS, "syntax": "xml"}, "syntax"),
        (HFOptions, {"rows": 0}, "rows"),
        (VLLMOptions, {**VLLM_FIELDS, "gpu_memory_utilization": 1.5}, "gpu_memory_utilization"),
        (HFModel, {**HF_FIELDS, "dtype": "int8"}, "dtype"),
        (HFModel, {**HF_FIELDS, "quantization": "nf4"}, "quantization"),
        (HFModel, {**HF_FIELDS, "template_kwargs": {"date_string": "2024-07-26"}}, r"template_kwargs\.date_string"),
    ],
)
def test_an_option_out_of_range_names_its_key(kind: Any, fields: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}="):
        kind(**fields)
