"""Each command does what it says, for people and for programs."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pyro_ltm.config import load_toml
from pyro_ltm.digests import without_digest
from pyro_ltm.errors import visible
from pyro_ltm.inference.build import check_config
from pyro_ltm.presets import PRESETS, preset
from pyro_ltm.runs import Run
from pyro_ltm.runs.thoughts_file import write_thoughts

ROOT = Path(__file__).parents[2]
BOUND_KEYS = {
    "nats_per_token",
    "nats_per_token_stderr",
    "blocks",
    "perplexity",
    "bits_per_byte",
    "kl_nats_per_sequence",
    "distortion_nats_per_token",
    "tokens",
    "sequences",
    "particles",
    "fast_steps",
    "active_fraction_by_layer",
}
RUN_FILES = {"config.toml", "model.safetensors", "tokenizer.json", "metrics.jsonl", "trainer.safetensors", "data.json"}


def test_prepare_reports_what_it_wrote(ask, text, tmp_path):
    out = tmp_path / "data"
    result = ask("prepare", text, "--out", out, "--vocab-size", 300, "--sequence-length", 16, "--packing", "document")
    meta = json.loads((out / "meta.json").read_text())
    assert result["splits"] == meta["splits"]
    assert (result["vocab_size"], result["sequence_length"], result["packing"]) == (300, 16, "document")
    assert set(result["splits"]) == {"train", "validation"}


def test_prepare_for_people(invoke, text, tmp_path):
    result = invoke("prepare", text, "--out", tmp_path / "data", "--vocab-size", 300)
    assert result.exit_code == 0
    assert "validation" in result.stdout
    assert f"Written to {tmp_path / 'data'}" in result.stdout
    assert "text to tokens" in result.stderr


def test_prepare_takes_columns_validation_sources_and_a_tokenizer(ask, trained, tmp_path):
    train, valid = tmp_path / "train.jsonl", tmp_path / "valid.csv"
    train.write_text(json.dumps({"body": "kalo mi ter"}) + "\n")
    valid.write_text("body\nson ve du\n")
    out, tokenizer = tmp_path / "data", trained / "tokenizer.json"
    options = ["--text-column", "body", "--validation", valid, "--tokenizer", tokenizer]
    result = ask("prepare", train, *options, "--out", out)
    assert result["validation_sources"] == [str(valid)]
    assert result["splits"]["validation"]["documents"] == 1
    assert ask("prepare", train, *options, "--out", out, "--overwrite", "--seed", 3)["vocab_size"] == 300


def test_train_writes_a_run_and_says_what_came_of_it(trained, invoke):
    assert {path.name for path in trained.iterdir()} >= RUN_FILES
    assert Run.load(trained).step == 4
    result = invoke("train", "--resume", "--out", trained)
    assert result.exit_code == 0
    for expected in ("unigram", "untrained", "upper bound", str(trained), "pyro-ltm evaluate", "pyro-ltm generate"):
        assert expected in result.stdout


def test_train_json_has_the_levels_to_beat(trained, ask):
    result = ask("train", "--resume", "--out", trained)
    assert result["step"] == 4
    assert result["tokens"] == 4 * 4 * 32
    assert result["validation"]["step"] == 4
    assert result["validation"]["nats_per_token"] < result["untrained_nats_per_token"]
    assert 0 < result["unigram_nats_per_token"] < math.log(300)
    assert "plots/training.png" in result["files"]


def test_train_shows_validations_and_steps_on_stderr(invoke, settings, text, tmp_path):
    changed = settings(**{"slow.eval_every": 2})
    result = invoke("train", "--data", text, "--out", tmp_path / "run", *changed, "--json", "--seed", 5)
    assert result.stderr.count("validation bound") == 3
    for expected in ("step 0/4", "step 2/4", "step 4/4", "tokens/s", "rate", "distortion"):
        assert expected in result.stderr
    assert json.loads(result.stdout)["step"] == 4


def test_settings_are_laid_over_one_another_in_order(invoke, settings, text, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("seed = 3\n[slow]\nlr = 0.01\nclip = 2.0\n[model]\nwindow = 9\n")
    out = tmp_path / "run"
    options = ["--config", file, *settings(**{"slow.clip": 0.5}), "--steps", "2", "--dtype", "bfloat16"]
    result = invoke("train", "--data", text, "--out", out, *options)
    assert result.exit_code == 0, result.stderr
    config = load_toml(out / "config.toml")
    assert (config.seed, config.slow.lr, config.model.window) == (3, 0.01, 9)  # from the file
    assert (config.slow.clip, config.model.dim) == (0.5, 16)  # from --set
    assert (config.slow.steps, config.dtype) == (2, "bfloat16")  # from options of their own
    assert config.slow.weight_decay == preset("nano").slow.weight_decay


def test_the_same_command_twice_gives_the_same_files(invoke, settings, text, trained, tmp_path):
    result = invoke("train", "--data", text, "--out", tmp_path / "run", *settings())
    assert result.exit_code == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_evaluate_with_its_twin(ask, trained, twin):
    result = ask("evaluate", trained, "--twin", twin, "--particles", 2, "--fast-steps", 3, "--sequences", 6)
    assert set(result["bound"]) >= BOUND_KEYS
    assert set(result["twin"]) >= BOUND_KEYS
    assert result["bound"]["sequences"] == result["twin"]["sequences"] == 6
    assert (result["bound"]["particles"], result["bound"]["fast_steps"]) == (2, 3)
    assert result["bound"]["tokens"] == result["twin"]["tokens"]
    assert result["twin"]["kl_nats_per_sequence"] == 0
    assert without_digest(json.loads((trained / "evaluation.json").read_text())) == result


def test_evaluate_for_people(invoke, trained, twin):
    result = invoke("evaluate", trained, "--twin", twin)
    assert result.exit_code == 0
    for expected in (
        "Upper bound on nats",
        "perplexity",
        "bits a byte",
        "rate (KL)",
        "active dimensions",
        "twin",
        "± is the",
    ):
        assert expected in result.stdout
    assert "ignores its thoughts" in result.stderr  # four steps teach nothing of thoughts


def test_evaluate_depends_on_the_seed_and_not_on_the_batch(ask, trained):
    options = ["evaluate", trained, "--sequences", 6, "--particles", 1]
    one, other, small = ask(*options), ask(*options, "--seed", 1), ask(*options, "--batch-size", 2)
    assert one["bound"]["nats_per_token"] != other["bound"]["nats_per_token"]
    assert one["bound"]["nats_per_token"] == pytest.approx(small["bound"]["nats_per_token"], rel=1e-6)


def test_evaluate_scores_all_of_a_source_with_the_runs_tokenizer(ask, own_run, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("kalo mi ter son\n" * 20)
    result = ask("evaluate", own_run, "--data", other)
    tokens = Run.load(own_run).tokenizer.encode(other.read_text())
    assert result["bound"]["tokens"] == len(tokens) + 1  # and the end of the text
    assert result["data"] == str(other)
    assert not (own_run / "evaluation.json").exists()  # not its own data


def test_evaluate_takes_the_validation_split_of_a_prepared_folder(ask, trained):
    named, own = ask("evaluate", trained, "--data", trained / "data"), ask("evaluate", trained)
    assert named["bound"] == own["bound"]


def test_evaluate_says_when_the_run_was_trained_on_fixed_noise(invoke, trained, settings, tmp_path):
    changed = settings(**{"fast.noise": "fixed", "slow.steps": 1})
    assert invoke("train", "--data", trained / "data", "--out", tmp_path / "run", *changed).exit_code == 0
    result = invoke("evaluate", tmp_path / "run", "--sequences", 2)
    assert result.exit_code == 0
    assert "fixed noise" in result.stderr


def test_infer_writes_thoughts_that_generate_reads(ask, trained, tmp_path):
    out = tmp_path / "thoughts.safetensors"
    result = ask("infer", trained, "--text", "kalo mi", "--out", out, "--fast-steps", 3)
    assert result["thoughts_shape"] == [1, 2, 16]
    with safe_open(out, framework="pt") as file:
        names = set(file.keys())
        meta = json.loads(file.metadata()["pyro-ltm thoughts 1"])
        assert torch.equal(file.get_tensor("thoughts"), file.get_tensor("state.loc"))
        assert file.get_tensor("tokens").tolist() == [result["tokens"]]
    assert names == {"thoughts", "bound_nats", "tokens", "document", "state.loc", "state.log_variance"}
    assert (meta["fast_steps"], meta["step"], meta["texts"]) == (3, 4, ["kalo mi"])
    written = ask("generate", trained, "--thoughts", out, "--num", 2, "--max-new-tokens", 3)
    assert written["thoughts"] == "file"
    assert len(written["texts"]) == 2


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_thoughts_of_another_run_are_named(invoke, trained, tmp_path, suffix):
    """A decoder makes something of any thoughts of its shape."""
    tensors, out = {"thoughts": torch.zeros(1, 2, 16)}, tmp_path / f"z.{suffix}"
    own = {"run": str(trained), "step": 4, "fingerprint": Run.load(trained).fingerprint}
    for meta in (own, {}, {"run": [7], "fingerprint": 3}):
        write_thoughts(out, tensors, meta)
        done = invoke("generate", trained, "--thoughts", out, "--max-new-tokens", 2)
        assert (done.exit_code, done.stderr) == (0, "")
    write_thoughts(out, tensors, own | {"run": "runs/other", "fingerprint": "of it"})
    done = invoke("generate", trained, "--thoughts", out, "--max-new-tokens", 2)
    assert done.exit_code == 0
    assert f"Warning: --thoughts {out}: inferred by runs/other at step 4, which is another decoder" in done.stderr


@pytest.mark.parametrize(("length", "window"), [(1100, 8), pytest.param(64, 32, marks=pytest.mark.long)])
def test_long_sequences_have_their_own_default(ask, invoke, tmp_path, length, window):
    """Without a preset: nano-long for sequences that are long, nano for the others; a preset that is named holds."""
    out, tokens = tmp_path / "run", tmp_path / "tokens"
    ask(
        "prepare",
        "worlds:length=2,documents=900",
        "--packing",
        "contiguous",
        "--sequence-length",
        length,
        "--out",
        tokens,
    )
    small = ["--set", "fast.steps=1", "--set", "slow.batch_size=1", "--set", "slow.eval_sequences=1", "--steps", 2]
    done = invoke("train", "--data", tokens, "--out", out, *small)
    assert done.exit_code == 0, done.stderr
    assert ("trained by the preset nano-long" in done.stderr) == (length == 1100)
    run = Run.load(out)
    assert (run.config.model.window, run.config.data.sequence_length) == (window, length)
    assert (ask("bench", "--data", tokens, "--rounds", 1, *small[:4])["preset"] == "nano-long") == (length == 1100)
    named = invoke("train", "--data", tokens, "--out", tmp_path / "named", "--preset", "nano", *small)
    assert (named.exit_code == 2) == (length == 1100), "nano reads 128 tokens"
    (tmp_path / "more.toml").write_text("seed = 0\n")
    again = invoke("train", "--resume", "--out", out, "--config", tmp_path / "more.toml", *small)
    assert again.exit_code == 0, again.stderr


def test_long_text_has_its_own_default_and_goes_on_with_it(invoke, tmp_path):
    """Also where its sequences, as prepared, are short."""
    text, out = tmp_path / "book.txt", tmp_path / "run"
    text.write_text("".join(f"{number} is a number.\n" for number in range(60_000)))
    short = {"data.sequence_length": 64, "model.max_length": 64, "data.vocab_size": 300, "slow.eval_sequences": 1}
    small = short | {"fast.steps": 2, "slow.batch_size": 1, "slow.save_every": 1, "slow.steps": 2}
    settings = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    done = invoke("train", "--data", text, "--out", out, *settings, "--resume")
    assert done.exit_code == 0, done.stderr
    assert "Such text is trained by the preset nano-long, for it is " in done.stderr
    assert Run.load(out).config.fast.subsample == 8
    (tmp_path / "more.toml").write_text("seed = 0\n")
    again = invoke("train", "--resume", "--out", out, "--config", tmp_path / "more.toml")
    assert again.exit_code == 0, again.stderr
    (tmp_path / "other.toml").write_text("seed = 1\n")
    refused = invoke("train", "--resume", "--out", out, "--config", tmp_path / "other.toml")
    assert refused.exit_code == 2
    assert "(seed = 0 became 1)" in refused.stderr


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_references_recipe_goes_with_every_preset(name):
    config = load_toml(ROOT / "examples" / "reference.toml", preset(name))
    check_config(config)
    assert (config.fast.subsample, config.slow.decoder_warmup, config.fast.noise) == (1, 0.0, "fixed")


def test_infer_cuts_a_long_document_and_keeps_documents_apart(ask, trained, tmp_path):
    run = Run.load(trained)
    long, short = "kalo miter son vedu " * 30, "ter son"
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in (long, "", short)))
    out = tmp_path / "thoughts.safetensors"
    result = ask("infer", trained, "--input", source, "--out", out, "--batch-size", 2)
    lengths = [len(run.tokenizer.encode(text)) for text in (long, short)]
    pieces = [31] * (lengths[0] // 31) + [lengths[0] % 31, lengths[1]]
    with safe_open(out, framework="pt") as file:
        assert file.get_tensor("tokens").tolist() == [length for length in pieces if length]
        thoughts = file.get_tensor("thoughts")
    assert result["tokens"] == sum(lengths)
    again = tmp_path / "again.safetensors"
    ask("infer", trained, "--input", source, "--out", again, "--batch-size", 50)
    with safe_open(again, framework="pt") as file:
        torch.testing.assert_close(file.get_tensor("thoughts"), thoughts)


@pytest.mark.parametrize(("prompt", "origin"), [("", "prior"), ("kalo", "posterior")])
def test_generate(prompt, origin, ask, trained):
    options = ["--num", 3, "--max-new-tokens", 5, "--temperature", 0.9, "--top-k", 20, "--top-p", 0.9, "--seed", 4]
    result = ask("generate", trained, "--prompt", prompt, *options)
    assert (result["prompt"], result["thoughts"], result["seed"]) == (prompt, origin, 4)
    assert len(result["texts"]) == 3
    assert all(text["tokens"] <= 5 for text in result["texts"])
    assert result.pop("cost")["tokens"] == sum(text["tokens"] + text["ended"] for text in result["texts"])
    again = ask("generate", trained, "--prompt", prompt, *options, "--operations")
    assert again.pop("cost")["operations_per_token"] > 0
    assert again == result
    fewer = ask("generate", trained, "--prompt", prompt, *options, "--num", 2)
    assert fewer["texts"] == result["texts"][:2], "a text is the same whatever is written beside it"


def test_generate_prints_plain_text_where_there_is_no_terminal(invoke, ask, trained):
    options = ["generate", trained, "--prompt", "[bold]kalo", "--num", 2, "--max-new-tokens", 4]
    texts = [visible(text["text"]) for text in ask(*options)["texts"]]
    assert invoke(*options).stdout == f"[bold]kalo{texts[0]}\n---\n[bold]kalo{texts[1]}\n"


def test_generate_from_the_twin_has_no_thoughts(ask, twin):
    assert ask("generate", twin, "--prompt", "kalo", "--max-new-tokens", 2)["thoughts"] == "none"


def test_reconstruct(ask, invoke, trained):
    result = ask("reconstruct", trained, "--text", "kalo mi")
    assert result["original"] == "kalo mi"
    assert 0 <= result["token_accuracy"] <= 1
    assert "kalo mi" in invoke("reconstruct", trained, "--text", "kalo mi").stdout


def test_info(ask, invoke, trained):
    result = ask("info", trained)
    run = Run.load(trained)
    counted = sum(parameter.numel() for parameter in run.model.parameters())
    assert result["parameters"]["total"] == counted == sum(result["parameters"].values()) / 2
    assert (result["step"], result["steps"], result["tokens"]) == (4, 4, 512)
    assert result["config"]["model"]["dim"] == 16
    assert result["data"]["folder"] == str(trained / "data")
    assert result["files"]["model.safetensors"] == (trained / "model.safetensors").stat().st_size
    shown = invoke("info", trained).stdout
    for expected in ("cross attention", "optimizer.lr", "untrained", "unigram", "model.safetensors"):
        assert expected in shown


def test_a_moved_run_still_finds_the_data_inside_it(ask, own_run):
    moved = own_run.rename(own_run.with_name("elsewhere"))
    assert ask("info", moved)["data"]["folder"] == str(moved / "data")
    assert ask("evaluate", moved, "--sequences", 2)["bound"]["sequences"] == 2


def test_info_when_the_metrics_are_garbage(refuse, own_run):
    (own_run / "metrics.jsonl").write_bytes(b"\xff\xfe{]\n3\n[]\n")
    refuse("info", own_run, says=("metrics.jsonl:1", "damaged"))


def test_info_when_the_data_are_gone(ask, own_run):
    shutil.rmtree(own_run / "data")
    result = ask("info", own_run)
    assert result["data"]["folder"] is None
    assert "no such folder" in result["data"]["problem"]


def reference_checkpoint(path, run):
    """What the reference implementation would have saved for this run's weights."""
    model = run.config.model
    shape = {
        "dim": model.dim,
        "n_layers": model.layers,
        "n_heads": model.heads,
        "vocab_size": model.vocab_size,
        "max_seq_len": model.max_length,
        "max_z_len": model.thoughts,
        "window_size": model.window,
    }
    weights = {f"_orig_mod.{name}": value for name, value in run.model.decoder.state_dict().items()}
    torch.save({"model": weights, "model_args": shape}, path)


def test_convert_makes_a_run_that_everything_else_reads(ask, trained, tmp_path):
    run, checkpoint, out = Run.load(trained), tmp_path / "ckpt.pt", tmp_path / "made" / "run"
    reference_checkpoint(checkpoint, run)
    result = ask("convert", checkpoint, "--tokenizer", trained / "tokenizer.json", "--out", out)
    assert result["parameters"] == ask("info", trained)["parameters"]
    assert result["data"] is None
    converted = Run.load(out)
    for name, value in run.model.decoder.state_dict().items():
        assert torch.equal(converted.model.decoder.state_dict()[name], value)
    assert ask("evaluate", out, "--data", trained / "data", "--sequences", 2)["bound"]["sequences"] == 2
    assert [path.name for path in out.parent.iterdir()] == ["run"]
