"""Several processes train as one does: the same order, losses and weights, whatever is shared and however it ends."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pyro
import pytest
import torch
from helpers import ranks
from helpers.double import assert_close, assert_same_rows, assert_same_weights, double
from helpers.ranks import on_ranks
from helpers.recording import Again
from helpers.tiny_run import configure
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

import pyro_ltm as ltm
from pyro_ltm.config import SlowConfig
from pyro_ltm.data import DataOrder, TokenDataset
from pyro_ltm.distributed import current, gathered, sharing
from pyro_ltm.errors import UserError
from pyro_ltm.inference import Annealing, FastLoop, build
from pyro_ltm.inference.cuda_graph import Recorder
from pyro_ltm.interruption import leave_if_asked
from pyro_ltm.profiling.memory import peak_memory
from pyro_ltm.runs.folder import TRAINER, trainable
from pyro_ltm.runs.metrics import read_metrics
from pyro_ltm.scores.estimate import plain
from pyro_ltm.training import Stopped, Trainer, train_step
from pyro_ltm.training.checkpoint import Checkpoint
from pyro_ltm.training.optimizer_state import OptimizerState
from pyro_ltm.training.parallel import parallel
from pyro_ltm.training.step import SlowPass
from pyro_ltm.training.trainer import slow_optimizer
from pyro_ltm.types import Batch


def train(settings, data, out, resume=False, backend="aot_eager"):
    """Trains in double precision, and gives the rows of the metrics and the weights."""
    with double(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend=backend))
        run = ltm.train(configure("slow.batch_size=4", *settings), data=data, out=out, resume=resume)
    return read_metrics(run.folder / "metrics.jsonl"), run.trainable.state_dict()


FSDP = "distributed.kind=fsdp"
WAYS = {
    "plain": ["slow.eval_every=2"],
    "uneven": ["slow.batch_size=3", "slow.decoder_warmup=0.5", "slow.average=0.9", "slow.keep_best=true"],
    "compiled": ["compile=true", "slow.steps=2", "slow.recompute=true", FSDP],
    "rate": ["objective.name=mean-rate", "objective.nats=2.0", FSDP],
    "accumulated, muon": ["slow.batch_size=1", "slow.accumulate=5", "slow_optimizer.name=muon", "slow.clip=0.1", FSDP],
}
MORE = {
    "shared": ["guide.name=semi-amortized", "prior.name=vamp", "objective.name=elbo"],
    "accumulated": ["slow.batch_size=2", "slow.accumulate=3", "slow_optimizer.name=muon"],
    "target": ["objective.name=target-rate", "guide.name=full-rank"],
    "twin": ["model.thoughts=0"],
    "masked diffusion": ["model.kind=masked-diffusion", "slow.batch_size=3", "slow.accumulate=2"],
    "sampler": ["guide.name=langevin", "objective.name=map"],
    "prompt": ["prior.name=conditional", "objective.name=elbo"],
    "dropout": ["model.dropout=0.2", "slow.recompute=true", "fast.subsample=4"],
    "compiled, whole": ["compile=true", "slow.steps=2"],
    "compiled, two layers": ["compile=true", "slow.steps=2", "model.layers=2", "slow.recompute=true"],
}
LONG = MORE | WAYS | {f"{way}, fsdp": [*settings, FSDP] for way, settings in (WAYS | MORE).items()}


def train_each(ways, data, folder, backend="aot_eager"):  # which writes no code in C++
    outs = {way: folder / f"of {current().size}, {way}" for way in ways}
    return [train(settings, data, outs[way], backend=backend) for way, settings in ways.items()]


PARTS = [dict(list(LONG.items())[first::4]) for first in range(4)]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's compiler's own
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("ways", [WAYS, *(pytest.param(part, marks=pytest.mark.long) for part in PARTS)])
def test_two_processes_train_as_one(ways, tokens, tmp_path):
    expected = train_each({way: [*settings, "compile=false"] for way, settings in ways.items()}, tokens, tmp_path)
    leader, other = on_ranks(2, train_each, ways, tokens, tmp_path)
    for (rows, weights), (same, known), (those_of_one, once) in zip(leader, other, expected, strict=True):
        assert rows == same, "there is one file of them"
        assert all(torch.equal(weights[name], value) for name, value in known.items())
        assert_same_rows(rows, those_of_one)
        assert_same_weights(weights, once)


@pytest.mark.long
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_with_inductors_kernels_train_as_one_without_compiler(kind, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "PATIENCE", 1500)  # until all is compiled
    plain = ["slow.steps=2", "model.layers=2"]
    ((rows, weights),) = train_each({"plain": plain}, tokens, tmp_path)
    compiled = {kind: [*plain, "compile=true", f"distributed.kind={kind}"]}
    for ((found, learned),) in on_ranks(2, train_each, compiled, tokens, tmp_path, "inductor"):
        assert_same_rows(found, rows)
        assert_same_weights(learned, weights)


@pytest.mark.long
def test_processes_agree_where_rounding_alone_sets_them_apart_from_one(tokens, tmp_path):
    """SOAP's bases are of matrices with equal eigenvalues: which is which is a matter of rounding."""
    ((_, weights),), ((_, others),) = on_ranks(2, train_each, {"soap": ["slow_optimizer.name=soap"]}, tokens, tmp_path)
    assert all(torch.equal(weights[name], value) for name, value in others.items())


def test_each_takes_every_so_many_th_sequence(tokens):
    """The order is that of one process, and no sequence is read twice."""
    order, data = DataOrder(len(TokenDataset(tokens)), 7, seed=0), TokenDataset(tokens)
    read = on_ranks(3, sequences_read, tokens)
    for step in range(3):
        ids = data.batch(order.indices(7 * step)).ids.tolist()
        assert [one[step] for one in read] == [ids[rank::3] for rank in range(3)]


def sequences_read(tokens):
    config = configure("model.vocab_size=280", "slow.batch_size=7")
    trainer = Trainer(ltm.Run(Path("nowhere"), config, *build(config), None, 0), TokenDataset(tokens), None)
    found = []
    for step in range(3):
        trainer.counters.step = step
        found.append([name for batch in trainer._batches() for name in batch.ids.tolist()])
    return found


class Sent(TorchDispatchMode):
    """Counts what is sent to other processes, by its kind."""

    SPACES = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "_dtensor")
    SILENT = ("wait_tensor", "wrap_tensor_autograd")

    def __init__(self):
        super().__init__()
        self.kinds = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if DTensor in types:
            return NotImplemented  # so that this is asked again, about what the tensor's own operations send
        name = function.__name__.split(".")[0].strip("_")
        if function.namespace in self.SPACES and name not in self.SILENT:
            self.kinds[name] += 1
        return function(*args, **(kwargs or {}))


def one_step(settings, decoder_only=False, kind="ddp", micro_batch=6, recorder=None, fits=1):
    """A slow step on this process's share of six sequences: gradients, figures, and what fast and slow steps sent."""
    with double():
        model, loop = build(configure("model.vocab_size=40", "objective.warmup=0.0", *settings))
        loop = dataclasses.replace(loop, recorder=recorder)
        modules = trainable(model, loop.guide).double()
        world, sequences = current(), Batch.from_tokens(tokens_of(6))
        sequences.mask[3, 4:] = False
        mine = sequences.select(torch.arange(6)[world.rank :: world.size])
        shared = parallel(SlowPass(model, loop.guide), kind)
        optimizer = slow_optimizer(model, loop.guide, SlowConfig(lr=0.0))
        with shared.gathered(), Sent() as fast:
            for _ in range(fits):
                loop.fit(model, mine, seed=5)
        with Sent() as slow:
            parts = [mine.select(part) for part in torch.arange(len(mine.ids)).split(micro_batch)]
            report = train_step(
                model, parts, loop, optimizer, clip=0.0, seed=5, decoder_only=decoder_only, parallel=shared
            )
        learned = [(name, value) for name, value in modules.named_parameters() if value.grad is not None]
        gradients = {name: gathered(value.grad) for name, value in learned}
        figures = [float(value) for value in (report.bound, report.distortion, report.rate, report.grad_norm)]
    return gradients, figures, fast.kinds, slow.kinds


def tokens_of(count):
    return torch.randint(0, 40, (count, 13), generator=torch.Generator().manual_seed(1))


def recorded():
    """One of which the first fit is run as it is and the second recorded; two more, the slow step's, are replayed."""
    kept = Again()
    with pyro.validation_enabled(False):  # which looks at values
        found = one_step([], recorder=Recorder(kept), fits=3)
    assert (kept.recorded, kept.replayed) == (1, 3)
    return found


STEPS = {
    "plain": partial(one_step, []),
    "recorded": recorded,
    "without thoughts": partial(one_step, ["prior.name=mixture", "objective.name=elbo"], decoder_only=True),
    "learned": partial(one_step, ["guide.name=semi-amortized", "prior.name=layered", "objective.name=elbo"]),
    **{
        f"shares, in micro-batches of at most {size}": partial(
            one_step,
            ["guide.name=semi-amortized", "objective.name=elbo", "fast.steps=5"],
            kind="fsdp",
            micro_batch=size,
        )
        for size in (1, 6)
    },
}


def steps():
    return [step() for step in STEPS.values()]


def test_gradients_are_the_same_in_all_processes_and_those_of_one():
    expected = steps()
    plain_one, recorded_one = (expected[list(STEPS).index(name)] for name in ("plain", "recorded"))
    assert all(torch.equal(value, recorded_one[0][name]) for name, value in plain_one[0].items())
    for rank in on_ranks(2, steps):
        for (gradients, figures, fast, slow), (those_of_one, known, _, alone) in zip(rank, expected, strict=True):
            assert not fast, "a fast step sends nothing"
            assert slow, "the count counts"
            assert not alone
            assert gradients.keys() == those_of_one.keys(), "what is not used has no gradient, and does not decay"
            for name, gradient in gradients.items():
                torch.testing.assert_close(gradient, those_of_one[name], rtol=1e-9, atol=1e-13)
            assert figures == pytest.approx(known, rel=1e-6)
        for *_, slow in rank[-2:]:
            # Weights are gathered once, and gradients reduced: the decoder's layer, the two of the encoder, and all
            # else; however many micro-batches there are. Summed are tokens and sequences, whether one leaves the step,
            # distortion and rate, and the norm of the shared gradients.
            assert slow == {"allgather_base": 4, "reduce_scatter_base": 4, "allreduce": 3, "all_reduce": 1}


FEW = Annealing(temperatures=2, chains=2, leapfrogs=1)
SCORES = {
    "bound": lambda run, **how: run.evaluate(particles=2, **how),
    "prefix": lambda run, **how: run.evaluate_prefix(particles=2, prefixes=[3, 9], stride=6, **how),
    "reference": lambda run, **how: run.evaluate_reference(**how),
    "annealed": lambda run, **how: run.evaluate_annealed(start="prior", annealing=FEW, **how),
}


def scores(folder):
    """Figures of five sequences in whole batches, and of two, in double precision."""
    run = ltm.Run.load(folder)
    run.model.double()
    with double(), sharing():
        rows = run.embed(["The bird sang.", "Two songs.", "To the trees.", "A bird."] * 2, batch_size=3)
        found = [score(run, sequences=5, batch_size=2) for score in SCORES.values()]
        found = [
            one.to_dict() if hasattr(one, "to_dict") else plain(one) for one in [*found, run.evaluate(sequences=2)]
        ]
        return [*found, rows.tolist()]


def test_scores_are_those_of_one_process(tiny_run):
    expected = scores(tiny_run)
    for found in on_ranks(3, scores, tiny_run):
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, one)


def saved(settings, data, out):
    """Trains. Bytes that this process takes for each checkpoint at its peak, and the whole state at the last."""
    snapshot, taken, states = Checkpoint.snapshot, [], []

    def watched(self, counters):
        writers = []
        taken.append(peak_memory(lambda: writers.append(snapshot(self, counters))))
        parts = {"": self.run.trainable.state_dict(), "optimizer.": OptimizerState.of(self.optimizer).tensors}
        parts |= {f"{kind}.": tensors for kind, tensors in self.others.items()}
        states.append({f"{kind}{name}": gathered(value) for kind in parts for name, value in parts[kind].items()})
        return writers[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "snapshot", watched)
        train(settings, data, out)
    return taken, states[-1]


def test_a_checkpoint_is_gathered_tensor_by_tensor_and_kept_by_the_first(tokens, tmp_path):
    settings = ["slow.average=0.9", "slow.keep_best=true", "model.thoughts=4", "model.layers=4", FSDP]
    (leader, state), (other, _) = on_ranks(2, saved, settings, tokens, tmp_path / "run")
    written = load_file(tmp_path / "run" / TRAINER)
    assert written.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in written.items())
    size = sum(value.nbytes for value in written.values())
    for peak in (leader[0] - size, *leader[1:], *other):
        assert peak < size / 3, "a tensor, and a few before it that gloo's thread has not let go of"


def stopped(settings, data, out, rank, step):
    """Trains until the process of this rank is sent a signal, in this step."""
    learn = Trainer._step

    def learn_and_signal(self):
        learn(self)
        if current().rank == rank and self.counters.step == step:
            os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", learn_and_signal)
        with pytest.raises(Stopped, match=f"at step {step} of 4; everything is saved"):
            train(settings, data, out)


def left_in_a_step(ways, data, folder, rank):
    """Trains each way until the process of this rank is sent a signal in the last fit of the third step.

    The others would for ever be in their first of it.
    """
    learn, fit, begun = Trainer._step, FastLoop.fit, []

    def fit_until_left(self, *arguments, **options):
        begun.append(self)
        deadline = time.monotonic() + ranks.PATIENCE
        while current().rank != rank:
            leave_if_asked()
            assert time.monotonic() < deadline, "it heard nothing"
        if len(begun) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return fit(self, *arguments, **options)

    def learn_until_left(self):
        with pytest.MonkeyPatch.context() as patch:
            if self.counters.step == 2:
                patch.setattr(FastLoop, "fit", fit_until_left)
            learn(self)

    for name, settings in ways.items():
        begun.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "_step", learn_until_left)
            with pytest.raises(Stopped, match="at step 2 of 4; everything is saved"):
                train(settings, data, folder / name)


def test_a_signal_to_one_ends_all_and_the_run_goes_on_in_another_number(tokens, tmp_path):
    """After a step whose gradients were on their way; or in the middle of it."""
    settings = ["slow.batch_size=2", "slow.accumulate=4", "slow.average=0.9", "slow.save_every=100"]
    rows, weights = train(settings, tokens, tmp_path / "whole")
    on_ranks(2, stopped, [*settings, FSDP], tokens, tmp_path / "two", 1, 3)
    stopped([*settings, FSDP], tokens, tmp_path / "one", 0, 2)
    more = on_ranks(2, train, settings, None, tmp_path / "one", True)
    on_ranks(2, left_in_a_step, {"ddp": settings, "fsdp": [*settings, FSDP]}, tokens, tmp_path, 1)
    for found in (*more, *(train(settings, None, tmp_path / name, True) for name in ("two", "ddp", "fsdp"))):
        assert_same_rows(found[0], rows)
        assert_same_weights(found[1], weights)


def stopped_in_validation(settings, data, out, rank, fit):
    """Trains until the process of this rank is sent a signal, in this of its fits to score. How many each began."""
    fitted, begun = FastLoop.fit_to_score, []

    def count_and_fit(self, *arguments, **options):
        begun.append(self)
        if current().rank == rank and len(begun) == fit:
            os.kill(os.getpid(), signal.SIGTERM)
        return fitted(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FastLoop, "fit_to_score", count_and_fit)
        with pytest.raises(Stopped, match="at step 2 of 4; everything is saved"):
            train(settings, data, out)
    return len(begun)


def test_a_signal_in_a_validation_is_heeded_by_all_before_the_next_batch(tokens, tmp_path):
    """And the whole validation is done again by whoever goes on with the run."""
    settings = ["slow.batch_size=2", "slow.eval_every=2", "slow.eval_sequences=12", "slow.average=0.9", FSDP]
    rows, weights = train(settings, tokens, tmp_path / "whole")
    # Three batches each at step 0, three at step 2, and of three by the average of the weights the second.
    assert on_ranks(2, stopped_in_validation, settings, tokens, tmp_path / "two", 1, 8) == [8, 8]
    assert [row["step"] for row in read_metrics(tmp_path / "two" / "metrics.jsonl")] == [0, 0, 1, 2]
    found = train(settings, None, tmp_path / "two", True)
    assert_same_rows(found[0], rows)
    assert_same_weights(found[1], weights)


def test_what_cannot_be_shared_is_refused(tokens, tmp_path):
    for settings, message in {
        ("slow.batch_size=1",): r"2 processes for the 1 sequences of a slow step: start fewer, or set",
        ("objective.name=mmd",): r"mmd compares the sequences of a batch.*in one process",
    }.items():
        assert on_ranks(2, refusal, settings, tokens, tmp_path / "run", message)[0]
        assert not (tmp_path / "run").exists()


def refusal(settings, data, out, message):
    """The leader's words; the other only learns that it is lost."""
    with pytest.raises(UserError, match=message if current().leads else "another process") as found:
        train(settings, data, out)
    current().speaks_of_end()
    return str(found.value)
