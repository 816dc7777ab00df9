"""Several processes compare and scale as one does: the same figures, one that writes, and all end together."""

from __future__ import annotations

import json
import os
import signal
from contextlib import contextmanager

import pytest
import torch
from helpers.exact_guides import Linear, WithPrior, pieces
from helpers.ranks import on_ranks
from helpers.stand_ins import LinearGaussian
from helpers.tiny_run import configure
from safetensors.torch import load_file

import pyro_ltm as ltm
from pyro_ltm import distributed
from pyro_ltm.comparison.posteriors import compare_posteriors
from pyro_ltm.comparison.scaling import run as scaling
from pyro_ltm.comparison.scaling.grid import TWIN, Axis, Grid
from pyro_ltm.comparison.scaling.run import Scoring, run_study
from pyro_ltm.comparison.train_guide import GuideTraining
from pyro_ltm.comparison.trainings import compare_training
from pyro_ltm.data import TokenDataset
from pyro_ltm.distributed import current
from pyro_ltm.errors import UserError
from pyro_ltm.guides import Delta, MeanField
from pyro_ltm.inference.samplers import MALA
from pyro_ltm.interruption import Stopped
from pyro_ltm.objectives import MAP, MMD, MonteCarloELBO
from pyro_ltm.training import Trainer
from pyro_ltm.training.launch import as_the_data_are

EXACT = 1e-9
"""By so much, as a share, figures of two processes may differ from those of one: sums in another order."""


@pytest.fixture
def tokens(tiny_run):
    return tiny_run / "data"


@contextmanager
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def figures(comparison):
    """The pairs and the rivals, without what a clock or an allocator says."""
    found = json.loads(json.dumps(comparison.to_dict()))
    rows = [*found["pairs"], *(found[name] for name in comparison.rivals)]
    return [timeless(row) for row in rows]


def timeless(row):
    if isinstance(row, list):
        return [timeless(one) for one in row]
    if not isinstance(row, dict):
        return row
    of_clocks = ("ms", "seconds", "limit_seconds", "equal_seconds", "guide_training_seconds", "peak_memory_bytes")
    return {key: timeless(one) for key, one in row.items() if key not in of_clocks and not key.startswith("ms_")}


def assert_close(value, other, where=""):
    if isinstance(value, dict):
        assert value.keys() == other.keys(), where
        for key in value:
            assert_close(value[key], other[key], f"{where}.{key}")
    elif isinstance(value, list):
        assert len(value) == len(other), where
        for one, another in zip(value, other, strict=True):
            assert_close(one, another, where)
    elif isinstance(value, float):
        assert value == pytest.approx(other, rel=EXACT, abs=EXACT), where
    else:
        assert value == other, where


def posteriors_of(batches, names, learned, out):
    """A comparison with points, chains, and a guide that learns from `learned`, also by what compares sequences."""
    with double():
        model = WithPrior()
        guides = {"mf": MeanField(2, 2), "mala": MALA(2, 2, chains=2), "point": Delta(2, 2), "linear": Linear(model)}
        objectives = {"elbo": MonteCarloELBO(), "map": MAP(), "mmd": MMD()}
        found = compare_posteriors(
            model,
            batches,
            guides={name: guide for name, guide in guides.items() if name in names},
            objectives={name: objective for name, objective in objectives.items() if name in names},
            guide_training=GuideTraining(lambda step: learned, steps=3, lr=0.05),
            fast_steps=(8,),
            particles=3,
            rhat="rhat" in names,
            out=out / f"{[one.size for one in batches]} by {current().size}",
        )
    return figures(found), [one.get("processes") for one in found.made_on], found.pairs[0].ms_per_sequence


def each_way(ways, learned, out):
    return [posteriors_of(batches, names, learned, out) for batches, names in ways]


@pytest.mark.parametrize("rhat", [False, pytest.param(True, marks=pytest.mark.long)])
def test_posteriors_are_those_of_one_process(rhat, tmp_path):
    """In whole batches, in such as are cut, and of fewer sequences than processes."""
    more = ["rhat"] if rhat and pytest.importorskip("arviz_stats") else []
    with double():
        batch, learned = WithPrior().data(5), WithPrior().data(3)
    few = ["mf", "elbo"]
    every = [*few, "mala", "point", "linear", "map", "mmd", *more]
    ways = [(pieces(batch, 2, 2, 1), every), ([batch], few), (pieces(batch, 1, 4)[:1], few)]
    expected = each_way(ways, learned, tmp_path)
    leader, other = on_ranks(2, each_way, ways, learned, tmp_path)
    assert leader == other, "all have the whole result, clocks included"
    for (rows, processes, _), (those_of_one, alone, _) in zip(leader, expected, strict=True):
        assert_close(rows, those_of_one)
        assert (processes, alone) == ([2], [None])
    assert {row["guide"] for row in leader[0][0] if row["nats_by_sequence"]} == {"mf", "mala", "linear"}
    assert any(row["convergence"] for row in leader[0][0]) == rhat
    for row, whole in zip(leader[0][0], expected[0][0], strict=True):
        if row["guide"] != "linear":  # its weights are of sums in another order
            assert row["nats_by_sequence"] == whole["nats_by_sequence"]
    kept = json.loads((tmp_path / "[2, 2, 1] by 2" / "compare.json").read_text())
    assert [timeless(row) for row in kept["pairs"]] == leader[0][0]


class Failing(MeanField):
    """A family that in the second process alone finds its numbers wanting."""

    def init(self, batch):
        if current().rank == 1:
            raise torch.linalg.LinAlgError("not positive definite")
        return super().init(batch)


class Signalled(MeanField):
    """One in whose fit the second process is sent a signal."""

    def init(self, batch):
        if current().rank == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return super().init(batch)


def ends(batches, out):
    """A pair that fails in one process, one that does not, and one that is stopped."""
    given = {"objectives": {"elbo": MonteCarloELBO()}, "particles": 2, "out": out}
    guides = {"failing": Failing(2, 2), "mine": MeanField(2, 2)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "POLL", 0.2)  # who is told the result last has it all the same
        found = compare_posteriors(LinearGaussian(), batches, guides=guides, **given)
    guides |= {"signalled": Signalled(2, 2), "last": MeanField(2, 2)}
    with pytest.raises(Stopped):
        compare_posteriors(LinearGaussian(), batches, guides=guides, **given)
    return [(pair.guide, pair.note, pair.elbo is None) for pair in found.pairs]


def test_an_error_or_a_signal_in_one_is_one_in_all(tmp_path):
    batches = LinearGaussian().data(4).apart()
    for found in on_ranks(2, ends, batches, tmp_path / "c"):
        assert found == [("failing", "failed: not positive definite", True), ("mine", "", False)]
    kept = json.loads((tmp_path / "c" / "compare.json").read_text())
    assert [row["guide"] for row in kept["pairs"]] == ["failing", "mine"]


TRAINED = {"guides": ["mean-field"], "objectives": ["elbo"], "rivals": ["twin"]}


def trained(data, out, settings):
    with double():
        config = configure("slow.lr=0.01", "slow.batch_size=4", *settings)
        found = compare_training(config, data=data, out=out, sequences=5, particles=3, batch_size=2, **TRAINED)
    return figures(found)


@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp", marks=pytest.mark.long)])
def test_trainings_are_those_of_one_process(kind, tokens, tmp_path):
    """Begun by two, stopped within the second training, and ended by one."""
    settings = [f"distributed.kind={kind}"]
    expected = trained(tokens, tmp_path / "one", settings)
    on_ranks(2, stopped, tokens, tmp_path / "two", settings)
    leader, other = on_ranks(2, trained, tokens, tmp_path / "two", settings)
    assert leader == other
    assert_close(leader, expected)
    for name in ("mean-field--elbo", "twin"):
        ours, theirs = (load_file(tmp_path / one / "runs" / name / "model.safetensors") for one in ("two", "one"))
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-7, atol=1e-9)


def stopped(data, out, settings):
    """Trains until the second process is sent a signal, in the second step of the second training."""
    learn, steps = Trainer._step, []

    def learn_and_signal(self):
        learn(self)
        steps.append(self.counters.step)
        if current().rank == 1 and steps.count(2) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", learn_and_signal)
        with pytest.raises(Stopped, match="at step 2 of 4; everything is saved"):
            trained(data, out, settings)


def test_what_several_cannot_share_is_refused_before_any_work(tokens, tmp_path):
    on_ranks(2, refusals, tokens, tmp_path)
    assert list(tmp_path.iterdir()) == []


def refusals(data, folder):
    how = {"data": data, "out": folder / "c", "guides": ["mean-field"], "objectives": ["elbo", "mmd"]}
    with pytest.raises(UserError, match="mmd compares the sequences of a batch"):
        compare_training(configure(), **how)
    with pytest.raises(UserError, match=r"ltm--slow\.batch_size=1--seed=0: 2 processes for the 1 sequences"):
        run_study(grid_of(data, "slow.batch_size=4,1"), data=data, out=folder / "s", scoring=SCORING)


SCORING = Scoring(sequences=4, particles=2, batch_size=2, predictive=True, reference_protocol=True)


def grid_of(tokens, *axes):
    config = as_the_data_are(configure("slow.steps=3", "slow.lr=0.01", "slow.save_every=1"), TokenDataset(tokens))
    return Grid(config, tuple(map(Axis.parse, axes)), rivals=(TWIN,), equal=("tokens",))


def studied(tokens, out, axis="fast.steps=1,2"):
    """The cells of a study, and what it notes of each, in double precision; and who began them."""
    with double():
        study = run_study(grid_of(tokens, axis), data=tokens, out=out, scoring=SCORING)
    kept = json.loads((out / "study.json").read_text())["cells"]
    apart = ("seconds", "machine", "worker")
    rows = [{key: value for key, value in row.items() if key not in apart} for row in kept]
    return rows, [(row.name, row.worker, row.sequence_nats) for row in study.rows], os.getpid()


def test_a_study_is_that_of_one_process(tokens, tmp_path):
    expected, by_sequence, _ = studied(tokens, tmp_path / "one")
    (rows, cells, first), (others, same, _) = on_ranks(2, studied, tokens, tmp_path / "two")
    assert (rows, cells) == (others, same)
    assert_close(rows, expected)
    assert {worker.rpartition(":")[2] for _, worker, _ in cells} == {str(first)}
    assert [nats for *_, nats in cells] == [nats for *_, nats in by_sequence]
    evaluation = json.loads((tmp_path / "two" / "runs" / cells[0][0] / "evaluation.json").read_text())
    assert evaluation["bound"]["sequences"] == 4


def runs_away(tokens, out):
    """A study of a cell of which one process alone finds, in validation, that it has run away."""
    validate = ltm.Run.evaluate

    def fails(self, *arguments, **how):
        if current().rank == 1 and self.config.fast.steps == 1:
            raise ltm.errors.RanAway("the fast loop has run away")
        return validate(self, *arguments, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ltm.Run, "evaluate", fails)
        return studied(tokens, out)[0]


def test_a_cell_that_runs_away_in_one_process_has_a_note_and_the_others_go_on(tokens, tmp_path):
    rows, others = on_ranks(2, runs_away, tokens, tmp_path / "s")
    assert rows == others
    notes = {row["fast_steps"]: (row["note"], row["bound"] is None) for row in rows if row["family"] == "ltm"}
    assert notes == {1: ("failed: the fast loop has run away", True), 2: ("", False)}


def runs_short(tokens, out):
    """A study of a cell for which the second process finds no memory; how it ended here."""
    train = scaling.train

    def train_small(config, **how):
        if current().rank == 1 and config.fast.steps == 1:
            raise MemoryError
        return train(config, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "train", train_small)
        with pytest.raises(UserError) as end:
            studied(tokens, out)
    return type(end.value), str(end.value)


@pytest.mark.long
def test_a_cell_without_memory_in_one_process_ends_all_and_the_next_start_goes_on(tokens, tmp_path):
    (first, _), (second, said) = on_ranks(2, runs_short, tokens, tmp_path / "s")
    assert (first, second) == (distributed.Lost, UserError)
    assert "fast.steps=1--seed=0: out of memory, and the cell notes it; the same command with --resume" in said
    rows, _, _ = studied(tokens, tmp_path / "s")
    notes = {row["fast_steps"]: row["note"] for row in rows if row["family"] == "ltm"}
    assert notes == {1: "failed: out of memory", 2: ""}
