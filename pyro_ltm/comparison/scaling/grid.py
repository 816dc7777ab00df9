"""The cells of a scaling study: every combination of the values on its axes, and the rivals of each."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyro_ltm.config import Config, apply_together
from pyro_ltm.config.settings import flat
from pyro_ltm.errors import UserError
from pyro_ltm.inference.build import check_config
from pyro_ltm.profiling.costs import count_costs

LTM, TWIN, DIFFUSION = "ltm", "twin", "masked-diffusion"
RIVALS: dict[str, dict[str, str]] = {
    TWIN: {"model.thoughts": "0"},
    DIFFUSION: {"model.thoughts": "0", "model.kind": DIFFUSION},
}
"""Families beside the latent-thought model, and the settings that make one of it."""

EQUALITIES = ("tokens", "flops")
"""By which a rival is trained as long as a cell: the same tokens, or the same training operations."""

STEP_UP = 1.1
"""A rival of equal operations takes its slow steps from a ladder of this ratio, rounded up: cells of nearly one price
then share a rival, which is given at most a tenth more than each of them."""

MOST_STEPS = 10**12
"""Slow steps of a cell."""

LONGEST_NAME = 200
"""Characters."""


@dataclass(frozen=True)
class Axis:
    """Settings that change together, and their values in turn."""

    keys: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]

    @classmethod
    def parse(cls, text: str) -> Axis:
        """`model.dim=64,128`; or of several keys that change together `model.dim+model.heads=64+2,128+4`.

        Raises:
            UserError: it is no such thing, or its key is none for an axis.
        """
        keys, separator, listed = (part.strip() for part in text.partition("="))
        names = tuple(key.strip() for key in keys.split("+"))
        most = -1 if len(names) > 1 else 0  # alone, a value may have a + in it, such as 1e+3
        values = tuple(tuple(part.strip() for part in value.split("+", most)) for value in listed.split(","))
        if not separator or not all(names) or not all(part for value in values for part in value):
            raise UserError(f"--axis {text}: expected KEY=V1,V2,..., such as model.dim=64,128")
        if wrong := [value for value in values if len(value) != len(names)]:
            raise UserError(f"--axis {text}: '{'+'.join(wrong[0])}' has {len(wrong[0])} values for {len(names)} keys")
        for key in names:
            if key in ("seed", "model.kind") or key.startswith("data."):
                raise UserError(f"--axis {text}: {_INSTEAD.get(key, _INSTEAD['data'])}")
        return cls(names, tuple(dict.fromkeys(values)))

    def settings(self) -> Iterator[dict[str, str]]:
        """The settings of each value."""
        for value in self.values:
            yield dict(zip(self.keys, value, strict=True))


_INSTEAD = {
    "seed": "seeds are named by --seeds 0,1,2",
    "model.kind": "other kinds of model are named by --rivals",
    "data": "nats a token are comparable on the same tokens alone; make a study for each preparation of the data",
}


@dataclass(frozen=True)
class Budget:
    """How long every cell is trained; neither: as `slow.steps` says.

    Attributes:
        tokens: at most so many, counted as if all sequences were full. flops: at most so many operations.
    """

    tokens: float | None = None
    flops: float | None = None

    def __post_init__(self) -> None:
        if self.tokens and self.flops:
            raise UserError("--budget-tokens and --budget-flops exclude each other")

    def given_to(self, config: Config) -> Config:
        """`config` with the most slow steps that the budget allows. Raises UserError where it allows none."""
        if self.tokens:
            each = config.slow.sequences * config.data.sequence_length
            if (steps := int(self.tokens // each)) < 1:
                raise UserError(f"--budget-tokens {self.tokens:g}: a slow step alone reads {each:,} tokens")
            return with_steps(config, steps)
        if self.flops:
            costs = count_costs(config)

            def price(steps: int) -> int:
                return costs.training(with_steps(config, steps))

            most = int(self.flops // min(costs.slow_step, costs.decoder_warmup_step)) + 1
            steps = _last(most, lambda count: price(count) <= self.flops)
            if steps < 1:
                raise UserError(f"--budget-flops {self.flops:g}: a slow step alone takes {price(1):.3g} operations")
            return with_steps(config, steps)
        return config


@dataclass(frozen=True)
class Cell:
    """One training of a study.

    Attributes:
        family: `LTM`, or one of `RIVALS`. config: all of it, seed and slow steps included.
        axes: the value of each key on an axis that the family knows.
        name: of its folder: whatever sets it apart from the settings that all cells share.
    """

    family: str
    config: Config
    axes: Mapping[str, Any]
    name: str


@dataclass(frozen=True)
class Grid:
    """The cells of a study, in the order in which they are trained.

    Args:
        common: settings of all cells, with the vocabulary and the lengths of the data.
        axes: as `Axis`. rivals: families that are trained beside each cell. seeds: of each cell.
        equal: some of `EQUALITIES`.

    Raises:
        UserError: a key or value is wrong, or no cell of the grid can be trained so.
    """

    common: Config
    axes: Sequence[Axis] = ()
    rivals: Sequence[str] = (TWIN,)
    seeds: Sequence[int] = (0,)
    budget: Budget = Budget()
    equal: Sequence[str] = EQUALITIES

    def __post_init__(self) -> None:
        if self.common.model.is_diffusion:  # its cells would have no thoughts, and be called twins
            raise UserError("model.kind = masked-diffusion: leave it out, and take --rivals masked-diffusion")
        keys = [key for axis in self.axes for key in axis.keys]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise UserError(f"--axis {twice[0]}: is on two axes")
        if "slow.steps" in keys and self.budget != Budget():
            raise UserError("--axis slow.steps: how long cells are trained is what a budget says; leave one out")
        if unknown := [name for name in self.rivals if name not in RIVALS]:
            raise UserError(f"--rivals {unknown[0] or '(empty)'}: choose from {', '.join(RIVALS)}, or none alone")

    @property
    def places(self) -> int:
        """Latent-thought models of the grid, each seed by itself; rivals stand beside them."""
        return len(self.seeds) * len(list(self._combinations()))

    @property
    def not_run(self) -> str:
        """A remark on places without thoughts, which are twins that are there already; empty where there are none."""
        common = str(self.common.model.thoughts)
        twins = sum(settings.get("model.thoughts", common) == "0" for settings in self._combinations())
        if not twins:
            return ""
        places = self.places // len(self.seeds)
        return (
            f"{twins} of {places} places of the grid have model.thoughts = 0: they are the twin of their shape, which "
            "is trained once for all fast steps and has no rivals of its own"
        )

    def cells(self, on_place: Callable[[int], None] = lambda done: None) -> list[Cell]:
        """All of them, each once: seed by seed, rivals after the latent-thought models.

        `on_place` is called with how many of `places` are done: where operations have to be counted, those of a large
        model take a minute.
        """
        found: dict[str, Cell] = {}
        done = itertools.count(1)
        for seed in self.seeds:
            ltms: list[Cell] = []
            rivals: list[Cell] = []
            for settings in self._combinations():
                ltms.append(self._ltm(settings, seed))
                rivals += self._rivals_of(ltms[-1])
                on_place(next(done))
            for cell in [*ltms, *rivals]:
                found.setdefault(cell.name, cell)
        for name, cell in found.items():  # what training would refuse is said before any cell is trained
            if cell.config.seed == self.seeds[0]:
                named(name, lambda cell=cell: check_config(cell.config))
        return list(found.values())

    def _combinations(self) -> Iterator[dict[str, str]]:
        for parts in itertools.product(*(axis.settings() for axis in self.axes)):
            yield {key: value for part in parts for key, value in part.items()}

    def _ltm(self, settings: Mapping[str, str], seed: int) -> Cell:
        """A cell at a place of the grid; one without thoughts is the twin."""
        where = ", ".join(f"{key}={value}" for key, value in settings.items())
        config = apply_together(self.common, {**settings, "seed": str(seed)}, where=f"--axis {where}" if where else "")
        if not config.model.thoughts:
            return self._rival(TWIN, self.budget.given_to(_as_rival(config, self.common, TWIN)))
        return self._cell(LTM, self.budget.given_to(config), steps=False)

    def _rivals_of(self, cell: Cell) -> Iterator[Cell]:
        """The rivals of a cell: of the same shape, and as long as it in tokens, in operations or in both."""
        if cell.family != LTM:
            return
        for family in self.rivals:
            config = _as_rival(cell.config, self.common, family)
            if "tokens" in self.equal:
                yield self._rival(family, config)
            if "flops" in self.equal:
                if self.budget.flops:
                    yield self._rival(family, self.budget.given_to(config))
                else:
                    share = count_costs(cell.config).training(cell.config) / count_costs(config).slow_step
                    yield self._rival(family, with_steps(config, rounded_up(share)))

    def _rival(self, family: str, config: Config) -> Cell:
        return self._cell(family, config, steps=True)

    def _cell(self, family: str, config: Config, *, steps: bool) -> Cell:
        """A cell with its name. `steps`: its slow steps are a part of that."""
        ours, theirs = flat(config), flat(self.common)
        unsaid = {"seed"} if family == LTM else {"seed", "model.thoughts", "model.kind"}
        if steps or self.budget != Budget():
            unsaid.add("slow.steps")
        apart = {key: value for key, value in ours.items() if value != theirs.get(key) and key not in unsaid}
        parts = [family, *(f"{key}={value}" for key, value in sorted(apart.items()))]
        parts += [f"slow.steps={config.slow.steps}"] if steps else []
        keys = [key for axis in self.axes for key in axis.keys if reads(family, key)]
        values = {key: ours[key] for key in keys if key in ours}
        return Cell(family, config, values, _file_name([*parts, f"seed={config.seed}"]))


def _as_rival(config: Config, common: Config, family: str) -> Config:
    """The rival of a configuration, in which all that only thoughts look at is as in `common`: equal ones are one."""
    whole = named("--rivals " + family, lambda: apply_together(config, RIVALS[family], where=""))
    slow = dataclasses.replace(whole.slow, decoder_warmup=common.slow.decoder_warmup)
    same = {name: getattr(common, name) for name in ("fast", "guide", "objective", "optimizer", "prior")}
    model = dataclasses.replace(
        whole.model, thought_dim=common.model.thought_dim, thought_stride=common.model.thought_stride
    )
    return dataclasses.replace(whole, slow=slow, model=model, **same)


def reads(family: str, key: str) -> bool:
    """Whether a family looks at a key at all."""
    only_thoughts = ("fast.", "guide.", "objective.", "optimizer.", "prior.", "model.thought", "slow.decoder_warmup")
    return family == LTM or not key.startswith(only_thoughts)


def with_steps(config: Config, steps: int) -> Config:
    """`config` with so many slow steps. Raises UserError where no run has as many."""
    if steps > MOST_STEPS:
        raise UserError(f"{float(steps):g} slow steps: no run has more than {MOST_STEPS:g}; lower the budget")
    return dataclasses.replace(config, slow=dataclasses.replace(config.slow, steps=steps))


def rounded_up(steps: float) -> int:
    """The next rung of the ladder of slow steps."""
    rung = math.ceil(math.log(max(steps, 1), STEP_UP) - 1e-9)
    return math.ceil(STEP_UP**rung - 1e-9)


def part(cells: Sequence[Cell], index: int, count: int) -> list[Cell]:
    """The cells of shard `index` of `count`, from 1. Raises UserError where there is no such shard."""
    if not 1 <= index <= count:
        raise UserError(f"--shard {index}/{count}: the first number goes from 1 to the second")
    return list(cells[index - 1 :: count])


def _last(most: int, fits: Any) -> int:
    """The largest number up to `most` that fits, where all below it do; 0 where 1 does not."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def named(where: str, work: Any) -> Any:
    """Result of `work`. Raises UserError that names `where`."""
    try:
        return work()
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _file_name(parts: Sequence[str]) -> str:
    """A folder's name; where it cannot say all, with a digest of it."""
    whole = "--".join(parts)
    name = "".join(letter if letter.isalnum() or letter in "-.=" else "_" for letter in whole)[:LONGEST_NAME]
    return name if name == whole else f"{name}--{hashlib.blake2b(whole.encode(), digest_size=4).hexdigest()}"


__all__ = ["DIFFUSION", "LTM", "RIVALS", "TWIN", "Axis", "Budget", "Cell", "Grid", "part", "reads", "with_steps"]
