"""Steps of slow optimizers, against formulas written out here in float64; which matrices Muon and SOAP move."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from helpers.tiny import tiny_config
from torch import nn

from pyro_ltm.config import Component, SlowConfig, apply_settings
from pyro_ltm.errors import UserError
from pyro_ltm.guides import Flow, SemiAmortized
from pyro_ltm.inference.build import check_config
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.optimizers.slow import SLOW_OPTIMIZERS, AdamW, Muon, Soap, hidden_matrices
from pyro_ltm.optimizers.slow.base import set_learning_rate
from pyro_ltm.optimizers.slow.muon import BatchedMuon
from pyro_ltm.presets import preset
from pyro_ltm.priors import PRIORS
from pyro_ltm.training.optimizer_state import OptimizerState

SLOW = SlowConfig(lr=0.03, weight_decay=0.2, beta1=0.8, beta2=0.9)
SHAPES = [(6, 6), (6, 6), (10, 4), (4, 10), (1, 5)]


class Stack(nn.Module):
    """Hidden matrices of several shapes, with a vector and an embedding beside them."""

    def __init__(self, dtype=torch.float64, shapes=SHAPES):
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(7, 3, dtype=dtype)
        self.layers = nn.ModuleList(nn.Linear(b, a, bias=False, dtype=dtype) for a, b in shapes)
        self.scale = nn.Parameter(torch.randn(3, dtype=dtype))

    @property
    def matrices(self):
        return [layer.weight for layer in self.layers]


def gradients(parameters, steps):
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters] for _ in range(steps)]


def run(optimizer, parameters, grads):
    for step in grads:
        for parameter, grad in zip(parameters, step, strict=True):
            parameter.grad = grad.to(parameter.dtype)
        optimizer.step()


def adamw(value, grads, lr, decay):
    mean, square = 0.0, 0.0
    for step, grad in enumerate(grads, 1):
        mean = SLOW.beta1 * mean + (1 - SLOW.beta1) * grad
        square = SLOW.beta2 * square + (1 - SLOW.beta2) * grad**2
        root = (square / (1 - SLOW.beta2**step)).sqrt() + 1e-8
        value = value - lr * decay * value - lr * mean / (1 - SLOW.beta1**step) / root
    return value


def muon(value, grads, member, decay=SLOW.weight_decay):
    """By singular values: the iteration leaves singular vectors alone, and s becomes as + bs³ + cs⁵."""
    mean = torch.zeros_like(value)
    for grad in grads:
        mean = member.momentum * mean + (1 - member.momentum) * grad
        ahead = member.momentum * mean + (1 - member.momentum) * grad if member.nesterov else mean
        u, s, v = torch.linalg.svd(ahead, full_matrices=False)
        s = s / s.square().sum().sqrt()
        for _ in range(member.ns_steps):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        rows, columns = value.shape
        shape = (
            math.sqrt(max(1, rows / columns))
            if member.adjust_lr_fn == "original"
            else 0.2 * math.sqrt(max(rows, columns))
        )
        value = value * (1 - SLOW.lr * decay) - SLOW.lr * shape * (u * s @ v)
    return value


@pytest.mark.parametrize("steps", [1, 5])
def test_adamw(steps):
    stack = Stack()
    parameters = list(stack.parameters())
    grads, before = gradients(parameters, steps), [p.detach().clone() for p in parameters]
    run(AdamW().build(stack, SLOW), parameters, grads)
    for parameter, value, own in zip(parameters, before, zip(*grads, strict=True), strict=True):
        expected = adamw(value, own, SLOW.lr, SLOW.weight_decay if value.dim() > 1 else 0.0)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=1e-12)


OPTIONS = [
    {},
    {"nesterov": False, "momentum": 0.8},
    {"adjust_lr_fn": "match_rms_adamw", "ns_steps": 3},
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("steps", [1, 5])
def test_muon(steps, options, dtype):
    stack, member = Stack(dtype), Muon(**options)
    parameters = list(stack.parameters())
    grads, before = gradients(parameters, steps), [p.detach().clone().double() for p in parameters]
    optimizer = member.build(stack, SLOW)
    if dtype is torch.float64:
        optimizer.parts[0].dtype = dtype  # the products, too
    run(optimizer, parameters, grads)
    # A relative error grows by at most the slope at zero, 3.4445, in each of five iterations: about 500 times.
    tolerance = 500 * 10 * torch.finfo(dtype).eps
    share = 1 / 6 if member.adjust_lr_fn == "original" else 1.0
    for parameter, value, own in zip(parameters, before, zip(*grads, strict=True), strict=True):
        if any(parameter is matrix for matrix in stack.matrices):
            expected = muon(value, own, member)
        else:
            expected = adamw(value, own, share * SLOW.lr, SLOW.weight_decay if value.dim() > 1 else 0.0)
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_muon_in_bfloat16_is_torchs_to_the_bit(options):
    shapes = [(16, 16), (16, 16), (48, 16), (16, 48)]  # of six columns, a batched product can round another way
    one, other = Stack(torch.float32, shapes), Stack(torch.float32, shapes)
    shared = {"lr": 0.03, "weight_decay": 0.2, **options}
    ours = BatchedMuon(one.matrices, **shared)
    ours.dtype = torch.bfloat16
    grads = gradients(one.matrices, 4)
    run(ours, one.matrices, grads)
    run(torch.optim.Muon(other.matrices, **shared), other.matrices, grads)
    assert all(torch.equal(a, b) for a, b in zip(one.matrices, other.matrices, strict=True))


def test_matrices_that_lie_fused_are_orthogonal_each_by_itself():
    torch.manual_seed(0)
    fused = nn.Parameter(torch.randn(12, 4))
    apart = [nn.Parameter(part.detach().clone()) for part in fused.chunk(3)]
    fused.grad = torch.randn(12, 4)
    for parameter, grad in zip(apart, fused.grad.chunk(3), strict=True):
        parameter.grad = grad.clone()
    BatchedMuon([{"params": [fused], "parts": 3}], lr=0.1).step()
    BatchedMuon(apart, lr=0.1).step()
    assert torch.equal(fused, torch.cat(apart))


def names(module):
    hidden = hidden_matrices(module)
    return {name: hidden[p] for name, p in module.named_parameters() if p in hidden}


class Conv1D(torch.nn.Module):
    """As that of transformers: a linear map whose matrix is [in, out]."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)


def test_a_matrix_that_is_stored_the_other_way_round_learns_at_the_same_rate():
    """GPT-2's, of which those that widen learnt at half the rate, and those that narrow at twice."""
    plain, turned = (torch.nn.Linear(4, 16, bias=False), torch.nn.Linear(16, 4, bias=False)), []
    generator = torch.Generator().manual_seed(0)
    for linear in plain:
        linear.weight.grad = torch.randn(linear.weight.shape, generator=generator)
        turned.append(Conv1D(linear.weight.detach().mT.contiguous()))
        turned[-1].weight.grad = linear.weight.grad.mT.contiguous()
    for stack in (plain, turned):
        Muon().build(torch.nn.ModuleList([torch.nn.ModuleList(stack)]), SlowConfig(lr=0.1)).step()
    for linear, conv in zip(plain, turned, strict=True):
        torch.testing.assert_close(conv.weight, linear.weight.mT, rtol=1e-5, atol=1e-6)


def test_matrices_that_lie_side_by_side_are_orthogonal_each_by_itself():
    """GPT-2's queries, keys and values, against three matrices stored as [out, in]."""
    transformers = pytest.importorskip("transformers", reason="the extra graft is not installed")
    shape = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 11, "n_positions": 8, "add_cross_attention": True}
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape))
    (layer,) = gpt2.transformer.h
    generator = torch.Generator().manual_seed(0)
    for fused, parts in ((layer.attn.c_attn, 3), (layer.crossattention.c_attn, 2), (layer.mlp.c_fc, 1)):
        fused.weight.grad = torch.randn(fused.weight.shape, generator=generator)
        apart = [nn.Parameter(part.detach().mT.contiguous()) for part in fused.weight.chunk(parts, 1)]
        for parameter, grad in zip(apart, fused.weight.grad.chunk(parts, 1), strict=True):
            parameter.grad = grad.mT.contiguous()
        BatchedMuon(apart, lr=0.1, weight_decay=0.2).step()
        Muon().build(gpt2, SlowConfig(lr=0.1, weight_decay=0.2)).step()
        expected = torch.cat([parameter.detach().mT for parameter in apart], 1)
        torch.testing.assert_close(fused.weight.detach(), expected, rtol=1e-5, atol=1e-6)
        fused.weight.grad = None
    numbers = OptimizerState.of(Muon().build(gpt2, SLOW)).numbers
    assert numbers == {"group.0.parts": 1}, "checkpoints of before, when it was taken for one matrix, have these groups"


@pytest.mark.parametrize("optimizer", [AdamW(), Muon()], ids=["adamw", "muon"])
@pytest.mark.parametrize("prior", ["gaussian:true", "mixture:3", "vamp:3", "diffusion", "transport"])
def test_where_a_prior_lies_does_not_decay(prior, optimizer):
    """Its networks do; and parameters keep their numbers, by which a checkpoint knows them."""
    model = LatentThoughtModel(tiny_config(), prior=PRIORS.build(PRIORS.parse(prior), thoughts=4, dim=16))
    for parameter in model.prior.parameters():
        nn.init.normal_(parameter)
    slow = optimizer.build(model, SLOW)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    slow.step()
    own = {name for name, _ in model.prior.named_parameters(recurse=False)}
    for name, parameter in model.prior.named_parameters():
        assert torch.equal(parameter, before[f"prior.{name}"]) == (name in own or parameter.dim() < 2), name
    assert not torch.equal(model.decoder.tok_embeddings.weight, before["decoder.tok_embeddings.weight"])
    beside = [p for p in model.parameters() if isinstance(optimizer, AdamW) or p not in hidden_matrices(model)]
    numbered = [p for group in slow.param_groups for p in group["params"]][-len(beside) :]
    in_order = [p for p in beside if p.dim() >= 2] + [p for p in beside if p.dim() < 2]
    assert [id(p) for p in numbered] == [id(p) for p in in_order]


def test_hidden_matrices_are_those_of_the_layers():
    model = LatentThoughtModel(tiny_config())
    matrices = [
        *(f"{kind}.{name}" for kind in ("attention", "cross_attention") for name in ("wq", "wk", "wv", "wo")),
        *(f"feed_forward.{name}" for name in ("w1", "w2", "w3")),
    ]
    assert names(model) == {f"decoder.layers.{i}.{name}.weight": 1 for i in range(2) for name in matrices}
    assert len(names(LatentThoughtModel(tiny_config(thoughts=0)))) == 14


def test_those_of_an_encoder_and_a_flow_go_along():
    found = names(SemiAmortized(4, 16, vocab_size=30, max_length=12))
    inner = {name.split(".layers.")[1].split(".", 1)[1]: parts for name, parts in found.items()}
    assert all(".body.layers." in name for name in found)
    assert inner == {
        "self_attn.in_proj_weight": 3,
        "self_attn.out_proj.weight": 1,
        "linear1.weight": 1,
        "linear2.weight": 1,
    }
    assert all(name.startswith("couplings.") for name in names(Flow(4, 16)))


def test_each_group_keeps_its_ratio_to_the_schedule():
    optimizer = Muon(adamw_lr=0.01).build(Stack(), SlowConfig(lr=0.06))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.06, 0.01, 0.01])
    set_learning_rate(optimizer, 0.03)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.03, 0.005, 0.005])
    optimizer.load_state_dict(optimizer.state_dict())
    set_learning_rate(optimizer, 0.006)
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == pytest.approx(
        [0.006, 0.001, 0.001]
    )


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("moun", {}, "did you mean 'muon'"),
        ("muon", {"momentum": 1.0}, "momentum = 1.0"),
        ("muon", {"ns_steps": 0}, "ns_steps = 0"),
        ("muon", {"ns_dtype": "float16"}, "choose from auto, float32, bfloat16"),
        ("muon", {"adjust_lr_fn": "none"}, "choose from original, match_rms_adamw"),
        ("muon", {"adamw_lr": -1.0}, "adamw_lr = -1.0"),
        ("muon", {"beta1": 0.9}, "unknown option slow_optimizer.beta1"),
        ("soap", {"beta1": 1.0}, "beta1 = 1.0"),
        ("soap", {"precondition_frequency": 0}, "precondition_frequency = 0"),
        ("adamw", {"eps": 1.0}, "unknown option slow_optimizer.eps"),
    ],
)
def test_what_cannot_be_is_refused(name, options, says):
    with pytest.raises(UserError, match=says):
        SLOW_OPTIMIZERS.build(Component(name=name, options=options))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"slow.lr": 0.5, "slow.weight_decay": 2.5}, r"weight_decay = 2\.5: times slow\.lr = 0\.5.*so below 2 at"),
        ({"slow.lr": 0.5, "slow.weight_decay": 2.0}, r"weight_decay = 2: times slow\.lr = 0\.5"),
        (
            {"slow.lr": 0.1, "slow_optimizer.adamw_lr": 20.0},
            r"times slow_optimizer\.adamw_lr = 20",
        ),
        ({"slow.lr": 0.5, "slow.weight_decay": 1.99}, None),
        ({"slow.lr": 0.0, "slow.weight_decay": 9.0}, None),
    ],
)
@pytest.mark.parametrize("name", SLOW_OPTIMIZERS)
def test_weights_that_would_decay_past_zero(name, settings, says):
    """They would change their sign in each step."""
    if name == "soap":
        pytest.importorskip("pytorch_optimizer", reason="the extra soap is not installed")
    if name == "adamw" and "slow_optimizer.adamw_lr" in settings:
        return
    config = apply_settings(preset("nano"), [f"slow_optimizer.name={name}", *(f"{k}={v}" for k, v in settings.items())])
    if says is None:
        return check_config(config)
    with pytest.raises(UserError, match=says):
        check_config(config)


def test_soap_takes_the_signs_in_the_eigenbasis_of_the_first_gradient():
    """Adam's first step is a sign; before it comes one that gives the basis alone."""
    stack = Stack(shapes=[(6, 6)])
    weight = stack.matrices[0]
    before = weight.detach().clone()
    (first,), (second,) = grads = gradients([weight], 2)
    run(Soap().build(stack, SLOW), [weight], grads)
    left, right = (torch.linalg.eigh(square).eigenvectors for square in (first @ first.T, first.T @ first))
    moved = before - SLOW.lr * left @ (left.T @ second @ right).sign() @ right.T
    # The package adds 1e-8 to the root of the square.
    torch.testing.assert_close(weight.detach(), moved * (1 - SLOW.lr * SLOW.weight_decay), rtol=1e-5, atol=1e-6)


def test_soap_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(UserError) as caught:
        SLOW_OPTIMIZERS.build(Component(name="soap"))
    assert str(caught.value) == "slow_optimizer 'soap' needs another package: pip install -e '.[soap]' in the clone"
