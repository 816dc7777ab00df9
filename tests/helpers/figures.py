"""A comparison with every kind of figure, made up."""

from __future__ import annotations

from typing import Any

from pyro_ltm.comparison.result import Checkpoint, Comparison, DecoderTraining, Estimate, PairScore, Validation
from pyro_ltm.scores.convergence import Convergence
from pyro_ltm.scores.pareto import ParetoK


def comparison() -> Comparison:
    """Two pairs with all figures, one without a bound, one refused."""
    row = Validation(step=1, tokens=9, seconds=1.5, nats_per_token=2.5, stderr=0.1)
    training = DecoderTraining(steps=2, tokens=18, seconds=3.0, skipped=0, arrival=row, validation=[row, row])

    def pair(guide: str, level: float | None) -> PairScore:
        figures: dict[str, Any] = {"note": "ran away"}
        if level is not None:
            measured = (
                "steps_taken",
                "ess",
                "ess_stderr",
                "rate",
                "distortion",
                "log_joint",
                "ms_per_sequence_to_1pct",
            )
            figures = dict.fromkeys((*measured, "ms_per_fast_step", "ms_per_sequence"), 2.5)
            figures |= {"elbo": Estimate(level, 0.1), "iwae": Estimate(level, None), "steps_to_1pct": 2}
            figures |= {"peak_memory_bytes": 10**6, "nats_by_sequence": [9 * level, 9 * level]}
            figures["pareto_k"] = ParetoK(
                median=0.5, largest=0.9, threshold=0.7, share_above=0.5, by_sequence=[0.5, 0.9]
            )
            rhat = {"rhat": 1.5, "ess_bulk": 9.0, "ess_tail": None, "share_above": 0.5, "rhat_by_sequence": [1.0, None]}
            figures["convergence"] = Convergence(chains=2, draws=9, **rhat)
            figures["curve"] = [Checkpoint(0, 0.0, 9.0), Checkpoint(1, 0.5, level), Checkpoint(2, 1.0, level)]
        figures |= {"guide_training_seconds": 1.0, "training": training}
        return PairScore(guide=guide, objective="elbo", fast_steps=2, **figures)

    found = Comparison("training", {"particles": 4, "data": "x"}, about={"command": "compare"}, token_counts=[9, 9])
    found.made_on = [{"system": "Linux", "threads": 1}]
    found.definitions = {"guides": {"mf": "mean-field"}, "objectives": {"elbo": "analytic-elbo"}}
    found.pairs, found.twin = [pair("mf", 2.5), pair("delta", 2.7), pair("hmc", None)], pair("twin", 2.9)
    found.refuse("delta", "iwae", "has no density")
    return found
