"""The small model's tokenizer: byte-level BPE trained on the rendered warm-up demonstrations.

The pre-tokeniser keeps capitalised words, digits and `_word` parts apart from a leading space, so that a name or a
value has the same tokens in the prompt and in the answer and an answer is a plain copy of token ids.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ttpa.prompts import COMPACT_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PRE_SPLIT = r" ?[a-z]+|_[a-z]+|[A-Z][a-z]*|\d{1,2}|[^\sA-Za-z0-9]|\s"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains the tokenizer; any text can be encoded afterwards (byte level), special tokens in a text stay text.

    Args:
        texts: Training texts.
        vocab_size: Number of tokens, special tokens and the 256 bytes included.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(COMPACT_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
