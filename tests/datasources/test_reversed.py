"""The reversed source: what its splits hold, what keeps them apart, and that calls and questions say the same."""

import os
import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.sources import drawn, noise
from tests.sources import reversed_source as source
from ttpa.calls.schema import check_call
from ttpa.data.reversed import source as module
from ttpa.data.reversed.source import SPLITS
from ttpa.data.reversed.world import KIND_OF, draw_sample, execute, make_world
from ttpa.data.source import Work, read_split
from ttpa.errors import ConfigError, DataError
from ttpa.records import Sample
from ttpa.run.parts import VERSIONS, build_data
from ttpa.run.waves import LocalExecutor, Rows, Wave

CLEAN = noise(share=0.0)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Sample]]:
    """Every split, with right targets in the warm-up too."""
    sizes = {"explore_samples": 200, "validation_per_band": 40, "test_per_band": 60, "test_unseen": 40}
    made = source(warmup_samples=1500, noise=CLEAN, **sizes)
    return {split: drawn(made, split) for split in SPLITS}


def question(sample: Sample) -> str:
    (message,) = sample.messages
    assert message.role == "user"
    return message.content


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_bytes_are_those_of_the_data_stage_version(tmp_path: Path) -> None:
    """Changed questions under an unchanged version would be mixed with stages built from the old ones."""
    pinned = {1: "d63b537a9db963da"}
    sizes = {"warmup_samples": 400, "explore_samples": 200, "validation_per_band": 40, "test_per_band": 60}
    made = source(**sizes, test_unseen=40)
    metrics = made.build(tmp_path)
    assert metrics["content_sha256"][:16] == pinned[VERSIONS["data"]]
    for split in SPLITS:
        assert read_split(tmp_path, split) == drawn(made, split)
        assert metrics["samples"][split] == len(read_split(tmp_path, split))


def test_another_seed_draws_other_training_questions_and_another_world_other_held_out_ones() -> None:
    for split in SPLITS:
        same = drawn(source(seed=0), split) == drawn(source(seed=1), split)
        assert same == (split in ("validation", "test"))
    assert drawn(source(), "test") != drawn(source(world_seed=1), "test")
    few, many = source(warmup_samples=20), source(warmup_samples=60)  # no sample depends on another
    assert drawn(few, "warmup") == drawn(many, "warmup")[:20]


class Killed(BaseException):
    pass


class Backwards:
    """Sends the work as to another process and gives waves back from the last to the first; may die after some."""

    def __init__(self, dies_after: int = -1) -> None:
        self.dies_after = dies_after

    def run(self, make_work: Callable[[], Work], waves: Sequence[Wave]) -> Iterator[tuple[int, Rows]]:
        work = pickle.loads(pickle.dumps(make_work))()
        for done, number in enumerate(reversed(range(len(waves)))):
            if done == self.dies_after:
                raise Killed
            yield number, work(pickle.loads(pickle.dumps(waves[number])))


def staged(out: Path, executor: Any, told: list[int] | None = None) -> dict[str, Any]:
    """The data stage of a run."""
    out.mkdir(exist_ok=True)
    progress = [] if told is None else told
    parts: Any = SimpleNamespace(data=source(), executor=executor)
    return build_data(parts, out, lambda done, total, *_: progress.append(done))


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[tuple[dict[str, Any], dict[str, bytes]]]:
    """Metrics and files of a build in one go; afterwards waves are small."""
    (tmp_path / "plain").mkdir()
    metrics = source().build(tmp_path / "plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WAVE", 70)
        yield metrics, files(tmp_path / "plain")


@pytest.mark.parametrize("cut", [0, 10])
def test_workers_may_answer_backwards_and_a_restart_ends_with_the_same_files(
    tmp_path: Path, plain: Any, cut: int
) -> None:
    out, told = tmp_path / "out", list[int]()
    with pytest.raises(Killed):
        staged(out, Backwards(2))
    os.truncate(out / "drawn.jsonl", (out / "drawn.jsonl").stat().st_size - cut)  # within the last row
    assert (staged(out, Backwards(), told), files(out)) == plain
    assert told[:2] == ([10, 80] if cut else [80, 150]) and told[-1] == 570
    assert set(plain[1]) == {"warmup.jsonl", "explore.jsonl", "validation.jsonl", "test.jsonl", "splits.json"}


def test_a_sample_that_cannot_be_drawn_stops_the_build_and_is_drawn_by_the_next(tmp_path: Path, plain: Any) -> None:
    def breaks(*world: Any, **item: Any) -> Any:
        if item["split"] == "test" and item["number"] == 5:
            raise RuntimeError("no test value")
        return draw_sample(*world, **item)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "draw_sample", breaks)
        with pytest.raises(DataError, match=r"4 samples cannot be drawn, first test-easy-5\. See errors\.jsonl"):
            staged(tmp_path / "out", LocalExecutor())
    assert not (tmp_path / "out" / "splits.json").exists()
    assert (staged(tmp_path / "out", LocalExecutor()), files(tmp_path / "out")) == plain


def test_sizes_bands_and_tools_are_those_asked_for(splits: dict[str, list[Sample]]) -> None:
    assert {split: len(samples) for split, samples in splits.items()} == {
        "warmup": 1500, "explore": 200, "validation": 120, "test": 220}  # fmt: skip
    assert Counter(sample.band for sample in splits["validation"]) == {"easy": 40, "medium": 40, "hard": 40}
    assert sum("unseen_tool" in sample.tags for sample in splits["test"]) == 40
    counts = Counter(sample.band for sample in splits["warmup"])
    for band, share in {"easy": 0.65, "medium": 0.21, "hard": 0.14}.items():
        assert counts[band] / 1500 == pytest.approx(share, abs=0.03)
    every = [sample for samples in splits.values() for sample in samples]
    assert len({sample.id for sample in every}) == len(every)
    for sample in every:
        names, used = [tool.name for tool in sample.tools], [call.name for call in sample.target]
        assert 2 <= len(set(names)) == len(names) <= 4
        assert len(set(used)) == len(used) == {"easy": 1, "medium": 2, "hard": 3}[sample.band]
        for call in sample.target:
            assert not check_call(call, sample.tools) and execute(call, sample.tools)["status"] == "ok"


def test_every_argument_is_said_in_the_question_and_nothing_else_is(splits: dict[str, list[Sample]]) -> None:
    for sample in (sample for samples in splits.values() for sample in samples):
        parts = question(sample).split(", then ")
        assert len(parts) == len(sample.target)
        for part, call in zip(parts, sample.target, strict=True):
            verb, noun = call.name.split("_")
            rest = re.sub(rf"^{verb} {noun}\b", "", part)
            assert rest != part
            for key, value in call.arguments.items():
                shown = " and ".join(map(str, value)) if isinstance(value, list) else str(value)
                if isinstance(value, bool):
                    shown = "urgent" if value else "not urgent"
                lead = " (?:in|for|by|called|saying|code|on|at|worth|under|tagged|ids)"
                clause = rf'(?:{lead})? "?{re.escape(shown)}"?(?: times| mode)?'
                clauses = rf"(?<!not){clause}(?= |$)" if value is True else rf"{clause}(?= |$)"
                assert re.search(clauses, rest), f"{key}={value!r} is not said in {part!r}"
                rest = re.sub(clauses, "", rest, count=1)
            assert not rest.strip(), f"{part!r} says more than its call"


def test_values_and_tools_of_held_out_questions_never_occur_in_training(splits: dict[str, list[Sample]]) -> None:
    held = {
        split: {(key, str(value)) for sample in samples for call in sample.target
                for key, value in call.arguments.items() if KIND_OF[key].splittable}
        for split, samples in splits.items()
    }  # fmt: skip
    training = held["warmup"] | held["explore"]
    assert not training & held["validation"] and not training & held["test"] and not held["validation"] & held["test"]
    assert len({kind for kind, _ in held["test"]}) == sum(kind.splittable for kind in KIND_OF.values())
    unseen = {tool.name for tool in make_world(world_seed=0, train_tools=64, unseen_tools=6).unseen}
    assert len(unseen) == 6
    for split, samples in splits.items():
        for sample in samples:
            offered, used = {tool.name for tool in sample.tools}, {call.name for call in sample.target}
            of_unseen = used if "unseen_tool" in sample.tags else set()
            assert offered & unseen == of_unseen and (split == "test" or not of_unseen)


@pytest.mark.parametrize(("key", "value", "said"), [
    ("generator", "gpt", "^generator='gpt': "), ("warmup_samples", 0, "^warmup_samples=0: "),
    ("train_tools", 91, "^train_tools=91: more than 96 tools"),
    ("unseen_tools", 0, r"^test_unseen=20: .*Set data\.unseen_tools"),
    ("explore_mix", {"easy": 0.5, "medium": 0.5}, "^explore_mix=.*easy, medium and hard"),
    ("warmup_mix", {"easy": 1.5, "medium": -0.5, "hard": 0.0}, "^warmup_mix=.*sum to 1"),
])  # fmt: skip
def test_a_value_that_cannot_work_is_refused_by_name(key: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        source(**{key: value})
