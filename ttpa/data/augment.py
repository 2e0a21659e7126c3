"""Samples made from samples: questions without the right tool (APIGen's irrelevance), names that say nothing (Hammer,
arXiv 2410.04587). Each depends on the seed and the sample's id alone.
"""

import random
import string
from collections.abc import Iterator, Mapping
from dataclasses import replace

from ttpa.data.source import stable_unit
from ttpa.options import Fraction, option
from ttpa.records import Message, Sample, ToolCall, ToolSpec


@option
class Augment:
    """Which share of the call samples is changed or added; conf/published_data.yaml says how each is meant."""

    seed: int
    irrelevance: Fraction
    irrelevance_text: str
    mask_names: Fraction

    def apply(self, sample: Sample, train: bool) -> Iterator[Sample]:
        """The sample, perhaps with masked names (where `train`), and perhaps its twin without the right tool."""
        if train and self._drawn("mask", sample, self.mask_names):
            sample = self.masked(sample)
        yield sample
        if self._drawn("irrelevance", sample, self.irrelevance):
            yield from self.irrelevant(sample)

    def _drawn(self, what: str, sample: Sample, share: float) -> bool:
        return bool(sample.target) and stable_unit(self.seed, what, sample.id) < share

    def irrelevant(self, sample: Sample) -> Iterator[Sample]:
        """The twin: the tools of the target are left out, and a reply in words is right. None where no other tool is
        left, or where an earlier turn calls a tool that would be gone.
        """
        wanted = {call.name for call in sample.target}
        left = tuple(tool for tool in sample.tools if tool.name not in wanted)
        if left and not any(call.name in wanted for turn in sample.messages for call in turn.calls):
            yield replace(
                sample, id=f"{sample.id}-irrelevance", tags=(*sample.tags, "irrelevance"), tools=left, target=(),
                target_text=self.irrelevance_text, target_thought="",
            )  # fmt: skip

    def masked(self, sample: Sample) -> Sample:
        """The sample with random names for tools and their parameters, in its calls too; descriptions stay."""
        rng, taken = random.Random(f"{self.seed}:{sample.id}"), set[str]()
        names = {tool.name: _word(rng, taken) for tool in sample.tools}
        keys = {tool.name: {key: _word(rng, taken) for key in tool.properties} for tool in sample.tools}

        def called(calls: tuple[ToolCall, ...]) -> tuple[ToolCall, ...]:
            return tuple(
                ToolCall(name=names[call.name], arguments=_renamed(call.arguments, keys[call.name])) for call in calls
            )

        def turned(turn: Message) -> Message:
            return replace(turn, calls=called(turn.calls))

        return replace(
            sample, id=f"{sample.id}-masked", tags=(*sample.tags, "masked"), target=called(sample.target),
            tools=tuple(_renamed_tool(tool, names[tool.name], keys[tool.name]) for tool in sample.tools),
            messages=tuple(map(turned, sample.messages)),
        )  # fmt: skip


def _word(rng: random.Random, taken: set[str]) -> str:
    """A name that says nothing and is not taken."""
    while (word := rng.choice(string.ascii_letters) + "".join(rng.choices(string.ascii_letters + "_", k=7))) in taken:
        pass
    taken.add(word)
    return word


def _renamed(given: Mapping[str, object], names: Mapping[str, str]) -> dict[str, object]:
    return {names.get(key, key): value for key, value in given.items()}


def _renamed_tool(tool: ToolSpec, name: str, keys: Mapping[str, str]) -> ToolSpec:
    required = [keys.get(key, key) for key in tool.required]
    schema = {**tool.parameters, "properties": _renamed(tool.properties, keys), "required": required}
    return ToolSpec(name=name, description=tool.description, parameters=schema)
