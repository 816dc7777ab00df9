"""Documents as rows of features, and the files that keep them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from safetensors import safe_open

from pyro_ltm.data import Document
from pyro_ltm.errors import UserError
from pyro_ltm.runs import Run
from pyro_ltm.runs.documents import cut_documents, infer_documents
from pyro_ltm.runs.embedding import embed_pieces, embed_texts
from pyro_ltm.runs.embeddings_file import WRITERS, check_columns, check_room, read_embeddings, write_embeddings
from pyro_ltm.runs.partial_fits import PartialFits, key_of

FOLDER = Path(__file__).parent.parent / "fixtures/release-0.1.0/run"
WORDS = "kalo miter sonka lo terka. "
SHORT = "mi ka lo. "
DOCUMENTS = [
    Document(9 * WORDS, "row 1", id=7, columns={"kind": "long", "stars": 4, "kept": True, "none": None}),
    Document("", "row 2", id="b", columns={"kind": "empty", "stars": 0, "kept": True, "none": None}),
    Document(SHORT, "row 3", id="c", columns={"kind": "short", "stars": 1.5, "kept": False, "none": "x"}),
]


@pytest.fixture(scope="module")
def run():
    """A run of two layers that nothing here writes to."""
    return Run.load(FOLDER)


@pytest.fixture(scope="module")
def windows(run):
    return embed_pieces(run, list(cut_documents(run, DOCUMENTS)), windows=True)


def test_a_row_for_each_document_is_the_mean_of_its_windows(run, windows):
    rows = windows.pooled()
    assert windows.document.tolist() == [0, 0, 0, 2]
    assert windows.window.tolist() == [0, 1, 2, 0]
    assert rows.document.tolist() == [0, 2]
    weights = windows.tokens[:3] / windows.tokens[:3].sum()
    assert weights[2] < weights[0], "the last window is shorter, and counts for less"
    torch.testing.assert_close(rows.features[0], (weights[:, None] * windows.features[:3]).sum(0))
    assert torch.equal(rows.features[1], windows.features[3])
    assert rows.tokens.tolist() == [len(run.tokenizer.encode(9 * WORDS)), len(run.tokenizer.encode(SHORT))]
    assert rows.bound_nats[0] == windows.bound_nats[:3].sum()
    assert rows.table == {
        "id": [7, "c"],
        "kind": ["long", "short"],
        "stars": [4, 1.5],
        "kept": [True, False],
        "none": [None, "x"],
    }
    assert rows.about(1) == {"document": 2, "text": SHORT, **{name: values[1] for name, values in rows.table.items()}}


def test_a_text_has_the_same_row_wherever_it_stands(run):
    several, alone = run.embed([WORDS, 9 * WORDS, SHORT, WORDS], batch_size=2), run.embed([WORDS])
    assert several.shape == (4, 4 * 16)
    torch.testing.assert_close(several[0], several[3])
    torch.testing.assert_close(several[:1], alone)
    first = next(iter(infer_documents(run, cut_documents(run, DOCUMENTS[2:])).tensors["thoughts"]))
    torch.testing.assert_close(run.embed([SHORT])[0], first.flatten())
    assert not torch.equal(run.embed([WORDS], seed=1), alone)
    assert not torch.equal(run.embed([WORDS], fast_steps=1), alone)


def test_layers_windows_and_draws(run):
    texts = [WORDS, 9 * WORDS]
    whole = run.embed(texts)
    assert torch.equal(run.embed(texts, layers=[1]), whole[:, 32:])
    assert torch.equal(run.embed(texts, layers=[1, 0]), torch.cat([whole[:, 32:], whole[:, :32]], 1))
    assert len(run.embed(texts, windows=True)) == 4
    drawn = run.embed([WORDS] * 40, draw=True, fast_steps=0)  # from the prior
    assert len(drawn.unique(dim=0)) == 40, "draws are independent, though fits are on the same noise"
    assert abs(float(drawn.std()) - 1) < 4 / (2 * drawn.numel()) ** 0.5 + 0.02


@pytest.mark.parametrize("layers", [[], [2], [-1], [0, 0]])
def test_layers_that_are_not_there(run, layers):
    with pytest.raises(UserError, match="this model has layers 0 to 1; name each at most once"):
        run.embed([WORDS], layers=layers)


def test_texts_that_are_none(run):
    for texts, says in (
        ([WORDS, ""], "text 1: is empty"),
        ([WORDS, None], "text 1: is NoneType; expected a string"),
        (WORDS, "give a list of texts"),
        ([], "no text"),
    ):
        with pytest.raises(UserError, match=says):
            run.embed(texts)


def test_posteriors_are_kept_where_they_are_asked_for(run):
    """In families of full rank they take many times the room of their means."""
    assert embed_texts(run, [WORDS], windows=True, fast_steps=0).state is None
    kept = embed_texts(run, [WORDS, SHORT], windows=True, posteriors=True, fast_steps=0)
    assert kept.state is not None
    assert torch.equal(kept.state["loc"], kept.thoughts)


def test_a_point_has_thoughts_and_no_bound(run):
    from pyro_ltm.guides import Delta
    from pyro_ltm.inference import FastLoop
    from pyro_ltm.objectives import MAP

    guide = Delta(run.config.model.thoughts, run.config.model.dim)
    point = dataclasses.replace(run, loop=FastLoop(guide, MAP(), steps=2))
    rows = embed_texts(point, [WORDS])
    assert bool(rows.features.abs().sum() > 0)
    assert bool(rows.bound_nats.isnan().all())


@pytest.mark.parametrize("suffix", WRITERS)
def test_files_hold_all_of_it(run, windows, tmp_path, suffix):
    rows, path = windows.pooled(), tmp_path / f"rows{suffix}"
    write_embeddings(path, rows, {"fingerprint": run.fingerprint, "fit": {"seed": 0}})
    found, header = read_embeddings(path)
    assert torch.equal(found.thoughts, rows.thoughts)
    for name in ("document", "window", "tokens", "bound_nats"):
        assert torch.equal(getattr(found, name), getattr(rows, name))
    assert (found.texts, found.layers) == (rows.texts, (0, 1))
    assert (header.fingerprint, header.fit) == (run.fingerprint, {"seed": 0})
    exact = found.table if suffix == ".safetensors" else found.table | {"id": [7, "c"]}
    if suffix == ".npz":  # it has no empty words
        exact |= {"none": [None, "x"]}
    assert exact == rows.table
    assert [path.name for path in tmp_path.iterdir()] == [path.name]


def test_files_are_read_without_this_library(run, windows, tmp_path):
    rows = windows.pooled()
    for suffix in WRITERS:
        write_embeddings(tmp_path / f"rows{suffix}", rows, {"fingerprint": "", "fit": {}})
    with np.load(tmp_path / "rows.npz") as arrays:
        assert np.array_equal(arrays["embeddings"], rows.features.numpy())
        assert arrays["stars"].tolist() == [4, 1.5]
        assert arrays["kept"].dtype == bool
    table = pyarrow.parquet.read_table(tmp_path / "rows.parquet")
    assert table.column_names[:2] == ["id", "kind"]
    assert np.array_equal(np.stack(table["embedding"].to_pylist()).astype(np.float32), rows.features.numpy())
    with safe_open(tmp_path / "rows.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("embeddings"), rows.features)


def test_what_a_file_cannot_hold_is_refused_before_the_fits(run, windows, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"rows.csv: expected a name that ends in .parquet, .npz or .safetensors"):
        write_embeddings(tmp_path / "rows.csv", windows, {})
    with pytest.raises(UserError, match="--columns tokens: the file has a column of this name anyway"):
        check_columns(["kind", "tokens"])
    with pytest.raises(UserError, match="--columns kind: is there twice"):
        check_columns(["kind", "kind"])
    pieces = list(cut_documents(run, DOCUMENTS))
    for suffix, limit in ((".npz", "LARGEST_WORDS"), (".safetensors", "LARGEST_HEADER")):
        check_room(tmp_path / f"rows{suffix}", pieces)
        monkeypatch.setattr(f"pyro_ltm.runs.embeddings_file.{limit}", 20)
        with pytest.raises(UserError, match="too many words to carry along"):
            check_room(tmp_path / f"rows{suffix}", pieces)


def test_fits_of_a_process_that_was_killed_are_not_done_again(run, tmp_path, monkeypatch):
    pieces, out = list(cut_documents(run, DOCUMENTS)), tmp_path / "rows.npz"
    key = key_of([piece.tokens for piece in pieces], "how")
    whole = embed_pieces(run, pieces, batch_size=1)

    def die(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_pieces(run, pieces, batch_size=1, kept=PartialFits(out, key, seconds=-1), progress=die)
    assert [path.name for path in tmp_path.iterdir()] == [".rows.npz.fits"]
    assert PartialFits(out, key_of([piece.tokens for piece in pieces], "otherwise")).earlier == 0
    again = PartialFits(out, key)
    assert again.earlier == 3
    fitted = []
    fit = type(run.loop).fit_to_score
    monkeypatch.setattr(type(run.loop), "fit_to_score", lambda *a, **k: fitted.append(1) or fit(*a, **k))
    rows = embed_pieces(run, pieces, batch_size=1, kept=again)
    assert len(fitted) == 1
    assert torch.equal(rows.features, whole.features)
    content = bytearray(again.path.read_bytes())
    content[-1] ^= 1
    again.path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"\.fits: damaged.*its sequences are fitted again"):
        assert PartialFits(out, key).earlier == 0
    PartialFits.clear(out)
    assert not list(tmp_path.iterdir())
