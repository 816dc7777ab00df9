"""R-hat and sample sizes of chains whose distribution is known, and ArviZ's data."""

from __future__ import annotations

import sys

import pytest
import torch
from helpers.loops import fit_posterior
from helpers.stand_ins import LinearGaussian

from pyro_ltm.comparison.pair_score import score_pair
from pyro_ltm.comparison.result import Comparison
from pyro_ltm.errors import UserError
from pyro_ltm.guides import MeanField
from pyro_ltm.inference import FastLoop
from pyro_ltm.inference.samplers import HMC, MALA, SVGD, Langevin
from pyro_ltm.objectives import MAP, AnalyticELBO
from pyro_ltm.scores.convergence import Convergence, chain_figures

pytest.importorskip("arviz_stats")
SAMPLERS = {
    "mala": MALA(2, 2, chains=3),
    "langevin": Langevin(2, 2, step_size=0.1, chains=3),
    "hmc": HMC(2, 2, leapfrogs=3, chains=3),
}


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def fit(sampler, steps, size=2, **options):
    model = LinearGaussian()
    batch = model.data(size)
    return model, batch, fit_posterior(model, batch, guide=sampler, objective=MAP(), steps=steps, **options)


def test_independent_draws_count_in_full_and_chains_apart_do_not():
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(4, 500, 3, 2, 2, generator=generator)
    draws[0, :, 1] += 2.0  # one chain of the second sequence is somewhere else
    draws[:, :, 2] = 1.0  # nothing moves in the third
    found = chain_figures(draws)
    assert found["rhat"][0] < 1.01
    assert 1000 < found["ess_bulk"][0] < 2600
    assert found["rhat"][1] > 1.2
    assert found["ess_bulk"][1] < 20
    assert found["rhat"][2] > 1e6
    with pytest.raises(UserError, match="3 draws a chain: at least 4"):
        chain_figures(draws[:, :3])


def test_an_autoregression_is_worth_as_many_draws_as_theory_says():
    """Of S steps of z' = r z + noise, S (1 - r) / (1 + r) count."""
    generator, share = torch.Generator().manual_seed(0), 0.8
    chains, steps = 4, 4000
    z, kept = torch.randn(chains, 8, 1, 1, generator=generator), []
    for _ in range(steps):
        z = share * z + (1 - share**2) ** 0.5 * torch.randn(z.shape, generator=generator)
        kept.append(z)
    found = chain_figures(torch.stack(kept, 1))
    wanted = chains * steps * (1 - share) / (1 + share)
    assert found["ess_bulk"].median().item() == pytest.approx(wanted, rel=0.15)


@pytest.mark.parametrize("name", SAMPLERS)
def test_chains_are_kept_in_order_and_change_nothing(name):
    """The draws of the second half, chain by chain; and the fit is the same to the bit as without."""
    steps, seen = 16, []
    options = {"keep_chains": True, "watch": lambda step, state: seen.append((step, state["particles"]))}
    model, batch, kept = fit(SAMPLERS[name], steps, **options)
    plain = fit_posterior(model, batch, guide=SAMPLERS[name], objective=MAP(), steps=steps)
    assert plain.chains is None
    for key, value in plain.state.items():
        assert torch.equal(value, kept.state[key]), key
    assert kept.chains.shape == (3, 8, 2, 2, 2)
    if name == "hmc":
        torch.testing.assert_close(kept.chains.mean((0, 1)), kept.state["mean"])
    else:
        for number, (_, particles) in enumerate(seen[-8:]):
            assert torch.equal(kept.chains[:, number].transpose(0, 1), particles)
    assert not torch.equal(kept.chains[0], kept.chains[1])


def test_all_chains_of_hmc_come_to_the_posterior():
    model, batch, found = fit(HMC(2, 2, leapfrogs=4, chains=2), 200, size=1, keep_chains=True)
    assert found.state["particles"].shape == (1, 200, 2, 2)
    assert found.history.shape == (200, 1)
    assert chain_figures(found.chains)["rhat"].item() < 1.2
    exact = model.posterior(batch)
    for chain in found.chains:
        assert ((chain.mean(0) - exact.mean).abs() < 0.6 * exact.stddev).all()


@pytest.mark.parametrize(("guide", "says"), [(SVGD(2, 2), "SVGD has no Markov chains"), (MeanField(2, 2), "MeanField")])
def test_what_has_no_chains_says_so(guide, says):
    model = LinearGaussian()
    objective = MAP() if isinstance(guide, SVGD) else AnalyticELBO()
    with pytest.raises(UserError, match=says):
        FastLoop(guide, objective, steps=8).fit(model, model.data(2), keep_chains=True)
    with pytest.raises(UserError, match="takes no steps"):
        fit(MALA(2, 2), 0, keep_chains=True)


def test_a_comparison_shows_them_and_keeps_them():
    model = LinearGaussian()
    batch = model.data(3)
    found = score_pair(model, [batch], FastLoop(MALA(2, 2, chains=4), MAP(), steps=200), particles=30, rhat=True)
    assert (found.convergence.chains, found.convergence.draws) == (4, 100)
    assert 1 <= found.convergence.rhat < 1.3
    assert len(found.convergence.rhat_by_sequence) == 3
    assert "4 x 100 draws" in str(found.convergence)
    again = Comparison.from_dict(Comparison("posteriors", {}, token_counts=[8] * 3, pairs=[found]).to_dict())
    assert again.pairs[0].convergence == found.convergence
    few = score_pair(model, [batch], FastLoop(MALA(2, 2), MAP(), steps=4), particles=2, rhat=True)
    assert few.convergence is None
    assert "too few fast steps for R-hat" in few.note
    other = score_pair(model, [batch], FastLoop(MeanField(2, 2), AnalyticELBO(), steps=4), particles=2, rhat=True)
    assert other.convergence is None
    assert other.note == ""


def test_chains_that_do_not_move_have_no_finite_r_hat():
    figures = {"rhat": torch.tensor([torch.inf]), "ess_bulk": torch.zeros(1), "ess_tail": torch.zeros(1)}
    found = Convergence.of(figures, chains=2, draws=9)
    assert found.rhat is None
    assert found.share_above == 1
    assert "not known" in str(found)


def test_posteriors_as_arviz_reads_them():
    pytest.importorskip("arviz_base")
    model, batch, sampled = fit(MALA(2, 2, chains=3), 16, keep_chains=True)
    data = sampled.to_arviz()["posterior"]
    assert data["thoughts"].dims == ("chain", "draw", "sequence", "thought", "dim")
    assert data["thoughts"].shape == (3, 8, 2, 2, 2)
    assert data["sequence"].values.tolist() == batch.ids.tolist()
    assert (data["thoughts"].values == sampled.chains.numpy()).all()
    assert data.attrs["guide"] == "MALA"
    fitted = fit_posterior(model, batch, guide=MeanField(2, 2), objective=AnalyticELBO(), steps=2)
    assert fitted.to_arviz(50)["posterior"]["thoughts"].shape == (1, 50, 2, 2, 2)
    plain = fit_posterior(model, batch, guide=MALA(2, 2), objective=MAP(), steps=4)
    with pytest.raises(UserError, match="keep_chains=True"):
        plain.to_arviz()


@pytest.mark.parametrize("package", ["arviz_stats.base", "arviz_base"])
def test_without_the_extra_a_line_says_what_to_install(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    _, _, sampled = fit(MALA(2, 2), 8, keep_chains=True)
    with pytest.raises(UserError, match=r"pip install -e '\.\[arviz\]'"):
        sampled.to_arviz() if package == "arviz_base" else chain_figures(sampled.chains)
