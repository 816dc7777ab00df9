"""The compiled decoder: the same values and gradients, compiled once for each way in which it is used."""

from __future__ import annotations

import functools
import shutil

import pytest
import torch
from helpers.loops import fit_posterior
from helpers.tiny import tiny_batch, tiny_config, tiny_model

import pyro_ltm as ltm
from pyro_ltm.config import Config, apply_settings
from pyro_ltm.errors import UserError
from pyro_ltm.guides import MeanField
from pyro_ltm.inference import FastLoop
from pyro_ltm.inference.build import build, check_config
from pyro_ltm.objectives import AnalyticELBO
from pyro_ltm.training import train_step

# torch's own: its compiler looks at the gradient of a tensor that is no leaf, and imports old parts of torch.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


def counting(backend):
    """A backend that counts what is compiled; its import takes seconds, which every process of the tests would wait."""
    from torch._dynamo.testing import CompileCounterWithBackend

    return CompileCounterWithBackend(backend)


@pytest.fixture(autouse=True)
def _forget_compiled_code():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def small_model():
    """Of one layer, for each is compiled anew."""
    return tiny_model(tiny_config(layers=1))


def step(model, batch, steps=2, **loop):
    """One training step; the decoder's gradients and the report."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    report = train_step(
        model,
        [batch],
        FastLoop(MeanField(4, 16), AnalyticELBO(), steps=steps, **loop),
        optimizer,
        clip=0.0,
        seed=0,
    )
    return report, {name: p.grad.clone() for name, p in model.named_parameters()}


def check_parity(backend):
    batch, plain, fast = tiny_batch(), small_model(), small_model()
    fast.decoder.compile(backend=backend)
    posteriors = [
        fit_posterior(model, batch, guide=MeanField(4, 16), objective=AnalyticELBO(), steps=3)
        for model in (plain, fast)
    ]
    torch.testing.assert_close(posteriors[0].state, posteriors[1].state, atol=1e-5, rtol=1e-5)
    (report, grads), (compiled_report, compiled_grads) = (step(model, batch) for model in (plain, fast))
    torch.testing.assert_close(report.bound, compiled_report.bound, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grads, compiled_grads, atol=1e-5, rtol=1e-4)  # after three steps, sums over positions


def test_values_and_gradients_agree():
    check_parity("aot_eager")


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on the CPU")
def test_values_and_gradients_agree_with_generated_code():
    check_parity("inductor")


def test_compiles_once_for_fast_and_once_for_slow_steps():
    counter = counting("eager")
    model = small_model()
    model.decoder.compile(backend=counter, fullgraph=True)
    for seed in range(3):
        step(model, tiny_batch(seed=seed))
    assert counter.frame_count == 2, "the decoder held still, and the decoder that learns"
    with torch.no_grad():
        fit_posterior(model, tiny_batch(), guide=MeanField(4, 16), objective=AnalyticELBO(), steps=2)
    assert counter.frame_count == 2


def test_steps_on_a_stretch_take_no_graph_of_their_own():
    counter = counting("eager")
    batch, plain, fast = tiny_batch(), small_model(), small_model()
    fast.decoder.compile(backend=counter, fullgraph=True)
    (report, grads), (compiled_report, compiled_grads) = (step(model, batch, subsample=3) for model in (plain, fast))
    assert counter.frame_count == 1, "the decoder that learns"
    torch.testing.assert_close(report.bound, compiled_report.bound, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grads, compiled_grads, atol=1e-5, rtol=1e-4)


def test_a_whole_run_takes_one_graph_for_each_way_to_learn(tmp_path, monkeypatch):
    """Alone, fast, slow. None for validation, here of 3, 3 and 2 sequences, nor for a checkpoint's check of health."""
    counter = counting("eager")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter, fullgraph=True))
    text = tmp_path / "birds.txt"
    text.write_text("".join(f"The {i % 7}th bird sang {i % 11} songs to the {i % 5} trees.\n" for i in range(400)))
    shape = ["model.dim=16", "model.layers=1", "model.thoughts=2", "model.max_length=16", "model.window=4"]
    data = ["data.vocab_size=280", "data.sequence_length=16", "slow.batch_size=3", "slow.eval_sequences=8"]
    steps = ["fast.steps=2", "slow.steps=4", "slow.decoder_warmup=0.5", "slow.eval_every=2", "slow.save_every=1"]
    config = apply_settings(ltm.preset("nano"), [*shape, *data, *steps, "compile=true"])
    graphs = []
    run = ltm.train(
        config, data=str(text), out=tmp_path / "run", on_progress=lambda _: graphs.append(counter.frame_count)
    )
    assert len(run.dataset()) >= 8
    # Validation, two steps alone, validation, two steps with thoughts, validation.
    assert graphs == [0, 1, 1, 1, 3, 3, 3]
    run.evaluate(sequences=5)
    assert counter.frame_count == 3, "nor for what is asked of the run afterwards"


def test_weights_keep_their_names():
    config = apply_settings(Config(model=tiny_config()), ["compile=true"])
    assert build(config)[0].state_dict().keys() == tiny_model().state_dict().keys()


@pytest.mark.parametrize(
    "settings", [["guide.name=laplace", "objective.name=map"], ["guide.name=semi-amortized", "guide.unrolled=true"]]
)
def test_is_refused_where_gradients_of_gradients_are_taken(settings):
    config = apply_settings(Config(model=tiny_config()), ["compile=true", *settings])
    with pytest.raises(UserError, match=r"compile = true: .* gradients of gradients"):
        check_config(config)
