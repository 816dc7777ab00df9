"""Hugging Face models as scorers, against their own logits, one token at a time."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from helpers.causal_lms import START, save_model
from safetensors.torch import load_file, save_file

from pyro_ltm.errors import UserError
from pyro_ltm.integrations.causal_lm import CausalLM
from pyro_ltm.tasks.written_texts import score_samples

transformers = pytest.importorskip("transformers", reason="the extra scorers is not installed")

LENGTH = 32
TEXTS = [
    "the cat sat on the mat",
    "a naïve dog ran",
    "",
    "the",
    "while a bird sang in the tree the dog and the cat ran " * 4,
    f"a tree {START} a café",
]


def save(tmp_path_factory, kind, start):
    return save_model(tmp_path_factory.mktemp("models") / kind, kind, start=start, length=LENGTH)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return save(tmp_path_factory, "gpt2", True)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save(tmp_path_factory, "llama", False)


@pytest.fixture
def own(gpt2, tmp_path):
    """A copy of a model to damage."""
    for path in gpt2.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def change(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | keys), encoding="utf-8")


def tokens_of(folder, text):
    """By transformers' own reading of the tokenizer."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder, truncation=False)
    return tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"]


def by_hand(folder, text, start):
    """-log p of each token in double precision, one call for each: first windows whole, later ones moved by half."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float64").eval()
    tokens = [*start, *tokens_of(folder, text)]
    nats = []
    with torch.no_grad():
        for at in range(1, len(tokens)):
            end = LENGTH
            while at >= end:
                end += LENGTH // 2
            begin = max(min(end, len(tokens)) - LENGTH, 0)
            logits = model(torch.tensor([tokens[begin:at]])).logits[0, -1]
            nats.append(-float(logits.log_softmax(-1)[tokens[at]]))
    return nats


@pytest.mark.parametrize(("kind", "start"), [("gpt2", [0]), ("llama", [])])
def test_nats_are_those_of_its_logits(kind, start, request):
    folder = request.getfixturevalue(kind)
    each = [by_hand(folder, text, start) for text in TEXTS]
    found = CausalLM.load(folder).score(TEXTS)
    total, tokens = sum(map(sum, each)), sum(map(len, each))
    assert found.sequence_nats.tolist() == pytest.approx([sum(nats) for nats in each], rel=1e-5)
    assert found.sequence_tokens.tolist() == [len(nats) for nats in each]
    assert (found.tokens, found.texts, found.windowed) == (tokens, len(TEXTS), 1)
    assert found.nats_per_token == pytest.approx(total / tokens, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(total / tokens), rel=1e-4)
    without = [
        (total - sum(nats)) / (tokens - len(nats)) for nats in each
    ]  # the level of the other texts: the jackknife
    spread = math.sqrt(sum((level - total / tokens) ** 2 for level in without) * (len(each) - 1) / len(each))
    assert found.nats_per_token_stderr == pytest.approx(spread, rel=1e-3)
    size = sum(len(text.encode("utf-8")) for text in TEXTS)
    if start:
        assert found.bits_per_byte == pytest.approx(total / math.log(2) / size, rel=1e-5)
    else:
        assert math.isnan(found.bits_per_byte)
    assert found.start == (START if start else None)
    assert (found.window, found.stride) == (LENGTH, LENGTH // 2)


def test_figures_do_not_depend_on_the_batch(gpt2, monkeypatch):
    model = CausalLM.load(gpt2)
    whole, features = model.score(TEXTS), model.features(TEXTS)
    monkeypatch.setattr("pyro_ltm.integrations.causal_lm.LOGITS", 1)
    assert model.score(TEXTS).sequence_nats.tolist() == pytest.approx(whole.sequence_nats.tolist(), rel=1e-5)
    torch.testing.assert_close(model.features(TEXTS), features, atol=1e-5, rtol=1e-4)


# Their code hands over a keyword that transformers has renamed.
@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
def test_features_are_those_of_the_authors_of_mauve(gpt2):
    pytest.importorskip("mauve", reason="the extra mauve is not installed")
    from mauve.utils import featurize_tokens_from_model

    texts = [text for text in TEXTS if text]
    tokens = [torch.tensor([tokens_of(gpt2, text)[:LENGTH]]) for text in texts]
    theirs = featurize_tokens_from_model(transformers.AutoModel.from_pretrained(gpt2).eval(), tokens, batch_size=2)
    found = CausalLM.load(gpt2).features([*texts, ""])
    torch.testing.assert_close(found[:-1].float(), theirs, atol=1e-5, rtol=1e-4)
    assert not found[-1].any()


def test_scores_samples(gpt2):
    texts = [f"the cat sat on {n} mats" for n in range(12)]
    found = score_samples(texts, reference=texts[:11], scorer=CausalLM.load(gpt2))
    assert found.generative_is_exact
    assert found.generative.nats_per_token > 0
    assert found.reference_generative.tokens < found.generative.tokens
    assert found.mauve is not None
    assert str(gpt2) in found.features
    json.dumps(found.to_dict(), allow_nan=False)


def test_precision(gpt2):
    exact = CausalLM.load(gpt2).score(TEXTS)
    coarse = CausalLM.load(gpt2, dtype="bfloat16")
    assert coarse.model.dtype == torch.bfloat16
    assert CausalLM.load(gpt2, dtype="auto").model.dtype == torch.float32, "as it was stored"
    assert coarse.score(TEXTS).nats_per_token == pytest.approx(exact.nats_per_token, rel=0.05)


def test_where_the_beginning_of_a_text_is_named(own):
    """GPT-2's own files name it in config.json alone, which may also hold a default that means nothing."""
    path = own / "tokenizer_config.json"
    change(path, bos_token={"content": START})
    assert CausalLM.load(own).start == 0
    change(path, bos_token=None)
    assert CausalLM.load(own).start is None
    path.unlink()
    assert CausalLM.load(own).start == 0
    change(own / "config.json", bos_token_id=7)
    assert CausalLM.load(own).start is None, "an ordinary token"
    path.write_text('{"bos_token": "<s>"}')
    with pytest.raises(UserError, match="'<s>' is none of the tokenizer's tokens"):
        CausalLM.load(own)


@pytest.mark.parametrize("length", [9999, -1])
def test_without_a_limit_of_its_own_it_reads_so_much_at_once(tmp_path, length):
    assert CausalLM.load(save_model(tmp_path, "llama", length=length)).window == 2048


def test_the_terminal_is_left_alone(gpt2, capfd):
    level, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    CausalLM.load(gpt2).score(TEXTS)
    assert capfd.readouterr() == ("", "")
    assert (transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()) == (level, bars)


def drop(name):
    return lambda folder: (folder / name).unlink()


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def set_key(**keys):
    return lambda folder: change(folder / "config.json", **keys)


def lose_a_weight(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.1.attn.c_attn.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (drop("config.json"), "config.json: cannot be read: no such file"),
        (drop("tokenizer.json"), "has no tokenizer.json"),
        (drop("model.safetensors"), "read from safetensors alone"),
        (write("config.json", "{"), "config.json: damaged: not valid JSON"),
        (write("config.json", "[]"), "expected object, got"),
        (write("tokenizer.json", "{}"), "tokenizer.json: not a tokenizer"),
        (write("model.safetensors", "no"), "not a causal language model that can be loaded"),
        (write("adapter_config.json", "{}"), "holds an adapter"),
        (set_key(model_type="t5"), "not a causal language model that can be loaded"),
        (
            set_key(model_type="mine", auto_map={"AutoModelForCausalLM": "code.Mine"}),
            "not a causal language model that can be loaded",
        ),
        (set_key(n_embd=24), "not a causal language model that can be loaded"),
        (set_key(quantization_config={"quant_method": "fp8"}), "quantized"),
        (set_key(attn_implementation="somebody/attention"), "code from elsewhere"),
        (lose_a_weight, "1 are missing, transformer.h.1.attn.c_attn.weight"),
    ],
)
def test_bad_folders(own, damage, says):
    damage(own)
    with pytest.raises(UserError, match=says) as caught:
        CausalLM.load(own)
    assert "\n" not in str(caught.value)


def test_code_in_the_folder_is_not_run(own):
    (own / "code.py").write_text("raise SystemExit('run')\n")
    change(own / "config.json", auto_map={"AutoModelForCausalLM": "code.Mine", "AutoConfig": "code.Mine"})
    assert type(CausalLM.load(own).model).__name__ == "GPT2LMHeadModel"


def test_a_model_that_looks_ahead_is_refused(own):
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.BertConfig(vocab_size=300, initializer_range=0.5, **shape)
    transformers.logging.set_verbosity_error()  # it says itself that it wants to be told to be a decoder
    transformers.BertLMHeadModel(config).save_pretrained(own)
    transformers.logging.set_verbosity_warning()
    with pytest.raises(UserError, match="BertLMHeadModel is not causal"):
        CausalLM.load(own)


def test_texts_and_tokens_that_cannot_be_scored(own, llama, tmp_path):
    model = CausalLM.load(own)
    with pytest.raises(UserError, match="nothing to score"):
        model.score(["", ""])
    with pytest.raises(UserError, match="no features"):
        model.features(["", ""])
    with pytest.raises(UserError, match="no more than the first"):
        CausalLM.load(llama).score(["a", ""])
    with torch.no_grad():
        model.model.transformer.wte.weight[5] = math.nan
    with pytest.raises(UserError, match="not finite"):
        model.score(TEXTS)
    save_model(tmp_path, vocab_size=200)
    with pytest.raises(UserError, match="where the model has 200: not its own tokenizer"):
        CausalLM.load(tmp_path).score(TEXTS)


def test_without_the_extra_it_says_what_to_install(gpt2, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[scorers\]'"):
        CausalLM.load(gpt2)
