"""Honest figures: bounds, predictions, and what they are made of."""

from pyro_ltm.scores.adaptation import Adaptation, Adapted, evaluate_adapted
from pyro_ltm.scores.ais import AnnealedBound, evaluate_annealed
from pyro_ltm.scores.calibration import Calibration, evaluate_calibration
from pyro_ltm.scores.elbo import Bound, evaluate_bound
from pyro_ltm.scores.estimate import Difference, Figure, Share, difference, share
from pyro_ltm.scores.exchange import ExchangeRate, exchange_rate, why_no_exchange_rate
from pyro_ltm.scores.floor import Floor, check_floor, evaluate_floor, why_no_floor
from pyro_ltm.scores.own_texts import write_texts
from pyro_ltm.scores.prefix import Prefix, evaluate_prefix
from pyro_ltm.scores.reference_protocol import Reference, evaluate_reference
from pyro_ltm.scores.sandwich import Sandwich, evaluate_sandwich

__all__ = [
    "Adaptation",
    "Adapted",
    "AnnealedBound",
    "Bound",
    "Calibration",
    "Difference",
    "ExchangeRate",
    "Figure",
    "Floor",
    "Prefix",
    "Reference",
    "Sandwich",
    "Share",
    "check_floor",
    "difference",
    "evaluate_adapted",
    "evaluate_annealed",
    "evaluate_bound",
    "evaluate_calibration",
    "evaluate_floor",
    "evaluate_prefix",
    "evaluate_reference",
    "evaluate_sandwich",
    "exchange_rate",
    "share",
    "why_no_exchange_rate",
    "why_no_floor",
    "write_texts",
]
