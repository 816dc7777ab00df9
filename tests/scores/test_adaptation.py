"""Test-time training: against a formula that shares no code with it, against leaks, and the base stays as it was."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from helpers.loops import take_loop
from helpers.tiny import D, T, tiny_batch, tiny_config, tiny_model
from torch.func import functional_call

from pyro_ltm.errors import UserError
from pyro_ltm.guides import MeanField
from pyro_ltm.objectives import AnalyticELBO
from pyro_ltm.optimizers import SGD, Adam
from pyro_ltm.scores import Adaptation, evaluate_adapted, evaluate_prefix
from pyro_ltm.scores.adaptation import _Reader, _targets
from pyro_ltm.types import Batch

STRIDE = 4
ADAM = Adam(lr=0.05, beta1=0.9, eps=1e-8, schedule="constant")


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)


def twin():
    return tiny_model(tiny_config(thoughts=0))


def exact(model, batch):
    loop = take_loop({"guide": MeanField(0, D), "objective": AnalyticELBO(), "steps": 0})
    return evaluate_prefix(model, [batch], loop, stride=T).sequence_nats


def adapted(model, batch, *, stride=STRIDE, **how):
    return evaluate_adapted(model, [batch], Adaptation(**({"optimizer": ADAM} | how)), stride=stride).sequence_nats


def test_without_steps_it_is_the_twin_to_the_bit():
    """With the additions in place, which are zero at first."""
    model, batch = twin(), tiny_batch(3)
    its = exact(model, batch)
    assert torch.equal(adapted(model, batch, steps=0), its)
    assert torch.equal(adapted(model, batch, steps=3, stride=T), its), "one chunk: there is nothing to learn for"
    slow = Adam(lr=1e-300, schedule="constant")
    assert torch.allclose(adapted(model, batch, steps=3, optimizer=slow), its, atol=1e-9)


def by_hand(model, tokens, first, *, steps, rate, kind, rank, whole):
    """Nats of one sequence [T + 1], its additions merged into the weights, all its tokens worked out at each turn."""
    weights = {name: value.detach() for name, value in model.decoder.named_parameters()}
    pairs = {name: [value.clone() for value in pair] for name, pair in first.items()}
    moments = {name: [(torch.zeros_like(x), torch.zeros_like(x)) for x in pair] for name, pair in pairs.items()}

    def each(of):
        """[T] nats of each token."""
        merged = {f"{name}.weight": weights[f"{name}.weight"] + b @ a for name, (a, b) in of.items()}

        def run(decoder, inputs):
            return decoder.logits(decoder(decoder.context(inputs), None))

        class Logits(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.decoder = model.decoder

            def forward(self, inputs):
                return run(self.decoder, inputs)

        changed = {f"decoder.{name}": value for name, value in {**weights, **merged}.items()}
        logits = functional_call(Logits(), changed, (tokens[None, :-1],))[0]
        return F.cross_entropy(logits, tokens[1:], reduction="none")

    total, taken = 0.0, 0
    for start in range(0, T, STRIDE):
        end = start + STRIDE
        total += float(each(pairs)[start:end].sum())
        for _ in range(steps if end < T else 0):
            taken += 1
            leaves = {name: [x.clone().requires_grad_() for x in pair] for name, pair in pairs.items()}
            loss = each(leaves)[0 if whole else start : end].mean()
            slopes = iter(torch.autograd.grad(loss, [x for pair in leaves.values() for x in pair]))
            for name, pair in pairs.items():
                for place in range(2):
                    slope = next(slopes)
                    mean, square = moments[name][place]
                    mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
                    moments[name][place] = mean, square
                    adam = mean / (1 - 0.9**taken) / ((square / (1 - 0.999**taken)).sqrt() + 1e-8)
                    pair[place] = pair[place] - rate * (adam if kind is Adam else slope)
    return total


@pytest.mark.parametrize(("kind", "steps", "whole"), [(SGD, 1, False), (Adam, 1, False), (Adam, 3, True)])
def test_it_is_the_low_rank_formula_written_out(kind, steps, whole):
    model, batch, targets = twin(), tiny_batch(3), ("wq", "wv", "w2")
    optimizer = SGD(lr=0.3, momentum=0.0, schedule="constant") if kind is SGD else ADAM
    how = Adaptation(steps=steps, rank=2, targets=targets, whole=whole, optimizer=optimizer)
    found = evaluate_adapted(model, [batch], how, stride=STRIDE, seed=5)
    first = _Reader(model, _targets(model, targets), how, batch, 5).state
    for row in range(batch.size):
        pairs = {name: (first[f"{name}.A"][row], first[f"{name}.B"][row]) for name in _targets(model, targets)}
        tokens = torch.cat([batch.inputs[row, :1], batch.targets[row]])
        nats = by_hand(model, tokens, pairs, steps=steps, rate=optimizer.lr, kind=kind, rank=2, whole=whole)
        assert float(found.sequence_nats[row]) == pytest.approx(nats, abs=1e-8)
    assert (found.sequence_nats - exact(model, batch)).abs().min() > 1e-3, "it did learn"


def test_the_base_stays_as_it_was_also_when_it_raises():
    model, batch = twin(), tiny_batch(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learning = {name: value.requires_grad for name, value in model.named_parameters()}

    def stop(done, nats):
        raise RuntimeError("stopped")

    adapted(model, batch)
    with pytest.raises(RuntimeError, match="stopped"):
        evaluate_adapted(model, [batch], Adaptation(), progress=stop)
    unreadable = dataclasses.replace(batch, inputs=batch.inputs + 100)  # fails within the decoder, additions in place
    with pytest.raises(IndexError):
        adapted(model, unreadable)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert learning == {name: value.requires_grad for name, value in model.named_parameters()}
    assert not any(part._forward_hooks for part in model.modules())
    assert all(value.grad is None for value in model.parameters())


def scored_first_chunks(changed, **how):
    """Nats of the first two chunks, the text after them as it is or another."""
    model, batch = twin(), tiny_batch(3)
    other = batch.targets.clone()
    if changed:
        other[:, 8:] = (other[:, 8:] + 7) % 30
    whole = Batch.from_tokens(torch.cat([batch.inputs[:, :1], other], 1))
    known = torch.arange(T).expand(3, T) < 8
    return adapted(model, dataclasses.replace(whole, mask=known), steps=2, **how)


@pytest.mark.parametrize("whole", [False, True])
def test_no_later_token_changes_an_earlier_score(whole):
    assert torch.equal(*(scored_first_chunks(changed, whole=whole) for changed in (False, True)))


def test_a_leak_would_show(monkeypatch):
    """Learned from before it is scored, a chunk costs less than it may."""
    honest = scored_first_chunks(False)
    score, learn = _Reader._log_likelihood, _Reader._learn

    def first_learned(reader, start, end):
        if not torch.is_grad_enabled():
            learn(reader, start, end, 1)
        return score(reader, start, end)

    monkeypatch.setattr(_Reader, "_log_likelihood", first_learned)
    assert scored_first_chunks(False).sum() < honest.sum()


def test_sequences_know_nothing_of_one_another():
    model, batch = twin(), tiny_batch(5)
    alone = torch.cat([adapted(model, one, steps=2) for one in batch.apart()])
    assert torch.allclose(adapted(model, batch, steps=2), alone, atol=1e-9)
    short = dataclasses.replace(batch, mask=torch.arange(T) < torch.tensor([12, 5, 9, 12, 1])[:, None])
    found = evaluate_adapted(model, [model.precompute(short)], Adaptation(steps=2, optimizer=ADAM), stride=STRIDE)
    assert found.tokens == 39
    assert torch.equal(found.sequence_nats[[0, 3]], adapted(model, batch, steps=2)[[0, 3]])
    assert (found.steps, found.rank, found.stride, found.sequences) == (2, 4, STRIDE, 5)


def test_a_text_that_repeats_itself_is_learned():
    model = twin()
    tokens = tiny_batch(2, 3).inputs.repeat(1, 5)[:, : T + 1]
    batch = Batch.from_tokens(tokens)
    assert (adapted(model, batch, steps=8, targets=("wq", "wv", "w1", "w2")) < exact(model, batch)).all()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"targets": ("wq", "wx")}, "no matrix 'wx': choose from wq"),
        ({"targets": ("output",)}, "no matrix 'output'"),
        ({"targets": ()}, "names no matrices"),
        ({"steps": -1}, "steps = -1"),
        ({"rank": 0}, "rank = 0"),
        ({"stride": -2}, "stride = -2"),
    ],
)
def test_bad_arguments(how, says):
    with pytest.raises(UserError, match=says):
        adapted(tiny_model(tiny_config(thoughts=0, tied=False)), tiny_batch(2), **how)


def test_thoughts_no_sequences_and_no_figure_are_refused():
    lost = twin()
    torch.nn.init.constant_(lost.decoder.norm.weight, torch.nan)
    with pytest.raises(UserError, match="not finite"):
        adapted(lost, tiny_batch(2))
    with pytest.raises(UserError, match="has thoughts"):
        adapted(tiny_model(), tiny_batch(2))
    with pytest.raises(UserError, match="no sequences"):
        evaluate_adapted(twin(), [], Adaptation())
    with pytest.raises(UserError, match="masked diffusion"):
        adapted(tiny_model(tiny_config(thoughts=0, kind="masked-diffusion")), tiny_batch(2))
