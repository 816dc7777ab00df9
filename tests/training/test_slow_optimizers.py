"""Every slow optimizer: each parameter in one group, the schedule kept, the whole state saved and put back."""

from __future__ import annotations

import copy
import itertools
import json

import pytest
import torch
from helpers.covering import covered
from helpers.processes import train_until_killed
from helpers.tiny import tiny_batch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import pyro_ltm as ltm
from pyro_ltm.config import Component, SlowConfig, apply_settings
from pyro_ltm.errors import UserError
from pyro_ltm.inference.build import build
from pyro_ltm.optimizers.slow import SLOW_OPTIMIZERS
from pyro_ltm.optimizers.slow.base import LR_SHARE
from pyro_ltm.runs import Run
from pyro_ltm.runs.folder import FORMAT, trainable
from pyro_ltm.training.optimizer_state import OptimizerState, rehearse
from pyro_ltm.training.step import step_where, train_step
from pyro_ltm.training.trainer import slow_optimizer

TINY = [
    *("model.dim=16", "model.layers=2", "model.heads=2", "model.thoughts=2", "model.max_length=16", "model.window=4"),
    *("data.vocab_size=280", "data.sequence_length=16", "fast.steps=1", "slow.steps=4", "slow.batch_size=2"),
    *("slow.eval_every=0", "slow.eval_sequences=2", "slow.save_every=9", "slow.warmup=2", "slow.lr=0.01"),
]
KINDS = {
    "twin": ["model.thoughts=0"],
    "ltm": [],
    "encoder": ["guide.name=semi-amortized"],
    "decoder first": ["slow.decoder_warmup=0.5"],
}
MEMBERS = ["soap:2" if name == "soap" else name for name in SLOW_OPTIMIZERS]  # it changes basis within few steps


def configure(*settings):
    return apply_settings(ltm.preset("nano"), [*TINY, *settings])


def made(member, kind="ltm", **slow):
    """Model, loop and optimizer of a tiny configuration."""
    config = configure("model.vocab_size=50", *KINDS[kind])
    model, loop = build(config)
    return model, loop, slow_optimizer(model, loop.guide, SlowConfig(**slow), Component(name=member))


def step(model, loop, optimizer, seed=0):
    return train_step(model, [tiny_batch(2, 12, seed=seed)], loop, optimizer, clip=1.0, seed=seed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("member", MEMBERS)
def test_each_parameter_is_in_one_group(member, kind):
    model, loop, optimizer = made(member, kind)
    found = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(found) == len(set(found))
    assert set(found) == set(trainable(model, loop.guide).parameters())


@pytest.mark.parametrize("member", MEMBERS)
def test_vectors_do_not_decay(member):
    for group in made(member, weight_decay=0.3)[2].param_groups:
        assert group["weight_decay"] == (0.3 if all(p.dim() > 1 for p in group["params"]) else 0.0)


@pytest.mark.parametrize("member", MEMBERS)
def test_the_first_group_has_the_scheduled_rate(member):
    optimizer = made(member, lr=0.3)[2]
    assert optimizer.param_groups[0]["lr"] == 0.3
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(0.3 * group[LR_SHARE])


@pytest.mark.parametrize("member", MEMBERS)
def test_a_gradient_of_zero_without_decay_moves_nothing(member):
    model, loop, optimizer = made(member, weight_decay=0.0)
    before = copy.deepcopy(model.state_dict())
    for parameter in trainable(model, loop.guide).parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(2):
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("member", "kind"), covered(itertools.product(MEMBERS, KINDS), times=1))
def test_the_state_that_is_put_back_goes_on_as_before(member, kind):
    one, other = made(member, kind), made(member, kind)
    for seed in range(3):
        step(*one, seed=seed)
    state = OptimizerState.of(one[2])
    tensors = {name: value.clone() for name, value in state.tensors.items()}
    assert all(value.is_contiguous() for value in state.tensors.values()), "as a checkpoint gives them back"
    first = [p.clone() for group in other[2].param_groups for p in group["params"]]
    wanted = rehearse(other[2], tensors)
    now = [p for group in other[2].param_groups for p in group["params"]]
    assert all(torch.equal(before, after) for before, after in zip(first, now, strict=True)), (
        "a refused state moves none"
    )
    assert wanted.tensors.keys() == tensors.keys()
    assert wanted.numbers.keys() == state.numbers.keys()
    OptimizerState(tensors, dict(state.numbers)).give(other[2])
    trainable(other[0], other[1].guide).load_state_dict(trainable(one[0], one[1].guide).state_dict())
    for seed in (3, 4):
        step(*one, seed=seed)
        step(*other, seed=seed)
    for name, value in trainable(one[0], one[1].guide).state_dict().items():
        assert torch.equal(value, trainable(other[0], other[1].guide).state_dict()[name]), name


@pytest.mark.parametrize("member", MEMBERS)
def test_a_step_that_is_not_finite_is_not_taken(member):
    _, _, optimizer = made(member)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for finite in (True, False, True):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 1.0 if finite else float("nan"))
        before = [parameter.detach().clone() for parameter in parameters]
        memory = {name: value.clone() for name, value in OptimizerState.of(optimizer).tensors.items()}
        step_where(torch.tensor(finite), optimizer)
        if not finite:
            assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
            assert all(torch.equal(OptimizerState.of(optimizer).tensors[name], old) for name, old in memory.items())
    assert all(bool(p.isfinite().all()) for p in parameters)


@pytest.mark.parametrize(("member", "kind"), covered(itertools.product(MEMBERS, KINDS), times=1))
def test_stopped_and_resumed_ends_with_the_same_weights(member, kind, tokens, tmp_path):
    config = configure(*KINDS[kind], f"slow_optimizer.name={member}")
    whole = ltm.train(config, data=tokens, out=tmp_path / "whole")

    def kill(progress):
        if progress.validation is None and progress.step == 3:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        ltm.train(apply_settings(config, ["slow.save_every=2"]), data=tokens, out=tmp_path / "parts", on_progress=kill)
    parts = ltm.train(None, data=None, out=tmp_path / "parts", resume=True)
    for name, value in whole.trainable.state_dict().items():
        assert torch.equal(value, parts.trainable.state_dict()[name]), name


@pytest.mark.parametrize("member", ["muon", pytest.param("soap:2", marks=pytest.mark.long)])
def test_killed_and_resumed_ends_with_the_same_state(member, tokens, tmp_path):
    """A process that dies by SIGKILL after its third step has written the first checkpoint, perhaps the second."""
    config = configure(f"slow_optimizer.name={member}", "slow.save_every=1")
    whole = ltm.train(config, data=tokens, out=tmp_path / "whole").folder
    killed = tmp_path / "killed"
    train_until_killed(3, config=config, data=tokens, out=killed)
    assert Run.load(killed).step in (1, 2)
    ltm.train(None, data=None, out=killed, resume=True)
    for name in ("model.safetensors", "trainer.safetensors"):  # tensors: the second's header has seconds in it
        one, other = load_file(killed / name), load_file(whole / name)
        assert one.keys() == other.keys()
        assert not [key for key in one if not torch.equal(one[key], other[key])], name


BUFFER, BASIS = "optimizer.0.momentum_buffer", "optimizer.0.Q.0"
DAMAGES = {
    "muon": [
        (lambda tensors, meta: tensors.update({BUFFER: tensors[BUFFER][:3].clone()}), f"{BUFFER} is float32 [3, 16]"),
        (lambda tensors, meta: tensors.update({"optimizer.0.exp_avg": tensors.pop(BUFFER)}), f"{BUFFER} is missing"),
        (
            lambda tensors, meta: tensors.update({BUFFER: tensors[BUFFER] * torch.nan}),
            "not all that it holds is finite",
        ),
    ],
    "soap:2": [
        (lambda tensors, meta: tensors.update({BASIS: tensors[BASIS][:3].clone()}), f"{BASIS} is float32 [3, 16]"),
        (lambda tensors, meta: meta["numbers"].pop("group.0.step") is None, "should count"),
        (lambda tensors, meta: meta["numbers"].update({"group.0.step": -1}), "optimizer.group.0.step is below zero"),
        (lambda tensors, meta: meta["numbers"].update({"group.0.step": "1"}), "its metadata: numbers"),
    ],
}


@pytest.mark.parametrize("member", DAMAGES)
def test_a_damaged_state_is_refused(member, tokens, tmp_path):
    ltm.train(configure("slow.steps=2", f"slow_optimizer.name={member}"), data=tokens, out=tmp_path / "run")
    path = tmp_path / "run" / "trainer.safetensors"
    whole = path.read_bytes()
    for change, says in DAMAGES[member]:
        path.write_bytes(whole)
        with safe_open(path, framework="pt") as file:
            meta = json.loads(file.metadata()[FORMAT])
        del meta["crc32"]  # it is not by its checksum that it is refused
        tensors = load_file(path)
        change(tensors, meta)
        save_file(tensors, path, metadata={FORMAT: json.dumps(meta)})
        with pytest.raises(UserError) as caught:
            ltm.train(None, data=None, out=tmp_path / "run", resume=True)
        assert says in str(caught.value)
