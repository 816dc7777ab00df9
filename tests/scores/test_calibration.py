"""Calibration and sandwich where posteriors and evidence are known: the exact q passes, a wrong one does not."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math

import pytest
import torch
from helpers.exact_guides import Exact, WithPrior
from helpers.tiny import D, L, N, T, tiny_model
from torch.distributions import kl_divergence

from pyro_ltm.config import ModelConfig
from pyro_ltm.errors import UserError
from pyro_ltm.guides import Delta, MeanField
from pyro_ltm.inference import Annealing, FastLoop
from pyro_ltm.inference.log_joint import LogJoint
from pyro_ltm.objectives import MAP, AnalyticELBO
from pyro_ltm.optimizers import Adam
from pyro_ltm.scores import calibration as module
from pyro_ltm.scores.calibration import evaluate_calibration
from pyro_ltm.scores.own_texts import write_texts
from pyro_ltm.scores.sandwich import evaluate_sandwich
from pyro_ltm.types import Batch

TEXTS = 600


class Known(WithPrior):
    """A model without a decoder to prepare."""

    def precompute(self, batch):
        return batch

    def fused_weights(self):
        return contextlib.nullcontext()


class Off(Exact):
    """The exact posterior, moved and widened."""

    def __init__(self, model, shift=0.0, widen=1.0):
        super().__init__(model)
        self.shift, self.widen = shift, widen

    def init(self, batch):
        state = super().init(batch)
        return {"loc": state["loc"] + self.shift * state["scale"], "scale": state["scale"] * self.widen}


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def written(model, sizes, seed=0):
    """Texts (real numbers) that the model wrote, with their thoughts."""
    generator, first = torch.Generator().manual_seed(seed), 0
    for size in sizes:
        z = torch.randn(size, model.thoughts * model.dim, generator=generator)
        clean = z @ model.loading.T.detach() + model.offset.detach()
        targets = clean + model.noise * torch.randn(clean.shape, generator=generator)
        yield (
            Batch(
                inputs=torch.zeros(targets.shape, dtype=torch.int64),
                targets=targets,
                mask=torch.ones(targets.shape, dtype=torch.bool),
                ids=torch.arange(first, first + size),
            ),
            z.view(size, model.thoughts, model.dim),
        )
        first += size


def calibrate(guide, sizes=(400, 200), **options):
    model = guide.known[0]
    return evaluate_calibration(
        model, written(model, sizes), FastLoop(guide, AnalyticELBO(), steps=0), layers=2, **options
    )


@pytest.fixture(scope="module")
def exact():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield calibrate(Exact(Known()))
    torch.set_default_dtype(before)


def test_under_the_exact_posterior_ranks_are_uniform(exact):
    assert [test.statistic for test in exact.tests] == [
        "log likelihood",
        "squared length, layer 1",
        "squared length, layer 2",
        *(f"direction {number}" for number in range(1, 5)),
    ]
    assert exact.p_value > 0.01
    assert exact.spread == pytest.approx(1, abs=4 * exact.spread_stderr)
    for one, level in zip(exact.coverage, (0.5, 0.8, 0.9), strict=True):
        assert one.level == pytest.approx(level)
        assert one.share == pytest.approx(level, abs=4 * one.stderr)
    assert exact.verdict == "no fault found with so many texts"
    # Ranks are uniform on 0..99: their mean is 49.5 and their variance (100^2 - 1) / 12.
    for ranks in exact.ranks.values():
        each = ranks.double().reshape(TEXTS, -1).mean(1)
        assert each.mean().item() == pytest.approx(49.5, abs=4 * each.std().item() / TEXTS**0.5)
    assert json.loads(json.dumps(exact.to_dict(), allow_nan=False))["texts"] == TEXTS


def test_the_chi_square_p_value_by_hand():
    """Of 2 bins it is that of the square of a standard normal."""
    ranks = torch.tensor([0] * 60 + [9] * 40)
    found = module._test("x", ranks, 9, 2)
    assert found.histogram == [60, 40]
    assert found.p_value == pytest.approx(math.erfc(2 / math.sqrt(2)))


@pytest.mark.parametrize(
    ("options", "says"),
    [({"widen": 0.7}, "too narrow"), ({"widen": 1.5}, "too wide"), ({"shift": 1.0}, "beside the truth")],
)
def test_a_wrong_q_is_found(options, says):
    found = calibrate(Off(Known(), **options), draws=39)
    assert found.p_value < 1e-6
    assert says in found.verdict
    # The central interval of level c of a Normal s times as wide covers 2 Phi(s Phi^-1((1 + c) / 2)) - 1.
    if "widen" in options:
        normal = torch.distributions.Normal(0.0, 1.0)
        for one in found.coverage:
            edge = normal.icdf(torch.tensor((1 + one.level) / 2))
            wanted = 2 * normal.cdf(options["widen"] * edge).item() - 1
            assert one.share == pytest.approx(wanted, abs=4 * one.stderr + 0.02)  # 39 draws know their quantiles so far


def test_ties_are_broken_by_lot():
    """A decoder that cannot see its thoughts gives every draw the same likelihood: no fault of q's."""
    model = Known()
    with torch.no_grad():
        model.loading.zero_()
    found = calibrate(Exact(model), draws=19)
    assert found.p_value > 0.01


def test_figures_do_not_depend_on_the_batches(exact):
    again = calibrate(Exact(Known()), sizes=(400, 200), draws=19)
    # Texts are drawn batch by batch here, so cut the same ones otherwise.
    model = Known()
    pieces = [
        (batch.select(rows), z[rows])
        for batch, z in written(model, (400, 200))
        for rows in torch.arange(batch.size).split(150)
    ]
    loop = FastLoop(Exact(model), AnalyticELBO(), steps=0)
    other = evaluate_calibration(model, pieces, loop, layers=2, draws=19)
    for name, ranks in again.ranks.items():
        assert (ranks != other.ranks[name]).double().mean() < 0.001, name  # equal but for rounding at a tie


def test_what_cannot_be_calibrated_is_refused():
    model = Known()
    with pytest.raises(UserError, match="9 texts, 99 draws: at least 10 texts"):
        calibrate(Exact(model), sizes=(9,))
    with pytest.raises(UserError, match="such as 99 draws"):
        calibrate(Exact(model), sizes=(20,), draws=22)
    estimated = tiny_model()
    estimated.prior.has_exact_density = False
    with pytest.raises(UserError, match="only estimates its density"):
        evaluate_sandwich(estimated, [], FastLoop(MeanField(N, D), AnalyticELBO()))
    with pytest.raises(UserError, match="is a point"):
        evaluate_calibration(model, written(model, (20,)), FastLoop(Delta(2, 2), MAP(), steps=0), layers=1)


def test_the_sandwich_holds_the_evidence_and_how_loose_the_bound_is():
    model, copies = Known(), 150
    loop = FastLoop(MeanField(2, 2), AnalyticELBO(), Adam(lr=0.3), steps=6)
    ((batch, z),) = written(model, (copies,))
    exact = -model.log_evidence(batch)
    tokens = batch.length
    how = Annealing(temperatures=16, chains=2, leapfrogs=3)
    found = evaluate_sandwich(model, [(batch, z)], loop, annealing=how, particles=4)
    for figure, side in ((found.at_most, 1), (found.at_least, -1)):
        above = side * (figure.sequence_nats - exact)
        assert above.mean() > -3 * above.std() / copies**0.5
        assert above.mean() < 0.5
    q = loop.fit_to_score(model, batch, seed=module.fold(0, "fit")).distribution
    gap = kl_divergence(q, torch.distributions.Independent(model.posterior(batch), 2)).mean().item() / tokens
    lower, upper = found.loose_at_least, found.loose_at_most
    assert lower.nats_per_token - 4 * lower.stderr < gap < upper.nats_per_token + 4 * upper.stderr
    assert found.width.nats_per_token == pytest.approx(upper.nats_per_token - lower.nats_per_token)
    assert found.bound.nats_per_token > found.importance_weighted.nats_per_token
    assert json.loads(json.dumps(found.to_dict()))["texts"] == copies


def test_texts_of_a_model_do_not_depend_on_their_batch():
    model = tiny_model().double()
    whole = [*write_texts(model, 5, start=0, length=T, seed=3)]
    parts = [*write_texts(model, 5, start=0, length=T, batch_size=2, seed=3)]
    assert [batch.size for batch, _ in parts] == [2, 2, 1]
    assert torch.equal(whole[0][0].targets, torch.cat([batch.targets for batch, _ in parts]))
    assert torch.equal(whole[0][1], torch.cat([z for _, z in parts]))
    assert len(whole[0][0].targets.unique(dim=0)) == 5
    with pytest.raises(UserError, match=f"from 1 to {T} tokens"):
        next(write_texts(model, 5, start=0, length=T + 1))


def test_a_text_that_ends_counts_to_its_end():
    """All texts of at most three tokens that end with token 2, or are cut: their probabilities add up to one."""
    config = ModelConfig(vocab_size=3, dim=4, layers=L, heads=1, thoughts=L, max_length=3)
    model = tiny_model(config).double()
    ((batch, z),) = write_texts(model, 300, start=2, length=3, end=2, batch_size=300)
    before = (batch.targets == 2).cumsum(1) - (batch.targets == 2).long()
    assert torch.equal(batch.mask, before == 0)
    assert 1 < batch.mask.sum(1).double().mean() < 3
    ways = torch.tensor([*itertools.product(range(3), repeat=3)])
    ended = (ways == 2).cumsum(1) - (ways == 2).long()
    ways = torch.where(ended > 0, 2, ways).unique(dim=0)
    every = Batch.from_tokens(torch.cat([torch.full((len(ways), 1), 2), ways], 1))
    mask = ((ways == 2).cumsum(1) - (ways == 2).long()) == 0
    levels = LogJoint(model, dataclasses.replace(every, mask=mask)).parts(z[:1].expand(len(ways), -1, -1))[0]
    assert len(ways) == 15
    assert levels.exp().sum().item() == pytest.approx(1)


def test_texts_are_draws_of_the_program():
    """One token of a decoder with few: its shares are the mean of the program's own probabilities."""
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=4, dim=4, layers=L, heads=1, thoughts=L, max_length=2)
    model = tiny_model(config).double()
    ((batch, z),) = write_texts(model, 4000, start=1, length=1, batch_size=4000)
    levels = []
    for token in range(4):
        told = Batch.from_tokens(torch.tensor([[1, token]]).expand(4000, 2))
        levels.append(LogJoint(model, told).parts(z)[0].exp())
    share = torch.stack(levels, 1).detach()
    assert share.sum(1).allclose(torch.ones(4000))
    written_share = torch.nn.functional.one_hot(batch.targets[:, 0], 4).double()
    gap = (written_share - share).mean(0)
    assert (gap.abs() < 4 * (written_share - share).std(0) / 4000**0.5).all()
    assert share.std(0).max() > 0.05, "thoughts matter"
