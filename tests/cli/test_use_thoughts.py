"""Thoughts as things to use: embed, neighbours, interpolate, arithmetic, swap, steer."""

from __future__ import annotations

import json
import shlex
import threading
from types import SimpleNamespace

import pytest
import torch
from pyro_ltm_cli.thought_options import say_if_nothing

from pyro_ltm.locks import locked
from pyro_ltm.runs import Run
from pyro_ltm.runs.embeddings_file import read_embeddings
from pyro_ltm.runs.folder import write_tensors
from pyro_ltm.runs.partial_fits import PartialFits
from pyro_ltm.runs.provenance import weights_meta

SHORT = ("--max-new-tokens", 3)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Twelve documents of two kinds, a long one, and one without text."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [
        {"id": f"d{i}", "text": f"{'kalo mi' if i % 2 else 'ter son'} {'ve du lo ka'[i % 5 :]}", "kind": "ab"[i % 2]}
        for i in range(12)
    ]
    rows[3]["text"] *= 9
    rows.append({"id": "none", "text": "", "kind": "a"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def embedded(ask, trained, texts):
    out = texts.with_name("rows.parquet")
    ask("embed", trained, "--data", texts, "--columns", "kind", "--out", out)
    return out


def test_embed_writes_a_row_for_each_document(invoke, ask, trained, texts, embedded, tmp_path):
    rows, header = read_embeddings(embedded)
    found = ask("embed", trained, "--data", texts, "--out", tmp_path / "a.npz", "--batch-size", 5, "--windows")
    assert (found["documents"], found["without_text"], found["columns"]) == (12, 1, ["id"])
    assert found["shape"] == [13, 32]
    assert rows.table == {"id": [f"d{i}" for i in range(12)], "kind": ["a", "b"] * 6}
    run = Run.load(trained)
    text = json.loads(texts.read_text().splitlines()[0])["text"]
    torch.testing.assert_close(rows.features[:1], run.embed([text]))
    assert header.fingerprint == run.fingerprint
    assert header.fit == {"fast_steps": 2, "settings": [], "seed": 0}
    windows, _ = read_embeddings(tmp_path / "a.npz")
    torch.testing.assert_close(windows.pooled().features, rows.features)
    people = invoke("embed", trained, "--data", texts, "--out", tmp_path / "b.safetensors", "--layer", "0", "--draw")
    assert people.exit_code == 0, people.stderr
    assert "12 documents, 12 rows of 32 features" in people.stdout
    assert "Documents without text, left out: 1." in people.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.safetensors"]


def test_a_text_to_try_next_is_on_one_line(invoke, trained, tmp_path):
    """And is no file, as `@name` would be."""
    (tmp_path / "lines.txt").write_text("@kalo\nmi\n\nson\n")
    done = invoke("embed", trained, "--data", tmp_path / "lines.txt", "--out", tmp_path / "a.npz")
    (line,) = done.stdout.partition("Next:\n")[2].splitlines()
    assert shlex.split(line)[-2:] == ["--", "kalo mi son"]


def test_an_interrupted_embed_goes_on_where_it_was(invoke, ask, trained, texts, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(PartialFits.__init__.__kwdefaults__, "seconds", -1.0)
    with monkeypatch.context() as patched:
        patched.setattr("pyro_ltm.runs.embeddings_file.write_embeddings", interrupted)
        assert invoke("embed", trained, "--data", texts, "--out", tmp_path / "a.npz").exit_code == 130
    assert [path.name for path in tmp_path.iterdir()] == [".a.npz.fits"]
    again = invoke("embed", trained, "--data", texts, "--out", tmp_path / "a.npz")
    assert "Went on from 13 sequences that an earlier process had fitted." in again.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    ask("embed", trained, "--data", texts, "--out", tmp_path / "b.npz")
    assert torch.equal(*(read_embeddings(tmp_path / name)[0].features for name in ("a.npz", "b.npz")))


def test_a_file_that_is_being_written_is_refused(refuse, trained, texts, tmp_path):
    held, done = threading.Event(), threading.Event()

    def hold():
        with locked(tmp_path / "a.npz"):
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    try:
        refuse("embed", trained, "--data", texts, "--out", tmp_path / "a.npz", says=("is being written by process",))
    finally:
        done.set()
        thread.join()


def test_neighbours_of_texts_and_of_what_embed_wrote(invoke, ask, trained, texts, embedded, tmp_path):
    text = json.loads(texts.read_text().splitlines()[4])["text"]
    (tmp_path / "text.txt").write_text(text + "\n")
    fresh = ask("neighbours", trained, text, "--among", texts, "--columns", "kind", "--count", 4)
    read = ask("neighbours", trained, f"@{tmp_path / 'text.txt'}", "--among", embedded, "--count", 4)
    assert fresh["neighbours"][0]["id"] == "d4"
    assert fresh["neighbours"][0]["distance"] == pytest.approx(0, abs=1e-6)
    assert [one["id"] for one in fresh["neighbours"]] == [one["id"] for one in read["neighbours"]]
    assert (fresh["text"], fresh["metric"], len(fresh["neighbours"])) == (text, "cosine", 4)
    for metric in ("euclid", "wasserstein", "kl"):
        assert ask("neighbours", trained, text, "--among", texts, "--metric", metric)["neighbours"][0]["id"] == "d4"
    people = invoke("neighbours", trained, text, "--among", embedded, "--plot", tmp_path / "near.svg")
    assert people.exit_code == 0, people.stderr
    for expected in ("Nearest of 12 documents", "cosine", "d4", "kind", "Picture written to"):
        assert expected in people.stdout
    assert (tmp_path / "near.svg").read_text().startswith("<?xml")


def test_draws_are_not_taken_for_means(invoke, refuse, trained, texts, tmp_path):
    drawn = tmp_path / "drawn.npz"
    assert invoke("embed", trained, "--data", texts, "--out", drawn, "--draw").exit_code == 0
    refuse("neighbours", trained, "kalo", "--among", drawn, says=("drawn.npz: holds draws", "without --draw"))


def test_interpolate_swap_and_arithmetic(invoke, ask, trained, embedded, tmp_path):
    a, b = "kalo mi", "ter son ve"
    found = ask("interpolate", trained, a, b, "--steps", 3, *SHORT, "--num", 2, "--temperature", 1)
    assert [end["text"] for end in found["ends"]] == [a, b]
    assert [point["name"] for point in found["points"]] == ["0.00", "0.50", "1.00"]
    assert all(len(point["texts"]) == 2 and set(point["nats_per_token"]) == {"A", "B"} for point in found["points"])
    swapped = ask("swap", trained, a, b, "--layers", "0", *SHORT)["points"]
    assert swapped[1]["nats_per_token"] == swapped[3]["nats_per_token"], "it has one layer"
    summed = ask("arithmetic", trained, f"'{a}' - '{a}' + '{b}'", "--among", embedded, "--count", 2, *SHORT)
    assert summed["points"][0]["nats_per_token"] == pytest.approx(swapped[3]["nats_per_token"], rel=1e-5)
    assert [end["name"] for end in summed["ends"]] == ["A", "B"]
    assert len(summed["neighbours"]) == 2
    for command, picture in (
        (("interpolate", trained, a, b, "--steps", 2), "way.png"),
        (("swap", trained, a, b, "--layers", 0), "swap.png"),
        (("arithmetic", trained, f"{a} - {b}"), "sum.png"),
    ):
        people = invoke(*command, *SHORT, "--plot", tmp_path / picture)
        assert people.exit_code == 0, people.stderr
        assert "bound, nats a token" in people.stdout
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_where_nothing_is_written_it_is_said_what_to_do(capsys):
    said = "Begin it with --prompt WORDS, or draw it: --temperature 1"
    for text, told in ((" ", True), ("kalo", False)):
        point = SimpleNamespace(written=[SimpleNamespace(text=text)])
        say_if_nothing([point])
        assert (said in capsys.readouterr().err) == told


def test_steer(invoke, ask, trained, texts, embedded, tmp_path):
    options = ("--label-column", "kind", "--towards", "b", *SHORT)
    found = ask("steer", trained, "--labels", embedded, *options, "--text", "ter son", "--strength", "0,2,4")
    assert [point["strength"] for point in found["points"]] == [0, 2, 4]
    chances = [point["probability"] for point in found["points"]]
    assert chances == sorted(chances)
    assert (found["towards"], found["probe"]["label"], found["probe"]["texts"]) == ("b", "kind", 12)
    people = invoke("steer", trained, "--labels", embedded, *options, "--plot", tmp_path / "b.png")
    assert people.exit_code == 0, people.stderr
    assert "A probe of kind is right about" in people.stdout
    assert "p(b)" in people.stdout
    assert (tmp_path / "b.png").is_file()


def test_windows_of_one_document_are_one_text_to_a_probe(ask, trained, texts, embedded, tmp_path):
    """Else a probe would be judged on documents that it learned from."""
    ask("embed", trained, "--data", texts, "--columns", "kind", "--out", tmp_path / "w.npz", "--windows")
    options = ("--label-column", "kind", "--towards", "b", *SHORT)
    windows, documents = (ask("steer", trained, "--labels", file, *options) for file in (tmp_path / "w.npz", embedded))
    assert windows["probe"] == documents["probe"]


def test_what_is_refused_before_any_work(refuse, trained, twin, texts, embedded, tmp_path):
    out = ("--out", tmp_path / "a.parquet")
    ab = ("kalo", "ter")
    for command, says in (
        (("embed", trained, "--data", texts, "--out", tmp_path / "a.csv"), "a name that ends in .parquet, .npz or"),
        (("embed", trained, "--data", texts, "--out", texts), "texts.jsonl: expected a name"),
        (("embed", trained, "--data", texts, "--columns", "kin", *out), "no column 'kin' (did you mean 'kind'?)"),
        (("embed", trained, "--data", texts, "--columns", "tokens", *out), "the file has a column of this name"),
        (("embed", trained, "--data", embedded, *out), "rows.parquet: holds embeddings; expected texts"),
        (("embed", trained, "--data", texts, "--layers", "1", *out), "this model has only layer 0"),
        (("embed", twin, "--data", texts, *out), "this model has no thoughts"),
        (("neighbours", trained, "kalo", "--among", texts, "--count", 13), "there are only 12 documents"),
        (("neighbours", trained, "kalo", "--among", embedded, "--seed", 1), "give the same options"),
        (("neighbours", trained, "kalo", "--among", embedded, "--columns", "x"), "no column 'x'"),
        (("neighbours", trained, "kalo", "--among", embedded, "--metric", "kl"), "choose cosine or euclid"),
        (("neighbours", trained, "", "--among", embedded), "text 0: is empty"),
        (("neighbours", twin, "kalo", "--among", embedded), "this model has no thoughts"),
        (("interpolate", trained, *ab, "--plot", tmp_path / "a.gif"), "a name that ends in .png or .svg"),
        (("interpolate", twin, *ab), "this model has no thoughts"),
        (("interpolate", trained, "kalo", f"@{tmp_path / 'no.txt'}"), "no.txt: no such file"),
        (("arithmetic", trained, "'a"), "a quote that is left open"),
        (("arithmetic", trained, "a - b", "--count", 3), "are of --among, which is not given"),
        (("swap", trained, *ab, "--layers", "0,x"), "expected whole numbers with commas between them"),
        (("swap", trained, *ab, "--layers", "0,1"), "layers = 0,1: this model has only layer 0"),
        (("steer", trained, "--labels", embedded, "--label-column", "kind", "--towards", "c"), "choose from a, b"),
        (("steer", trained, "--labels", texts, "--label-column", "kid", "--towards", "a"), "did you mean 'kind'?"),
    ):
        refuse(*command, says=(says,), quiet=False)


def test_embeddings_of_another_run_are_refused(refuse, own_run, embedded):
    run = Run.load(own_run)
    weights = {name: 2 * value for name, value in run.trainable.state_dict().items()}
    write_tensors(own_run / "model.safetensors", weights, weights_meta(own_run, run.config, run.step))
    refuse("neighbours", own_run, "kalo", "--among", embedded, says=("of another run than", "embed the texts again"))
