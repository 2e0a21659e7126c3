"""The embedded base model that ships with the package."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.options import made
from ttpa.data.reversed.world import draw_sample, make_world
from ttpa.errors import ConfigError
from ttpa.policy.export import write_merged
from ttpa.policy.models import TinyBase
from ttpa.policy.policy import BASE, Policy, create_policy, load_policy


@pytest.fixture(scope="module")
def base() -> Policy:
    return create_policy(made("model", "tiny_base"), (), 0)


def test_it_reads_signatures_of_tools_it_never_saw(base: Policy) -> None:
    """Greedy answers to easy questions about tools of a world of runs; a model that learned tools by heart has none."""
    world = make_world(world_seed=5, train_tools=90, unseen_tools=6)
    place = {"seed": 1, "split": "validation", "band": "easy"}
    samples = [draw_sample(world, number=number, **place) for number in range(40)]
    right = 0
    for sample, prompt in zip(samples, base.renderer.prompts(samples), strict=True):
        ids = torch.tensor([prompt])
        ended = base.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=80, do_sample=False, pad_token_id=0
        )
        text = base.tokenizer.decode(ended[0, ids.shape[1] :], skip_special_tokens=True)
        right += base.renderer.syntax.parse(text) == sample.target
    assert right >= 32


def test_it_is_small_and_no_random_number_decides_it(base: Policy) -> None:
    assert sum(path.stat().st_size for path in BASE.rglob("*") if path.is_file()) < 4_000_000
    other = create_policy(made("model", "tiny_base"), ["other texts"], 1)
    pairs = zip(base.model.parameters(), other.model.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    assert {weight.dtype for weight in base.model.parameters()} == {torch.float32}


def test_other_weights_than_the_option_names_are_refused(
    base: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"model.sha256.*0123.*Install ttpa again"):
        create_policy(made("model", "tiny_base", sha256="0123"), (), 0)
    (tmp_path / "model.safetensors").write_bytes(os.urandom(100))
    monkeypatch.setattr("ttpa.policy.policy.BASE", tmp_path)
    with pytest.raises(ConfigError, match="model.sha256"):
        create_policy(made("model", "tiny_base"), (), 0)


def test_a_trained_one_comes_back_from_its_folder(base: Policy, tmp_path: Path) -> None:
    base.save(tmp_path)
    back = load_policy(tmp_path)
    assert isinstance(back.spec, TinyBase) and back.spec == base.spec
    weights = zip(base.model.parameters(), back.model.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in weights)
    text = "<eos> a special token in a text stays text"
    assert base.tokenizer(text).input_ids == back.tokenizer(text).input_ids and base.tokenizer.eos_token_id not in (
        back.tokenizer(text).input_ids
    )


def test_exported_it_is_the_folder_that_ships_and_says_how_its_tokenizer_is_read(base: Policy, tmp_path: Path) -> None:
    """Qwen2's own tokenizer, which AutoTokenizer takes by the architecture, has no tokens of two digits."""
    base.save(tmp_path / "policy")
    (tmp_path / "out").mkdir()
    (note,) = write_merged(tmp_path / "policy", tmp_path / "out", "bfloat16")
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert isinstance(base.spec, TinyBase) and hashlib.sha256(weights).hexdigest() == base.spec.sha256
    text = "at 20:30"
    assert "PreTrainedTokenizerFast.from_pretrained" in note
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")(text).input_ids == base.tokenizer(text).input_ids
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text).input_ids != base.tokenizer(text).input_ids
