"""The head, in chunks and in tiles, against torch's cross-entropy: values, gradients, gradients of gradients."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers.covering import covered
from helpers.devices import as_on_a_gpu, needs_a_gpu

from pyro_ltm.model.kernels import head, head_tiles
from pyro_ltm.model.kernels.head import token_log_probs

R, D, V = 70, 8, 23


def parts(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, D, generator=generator, dtype=torch.float64) for n in (R, V))
    tokens = torch.randint(V, (R,), generator=generator)
    counts = torch.randn(R, generator=generator, dtype=torch.float64)
    return hidden.to(dtype), weight.to(dtype), tokens, counts.to(dtype)


def both(hidden, weight, tokens, dtype=None, cap=0.0):
    logits = hidden @ weight.t()
    plain = -F.cross_entropy(cap * torch.tanh(logits / cap) if cap else logits, tokens, reduction="none")
    return token_log_probs(hidden, weight, tokens, dtype, cap=cap), plain


each_cap = pytest.mark.parametrize("cap", [0.0, 2.0], ids=["no cap", "a cap"])


CHUNKS = ["one chunk", "chunks that do not come out even"]


@pytest.fixture(params=CHUNKS)
def chunks(request, monkeypatch):
    if request.param != "one chunk":
        monkeypatch.setattr(head, "CHUNK", 20 * V * 8)  # 70 positions in double precision: four times 16, and 6
        monkeypatch.setattr(head_tiles, "POSITIONS", 16)
        monkeypatch.setattr(head_tiles, "LOGITS", 16 * 5)  # 23 tokens: four times 5, and 3


@pytest.mark.parametrize("learns", ["hidden", "weight", "both", "neither"])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@each_cap
def test_agrees_with_cross_entropy(chunks, learns, dtype, atol, cap):
    hidden, weight, tokens, counts = parts(dtype)
    leaves = {"hidden": [hidden], "weight": [weight], "both": [hidden, weight], "neither": []}[learns]
    for leaf in leaves:
        leaf.requires_grad_()
    ours, plain = both(hidden, weight, tokens, cap=cap)
    torch.testing.assert_close(ours, plain, atol=atol, rtol=0)
    assert ours.requires_grad == bool(leaves)
    if leaves:
        mine, theirs = (torch.autograd.grad((x * counts).sum(), leaves) for x in (ours, plain))
        torch.testing.assert_close(mine, theirs, atol=10 * atol, rtol=0)  # sums over 70 positions of order one


@pytest.mark.parametrize("learns", ["hidden", "both"])
@each_cap
def test_can_be_differentiated_twice(chunks, learns, cap):
    hidden, weight, tokens, _ = parts()
    leaves = [hidden, weight] if learns == "both" else [hidden]
    for leaf in leaves:
        leaf.requires_grad_()
    turns = []
    for log_probs in both(hidden, weight, tokens, cap=cap):
        slopes = torch.autograd.grad(log_probs.square().sum(), leaves, create_graph=True)
        turns.append(torch.autograd.grad(sum(slope.square().sum() for slope in slopes), leaves))
    torch.testing.assert_close(*turns, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("learns", ["hidden", "both"])
@each_cap
def test_bfloat16_products(chunks, learns, cap):
    """Weights in single precision, products in bfloat16, whose 8 bits give logits within about 2^-8 of their size."""
    hidden, weight, tokens, counts = parts(torch.float32)
    leaves = [hidden, weight] if learns == "both" else [hidden]
    for leaf in leaves:
        leaf.requires_grad_()
    ours, _ = both(hidden, weight, tokens, torch.bfloat16, cap)
    _, plain = both(hidden.bfloat16().float(), weight.bfloat16().float(), tokens, cap=cap)
    assert ours.dtype == torch.float32
    largest = float((hidden @ weight.t()).detach().abs().max())
    torch.testing.assert_close(ours, plain, atol=largest * 2**-7, rtol=0)
    mine, theirs = (torch.autograd.grad((x * counts).sum(), leaves) for x in (ours, plain))
    for one, other in zip(mine, theirs, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.03 * other.norm()


@pytest.fixture
def _compiler(monkeypatch):
    """torch's compiler up to the code that it would generate."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager", fullgraph=True))
    for forget in (torch.compiler.reset, head._compiled.cache_clear):
        forget()
    yield
    for forget in (torch.compiler.reset, head._compiled.cache_clear):
        forget()


@pytest.mark.usefixtures("_compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("chunks", "dtype", "cap"),
    covered(itertools.product(CHUNKS, (torch.float32, torch.bfloat16), (0.0, 2.0)), times=1),
    indirect=["chunks"],
)
def test_a_gpus_way_with_logits(chunks, dtype, cap, monkeypatch):
    """Padded rows and the compiled softmax: no more than rounded, and no row of zeros is ever likely."""
    as_on_a_gpu(monkeypatch)
    check_a_gpus_way("cpu", dtype, cap)


@needs_a_gpu
@pytest.mark.filterwarnings("ignore")  # torch's own, of its compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each_cap
def test_logits_on_a_gpu(chunks, dtype, cap):
    check_a_gpus_way("cuda", dtype, cap)


def check_a_gpus_way(device, dtype, cap):
    hidden, weight, tokens, counts = (part.to(device) for part in parts(torch.float32))
    hidden.sub_(1)  # most logits are negative: to zeros they would lose
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    exact, _ = both(hidden.to(dtype).float(), weight.to(dtype).float(), tokens, cap=cap)
    theirs = torch.autograd.grad((exact * counts).sum(), leaves)
    for compiled in (False, True):
        ours = token_log_probs(hidden, weight, tokens, dtype, None, compiled, cap)
        mine = torch.autograd.grad((ours * counts).sum(), leaves)
        with torch.no_grad():
            alone = token_log_probs(hidden, weight, tokens, dtype, cap=cap)
        near = 1e-5 if dtype == torch.float32 else 2**-7 * float((hidden @ weight.t()).detach().abs().max())
        torch.testing.assert_close((ours, alone), (exact, exact), atol=near, rtol=0)
        for one, other in zip(mine, theirs, strict=True):
            assert (one - other).norm() < (1e-5 if dtype == torch.float32 else 0.03) * other.norm()


def test_very_unlikely_tokens_keep_a_finite_gradient():
    hidden, weight = torch.full((1, D), 50.0), torch.zeros(V, D)
    weight[0] = 1.0
    slope_of_weight = torch.zeros(V, D)
    slope_of_weight[0], slope_of_weight[1] = -50.0, 50.0
    for leaf, slope in ((hidden, torch.full((1, D), -1.0)), (weight, slope_of_weight)):
        for each in (hidden, weight):
            each.requires_grad_(each is leaf)
        log_prob = token_log_probs(hidden, weight, torch.tensor([1]))
        assert log_prob.item() == pytest.approx(-50.0 * D, rel=1e-6)
        torch.testing.assert_close(torch.autograd.grad(log_prob.sum(), leaf)[0], slope)


@pytest.mark.skipif(not head.packs_half(), reason="this processor does not multiply in bfloat16")
def test_a_packed_weight_gives_the_same_products(chunks):
    hidden, weight, tokens, counts = parts(torch.float32)
    hidden.requires_grad_()
    found = []
    for held in (None, head.FrozenWeight(weight.bfloat16(), many=True)):
        log_probs = token_log_probs(hidden, weight, tokens, torch.bfloat16, held)
        found.append((log_probs, *torch.autograd.grad((log_probs * counts).sum(), hidden)))
    # Sums in another order, rounded to bfloat16: a unit in the last place or two.
    torch.testing.assert_close(*found, atol=2**-5, rtol=2**-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_probability_too_small_for_a_number_has_its_log(dtype):
    hidden, weight = torch.full((3, D), 4.0, requires_grad=True), torch.zeros(V, D)
    weight[0] = 8.0  # logits 256 and 0: exp(-256) is no number of these
    log_probs = token_log_probs(hidden, weight, torch.tensor([0, 1, 1]), dtype)
    torch.testing.assert_close(log_probs, torch.tensor([0.0, -256.0, -256.0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("learns", ["hidden", "weight"])
@each_cap
def test_never_holds_all_logits(learns, cap):
    from pyro_ltm.profiling.memory import peak_memory

    rows, vocab = 2048, 16384  # 128 MiB of logits, of which a chunk is 32 MiB
    leaves = {"weight": torch.randn(vocab, D), "hidden": torch.randn(rows, D)}
    tokens = torch.zeros(rows, dtype=torch.int64)
    leaf = leaves[learns].requires_grad_()

    def work():
        torch.autograd.grad(token_log_probs(leaves["hidden"], leaves["weight"], tokens, cap=cap).sum(), leaf)

    assert peak_memory(work) < 0.8 * rows * vocab * 4


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_no_positions_have_no_log_probs(dtype):
    hidden = torch.zeros(0, D, requires_grad=True)
    found = token_log_probs(hidden, torch.randn(V, D), torch.zeros(0, dtype=torch.long), dtype)
    (slope,) = torch.autograd.grad(found.sum(), hidden)
    assert (found.shape, slope.shape) == ((0,), (0, D))


@pytest.mark.parametrize("turned", ["hidden", "weight"])
def test_numbers_may_lie_in_any_order(turned):
    hidden, weight, tokens, _ = parts()
    as_it_is = token_log_probs(hidden.requires_grad_(), weight, tokens)
    hidden = hidden.detach()
    if turned == "hidden":
        hidden = hidden.t().contiguous().t()
    else:
        weight = weight.t().contiguous().t()
    torch.testing.assert_close(token_log_probs(hidden.requires_grad_(), weight, tokens), as_it_is)


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4])
@each_cap
def test_no_log_probability_is_above_zero(scale, cap):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(500, 64, generator=generator) * scale, torch.randn(50, 64, generator=generator)
    likeliest = (hidden @ weight.t()).argmax(-1)
    for learns in (False, True):
        assert token_log_probs(hidden.requires_grad_(learns), weight, likeliest, cap=cap).max() <= 0


@pytest.mark.parametrize("learns", ["neither", "weight"])
def test_autocast_around_it_rounds_nothing(learns):
    hidden, weight, tokens, counts = parts(torch.float32)
    weight.requires_grad_(learns == "weight")
    found = []
    for half in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            ours = token_log_probs(hidden, weight, tokens)
            found.append((ours, torch.autograd.grad((ours * counts).sum(), weight) if learns == "weight" else ()))
    torch.testing.assert_close(*found, atol=0, rtol=0)
