"""A run under the protocols of evaluation, which are never mixed, beside its twin and above the floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyro_ltm.data import TokenDataset, World
from pyro_ltm.errors import UserError
from pyro_ltm.runs.run import Run
from pyro_ltm.runs.twin import check_twin
from pyro_ltm.scores import (
    AnnealedBound,
    Bound,
    Difference,
    Figure,
    Floor,
    Prefix,
    Reference,
    Share,
    check_floor,
    difference,
    evaluate_floor,
    share,
    why_no_floor,
)
from pyro_ltm.scores.ais import STARTS
from pyro_ltm.scores.estimate import plain
from pyro_ltm.scores.prefix import quarters

PROTOCOLS = ("bound", "prefix", "reference")
IGNORED = 0.01
"""Another sequence's thoughts cost fewer nats a token than this: the decoder ignores them."""

DISTANCES = ("above_floor", "below_twin", "closed")
"""What an evaluation says of its valid figures, by figure."""

Count = Callable[[int, float], None]
"""Called with the sequences done and the nats a token so far."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was asked for, each protocol by itself; None where it was not.

    Attributes:
        bound: an upper bound on the nats a token. annealed: one by annealing, by where it starts.
        prefix: predictive figures. reference: no bound.
        twin: the twin's exact figure; twin_prefix: its predictive figures.
        twin_differs: `training_differences`; empty where thoughts are all that sets the twin apart.
        no_bytes: why there is no figure by the byte; empty where there is one.
        floor: the text's own entropy; no_floor: why a world's text has none here.
        above_floor: by figure, how far it lies above the floor. below_twin: how far below the twin on the same tokens;
            both paired by sequence. closed: what share of the distance from twin to floor that is.
    """

    bound: Bound | None = None
    annealed: dict[str, AnnealedBound] = field(default_factory=dict)
    prefix: Prefix | None = None
    reference: Reference | None = None
    twin: Bound | None = None
    twin_prefix: Prefix | None = None
    twin_differs: list[str] = field(default_factory=list)
    no_bytes: str = ""
    floor: Floor | None = None
    no_floor: str = ""
    above_floor: dict[str, Difference] = field(default_factory=dict)
    below_twin: dict[str, Difference] = field(default_factory=dict)
    closed: dict[str, Share] = field(default_factory=dict)

    @property
    def ignores_thoughts(self) -> bool:
        """Whether those of another sequence serve the decoder as well; not known of one sequence alone."""
        bound = self.bound
        if bound is None or bound.sequences < 2 or not bound.active_fraction_by_layer:
            return False
        return bound.distortion_shuffled - bound.distortion_nats_per_token < IGNORED

    def to_dict(self) -> dict[str, Any]:
        """For JSON: `bound`, `prefix`, `reference`, `twin` and `floor`, each with `nats_per_token`, where they are."""
        parts = {name: getattr(self, name) for name in ("bound", "prefix", "reference", "twin", "floor")}
        result: dict[str, Any] = {name: plain(part) for name, part in parts.items() if part is not None}
        if self.annealed:
            result["bound"]["ais"] = {start: plain(one) for start, one in self.annealed.items()}
        if self.twin_prefix:
            result["twin"]["prefix"] = plain(self.twin_prefix)
        if self.twin:
            result["twin"]["differs"] = self.twin_differs
        for name in ("no_bytes", "no_floor"):
            if why := getattr(self, name):
                result[name] = why
        for name in DISTANCES:
            if found := getattr(self, name):
                result[name] = {figure: plain(gap) for figure, gap in found.items()}
        return result


def protocols_of(run: Run) -> tuple[str, ...]:
    """The protocols by which a run can be scored; the reference's is of thoughts."""
    return PROTOCOLS if run.config.model.thoughts else ("bound", "prefix")


def evaluate_protocols(
    run: Run,
    data: TokenDataset,
    *,
    protocols: Sequence[str] = ("bound",),
    twin: Run | None = None,
    particles: int = 4,
    fast_steps: int | None = None,
    prefixes: Sequence[int] = (),
    stride: int = 0,
    annealing: Mapping[str, Any] | None = None,
    sequences: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    counting: Callable[[str], Count] | None = None,
) -> Evaluation:
    """Scores `run` on `data` under each of `protocols`.

    Args:
        twin: another run, scored on the same tokens where a likelihood is meant (`bound`, `prefix`).
        prefixes, stride: of the protocol `prefix`.
        annealing: of annealed importance sampling from the prior and from q (`evaluate_annealed`); None: none.
        counting: gives what is called with the progress of the figure of this name.

    Raises:
        UserError: `twin` is not the twin of `run`; a run without thoughts is asked for what only thoughts have; or a
            bound or a predictive figure lies below the text's entropy: an error, and not a result.
    """
    common: dict[str, Any] = {"sequences": sequences, "batch_size": batch_size, "seed": seed}
    thoughts = bool(run.config.model.thoughts)
    if not thoughts and ("reference" in protocols or annealing):
        what = "the reference knows none such" if "reference" in protocols else "there is nothing to anneal"
        raise UserError(f"{run.folder}: has no thoughts (it is an autoregressive twin): {what}")

    def options(name: str) -> dict[str, Any]:
        return common | ({"progress": counting(name)} if counting else {})

    prefixes = prefixes or quarters(int(data.lengths[:sequences].max(initial=0)))
    found: dict[str, Any] = {"no_bytes": data.why_no_bytes}
    if twin is not None:
        found["twin_differs"] = check_twin(run, twin)
    if World.of(data.folder) is not None:
        found["no_floor"] = why_no_floor(data)
        if not found["no_floor"]:
            given = prefixes if "prefix" in protocols else ()
            window = run.config.model.receptive_field
            found["floor"] = evaluate_floor(data, sequences=sequences, window=window, prefixes=given)
    if "bound" in protocols:
        fitted: dict[str, Any] = {"particles": particles, "fast_steps": fast_steps}
        found["bound"] = run.evaluate(data, **fitted, **options("bound"))
        if annealing:
            how: dict[str, Any] = {"fast_steps": fast_steps, **annealing}
            found["annealed"] = {
                start: run.evaluate_annealed(data, start=start, **how, **options(f"AIS from {start}"))
                for start in STARTS
            }
    cut: dict[str, Any] = {"prefixes": prefixes, "stride": stride, "particles": particles}
    if "prefix" in protocols:
        found["prefix"] = run.evaluate_prefix(data, **cut, fast_steps=fast_steps, **options("prefix"))
    if "reference" in protocols:
        found["reference"] = run.evaluate_reference(data, fast_steps=fast_steps, **options("reference, not a bound"))
    if twin is not None:
        found["twin"] = twin.evaluate(data, particles=1, **options("twin"))
        if "prefix" in protocols:
            found["twin_prefix"] = twin.evaluate_prefix(data, **cut, **options("twin's prefix"))
    return Evaluation(**found, **distances(found))


def distances(found: dict[str, Any]) -> dict[str, Any]:
    """Where the valid figures stand above the floor and below the twin, and what share of the way that is."""
    floor, twin = found.get("floor"), found.get("twin")
    gaps: dict[str, dict[str, Any]] = {name: {} for name in DISTANCES}
    for name, (figure, its, least) in _sides(found).items():
        tokens, places = figure.sequence_tokens, figure.places
        if least is floor and floor is not None:
            check_floor(name, figure, floor)
        if least is not None:
            gaps["above_floor"][name] = difference(figure.sequence_nats, least.sequence_nats, tokens, places)
        if its is not None:
            gaps["below_twin"][name] = difference(its.sequence_nats, figure.sequence_nats, tokens, places)
        if its is not None and least is not None:
            way = difference(its.sequence_nats, least.sequence_nats, tokens, places)
            if way.nats_per_token > 3 * way.stderr:  # else there is no way to speak of
                part, whole = its.sequence_nats - figure.sequence_nats, its.sequence_nats - least.sequence_nats
                gaps["closed"][name] = share(part, whole, places)
    if floor is not None and twin is not None:
        gaps["above_floor"]["twin"] = check_floor("twin", twin, floor)
    return gaps


def _sides(found: dict[str, Any]) -> dict[str, tuple[Any, Any, Any]]:
    """Of each valid figure: it, the twin's, and the floor, all of the same tokens; None for what there is not."""
    floor, prefix, theirs = (found.get(name) for name in ("floor", "prefix", "twin_prefix"))
    sides = {name: (figure, found.get("twin"), floor) for name, figure in valid_figures(found).items()}
    least = {after.prefix: after for after in floor.by_prefix} if floor else {}
    for index, after in enumerate(prefix.by_prefix if prefix else []):
        its = theirs.by_prefix[index] if theirs else None
        sides[f"after {after.prefix} tokens"] = (after, its, least.get(after.prefix))
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
