"""Bad input: one line that says what is wrong, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import sys

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file

from pyro_ltm.runs import Run

MEGABYTE = 1 << 20


def write(path, content):
    """Writes bytes, text, or a table, and gives the path."""
    if isinstance(content, dict):
        pyarrow.parquet.write_table(pyarrow.table(content), path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


TEXTS = [
    ("no.txt", None, ("no such file",)),
    ("empty.txt", "", ("empty",)),
    ("blank.txt", " \n\n", ("empty",)),
    ("binary.txt", b"abc\n\x00\x01\x02", ("binary.txt:2", "NUL byte")),
    ("latin.txt", "ok\nna\u00efve".encode("latin-1"), ("latin.txt:2", "not UTF-8")),
    ("long.txt", b"a" * (50 * MEGABYTE), ("long.txt:1", "a line without a space to cut it at, of over 16 MiB")),
    ("long.jsonl", b'{"text": "' + b"a" * (50 * MEGABYTE) + b'"}', ("long.jsonl:1", "a line of over 16 MiB")),
    ("column.jsonl", '{"body": "x"}\n', ("column.jsonl:1", "no column 'text'", "body")),
    ("column.csv", "txt\nx\n", ("column.csv:1", "did you mean 'txt'?")),
    ("column.parquet", {"body": ["x"]}, ("no column 'text'", "body")),
    ("damaged.parquet", b"PAR1 and no more", ("not a readable Parquet file",)),
    ("damaged.jsonl", '{"text": "a"}\n{"text"\n', ("damaged.jsonl:2", "not valid JSON")),
]


@pytest.mark.parametrize(("name", "content", "says"), TEXTS, ids=[name for name, _, _ in TEXTS])
def test_text_that_cannot_be_read(name, content, says, refuse, tmp_path, trained):
    """In every command that reads text: whatever it found out before, it leaves nothing behind."""
    path = tmp_path / name if content is None else write(tmp_path / name, content)
    refuse("prepare", path, "--out", tmp_path / "data", says=says)
    if "long" not in name:
        refuse("train", "--data", path, "--out", tmp_path / "run", says=says)
        refuse("evaluate", trained, "--data", path, says=says)
        refuse("infer", trained, "--input", path, "--out", tmp_path / "t.safetensors", says=says)


def test_bad_text_in_a_real_process(spawn, refused, tmp_path):
    path = write(tmp_path / "binary.txt", b"abc\n\x00\x01\x02")
    process = spawn("prepare", path, "--out", tmp_path / "data", "--json")
    out, err = process.communicate(timeout=60)
    line = refused(process.returncode, out, err, "binary.txt:2")
    assert err == line + "\n"
    assert [file.name for file in tmp_path.iterdir()] == ["binary.txt"]


def test_markup_in_a_message_is_printed_as_it_is(refuse, tmp_path):
    refuse("prepare", "[bold]no[/bold].txt", "--out", tmp_path / "data", says=("[bold]no[/bold].txt:",))


def test_too_little_text(refuse, tmp_path, trained):
    """A sequence shorter than two tokens."""
    path = write(tmp_path / "a.txt", "a")
    tokenizer = ["--tokenizer", trained / "tokenizer.json"]
    says = ("1 tokens of text, at least 2 are needed",)
    refuse("prepare", path, *tokenizer, "--validation-fraction", 0, "--out", tmp_path / "d", says=says, quiet=False)
    refuse("train", "--data", path, *tokenizer, "--out", tmp_path / "r", says=("at least 2 are needed",), quiet=False)
    refuse("evaluate", trained, "--data", path, says=says, quiet=False)
    refuse("infer", trained, "--text", "", "--out", tmp_path / "t.safetensors", says=("the text is empty",))
    refuse("reconstruct", trained, "--text", "", says=("the text is empty",))


def test_a_text_too_small_for_the_vocabulary(refuse, tmp_path):
    path = write(tmp_path / "a.txt", "some words\n" * 9)
    refuse("prepare", path, "--out", tmp_path / "data", says=("vocab_size = 2048", "too small"))


def test_a_folder_in_the_way(refuse, tmp_path, text):
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine" / "thesis.txt", "precious")
    options = ["prepare", text, "--out", tmp_path / "mine", "--vocab-size", 300]
    refuse(*options, says=("left alone",))
    refuse(*options, "--overwrite", says=("left alone",))
    refuse("train", "--data", text, "--out", tmp_path / "mine" / "thesis.txt", says=("is a file",))


@pytest.mark.parametrize("content", [None, "", "{}", b"\xff\x00", '{"model": {"type": "BPE"}}'])
def test_a_tokenizer_that_is_none(content, refuse, tmp_path, text):
    path = tmp_path / "tokenizer.json" if content is None else write(tmp_path / "tokenizer.json", content)
    refuse("prepare", text, "--tokenizer", path, "--out", tmp_path / "data", says=(str(path),))
    refuse("train", "--data", text, "--tokenizer", path, "--out", tmp_path / "run", says=(str(path),))
    refuse("convert", tmp_path / "x.pt", "--tokenizer", path, "--out", tmp_path / "run", says=(str(path),))


def test_a_tokenizer_that_does_not_match(refuse, ask, invoke, settings, tmp_path, trained, text, own_run):
    other = tmp_path / "other"
    ask("prepare", text, "--out", other, "--vocab-size", 290, "--sequence-length", 32)
    refuse("evaluate", trained, "--data", other, says=("made by another tokenizer", "--tokenizer"))
    twin = tmp_path / "twin"
    result = invoke("train", "--data", other, "--out", twin, *settings(**{"model.thoughts": 0}))
    assert result.exit_code == 0
    refuse("evaluate", trained, "--twin", twin, says=("--twin", "another tokenizer"))
    small = settings(**{"model.vocab_size": 280})
    refuse("train", "--data", other, "--out", tmp_path / "new", *small, says=("does not match the run",))
    big = tmp_path / "big"
    ask("prepare", text, "--out", big, "--vocab-size", 310)
    shutil.copy(big / "tokenizer.json", own_run)
    refuse("generate", own_run, says=("tokenizer.json", "not the run's own tokenizer"))


def test_sequences_longer_than_the_model(refuse, ask, settings, tmp_path, text, trained):
    long = tmp_path / "long"
    tokenizer = ["--tokenizer", trained / "tokenizer.json"]
    ask("prepare", text, "--out", long, "--sequence-length", 64, *tokenizer)
    says = ("sequences have 64 tokens", "at most 32")
    refuse("train", "--data", long, "--out", tmp_path / "run", *settings(), says=says)
    refuse("evaluate", trained, "--data", long, says=says)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("slow.lrr=0.1", ("slow.lrr", "did you mean 'lr'?")),
        ("modle.dim=8", ("modle", "did you mean 'model'?")),
        ("slow.lr", ("expected key=value",)),
        ("slow.lr=-1", ("slow.lr = -1", "at least 0")),
        ("slow.lr=nan", ("slow.lr = nan",)),
        ("slow.lr=inf", ("slow.lr = inf",)),
        ("slow.steps=two", ("slow.steps = 'two'", "a whole number")),
        ("slow.steps=0", ("slow.steps = 0", "at least 1")),
        ("model.dim=30", ("model.dim = 30", "even number")),
        ("model.thoughts=3", ("model.thoughts = 3", "multiple of layers")),
        ("model=5", ("model is a table",)),
        ("data.packing=tight", ("data.packing = 'tight'", "contiguous, document")),
        ("guide.name=mean-feild", ("did you mean 'mean-field'?",)),
        ("guide.width=3", ("unknown option guide.width",)),
        ("objective.name=elbow", ("unknown objective 'elbow'",)),
        ("optimizer.lr=-1", ("optimizer",)),
        ("fast.noise=none", ("fresh, antithetic, fixed",)),
    ],
)
def test_a_bad_setting(setting, says, refuse, tmp_path, text):
    """On the command line and in a file alike, before any text is read."""
    options = ["train", "--data", text, "--out", tmp_path / "run"]
    refuse(*options, "--set", setting, says=says)
    if "=" in setting and setting != "slow.steps=two":
        key, value = setting.split("=")
        word = json.dumps(value) if value[0].isalpha() and value not in ("nan", "inf") else value
        refuse(*options, "--config", write(tmp_path / "mine.toml", f"{key} = {word}\n"), says=says)


@pytest.mark.parametrize("content", [None, "slow = ", "[slow\n", b"\xff\xfe", "seed = 1\nseed = 2\n"])
def test_a_bad_configuration_file(content, refuse, tmp_path, text):
    path = tmp_path / "mine.toml" if content is None else write(tmp_path / "mine.toml", content)
    refuse("train", "--data", text, "--out", tmp_path / "run", "--config", path, says=(str(path),))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--preset", "nanno"], ("did you mean 'nano'?",)),
        (["--steps", "0"], ("--steps", "slow.steps = 0")),
        (["--device", "cude"], ("--device cude", "choose cpu")),
        (["--device", "meta"], ("--device meta", "choose cpu")),
        (["--resume"], ("no run to resume here",)),
        ([], ("nothing to train on",)),
    ],
)
def test_bad_options_of_train(options, says, refuse, tmp_path, text):
    data = [] if options in ([], ["--resume"]) else ["--data", text]
    refuse("train", *data, "--out", tmp_path / "run", *options, says=says)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none(refuse, trained):
    refuse("evaluate", trained, "--device", "cuda", says=("--device cuda", "no CUDA device", "--device cpu"))


def test_training_where_a_run_is(refuse, own_run, text, settings):
    options = ["train", "--out", own_run]
    refuse(*options, "--data", text, says=("already holds a run", "--resume"))
    differ = "cannot resume with another configuration"
    refuse(
        *options, "--resume", "--steps", 3, says=("has done 4 slow steps already; give more than that",), quiet=False
    )
    refuse(*options, "--resume", "--rewarm", 3, says=("--rewarm goes with --resume and --steps",))
    refuse(*options, "--decay", 3, says=("--decay goes with --resume or --branch-from",))
    refuse(*options, "--at", 3, says=("--at goes with --branch-from",))
    refuse(*options, "--resume", "--steps", 9, "--decay", 3, says=("--decay goes with --resume or --branch-from",))
    refuse(*options, "--resume", "--seed", 9, says=(differ, "seed = 0 became 9)"))
    refuse(*options, "--resume", "--set", "optimizer.lr=0.1", says=(differ, "optimizer.lr = 0.3 became 0.1)"))
    refuse(*options, "--resume", "--preset", "small", says=(differ, "model.dim = 16 became 512"))
    refuse(*options, "--resume", *settings(**{"slow.lr": 0.5}), says=(differ, "slow.lr"))


def test_resuming_on_other_data(refuse, ask, own_run, tmp_path, trained):
    more = write(tmp_path / "more.txt", "kalo mi ter\n" * 60)
    other = tmp_path / "other"
    tokenizer = ["--tokenizer", trained / "tokenizer.json"]
    ask("prepare", more, "--out", other, "--sequence-length", 32, *tokenizer)
    refuse("train", "--out", own_run, "--resume", "--data", other, says=("was not trained on",))
    says = (str(more), "leave --data out", "--init-from")
    refuse("train", "--out", own_run, "--resume", "--data", more, says=says, quiet=False)


def test_too_long_for_the_model(refuse, trained, tmp_path):
    long = "kalo miter " * 40
    says = ("tokens", "at most 31", "shorten it")
    refuse("generate", trained, "--prompt", long, says=says)
    refuse("reconstruct", trained, "--text", long, says=says)
    refuse("infer", trained, "--text", long, "--out", tmp_path / "t.safetensors", says=says)
    refuse("generate", trained, "--max-new-tokens", 99, says=("99 new ones", "at most 32"))


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--temperature", "-1", "temperature = -1.0: must be at least 0"),
        ("--temperature", "nan", "temperature = nan"),
        ("--top-p", "0", "top_p = 0.0: must lie above 0"),
        ("--top-p", "1.5", "top_p = 1.5"),
        ("--top-k", "-3", "top_k = -3: must be at least 0"),
    ],
)
def test_bad_sampling(option, value, says, refuse, trained):
    refuse("generate", trained, option, value, says=(says,))


def test_thoughts_that_cannot_be_used(refuse, trained, twin, tmp_path):
    def tensors(name, **values):
        save_file(values, tmp_path / name)
        return tmp_path / name

    good = tensors("good.safetensors", thoughts=torch.zeros(1, 2, 16))
    cases = [
        (tmp_path / "no.safetensors", "no such file"),
        (write(tmp_path / "text.safetensors", "some text"), "damaged, or no safetensors file"),
        (write(tmp_path / "cut.safetensors", good.read_bytes()[:-5]), "damaged, or no safetensors file"),
        (tensors("other.safetensors", z=torch.zeros(1, 2, 16)), "no tensor 'thoughts'"),
        (tensors("shape.safetensors", thoughts=torch.zeros(1, 2, 8)), "thoughts of shape [1, 2, 8]"),
        (tensors("nan.safetensors", thoughts=torch.full((1, 2, 16), torch.nan)), "finite"),
    ]
    for path, says in cases:
        refuse("generate", trained, "--thoughts", path, says=(says,))
    refuse("generate", twin, "--thoughts", good, says=("this model needs [sequences, 0, 16]",))


def test_the_twin_has_no_thoughts_to_infer(refuse, twin, tmp_path):
    refuse("infer", twin, "--text", "kalo", "--out", tmp_path / "t.safetensors", says=("no thoughts",))
    refuse("reconstruct", twin, "--text", "kalo", says=("no thoughts",))


def test_a_place_that_cannot_be_written(refuse, trained, tmp_path):
    refuse("infer", trained, "--text", "kalo", "--out", tmp_path, says=("is a folder",))
    refuse("infer", trained, "--text", "kalo", "--out", tmp_path / "no" / "t", says=("there is no folder",))


@pytest.mark.parametrize("command", ["info", "evaluate", "generate"])
def test_a_folder_that_is_no_run(command, refuse, tmp_path, text):
    for folder in (tmp_path / "no", tmp_path, text):
        refuse(command, folder, says=(str(folder), "not a run folder"))


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def swap(old, new):
    return lambda path: path.write_text(path.read_text().replace(old, new))


DAMAGE = [
    ("config.toml", lambda path: path.unlink(), "not a run folder"),
    ("config.toml", lambda path: write(path, "[model\n"), "not a readable TOML file"),
    ("config.toml", lambda path: write(path, b"\xff\xfe"), "not a readable TOML file"),
    ("config.toml", swap("dim = 16", "dimm = 16"), "unknown key model.dimm"),
    ("config.toml", swap("dim = 16", "dim = 32"), "do not fit the run's config.toml"),
    ("config.toml", swap("layers = 1", "layers = 0"), "model.layers = 0"),
    ("model.safetensors", lambda path: path.unlink(), "missing"),
    ("model.safetensors", cut, "damaged"),
    ("model.safetensors", lambda path: write(path, ""), "damaged"),
    ("model.safetensors", lambda path: write(path, b"\xff" * 500), "damaged"),
    ("model.safetensors", lambda path: save_file({"x": torch.zeros(1)}, path), "not one of a pyro-ltm run"),
    ("tokenizer.json", lambda path: path.unlink(), "no such tokenizer"),
    ("tokenizer.json", cut, "not a readable tokenizer.json"),
]


@pytest.mark.parametrize(("name", "damage", "says"), DAMAGE, ids=[f"{row[0]}-{row[2]}" for row in DAMAGE])
def test_a_damaged_run(name, damage, says, refuse, own_run):
    damage(own_run / name)
    for command in (["info"], ["evaluate"], ["generate"], ["reconstruct", "--text", "kalo"]):
        refuse(command[0], own_run, *command[1:], says=(str(own_run), says))


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("data.json", lambda path: write(path, "{"), "damaged"),
        ("data.json", lambda path: write(path, "[]"), "damaged"),
        ("data.json", lambda path: write(path, "{}"), "damaged"),
        ("data.json", lambda path: path.unlink(), "does not say what data"),
        ("data/meta.json", lambda path: write(path, "{"), "damaged"),
        ("data/validation.bin", cut, "damaged"),
        ("data/train.bin", lambda path: path.unlink(), "damaged"),
        ("data", shutil.rmtree, "no such folder"),
    ],
)
def test_data_damaged_inside_a_run(name, damage, says, refuse, own_run):
    damage(own_run / name)
    refuse("evaluate", own_run, says=(str(own_run), says))


@pytest.mark.parametrize("damage", [cut, lambda path: write(path, "")])
def test_a_damaged_checkpoint_is_not_resumed(damage, refuse, own_run):
    damage(own_run / "trainer.safetensors")
    refuse("train", "--resume", "--out", own_run, says=("trainer.safetensors", "damaged"))


def test_checkpoints_that_cannot_be_converted(refuse, trained, tmp_path):
    tokenizer = trained / "tokenizer.json"

    def refuse_convert(path, *says, out=tmp_path / "run"):
        refuse("convert", path, "--tokenizer", tokenizer, "--out", out, says=says)

    refuse_convert(tmp_path / "no.pt", "no such checkpoint")
    refuse_convert(write(tmp_path / "text.pt", "some text"), "not a checkpoint that is safe to read")
    torch.save({"model": {}}, tmp_path / "other.pt")
    refuse_convert(tmp_path / "other.pt", "not a checkpoint of the reference implementation")
    torch.save({"model": sys.exit, "model_args": {}}, tmp_path / "code.pt")
    refuse_convert(tmp_path / "code.pt", "not a checkpoint that is safe to read")
    refuse_convert(tmp_path / "no.pt", "exists already", out=trained)


def test_a_tokenizer_too_large_for_the_checkpoint(refuse, ask, trained, text, tmp_path):
    run = Run.load(trained)
    shape = {"dim": 16, "n_layers": 1, "n_heads": 2, "vocab_size": 300, "max_seq_len": 32, "max_z_len": 2}
    weights = dict(run.model.decoder.state_dict())
    torch.save({"model": weights, "model_args": {**shape, "window_size": 32}}, tmp_path / "ckpt.pt")
    ask("prepare", text, "--out", tmp_path / "big", "--vocab-size", 310)
    options = ["--tokenizer", tmp_path / "big" / "tokenizer.json", "--out", tmp_path / "run"]
    refuse("convert", tmp_path / "ckpt.pt", *options, says=("has 310 tokens, the checkpoint 300",))


@pytest.fixture
def cramped(fork, refused):
    """Calls a command as a process none of whose files may be larger than `size` bytes, as on a full disk."""

    def call(size, *arguments):
        process = fork(*arguments, file_size=size)
        out, err = process.communicate(timeout=120)
        return refused(process.returncode, out, err, "no space left")

    return call


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
class TestNoSpace:
    def test_prepare_leaves_nothing(self, cramped, tmp_path, text):
        cramped(1000, "prepare", text, "--out", tmp_path / "data", "--vocab-size", 300)
        assert list(tmp_path.iterdir()) == []

    def test_train_leaves_nothing_when_it_cannot_even_prepare(self, cramped, tmp_path, text, settings):
        cramped(1000, "train", "--data", text, "--out", tmp_path / "run", *settings())
        assert list(tmp_path.iterdir()) == []

    def test_train_goes_on_once_there_is_space(self, cramped, tmp_path, text, settings, invoke, trained):
        out = tmp_path / "run"
        line = cramped(60_000, "train", "--data", text, "--out", out, *settings())
        assert "trainer.safetensors" in line
        assert not [path for path in out.rglob("*") if path.name.startswith(".")]
        assert invoke("train", "--resume", "--out", out).exit_code == 0
        assert (out / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()

    def test_infer_leaves_the_old_file(self, cramped, tmp_path, trained):
        out = write(tmp_path / "t.safetensors", "old")
        cramped(100, "infer", trained, "--text", "kalo", "--out", out)
        assert out.read_text() == "old"
        assert list(tmp_path.iterdir()) == [out]

    def test_convert_leaves_nothing(self, cramped, tmp_path, trained):
        run = Run.load(trained)
        shape = {"dim": 16, "n_layers": 1, "n_heads": 2, "vocab_size": 300, "max_seq_len": 32, "max_z_len": 2}
        weights = dict(run.model.decoder.state_dict())
        torch.save({"model": weights, "model_args": {**shape, "window_size": 32}}, tmp_path / "ckpt.pt")
        options = ["--tokenizer", trained / "tokenizer.json", "--out", tmp_path / "run"]
        cramped(20_000, "convert", tmp_path / "ckpt.pt", *options)
        assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pt"]


def test_a_loss_that_is_not_finite_ends_the_run_with_a_report(invoke, refused, settings, text, tmp_path):
    """And the last good checkpoint stays: the weights in it are finite."""
    out = tmp_path / "run"
    wild = settings(
        **{"slow.steps": 40, "slow.lr": 1e30, "slow.clip": 0.0, "slow.weight_decay": 0.0, "slow.max_nonfinite": 2}
    )
    result = invoke("train", "--data", text, "--out", out, *wild)
    refused(result.exit_code, result.stdout, result.stderr, "2 steps in a row were not finite", "nonfinite.json")
    assert json.loads((out / "nonfinite.json").read_text())["skipped_in_a_row"] == 2
    assert all(bool(torch.isfinite(value).all()) for value in load_file(out / "model.safetensors").values())


def test_a_run_is_not_begun_where_it_could_not_be_opened(refuse, settings, text, tmp_path):
    refuse("train", "--data", text, "--out", tmp_path / "caf\udce9", *settings(), says=("its name is not UTF-8",))


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_no_fit_is_made_for_a_file_that_could_not_be_opened(refuse, trained, text, tmp_path, suffix):
    out = tmp_path / f"caf\udce9.{suffix}"
    refuse("infer", trained, "--text", "kalo", "--out", out, says=("its name is not UTF-8",))
    refuse("embed", trained, "--data", text, "--out", out, says=("its name is not UTF-8",))
