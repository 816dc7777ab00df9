"""Commands on a masked diffusion: what works on it, beside its twin and alone, and what refuses it in a line."""

from __future__ import annotations

import json

import pytest

KIND = {"model.kind": "masked-diffusion", "model.thoughts": 0}


@pytest.fixture(scope="module")
def diffusion(invoke, settings, trained, tmp_path_factory):
    """The masked diffusion beside `trained`, on the same data."""
    out = tmp_path_factory.mktemp("diffusion") / "run"
    result = invoke("train", "--data", trained / "data", "--out", out, *settings(**KIND))
    assert result.exit_code == 0, result.stderr
    assert "nats/token, an upper bound" in result.stderr
    assert "this model, an upper bound" in result.stdout
    assert "exact" not in result.stdout + result.stderr
    return out


def test_the_setting_alone_takes_the_thoughts_away(invoke, trained, tmp_path):
    done = invoke("train", "--data", trained / "data", "--out", tmp_path / "run", "--preset", "nano", "--steps", 1,
                  "--set", "model.kind=masked-diffusion", "--set", "slow.eval_sequences=1")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "thoughts = 0" in (tmp_path / "run" / "config.toml").read_text(encoding="utf-8")


def test_evaluate_has_room_for_both_rivals(invoke, ask, trained, twin, diffusion):
    beside = ("evaluate", trained, "--twin", twin, "--masked-diffusion", diffusion, "--sequences", 6)
    shown = invoke(*beside)
    assert shown.exit_code == 0, shown.stderr
    assert "this run" in shown.stdout
    assert "masked diffusion's." in shown.stdout
    assert [word for word in ("twin", "masked diffusion") if word in shown.stdout] == ["twin", "masked diffusion"]
    found = ask(*beside)
    rival = found["masked_diffusion"]
    assert rival["tokens"] == found["bound"]["tokens"] == found["twin"]["tokens"]
    assert rival["differs"] == []
    gap = found["below_masked_diffusion"]["bound"]
    assert gap["nats_per_token"] == pytest.approx(rival["nats_per_token"] - found["bound"]["nats_per_token"])
    assert found["masked_diffusion_run"] == str(diffusion)


def test_evaluate_predicts_beside_both_rivals(ask, invoke, own_run, twin, diffusion):
    """By blocks as this run does; and what an earlier call scored of the same rival stays in the run."""
    rival, few = ("--masked-diffusion", diffusion), ("--sequences", 4, "--particles", 2)
    ask("evaluate", own_run, *rival, *few)
    found = ask("evaluate", own_run, *rival, "--twin", twin, *few, "--protocol", "prefix", "--prefix", 8)
    its, own = found["masked_diffusion"]["prefix"], found["prefix"]
    assert (its["tokens"], its["stride"], len(its["by_prefix"])) == (own["tokens"], own["stride"], 1)
    gaps = found["below_masked_diffusion"]
    assert gaps["prefix"]["nats_per_token"] == pytest.approx(its["nats_per_token"] - own["nats_per_token"])
    after = its["by_prefix"][0]["nats_per_token"] - own["by_prefix"][0]["nats_per_token"]
    assert gaps["after 8 tokens"]["nats_per_token"] == pytest.approx(after)
    kept = json.loads((own_run / "evaluation.json").read_text(encoding="utf-8"))
    assert kept["below_masked_diffusion"].keys() >= {"bound", "prefix", "after 8 tokens"}
    assert kept["masked_diffusion"]["prefix"] == its
    shown = invoke("evaluate", own_run, *rival, *few, "--protocol", "prefix", "--prefix", 8).stdout
    assert shown.partition("this run")[2].split()[:2] == ["masked", "diffusion"]
    assert "below it" in shown
    said = invoke("evaluate", own_run, *rival, *few[:2], "--protocol", "reference").stdout
    assert "Masked diffusion, at most: " in said


def test_blocks_are_the_same_where_documents_leave_sequences_unfilled(ask, trained, diffusion, tmp_path):
    """A masked diffusion reads the empty ends, too; its blocks were an eighth of those sequences, and longer."""
    text, tokens = tmp_path / "short.jsonl", tmp_path / "tokens"
    text.write_text('{"text": "mi kalo"}\n' * 3, encoding="utf-8")
    how = ("--tokenizer", trained / "tokenizer.json", "--sequence-length", 32, "--packing", "document")
    ask("prepare", text, "--out", tokens, *how, "--validation-fraction", 0)
    options = ("--data", tokens, "--masked-diffusion", diffusion, "--protocol", "prefix", "--particles", 1)
    found = ask("evaluate", trained, *options)
    assert found["prefix"]["stride"] < 4
    assert found["masked_diffusion"]["prefix"]["stride"] == found["prefix"]["stride"]


def test_it_is_evaluated_by_its_bound(invoke, ask, twin, diffusion):
    shown = invoke("evaluate", diffusion, "--twin", twin, "--protocol", "all", "--sequences", 4)
    assert shown.exit_code == 0, shown.stderr
    assert "Upper bound on nats" in shown.stdout
    assert "all, in blocks of" in shown.stdout
    found = ask("evaluate", diffusion, "--sequences", 4, "--particles", 2)
    assert found["bound"]["nats_per_token_stderr"] > 0
    assert json.loads((diffusion / "evaluation.json").read_text(encoding="utf-8"))["bound"]["particles"] == 2
    again = ask("evaluate", diffusion, "--sequences", 4, "--particles", 2, "--batch-size", 1)
    assert again["bound"]["nats_per_token"] == pytest.approx(found["bound"]["nats_per_token"], rel=1e-5)


def test_zero_shot(invoke, ask, trained, diffusion, text, tmp_path):
    tasks = tmp_path / "tasks.toml"
    tasks.write_text(f'[tasks.words]\nsource = "{text.as_posix()}"\nsequences = 3\n', encoding="utf-8")
    found = ask("zero-shot", trained, tasks, "--masked-diffusion", diffusion)["tasks"]["words"]
    assert found["masked diffusion"]["meaning"].startswith("upper bound on nats: the mean over orders")
    alone = ask("zero-shot", diffusion, tasks)["tasks"]["words"]
    assert alone["bound"]["meaning"] == found["masked diffusion"]["meaning"]
    assert "importance-weighted" not in alone
    shown = invoke("zero-shot", diffusion, tasks, "--protocol", "all")
    assert shown.exit_code == 0, shown.stderr
    assert "exact" not in shown.stdout


def test_generate(invoke, ask, diffusion, twin, refuse):
    few = ("--max-new-tokens", 6, "--seed", 2)
    one = ask("generate", diffusion, *few, "--num", 2)
    assert one["thoughts"] == "none"
    assert all(text["tokens"] <= 6 for text in one["texts"])
    assert one["texts"] == ask("generate", diffusion, *few, "--num", 2)["texts"]
    shown = invoke("generate", diffusion, *few, "--prompt", "kalo", "--diffusion-steps", 2)
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout.startswith("kalo")
    refuse("generate", diffusion, "--prompt", "kalo", "--rethink", 1, says=("masked diffusion", "nothing to fit again"))
    refuse("generate", twin, "--prompt", "kalo", "--diffusion-steps", 2, says=("one token after the other",))


def test_its_texts_are_scored(ask, diffusion, twin, refuse):
    sampled = ("score-samples", "--num", 4, "--max-new-tokens", 6, "--run")
    assert ask(*sampled, diffusion, "--scorer", twin)["generative"]["nats_per_token"] > 0
    refuse(*sampled, twin, "--scorer", diffusion, quiet=False, says=("masked diffusion", "room"))


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("lm-eval", "RUN", "--tasks", "none"), "one token after the other"),
        (("infer", "RUN", "--text", "kalo", "--out", "t.safetensors"), "nothing to infer"),
        (("reconstruct", "RUN", "--text", "kalo"), "nothing to infer"),
        (("calibrate", "RUN"), "no posterior"),
        (("fit-prior", "RUN", "--prior", "mixture", "--out", "p"), "no prior to fit"),
        (("evaluate", "RUN", "--ais", "4"), "nothing to anneal"),
        (("evaluate", "RUN", "--protocol", "reference"), "the reference knows none such"),
        (("compare", "RUN", "--guides", "mean-field", "--objectives", "elbo", "--out", "c"), "nothing to fit"),
    ],
)
def test_what_needs_thoughts_refuses_it(refuse, diffusion, command, says, tmp_path):
    words = [diffusion if word == "RUN" else word for word in command]
    words = [tmp_path / word if word in ("t.safetensors", "p", "c") else word for word in words]
    refuse(*words, quiet=False, says=("masked diffusion", says))


def test_its_step_is_planned(ask):
    planned = ("plan", "--preset", "nano", "--devices", "1xH100", "--set")
    found, twin = (ask(*planned, one) for one in ("model.kind=masked-diffusion", "model.thoughts=0"))
    assert found["fast_operations"] == 0
    assert found["slow_operations"] < twin["slow_operations"], "its head foretells only what is hidden"


def test_the_wrong_rival_is_refused(refuse, trained, twin, diffusion):
    refuse("evaluate", trained, "--twin", diffusion, says=("not the twin", "model.thoughts = 0"))
    refuse("evaluate", trained, "--masked-diffusion", twin, says=("not the masked diffusion", "model.kind"))
    refuse("compare", trained, "--guides", "mean-field", "--objectives", "elbo", "--out", "c", "--masked-diffusion",
           says=("goes with --train alone",))  # fmt: skip
