"""`data=reversed_openai`, `reversed_policy` and `reversed_bfcl`: dialogues that TTPA's reversed construction writes.

Drafts are made until enough have passed the gates; every rejected one is in `rejected.jsonl` with its reason. A
dialogue gives a sample for each of its calls, with the question, earlier calls and their results before it.
"""

import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from ttpa.data.bands import BANDS, Bands
from ttpa.data.published import SPLITS
from ttpa.data.reversed.card import Made, card, totals
from ttpa.data.reversed.gates import GATES, NearDuplicates
from ttpa.data.reversed.phrases import Phrases, read_book
from ttpa.data.reversed.sandbox import Sandbox
from ttpa.data.reversed.scenario import Draft, Script, prompts_digest
from ttpa.data.reversed.tools import Limits, Session, Source, Tool, read_document, read_source, split_tools, unique
from ttpa.data.reversed.writers import Bought, Drafting, LocalModel, Sandboxes
from ttpa.data.source import ComputeWaves, compute_here, stable_unit, write_splits
from ttpa.endpoint import address
from ttpa.errors import ConfigError, DataError
from ttpa.io import dumps, read_jsonl, write_jsonl, write_text
from ttpa.options import Count, Fraction, Index, NonNegative, Positive, Share, option
from ttpa.policy.models import Dtype, HFModel
from ttpa.records import Message, Sample, ToolCall

TRAIN, ROUNDS = "train", 50


class Job(NamedTuple):
    """A draft to make."""

    split: str
    number: int

    @property
    def id(self) -> str:
        return f"{self.split}-{self.number}"


@option
class Dialogues(ABC):
    """What the generators share; conf/reversed_dialogues.yaml says what each value means."""

    waits: ClassVar[tuple[str, ...]] = ()  # settings that decide how fast, and no sample
    in_process: ClassVar[bool] = False
    tools: list[str]
    states: str | None
    seed: int
    samples: Count
    validation_samples: Index
    test_samples: Index
    validation_tools: Fraction
    test_tools: Fraction
    drafts_per_sample: Annotated[float, Field(ge=1)]
    script: Script
    similarity: Share
    result_chars: Count
    call_seconds: Positive
    call_megabytes: Count
    text_turns: bool
    bands: Bands
    limit: Count | None

    def __post_init__(self) -> None:
        if not self.tools:
            remedy = "For example data.tools=[api.yaml,mcp.json], [bfcl:all] or [world], see docs/own_data.md"
            raise ConfigError.at("tools", self.tools, "no tools are given", remedy)
        if self.validation_tools + self.test_tools >= 1:
            problem = f"leaves no tools for training beside validation_tools={self.validation_tools}"
            raise ConfigError.at("test_tools", self.test_tools, problem, "Keep the sum below 1")
        for split in ("validation", "test"):
            if getattr(self, f"{split}_samples") and not getattr(self, f"{split}_tools"):
                problem = f"needs tools of its own, and {split}_tools is 0"
                remedy = f"Set data.{split}_tools, or data.{split}_samples=0"
                raise ConfigError.at(f"{split}_samples", getattr(self, f"{split}_samples"), problem, remedy)

    @abstractmethod
    def writer(self, out: Path) -> Any:
        """What drafts the jobs of a wave; `out` is the folder of the stage."""

    @abstractmethod
    def wave(self) -> int:
        """Jobs of a wave."""

    def decides(self) -> dict[str, Any]:
        """What lies on disk and decides the replies, besides tools and prompts."""
        return {}

    @cached_property
    def _sources(self) -> list[Source]:
        return [read_source(entry) for entry in self.tools]

    @cached_property
    def _states(self) -> Mapping[str, Any]:
        return self.read_states()

    def read_states(self) -> Mapping[str, Any]:
        """Class -> states in which its dialogues begin."""
        if self.states is None:
            return {}
        found = read_document(Path(self.states).expanduser())
        if not isinstance(found, dict) or not all(isinstance(one, list) and one for one in found.values()):
            problem = "must map names of classes to lists of states"
            raise ConfigError.at("data.states", self.states, problem, "See docs/own_data.md")
        return found

    @cached_property
    def by_split(self) -> dict[str, list[Tool]]:
        """The tools of each split."""
        return split_tools(unique(self._sources)[0], self.seed, self.validation_tools, self.test_tools)

    def check(self) -> None:
        """See `DataSource.check`."""
        for split, tools in self.by_split.items():
            if self.wanted(split) and len(tools) < self.script.least_tools:
                problem = f"gives {len(tools)} tools to {split}, {self.script.least_tools} are needed"
                remedy = "Add tools, change the shares data.validation_tools and data.test_tools, or ask for no samples"
                raise ConfigError.at("data.tools", self.tools, problem, remedy)
        if not self.script.written_results and all(not tool.runner for tool in self.by_split[TRAIN]):
            problem = "has no tool that can run, and results are not to be written"
            raise ConfigError.at("data.tools", self.tools, problem, "Set data.script.written_results=true")
        _ = self._states
        NearDuplicates(self.similarity)

    def identity(self) -> dict[str, Any]:
        """Contents instead of paths; how the generator is reached, and how fast, decides no sample."""
        found: dict[str, Any] = {"tools": [source.digest for source in self._sources], "prompts": prompts_digest()}
        if self.states is not None:
            found["states"] = hashlib.sha256(dumps(self._states).encode()).hexdigest()
        return {**dict.fromkeys(self.waits), **found, **self.decides()}

    def wanted(self, split: str) -> int:
        count: int = self.samples if split == TRAIN else getattr(self, f"{split}_samples")
        return count if self.limit is None else min(count, self.limit)

    def start(self, job: Job, sandbox: Sandbox) -> Drafting:
        """Begins a draft: as released, a window of the tool list from a random place."""
        tools, seed = self.by_split[job.split], f"{self.seed}/{job.id}"
        size = min(self.script.window, len(tools))
        at = int(stable_unit("window", seed) * (len(tools) - size + 1))
        states = {name: _state(one, stable_unit("state", seed, name)) for name, one in self._states.items()}
        limits = Limits(self.call_seconds, self.call_megabytes, self.result_chars)
        session = partial(Session, states=states, limits=limits, sandbox=sandbox)
        return Draft(self.script, tools[at : at + size], states, session, seed).write()

    def build(self, out: Path, compute: ComputeWaves = compute_here) -> dict[str, Any]:
        """See `DataSource.build`; writes `rejected.jsonl`, `card.md` and `card.json` besides the splits."""
        self.check()
        near, made = NearDuplicates(self.similarity), Made()
        for split in SPLITS_OF_TOOLS:
            self._gather(split, near, made, out, compute)
        write_jsonl(out / "rejected.jsonl", made.rejected)
        if not made.kept[TRAIN]:
            gates = ", ".join(f"{gate} {count}" for gate, count in made.gates.most_common())
            first = next((f"{one['id']}: {one['problem']}" for one in made.rejected), "none was made")
            raise DataError(
                f"{out / 'rejected.jsonl'}: no dialogue passed the gates ({gates}). First: {first}. Give other tools, "
                "another generator, or other values of data.script."
            )
        samples = {split: [one for row in made.kept[split] for one in self._samples(row)] for split in SPLITS_OF_TOOLS}
        lines = {f"{split}.jsonl": [dumps(one.to_json()) for one in found] for split, found in samples.items()}
        bands = {name: Counter(one.band for one in found) for name, found in samples.items()}
        kinds = Counter(one.kind for found in samples.values() for one in found)
        metrics = {
            "dialogues": {split: len(rows) for split, rows in made.kept.items()},
            "wanted": {split: self.wanted(split) for split in SPLITS_OF_TOOLS},
            "samples": {name: len(lines[file]) for name, file in SPLITS.items()},
            "bands": {name: {band: number[band] for band in BANDS} for name, number in bands.items()},
            "kinds": {kind: kinds[kind] for kind in ("call", "text")},
            "drafts": made.drafts,
            "rejected": {gate: made.gates[gate] for gate in GATES if made.gates[gate]},
            "reasked": {gate: made.reasked[gate] for gate in GATES if made.reasked[gate]},
            **totals(made, self.prices()),
        }
        sources = [
            [entry, source.digest, len(source.tools)] for entry, source in zip(self.tools, self._sources, strict=True)
        ]
        told = {"generator": self.told(), "tools": sources, "left_out": dict(unique(self._sources)[1])}
        told |= {"by_split": {split: [one.spec.name for one in tools] for split, tools in self.by_split.items()}}
        write_text(out / "card.json", dumps({**told, **metrics}))
        write_text(out / "card.md", card(told, metrics, made))
        metrics["content_sha256"] = write_splits(out, lines, SPLITS)
        for path in out.glob("drafts-*.jsonl"):
            path.unlink()
        return metrics

    def prices(self) -> Mapping[str, Sequence[float]]:
        """Model -> dollars for a million tokens of prompt and of reply."""
        return {}

    @abstractmethod
    def told(self) -> dict[str, Any]:
        """What the card says of the generator."""

    def _gather(self, split: str, near: NearDuplicates, made: Made, out: Path, compute: ComputeWaves) -> None:
        """Drafts in rounds until enough dialogues of a split are kept, or so many drafts are made as are allowed."""
        wanted, number = self.wanted(split), 0
        most = int(wanted * self.drafts_per_sample)
        for turn in range(ROUNDS):
            missing = wanted - len(made.kept[split])
            passed = len(made.kept[split]) / number if number else 1.0
            count = min(most - number, -int(-missing // max(passed, 1 / self.drafts_per_sample)))
            if missing <= 0 or count <= 0:
                break
            jobs = [Job(split, at) for at in range(number, number + count)]
            number, file, size = number + count, out / f"drafts-{split}-{turn}.jsonl", self.wave()
            waves = [jobs[at : at + size] for at in range(0, len(jobs), size)]
            if failed := compute(file, waves, partial(Drafter, self, out)):
                raise DataError(
                    f"{out}: {len(failed)} drafts cannot be made, first {failed[0]}. See errors.jsonl there."
                )
            rows = {row["id"]: row for row in read_jsonl(file)}
            for row in (rows[job.id] for job in jobs):
                made.take(split, row, wanted, near)

    def _samples(self, row: Mapping[str, Any]) -> list[Sample]:
        """The samples of a kept draft: one before each call and, with `text_turns`, one before the answer."""
        by_name = {tool.spec.name: tool.spec for tool in self.by_split[row["split"]]}
        tools = tuple(by_name[name] for name in row["tools"])
        messages, made = [Message(role="user", content=row["question"])], list[Sample]()
        tags = ("written_results",) if any(result["written"] for result in row["results"]) else ()
        steps = [
            (ToolCall.from_json(call), result["text"])
            for call, result in zip(row["calls"], row["results"], strict=True)
        ]
        for number in range(len(steps) + self.text_turns):
            target = (steps[number][0],) if number < len(steps) else ()
            made.append(Sample(
                id=f"reversed-{row['id']}-{number}", dialogue_id=f"reversed-{row['id']}", source="reversed",
                band=self.bands.band(tools, target), tags=tags, tools=tools, messages=tuple(messages), target=target,
                target_text=None if target else row["answer"],
            ))  # fmt: skip
            if target:
                messages += [Message(role="assistant", calls=target), Message(role="tool", content=steps[number][1])]
        return made


SPLITS_OF_TOOLS = (TRAIN, "validation", "test")


def _state(states: Sequence[Any], unit: float) -> Any:
    """One of the states. Where it has a `random_seed`, as BFCL's have, each dialogue gets its own identifiers."""
    state = states[int(unit * len(states))]
    return {**state, "random_seed": int(unit * 2**31)} if isinstance(state, dict) and "random_seed" in state else state


class Drafter:
    """Makes the rows of a wave; see `ttpa.data.source.Work`."""

    def __init__(self, source: Dialogues, out: Path) -> None:
        self._source, self._writer = source, source.writer(out)
        self._sandboxes = Sandboxes([key] if (key := getattr(source, "api_key_env", None)) else ())

    def __call__(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        rows = self._writer.draft(jobs, self._source.start, self._sandboxes)
        return [{"id": job.id, "split": job.split, **row} for job, row in zip(jobs, rows, strict=True)]

    def close(self) -> None:
        self._writer.close()
        self._sandboxes.close()


@option
class OpenAIDialogues(Dialogues):
    """Written by a language model behind an OpenAI-style endpoint; conf/data/reversed_openai.yaml."""

    waits: ClassVar[tuple[str, ...]] = (
        "base_url", "api_key_env", "concurrency", "requests_per_minute", "retries", "timeout_s", "token_prices"
    )  # fmt: skip
    in_process: ClassVar[bool] = True  # one process writes the file of replies
    generator: Literal["openai"]
    base_url: str | None
    api_key_env: str | None
    model: Annotated[str, Field(min_length=1)]
    strong_model: str | None
    judge_model: str | None
    temperature: NonNegative
    max_tokens: Count
    structured: Literal["json_schema", "json_object"] | None
    concurrency: Annotated[int, Field(ge=1, le=512)]
    requests_per_minute: Positive | None
    retries: Index
    timeout_s: Positive
    token_prices: dict[str, Annotated[list[NonNegative], Field(min_length=2, max_length=2)]]

    @property
    def address(self) -> str:
        """The address of the endpoint: of the configuration, of OPENAI_BASE_URL, or OpenAI's own."""
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"

    def model_of(self, role: str) -> str:
        """As released, answers and questions are written by a stronger model than calls."""
        strong = self.strong_model or self.model
        return {"answer": strong, "question": strong, "judge": self.judge_model or strong}.get(role, self.model)

    def check(self) -> None:
        """The address may hold no login: settings are written into run folders and trackers."""
        parts = address(self.address)
        if parts.username or parts.password:
            problem, remedy = (
                "holds a login, which would be stored",
                "Give the key in a variable: data.api_key_env=NAME",
            )
            raise ConfigError.at("base_url", re.sub("//.*@", "//***@", self.address), problem, remedy)
        super().check()

    def writer(self, out: Path) -> Bought:
        """Replies are kept beside the stages: other gates, or a stage begun anew, do not buy them again."""
        return Bought(self, out.parent / "replies" / f"{self.model.replace('/', '--')}.jsonl")

    def wave(self) -> int:
        return 4 * self.concurrency

    def prices(self) -> Mapping[str, Sequence[float]]:
        return self.token_prices

    def told(self) -> dict[str, Any]:
        models = {role: self.model_of(role) for role in ("scenario", "call", "answer", "question")}
        return {"kind": "openai", **models, **({"judge": self.model_of("judge")} if self.script.judge else {})}


@option
class PolicyDialogues(Dialogues):
    """Written by a local model through the engine of the run; conf/data/reversed_policy.yaml."""

    waits: ClassVar[tuple[str, ...]] = ("engine",)
    generator: Literal["policy"]
    model: Annotated[str, Field(min_length=1)]
    revision: str | None
    dtype: Dtype
    context: Annotated[int, Field(ge=16)]
    temperature: NonNegative
    max_tokens: Count
    engine: Callable[..., Any]

    @property
    def spec(self) -> HFModel:
        return HFModel(
            name=self.model, revision=self.revision, max_tokens=self.context, dtype=self.dtype, quantization=None,
            syntax="hermes", template="chat", lora=None,
        )  # fmt: skip

    def decides(self) -> dict[str, Any]:
        return self.spec.identity()

    def writer(self, out: Path) -> LocalModel:
        return LocalModel(self)

    def wave(self) -> int:
        return int(getattr(self.engine, "rows", 16))

    def told(self) -> dict[str, Any]:
        return {"kind": "policy", "model": self.model, "revision": self.revision}


@option
class ScriptedDialogues(Dialogues):
    """Written by a script from a book of phrases, without a model; conf/data/reversed_bfcl.yaml."""

    generator: Literal["simulator"]
    phrases: str | None

    @cached_property
    def _book(self) -> Mapping[str, Any]:
        return read_book(None if self.phrases is None else Path(self.phrases).expanduser())

    def read_states(self) -> Mapping[str, Any]:
        own = {name: part["states"] for name, part in self._book.items() if part.get("states")}
        return own | dict(super().read_states())

    def decides(self) -> dict[str, Any]:
        book = hashlib.sha256(dumps(self._book).encode()).hexdigest()
        return {"book": book} | ({} if self.phrases is None else {"phrases": None})

    def writer(self, out: Path) -> Phrases:
        return Phrases(self._book)

    def wave(self) -> int:
        return 50

    def told(self) -> dict[str, Any]:
        return {"kind": "script", "phrases": self.phrases or "those of ttpa"}
