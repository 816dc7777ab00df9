"""Python has what the command line has: text to score, the twin's check, files of thoughts, a run's description."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from pyro_ltm.data import Document, Reading
from pyro_ltm.errors import UserError
from pyro_ltm.runs import Run
from pyro_ltm.runs.data import data_to_score
from pyro_ltm.runs.description import describe
from pyro_ltm.runs.documents import cut_documents, infer_documents
from pyro_ltm.runs.evaluation_file import evaluation_record, read_evaluation, write_evaluation
from pyro_ltm.runs.protocols import Scoring, evaluate_protocols
from pyro_ltm.runs.thoughts_file import read_thoughts
from pyro_ltm.runs.twin import check_twin

FOLDER = Path(__file__).parent.parent / "fixtures/release-0.1.0/run"
WORDS = "kalo miter sonka lo terka. "


@pytest.fixture(scope="module")
def run():
    """A run that nothing here writes to."""
    return Run.load(FOLDER)


def test_text_is_prepared_as_the_runs_data_were(run, tmp_path):
    text = tmp_path / "other.txt"
    text.write_text(40 * WORDS)
    with data_to_score(run, str(text)) as data:
        folder = data.folder.path
        assert data.sequence_length == run.sequence_length == 32
        assert data.meta["tokenizer"] == run.tokenizer.fingerprint
        assert data.meta["packing"] == "contiguous"
        assert int(data.lengths.sum()) >= len(run.tokenizer.encode(40 * WORDS))
        assert run.evaluate(data, sequences=2, particles=1).tokens == 64
    assert not folder.exists()


def test_without_a_source_it_is_the_runs_own_validation_text(run):
    with data_to_score(run) as data:
        assert (data.split, data.folder.path.name) == ("validation", "tokens")
    with data_to_score(run, str(FOLDER.parent / "tokens")) as data:
        assert data.split == "validation"
    with (
        pytest.raises(UserError, match="prepared already"),
        data_to_score(run, str(FOLDER.parent / "tokens"), reading=Reading(skip_empty=True)),
    ):
        pass


def test_a_run_is_not_its_own_twin(run):
    for refused in (lambda: check_twin(run, run), lambda: evaluate_protocols(run, run.dataset(), twin=run)):
        with pytest.raises(UserError, match=r"not the twin of .*model\.thoughts = 0"):
            refused()


def test_an_evaluation_is_written_and_read_again(run, tmp_path):
    copy = Run(tmp_path, run.config, *[getattr(run, name) for name in list(vars(run))[2:]])
    found = evaluate_protocols(run, run.dataset(), Scoring(sequences=2), particles=1)
    record = evaluation_record(copy, found, data="tokens (validation)")
    write_evaluation(copy, record)
    assert read_evaluation(copy)["bound"]["nats_per_token"] == found.bound.nats_per_token
    assert record["fingerprint"] == run.fingerprint


def test_a_document_is_cut_to_what_the_model_reads_and_its_thoughts_are_kept(run, tmp_path):
    texts = [20 * WORDS, WORDS]
    pieces = list(cut_documents(run, [Document(text, f"line {i}") for i, text in enumerate(texts)]))
    tokens = [run.tokenizer.encode(text) for text in texts]
    assert [piece.number for piece in pieces] == [0] * math.ceil(len(tokens[0]) / 31) + [1]
    assert [token for piece in pieces for token in piece.tokens[1:]] == [*tokens[0], *tokens[1]]
    done = []
    found = infer_documents(run, pieces, batch_size=2, progress=done.append)
    assert done[-1] == len(pieces)
    assert found.tokens == sum(map(len, tokens))
    assert [document["origin"] for document in found.documents] == ["line 0", "line 1"]
    one = infer_documents(run, pieces, batch_size=1)
    torch.testing.assert_close(one.tensors["thoughts"], found.tensors["thoughts"])
    for suffix in ("safetensors", "npz"):
        found.save(tmp_path / f"z.{suffix}", {"run": "here"})
        assert torch.equal(read_thoughts(tmp_path / f"z.{suffix}"), found.tensors["thoughts"])
    with pytest.raises(UserError, match="no text"):
        infer_documents(run, [])


def test_a_description_counts_every_parameter_once(run):
    found = describe(run)
    modules = (run.model, run.loop.guide)
    assert found["parameters"]["total"] == sum(p.numel() for module in modules for p in module.parameters())
    assert found["files"]["model.safetensors"] == (FOLDER / "model.safetensors").stat().st_size
    assert (found["step"], found["steps"], found["origin"]) == (6, 6, None)


def test_what_a_run_its_posteriors_and_its_figures_show_of_themselves_is_short(run):
    _, posterior = run.infer([WORDS, WORDS])
    bound, prefix = run.evaluate(sequences=2, particles=2), run.evaluate_prefix(sequences=2)
    things = {"run": run, "posterior": posterior, "bound": bound, "prefix": prefix}
    shown = {name: repr(one).splitlines() for name, one in things.items()}
    assert all(1 <= len(lines) <= 10 and max(map(len, lines)) <= 120 for lines in shown.values()), shown
    for name, says in (
        ("run", r"step 6 of 6.* guide +mean-field by analytic-elbo"),
        ("posterior", r"2 sequences: MeanField, 3 fast steps.* thoughts +\[2, 4, 16\]"),
        ("bound", rf"2 sequences, 64 tokens: {bound.nats_per_token:.4f} ± .* rate {bound.kl_nats_per_sequence:.4f} ±"),
        ("prefix", rf"Prefix of 2 sequences, 64 tokens: {prefix.nats_per_token:.4f} ±"),
    ):
        assert re.search(says, " ".join(shown[name]).replace(str(run.folder), "")), shown[name]
