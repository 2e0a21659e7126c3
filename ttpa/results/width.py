"""How many seeds a table needs for paired intervals of a given width, by Stein's two stages (Annals of Mathematical
Statistics 16, 1945): the spread of the listed seeds decides the number once, and the interval keeps that spread.

The means play no part in the number, so intervals and tests keep their level for normal differences, also of several
pairs at once and where the number is cut off at a limit.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import pydantic.dataclasses

from ttpa.errors import ConfigError
from ttpa.options import Count, Positive
from ttpa.results.cells import CellsForm
from ttpa.results.spec import Preset, TableSpec
from ttpa.results.stats import Estimate, seeds_for_width
from ttpa.results.table import from_folder

FIRST = 3
"""Seeds of the first stage at least."""


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True)
class WidthForm(CellsForm):
    """The words of a command that may count more seeds than the table lists."""

    ci: Positive | None = None
    max_seeds: Count = 32

    def check_table(self, spec: TableSpec, preset: Preset) -> None:
        """A ConfigError where the width of intervals cannot decide on seeds."""
        rows, listed = {row.key for row in spec.rows_of(preset.name)}, len(preset.seeds) - len(preset.added)
        if any(word.startswith("seed=") for word in self.overrides):
            raise ConfigError.at("ci", self.ci, "seeds are added to those of table.yaml", "Leave seed= out")
        if not any(rows.issuperset(pair) for pair in spec.differences):
            problem = f"preset {preset.name} of {spec.file} takes no differences"
            raise ConfigError.at("ci", self.ci, problem, "Add differences: [[ROW, OTHER]]")
        if listed < FIRST:
            problem = f"the spread of {listed} seeds is not known, and it decides how many are added"
            raise ConfigError.at("ci", self.ci, problem, f"List {FIRST} seeds or more in {spec.file}")
        if self.max_seeds < listed:
            raise ConfigError.at("max_seeds", self.max_seeds, f"{spec.file} lists {listed}", "Give more")


class Wanted(NamedTuple):
    """How many seeds are `listed`, how many there shall be, how many each pair needs, and how wide its interval is with
    those there shall be, in points; pairs without a spread, and pairs that are not measured with every listed seed.
    """

    listed: int
    seeds: int
    pairs: Mapping[str, tuple[int, float]]
    equal: tuple[str, ...]
    holes: tuple[str, ...]

    def told(self) -> str:
        """What was added and why it ended there."""
        said = [f"{self.seeds - self.listed} seeds added to {self.listed}, {self.seeds} in all"]
        need, width = ({name: pair[at] for name, pair in self.pairs.items()} for at in (0, 1))
        if most := max(need, key=need.__getitem__, default=""):
            short = need[most] > self.seeds
            said += [f"stopped at max_seeds={self.seeds}, because {most} needs {need[most]}"] if short else []
            said.append(f"the widest paired interval is {width[most]:.2f} points wide ({most})")
        said += [f"the same difference in all seeds, so no width: {', '.join(self.equal)}"] if self.equal else []
        said += [f"not measured with every seed: {', '.join(self.holes)}"] if self.holes else []
        return "; ".join(said)


def wanted(form: WidthForm) -> Wanted:
    """What `form.ci` asks for, by the records of the listed seeds."""
    table = from_folder(form.target, form.preset, form.overrides)
    form.check_table(table.spec, table.preset)
    there, point = len(table.preset.seeds), abs(table.columns[0].scale) / 100
    listed, pairs, equal, holes = there - len(table.preset.added), dict[str, Estimate](), list[str](), list[str]()
    for one in table.differences:
        name = f"{one.ours} - {one.against}"
        if one.seeds is None or one.seeds.freedom < listed - 1:
            holes.append(name)
        elif one.seeds.has_no_width:
            equal.append(name)
        else:
            pairs[name] = one.seeds
    need = {name: seeds_for_width(one, (form.ci or 0) * point) for name, one in pairs.items()}
    seeds = there if holes else max(there, min(form.max_seeds, max(need.values(), default=listed)))
    wide = {name: ((one.high or 0) - (one.low or 0)) * math.sqrt(one.n / seeds) / point for name, one in pairs.items()}
    return Wanted(listed, seeds, {name: (need[name], wide[name]) for name in pairs}, tuple(equal), tuple(holes))
