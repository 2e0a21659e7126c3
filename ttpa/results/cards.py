"""Cards of exported folders: what is in them, from which stages, with which results and under which licences."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

import ttpa
from ttpa.errors import DataError
from ttpa.run.store import is_finished, verify

TAGS = ["ttpa", "tool-calling"]
LICENCES = {  # of published sets, by the class that reads them
    "ttpa.data.toolace.ToolACE": "the published ToolACE set is under Apache-2.0",
    "ttpa.data.xlam.XLAM": "the published xLAM set is under CC-BY-4.0",
    "ttpa.data.reversed.source.Reversed": "made by ttpa, Apache-2.0",
}


class Stage(NamedTuple):
    """A finished stage: its folder, its name, and the folders of its inputs by role, None where they are gone."""

    path: Path
    name: str
    inputs: Mapping[str, Path | None]
    config: Mapping[str, Any]

    def input(self, role: str) -> Stage:
        """An input; DataError where it is gone."""
        if (found := self.inputs.get(role)) is None:
            raise DataError(f"{self.path}: its {role} stage is not in {self.path.parent}. Run the same command again.")
        return read_stage(found)


def read_stage(path: Path) -> Stage:
    """The stage of a folder; DataError where it is not finished or not as it was."""
    if not is_finished(path):
        raise DataError(f"{path}: no folder of a finished stage. Give one of store/, such as store/align-0123456789ab.")
    verify(path)
    try:
        known = json.loads((path / "provenance.json").read_text(encoding="utf-8"))
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))["config"]
        inputs = {role: next(path.parent.glob(f"*-{digest}"), None) for role, digest in known["inputs"].items()}
        return Stage(path, known["stage"], inputs, config)
    except (OSError, ValueError, LookupError, yaml.YAMLError) as error:
        raise DataError(f"{path}: not what a stage writes ({error}). Delete {path} and run again.") from None


def _lineage(stage: Stage) -> Iterator[Stage]:
    """A stage and what it was made from, nearest first, each once."""
    seen, waiting = set[Path](), [stage]
    while waiting:
        one = waiting.pop(0)
        if one.path not in seen:
            seen.add(one.path)
            yield one
            waiting += [read_stage(path) for path in one.inputs.values() if path is not None]


def _results(stage: Stage) -> list[str]:
    """A table of the finished evaluations of this policy in the same store."""
    found = []
    for folder in sorted(stage.path.parent.glob("evaluate-*")):
        with suppress(DataError):
            one = read_stage(folder)
            if one.inputs.get("policy") == stage.path:
                accuracy = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["accuracy"]
                how = str(one.config["eval"]["_target_"]).rpartition(".")[2]
                numbers = [accuracy.get(key) for key in ("value", "low", "high")]
                share, low, high = ("-" if one is None else f"{one:.3f}" for one in numbers)
                found.append(f"| {how} | {share} | {low} to {high} | {accuracy.get('n')} |")
    if not found:
        return ["Not evaluated in this store."]
    return ["| evaluation | accuracy | 95 % interval | answers |", "|---|---|---|---|", *found]


def _licence(data: Stage) -> str:
    settings = data.config.get("data", {})
    kind, path = str(settings.get("_target_")), settings.get("path")
    place = path if isinstance(path, str) else ", ".join(name for name, _ in path) if path else ""
    said = LICENCES.get(kind, "its licence is not known here: ask where the files are from")
    return f"`{kind}`{f' ({place})' if place else ''}; {said}"


def _base_licence(base: str) -> str:
    """The licence that the card of the base names, where it is on this machine."""
    from huggingface_hub import try_to_load_from_cache

    if not base:
        return ""
    file = str(Path(base) / "README.md") if Path(base).is_dir() else try_to_load_from_cache(base, "README.md")
    known = isinstance(file, str) and Path(file).is_file()
    text = Path(str(file)).read_text(encoding="utf-8", errors="replace") if known else ""
    if named := re.search(r"^license(?:_name)?: *(\S+)", text, re.M):
        return f", under {named[1]}"
    return "; its licence is on its own page and holds for this one, too"


def data_card(stage: Stage, data: Stage, files: Mapping[str, str], said: Sequence[str], license_id: str) -> str:
    """The card of a data set, which also tells `datasets` what its files are (split -> file)."""
    places = [{"split": split, "path": file} for split, file in files.items()]
    configs = [{"config_name": "default", "data_files": places}]
    text = [f"# {stage.name} of ttpa", "", *(f"{line[0].upper()}{line[1:]}." for line in said), ""]
    text += [f"ttpa {ttpa.__version__}. Data: {_licence(data)}.", "", *_settings(stage)]
    return _card({"configs": configs, "tags": TAGS}, text, license_id)


def policy_card(stage: Stage, said: Sequence[str], adapter: bool, license_id: str) -> str:
    """The card of a policy; `said` is what is in the folder, and what its user must know."""
    spec = json.loads((stage.path / "policy" / "policy.json").read_text(encoding="utf-8"))["spec"]
    base = str(spec["name"]) if spec["kind"] == "hf" else ""
    lineage = list(_lineage(stage))
    data = next((one for one in lineage if one.name == "data"), stage)
    known = {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "text-generation", "tags": TAGS}
    known |= {"base_model": base} if base and not Path(base).is_dir() else {}
    text = ["# A policy that calls tools", "", f"Trained with ttpa {ttpa.__version__}. Here: {said[0]}.", *said[1:], ""]
    text += [f"Calls are written in the syntax `{spec['syntax']}`; the chat template takes `tools`.", ""]
    text += ["## Results", "", *_results(stage), "", "## Data and licences", "", f"- data: {_licence(data)}"]
    shown = (Path(base).name if Path(base).is_dir() else base) if base else "random weights"
    text += [f"- base: {shown}{_base_licence(base)}"]
    text += ["", "## Settings", "", *(line for one in reversed(lineage) for line in _settings(one))]
    return _card(known, text, license_id)


def _settings(stage: Stage) -> list[str]:
    """The settings of a stage; of a model's folder only the name."""
    shown = json.loads(json.dumps(stage.config))
    if (name := (shown.get("model") or {}).get("name")) and Path(name).is_dir():
        shown["model"] = {**shown["model"], "name": Path(name).name}
        shown["model"].pop("files", None)
    written = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).rstrip()
    return [f"Stage `{stage.path.name}`:", "", "```yaml", written, "```", ""]


def _card(known: Mapping[str, Any], text: Sequence[str], license_id: str) -> str:
    front = yaml.safe_dump({**({"license": license_id} if license_id else {}), **known}, sort_keys=False)
    return "\n".join(["---", front.rstrip(), "---", "", *text])
