"""What is timed side by side is the same computation, and another checkout leaves this one's modules alone."""

from __future__ import annotations

import sys

import pytest

from benchmarks import before
from benchmarks.pages import ROOT
from pyro_ltm.model import LatentThoughtModel

TINY = ("model.dim=16", "model.layers=2", "model.heads=2", "model.max_length=32", "model.window=8")


def test_the_twin_and_mistral_are_one_function_with_the_same_weights():
    pytest.importorskip("transformers")
    from benchmarks.mistral import Rivals

    rivals = Rivals((*TINY, "model.vocab_size=50", "data.sequence_length=32"))
    assert rivals.difference() < 1e-5  # float32, of some 4 nats
    assert rivals.score() == pytest.approx(rivals.score_theirs(), abs=1e-5)


@pytest.mark.long  # imports the compiler
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
def test_another_checkout_leaves_the_modules_of_this_one():
    own = sys.modules["pyro_ltm.model"]
    yard = before.yard_of(ROOT)
    assert type(yard.ours.model).__name__ == LatentThoughtModel.__name__
    assert not isinstance(yard.ours.model, LatentThoughtModel)
    assert sys.modules["pyro_ltm.model"] is own
