"""A run under the protocols of evaluation, which are never mixed, with its twin and the floor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pyro_ltm.data import TokenDataset, World
from pyro_ltm.errors import UserError
from pyro_ltm.inference.ais import Annealing
from pyro_ltm.runs.run import Run
from pyro_ltm.runs.twin import check_masked_diffusion, check_twin
from pyro_ltm.scores import (
    AnnealedBound,
    Bound,
    Difference,
    ExchangeRate,
    Figure,
    Floor,
    Prefix,
    Reference,
    Share,
    check_floor,
    difference,
    evaluate_floor,
    exchange_rate,
    share,
    why_no_floor,
)
from pyro_ltm.scores.ais import STARTS, check_annealing
from pyro_ltm.scores.estimate import plain
from pyro_ltm.scores.prefix import quarters

PROTOCOLS = ("bound", "prefix", "reference")
RIVALS = ("twin", "masked_diffusion")
SCORED = (*PROTOCOLS, *RIVALS, "floor")
"""The figures of an evaluation."""
IGNORED = 0.01
"""Another sequence's thoughts cost fewer nats a token than this: the decoder ignores them."""

DISTANCES = ("above_floor", "below_twin", "below_masked_diffusion", "closed")
"""Distances that an evaluation gives of its valid figures, by figure."""

Count = Callable[[int, float], None]
"""Called with the sequences done and the nats a token so far."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The figures of a run, each protocol by itself; None where it was not asked for.

    Attributes:
        bound: an upper bound on the nats a token. annealed: one by annealing, by where it starts.
        prefix: predictive figures. reference: no bound.
        twin: the twin's exact figure; twin_prefix: its predictive figures.
        masked_diffusion: the bound of that rival; masked_diffusion_prefix: of each block given those before it.
        twin_differs, masked_diffusion_differs: `training_differences`; empty where thoughts, and the order in which
            tokens are written, are all that sets the rival apart.
        no_bytes: why there is no figure by the byte; empty where there is one.
        floor: the text's own entropy; no_floor: why a world's text has none here.
        no_density: why rates and bounds are on average too high, under a prior without a density; else empty.
        above_floor: by figure, how far it lies above the floor. below_twin, below_masked_diffusion: how far below that
            rival on the same tokens; all paired by sequence. closed: what share of the distance from twin to floor that
            is.
        exchange_rate: nats of distortion that thoughts save a nat of rate, against the twin (see `exchange`).
    """

    bound: Bound | None = None
    annealed: dict[str, AnnealedBound] = field(default_factory=dict)
    prefix: Prefix | None = None
    reference: Reference | None = None
    twin: Bound | None = None
    twin_prefix: Prefix | None = None
    masked_diffusion: Bound | None = None
    masked_diffusion_prefix: Prefix | None = None
    twin_differs: list[str] = field(default_factory=list)
    masked_diffusion_differs: list[str] = field(default_factory=list)
    no_bytes: str = ""
    floor: Floor | None = None
    no_floor: str = ""
    no_density: str = ""
    above_floor: dict[str, Difference] = field(default_factory=dict)
    below_twin: dict[str, Difference] = field(default_factory=dict)
    below_masked_diffusion: dict[str, Difference] = field(default_factory=dict)
    closed: dict[str, Share] = field(default_factory=dict)
    exchange_rate: ExchangeRate | None = None

    @property
    def no_exchange_rate(self) -> str:
        """Why there is no exchange rate; empty where there is one, or nothing that could have any."""
        return self.bound.no_exchange_rate if self.bound and self.bound.active_fraction_by_layer else ""

    @property
    def ignores_thoughts(self) -> bool:
        """Whether those of another sequence serve the decoder as well; not known of one sequence alone."""
        bound = self.bound
        if bound is None or bound.sequences < 2 or not bound.active_fraction_by_layer:
            return False
        return bound.distortion_shuffled - bound.distortion_nats_per_token < IGNORED

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what is in `SCORED`, each with `nats_per_token`, where they are."""
        parts = {name: getattr(self, name) for name in SCORED}
        result: dict[str, Any] = {name: plain(part) for name, part in parts.items() if part is not None}
        if self.annealed:
            result["bound"]["ais"] = {start: plain(one) for start, one in self.annealed.items()}
        for name in RIVALS:
            if name in result:
                result[name]["differs"] = getattr(self, f"{name}_differs")
                if predictive := getattr(self, f"{name}_prefix"):
                    result[name]["prefix"] = plain(predictive)
        if self.exchange_rate:
            result["exchange_rate"] = plain(self.exchange_rate)
        for name in ("no_bytes", "no_floor", "no_density"):
            if why := getattr(self, name):
                result[name] = why
        for name in DISTANCES:
            if found := getattr(self, name):
                result[name] = {figure: plain(gap) for figure, gap in found.items()}
        return result


def protocols_of(run: Run) -> tuple[str, ...]:
    """The protocols by which a run can be scored; the reference's is of thoughts whose KL has a closed form."""
    closed = run.config.model.thoughts and getattr(run.model.prior, "has_analytic_kl", True)
    return PROTOCOLS if closed else ("bound", "prefix")


def why_no_density(run: Run) -> str:
    """Why rates and bounds of a run are on average too high: its prior's density is bounded itself; else empty."""
    if getattr(run.model.prior, "has_exact_density", True):
        return ""
    return (
        f"the prior {run.config.prior.name} has no density in closed form; its variational bound stands for it, so "
        "rates and bounds are on average too high by what that bound leaves"
    )


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How a run is scored.

    Attributes:
        protocols: some of `PROTOCOLS`.
        particles: draws from each posterior. fast_steps: of each fit; None: as many as in training.
        prefixes, stride: of the protocol `prefix`.
        annealing: of annealed importance sampling from the prior and from q (`evaluate_annealed`); None: none.
        sequences: score only so many, from the first; None: all. batch_size: sequences at a time.
        seed: of the noise.
    """

    protocols: Sequence[str] = ("bound",)
    particles: int = 4
    fast_steps: int | None = None
    prefixes: Sequence[int] = ()
    stride: int = 0
    annealing: Annealing | None = None
    sequences: int | None = None
    batch_size: int = 32
    seed: int = 0


def evaluate_protocols(
    run: Run,
    data: TokenDataset,
    how: Scoring | None = None,
    *,
    twin: Run | None = None,
    masked_diffusion: Run | None = None,
    counting: Callable[[str], Count] | None = None,
    **settings: Any,
) -> Evaluation:
    """Scores `run` on `data` under each of some protocols.

    Args:
        how: None: `Scoring()`. settings: single ones of it, by name, in place of those of `how`.
        twin: another run, scored on the same tokens where a likelihood is meant (`bound`, `prefix`).
        masked_diffusion: another run, whose bound is taken on the same tokens, of all and of each block.
        counting: gives what is called with the progress of the figure of this name.

    Raises:
        UserError: `twin` is not the twin of `run`, or `masked_diffusion` not its rival; a run without thoughts is asked
            for what only thoughts have; or a bound or a predictive figure lies below the text's entropy: an error, and
            not a result.
    """
    how = replace(how or Scoring(), **settings)
    _check_asked(run, how)
    found: dict[str, Any] = {"no_bytes": data.why_no_bytes, "no_density": why_no_density(run)}
    if twin is not None:
        found["twin_differs"] = check_twin(run, twin)
    if masked_diffusion is not None:
        found["masked_diffusion_differs"] = check_masked_diffusion(run, masked_diffusion)
    # The same for all: a masked diffusion reads whole sequences, also where documents leave their ends empty.
    longest = int(data.lengths[: how.sequences].max(initial=0))
    prefixes, stride = how.prefixes or quarters(longest), how.stride or max(1, longest // 8)
    found |= _floor(run, data, how, prefixes if "prefix" in how.protocols else ())

    def score(evaluate: Callable[..., Any], name: str, **options: Any) -> Any:
        options |= {"progress": counting(name)} if counting else {}
        return evaluate(data, sequences=how.sequences, batch_size=how.batch_size, seed=how.seed, **options)

    fitted: dict[str, Any] = {"fast_steps": how.fast_steps}
    cut: dict[str, Any] = {"prefixes": prefixes, "stride": stride, "particles": how.particles}
    if "bound" in how.protocols:
        found["bound"] = score(run.evaluate, "bound", particles=how.particles, **fitted)
        if how.annealing:
            annealed: dict[str, Any] = {**fitted, "annealing": how.annealing}
            found["annealed"] = {
                start: score(run.evaluate_annealed, f"AIS from {start}", start=start, **annealed) for start in STARTS
            }
    if "prefix" in how.protocols:
        found["prefix"] = score(run.evaluate_prefix, "prefix", **cut, **fitted)
    if "reference" in how.protocols:
        found["reference"] = score(run.evaluate_reference, "reference, not a bound", **fitted)
    for name, rival, particles in (("twin", twin, 1), ("masked_diffusion", masked_diffusion, how.particles)):
        if rival is not None:
            label = name.replace("_", " ")
            found[name] = score(rival.evaluate, label, particles=particles)
            if "prefix" in how.protocols:
                found[f"{name}_prefix"] = score(rival.evaluate_prefix, f"{label}'s prefix", **cut)
    return Evaluation(**found, **distances(found), exchange_rate=_exchange_rate(found))


def _check_asked(run: Run, how: Scoring) -> None:
    """Raises UserError when a run without thoughts is asked for what only thoughts have."""
    if not run.config.model.thoughts and ("reference" in how.protocols or how.annealing):
        what = "the reference knows none such" if "reference" in how.protocols else "there is nothing to anneal"
        raise UserError(f"{run.folder}: has no thoughts ({run.config.model.no_thoughts}): {what}")
    prior, name = run.model.prior, run.config.prior.name
    if "reference" in how.protocols and not getattr(prior, "has_analytic_kl", True):
        raise UserError(f"{run.folder}: the reference's figure needs a closed form of the KL, which {name} has not")
    if how.annealing:
        check_annealing(prior)


def _floor(run: Run, data: TokenDataset, how: Scoring, prefixes: Sequence[int]) -> dict[str, Any]:
    """The entropy of a world's text, or why it has none here."""
    if World.of(data.folder) is None:
        return {}
    if why := why_no_floor(data):
        return {"no_floor": why}
    window = run.config.model.receptive_field
    return {"floor": evaluate_floor(data, sequences=how.sequences, window=window, prefixes=prefixes)}


def distances(found: dict[str, Any]) -> dict[str, Any]:
    """Where the valid figures stand above the floor and below the rivals, and the share of the way from the twin."""
    floor, twin, diffusion = (found.get(name) for name in ("floor", "twin", "masked_diffusion"))
    gaps: dict[str, dict[str, Any]] = {name: {} for name in DISTANCES}
    for name, (figure, its, by_orders, least) in _sides(found).items():
        tokens, places = figure.sequence_tokens, figure.places
        if least is floor and floor is not None:
            check_floor(name, figure, floor)
        if least is not None:
            gaps["above_floor"][name] = difference(figure.sequence_nats, least.sequence_nats, tokens, places)
        if its is not None:
            gaps["below_twin"][name] = difference(its.sequence_nats, figure.sequence_nats, tokens, places)
        if by_orders is not None:
            nats = by_orders.sequence_nats, figure.sequence_nats
            gaps["below_masked_diffusion"][name] = difference(*nats, tokens, places)
        if its is not None and least is not None:
            way = difference(its.sequence_nats, least.sequence_nats, tokens, places)
            if way.nats_per_token > 3 * way.stderr:  # else there is no way to speak of
                part, whole = its.sequence_nats - figure.sequence_nats, its.sequence_nats - least.sequence_nats
                gaps["closed"][name] = share(part, whole, places)
    for name, rival in (("twin", twin), ("masked diffusion", diffusion)):
        if floor is not None and rival is not None:
            gaps["above_floor"][name] = check_floor(name, rival, floor)
    return gaps


def _exchange_rate(found: dict[str, Any]) -> ExchangeRate | None:
    """The exchange rate against the twin; None where either is not scored, or there is no rate to speak of."""
    bound, twin = found.get("bound"), found.get("twin")
    if bound is None or twin is None:
        return None
    distortion = bound.sequence_nats - bound.sequence_rate
    return exchange_rate(twin.sequence_nats, distortion, bound.sequence_rate, bound.places)


def _sides(found: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Of each valid figure: it, the twin's, the masked diffusion's and the floor, all of the same tokens, or None.

    What is predicted stands beside what a rival predicts: a masked diffusion's whole bound is of another law.
    """
    floor, prefix = found.get("floor"), found.get("prefix")
    whole, predictive = ([found.get(f"{name}{kind}") for name in RIVALS] for kind in ("", "_prefix"))
    sides = {
        name: (figure, *(predictive if name == "prefix" else whole), floor)
        for name, figure in valid_figures(found).items()
    }
    least = {after.prefix: after for after in floor.by_prefix} if floor else {}
    for index, after in enumerate(prefix.by_prefix if prefix else []):
        theirs = [one.by_prefix[index] if one else None for one in predictive]
        sides[f"after {after.prefix} tokens"] = (after, *theirs, least.get(after.prefix))
    return sides


def valid_figures(found: dict[str, Any]) -> dict[str, Figure | Bound]:
    """The figures of all tokens that no entropy can lie above: the reference's is not among them."""
    figures: dict[str, Figure | Bound] = {}
    if bound := found.get("bound"):
        figures["bound"] = bound
        figures["importance-weighted"] = Figure.of(bound.sequence_iwae_nats, bound.sequence_tokens, bound.places)
    for start, annealed in found.get("annealed", {}).items():
        figures[f"AIS from {start}"] = annealed
    if prefix := found.get("prefix"):
        figures["prefix"] = prefix
    return figures
