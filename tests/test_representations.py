"""The benchmark of thoughts as features: what is judged was not learned from, and figures are what they say."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import kinds, rewriting
from benchmarks import representations as program
from benchmarks import representations_tables as tables
from benchmarks.kinds import Judged
from benchmarks.rewriting import overlap
from pyro_ltm.scores import exchange_rate


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(kinds, "JUDGED", 3)
    monkeypatch.setattr(kinds, "LEARNED", 8)
    monkeypatch.setattr(kinds, "FEWEST", 2)


def numbered(word, count):
    """Texts that all differ, each as long as a document is."""
    return [f"{word} {number} " + " ".join([word] * 40) for number in range(count)]


def test_four_kinds_are_cut_alike_and_kept_apart(few, tmp_path):
    for folder in ("gsm8k", "wikitext-2", "tinystories", "tinyshakespeare"):
        (tmp_path / folder).mkdir()
    (tmp_path / "gsm8k/train.jsonl").write_text(
        "".join(json.dumps({"question": text}) + "\n" for text in numbered("apples", 60))
    )
    (tmp_path / "wikitext-2/wiki.train.shuffled.tokens").write_text(
        " = Heading = \n" + "".join(f" {text} \n" for text in numbered("lobster", 60))
    )
    (tmp_path / "tinystories/tiny_stories.txt").write_text("\n\n".join(numbered("Lily", 60)))
    (tmp_path / "tinyshakespeare/input.txt").write_text("\n\n".join(f"ALL:\n{text}" for text in numbered("thou", 60)))
    learn, texts, labels = kinds.four_kinds(tmp_path)
    assert labels["kind"] == [kind for kind in ("problem", "encyclopaedia", "story", "play") for _ in range(3)]
    assert not set(learn) & set(texts)
    assert all(kinds.SHORTEST - 20 <= len(text) <= kinds.LONGEST for text in (*learn, *texts))
    assert len(learn) == 4 * 8
    assert not any("Heading" in text for text in learn)
    assert kinds.four_kinds(tmp_path) == (learn, texts, labels)


def test_proposals_that_are_judged_teach_nothing(few, tmp_path):
    (tmp_path / "proposals").mkdir()
    for name in ("train", "valid"):
        rows = [
            {"text": "\n\n".join(numbered(f"{name}{kind}{number}", 3)), "kind": kind}
            for kind in ("rfc", "standards", "informational", "process")
            for number in range(4)
        ]
        (tmp_path / f"proposals/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    learn, texts, labels = kinds.proposals(tmp_path)
    assert sorted(labels["kind"]) == sorted(["rfc", "standards", "informational", "process"] * 2)
    assert not {text.split()[0] for text in texts} & {text.split()[0] for text in learn}


def test_features_that_are_the_label_are_perfect_and_noise_is_not():
    labels = ["a", "b", "c"] * 20
    told = torch.nn.functional.one_hot(torch.tensor([ord(label) - ord("a") for label in labels])).double()
    texts = Judged(labels, {"letter": labels}, None)
    assert program.scored(told, texts, 0)["letter"] | {"probe_stderr": 0.0} == {
        "probe": 1.0, "probe_stderr": 0.0, "neighbours": 1.0, "clusters": 1.0,
    }  # fmt: skip
    noise = program.scored(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), texts, 0)["letter"]
    assert max(noise["probe"], noise["neighbours"]) < 0.6
    assert noise["clusters"] < 0.2


def test_overlap_counts_tokens_wherever_they_stand():
    true = torch.tensor([1, 2, 2, 3])
    assert overlap(true, true.flip(0)) == 1.0
    assert overlap(true, torch.tensor([2, 2, 2, 9])) == 0.5
    assert overlap(true, torch.tensor([4, 5])) == 0.0


def test_a_text_between_two_has_of_both_and_one_of_them_has_not(monkeypatch):
    count, length = 8, 6
    tokens = torch.arange(count)[:, None].expand(count, length)
    batch = SimpleNamespace(size=count, targets=tokens, mask=torch.ones(count, length).bool(), device="cpu")
    thoughts = SimpleNamespace(counts=torch.ones(count), batches=[batch], means=torch.eye(count)[:, None])

    def written(_, z, length):
        """The tokens that the thoughts name, in turn."""
        named = [row.nonzero().flatten() for row in z[:, 0]]
        return torch.stack([one.repeat(length)[:length] for one in named])

    monkeypatch.setattr(rewriting, "_written", written)
    assert rewriting.rewritten(None, thoughts) == {
        "written_again": {"in_place": 1.0, "shared": 1.0, "by_chance": 0.0},
        "between": {"midpoint": 0.5, "end": 0.0, "by_chance": 0.0},
    }


def test_a_row_is_held_against_the_twin_of_its_own_seed_decoder_and_optimizer():
    common = {"texts": "four-kinds", "seed": 0, "slow": "muon 0.06", "slow_steps": 300, "twin": False}
    common["settings"] = ["model.window=8", "model.thoughts=16", "fast.steps=4"]
    row = common | {"features_named": "nano-thoughts", "nats": [9.0, 13.0], "rates": [2.0, 2.0], "rate": 2.0}
    twins = {name: common | {"twin": True, "nats": nats, **more} for name, nats, more in (
        ("seed", [1.0, 1.0], {"seed": 1}), ("other", [1.0, 1.0], {"slow": "adamw"}),
        ("longer", [1.0, 1.0], {"slow_steps": 900}), ("window", [1.0, 1.0], {"settings": ["model.thoughts=0"]}),
        ("own", [8.0, 12.0], {"settings": ["model.thoughts=0", "model.window=8"]}),
    )}  # fmt: skip
    assert tables.twin_of(row, twins | {"row": row}) is twins["own"]
    found = exchange_rate(torch.tensor([8.0, 12.0]), torch.tensor([7.0, 11.0]), torch.tensor([2.0, 2.0]), None)
    assert tables.exchange(row, twins["own"]) == found
    assert (found.nats_per_nat, found.stderr) == (0.5, 0.0)


def test_rows_of_one_name_are_one_file():
    rows = [*program.planned(list(program.SETS), [0, 1], dial=False), *program.planned([], [0], dial=True)]
    names = [row.name for row in rows]
    assert len(set(names)) == len({(row.texts, row.features, row.seed) for row in rows})
    assert not any(set(name) & set(":/,= ") for name in names)
