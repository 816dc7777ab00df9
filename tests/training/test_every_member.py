"""Every family and every objective trains a decoder through the run folder: stopped, resumed, loaded and judged.

Once each in the quick run; every pair that fits in the long one. The tests walk the registries, so a new member cannot
escape them.
"""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from helpers.covering import covered
from safetensors.torch import load_file

import pyro_ltm as ltm
from pyro_ltm.inference import FAMILIES
from pyro_ltm.objectives import OBJECTIVES
from pyro_ltm.training import Stopped

TINY = [
    *("model.dim=8", "model.layers=2", "model.heads=2", "model.thoughts=2", "model.max_length=12", "model.window=4"),
    *("data.vocab_size=280", "data.sequence_length=12", "fast.steps=2", "slow.steps=2", "slow.batch_size=3"),
    *("slow.eval_every=2", "slow.eval_sequences=3", "slow.save_every=1", "slow.warmup=1", "model.thought_dim=6"),
]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    text = "".join(f"The {i % 7}th bird sang {i % 11} songs to the {i % 5} trees.\n" for i in range(200))
    (folder / "birds.txt").write_text(text)
    return ltm.prepare([str(folder / "birds.txt")], folder / "tokens", vocab_size=280, sequence_length=12).path


APART = [("semi-amortized:true", "analytic-elbo"), ("flow", "chi"), ("semi-amortized", "chi")]
"""An option of its own, and the objective that fits a decoder in two passes under guides that learn."""
FEWER = {"hmc": "hmc:2"}
"""With fewer leapfrogs than by default."""
PAIRS = [
    (guide, objective)
    for guide, objective in itertools.product(FAMILIES, OBJECTIVES)
    if not OBJECTIVES[objective]().refusal(FAMILIES[guide]) and (guide, objective) not in APART
]


@pytest.mark.parametrize(("guide", "objective"), covered([*PAIRS, *APART], times=1, always=APART))
def test_trains_resumes_and_is_judged(guide, objective, tokens, tmp_path):
    config = ltm.apply_settings(
        ltm.preset("nano"), [*TINY, f"guide.name={FEWER.get(guide, guide)}", f"objective.name={objective}"]
    )
    whole = ltm.train(config, data=tokens, out=tmp_path / "whole")

    def stop(progress):
        if progress.step == 1 and progress.validation is None:
            raise KeyboardInterrupt

    with pytest.raises((Stopped, KeyboardInterrupt)):
        ltm.train(config, data=tokens, out=tmp_path / "again", on_progress=stop)
    again = ltm.train(None, data=None, out=tmp_path / "again", resume=True)
    one, other = (load_file(run.folder / "model.safetensors") for run in (whole, again))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one), "resumed, it is the same run"
    loaded = ltm.Run.load(whole.folder)
    bound = loaded.evaluate(particles=2, sequences=3)
    assert math.isfinite(bound.nats_per_token)
    judged = loaded.loop.guide.has_density
    assert bound.guide == (type(loaded.loop.guide).__name__ if judged else "MeanField")
    rows = [json.loads(line) for line in (whole.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "train"]
    assert all(("bound_nats_per_token" in row) == judged for row in steps), "what is no bound is not called one"
    _, posterior = loaded.infer(["The bird sang."])
    assert posterior.mean().shape == (1, 2, 6)
    assert loaded.generate(prompt="The", max_new_tokens=3)[0].tokens <= 3
