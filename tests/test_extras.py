"""Every extra, installed alone from a clone into an empty environment, runs what it is named for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
import tomlkit

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = tomlkit.parse((ROOT / "pyproject.toml").read_text(encoding="utf-8")).unwrap()["project"][
    "optional-dependencies"
]

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

Run = Callable[..., str]
"""Runs a program of the environment in the clone, and gives what it printed."""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git would clone, and a run and texts in it."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "birds.txt").write_text("".join(f"The {i % 7}th bird sang {i % 11} songs.\n" for i in range(200)))
    return folder


def tiny_run(run: Run, *more: str) -> None:
    settings = {"model.dim": 16, "model.layers": 1, "model.heads": 2, "model.thoughts": 2, "model.max_length": 32}
    settings |= {"data.vocab_size": 280, "fast.steps": 1, "slow.steps": 2, "slow.warmup": 0, "slow.eval_sequences": 4}
    shape = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    run("pyro-ltm", "train", "--data", "birds.txt", "--out", "run", "--preset", "nano", *shape, *more)


def check_nothing(run: Run, clone: Path) -> None:
    """The commands of the README's beginning."""
    tiny_run(run)
    found = json.loads(run("pyro-ltm", "evaluate", "run", "--sequences", "2", "--json"))
    assert found["bound"]["nats_per_token"] > 0
    assert run("pyro-ltm", "generate", "run", "--max-new-tokens", "3")


def check_render(run: Run, clone: Path) -> None:
    program = """
import pyro, pyro_ltm
from pyro_ltm.config import ModelConfig
from pyro_ltm.types import Batch
import torch
model = pyro_ltm.LatentThoughtModel(ModelConfig(vocab_size=9, dim=4, layers=1, heads=1, thoughts=1, max_length=4))
graph = pyro.render_model(model, model_args=(Batch.from_tokens(torch.zeros(2, 4, dtype=torch.int64)),))
print(graph.source)
"""
    assert "thoughts -> tokens" in run("python", "-c", program)


def check_harness(run: Run, clone: Path) -> None:
    tiny_run(run)
    (clone / "tasks").mkdir()
    rows = "".join(json.dumps({"q": f"The {n}th bird sang"}) + "\n" for n in range(3))
    (clone / "tasks" / "rows.jsonl").write_text(rows)
    task = {
        "task": "birds",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(clone / "tasks" / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{q}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    (clone / "tasks" / "birds.yaml").write_text(json.dumps(task))  # JSON is YAML as well
    found = json.loads(run("pyro-ltm", "lm-eval", "run", "--tasks", "birds", "--include-path", "tasks", "--json"))
    assert "birds" in found["results"]


def check_scorers(run: Run, clone: Path) -> None:
    save = "from helpers.causal_lms import save_model; from pathlib import Path; save_model(Path('gpt2'))"
    run("python", "-c", save, PYTHONPATH="tests")
    (clone / "texts.jsonl").write_text('{"text": "the cat sat"}\n{"text": "on the mat"}\n')
    found = json.loads(run("pyro-ltm", "score-samples", "--texts", "texts.jsonl", "--scorer", "gpt2", "--json"))
    assert found["generative"]["texts"] == 2


def check_graft(run: Run, clone: Path) -> None:
    save = "from helpers.bases import save_base; from pathlib import Path; save_base(Path('gpt2'))"
    run("python", "-c", save, PYTHONPATH="tests")
    run("pyro-ltm", "graft", "gpt2", "--out", "run", "--train", "lora", "--rank", "2")
    assert run("pyro-ltm", "generate", "run", "--max-new-tokens", "3")


def check_mauve(run: Run, clone: Path) -> None:
    program = """
import mauve, numpy
draw = numpy.random.default_rng(0)
p, q = (draw.normal(size=(40, 3)) for _ in range(2))
print(mauve.compute_mauve(p_features=p, q_features=q, num_buckets=3, verbose=False).mauve)
"""
    assert 0 < float(run("python", "-c", program).split()[-1]) <= 1


def check_soap(run: Run, clone: Path) -> None:
    tiny_run(run, "--set", "slow_optimizer.name=soap")


def check_arviz(run: Run, clone: Path) -> None:
    program = """
import torch
from pyro_ltm.guides import MeanField
from pyro_ltm.inference.posterior import Posterior
from pyro_ltm.noise import Noise
from pyro_ltm.scores.convergence import chain_figures
guide, ids = MeanField(2, 3), torch.arange(2)
state = {"loc": torch.zeros(2, 2, 3), "log_variance": torch.zeros(2, 2, 3)}
data = Posterior(guide, state, ids, Noise(ids, seed=0), torch.zeros(0, 2)).to_arviz(40)
print(data["posterior"]["thoughts"].shape, chain_figures(torch.randn(2, 50, 1, 2, 3))["rhat"].item() < 2)
"""
    assert "(1, 40, 2, 2, 3) True" in run("python", "-c", program)


def check_scikit_learn(run: Run, clone: Path) -> None:
    tiny_run(run)
    program = """
from sklearn.pipeline import make_pipeline
from sklearn.neighbors import KNeighborsClassifier
from pyro_ltm.integrations.scikit_learn import ThoughtEmbedder
texts, labels = ["one bird", "two trees"], [1, 2]
print(make_pipeline(ThoughtEmbedder("run"), KNeighborsClassifier(1)).fit(texts, labels).score(texts, labels))
"""
    assert float(run("python", "-c", program).split()[-1]) == 1.0


def check_notebook(run: Run, clone: Path) -> None:
    """As CONTRIBUTING.md has it, with a twentieth of the steps."""
    for name in ("variational_objectives", "training_with_objectives"):
        run("jupytext", "--to", "ipynb", "--update", f"examples/{name}.py")
        run("jupyter", "execute", f"examples/{name}.ipynb", PYRO_LTM_NOTEBOOK_SHARE="0.05")


def check_search(run: Run, clone: Path) -> None:
    """One trial of the shortest text, on almost nothing."""
    program = """
from benchmarks import search
search.BUDGET, search.SEQUENCES = 8, {128: 4}
search.main(["--text", "worlds-15", "--out", "search", "--journal", "search.log", "--trials", "1"])
"""
    assert "1 to the end" in run("python", "-c", program)


CHECKS = {
    "": check_nothing,
    "render": check_render,
    "harness": check_harness,
    "scorers": check_scorers,
    "graft": check_graft,
    "mauve": check_mauve,
    "soap": check_soap,
    "arviz": check_arviz,
    "scikit-learn": check_scikit_learn,
    "notebook": check_notebook,
    "search": check_search,
}


@pytest.mark.parametrize("extra", [*EXTRAS, ""])
def test_extra(extra: str, clone: Path, tmp_path: Path) -> None:
    if extra == "dev":
        assert set(EXTRAS) - {"dev"} == set(CHECKS) - {""}  # `make test` itself runs in it
        return
    if extra in ("scorers", "arviz", "graft") and sys.version_info < (3, 11):
        pytest.skip("needs Python 3.11")
    programs = tmp_path / "environment" / ("Scripts" if os.name == "nt" else "bin")
    venv.create(programs.parent, with_pip=True)

    def run(program: str, *arguments: str, **environment: str) -> str:
        done = subprocess.run(
            [programs / program, *arguments],
            cwd=clone,
            env={**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", **environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{program} {' '.join(arguments)[:200]}: {done.stderr[-2000:]}"
        return done.stdout

    try:
        wanted = f".[{extra}]" if extra else "."
        run("python", "-m", "pip", "install", "-q", "--no-compile", "-c", "constraints.txt", "-e", wanted)
        CHECKS[extra](run, clone)
    finally:
        for left in (programs.parent, clone / "run", clone / "tasks", clone / "gpt2"):
            shutil.rmtree(left, ignore_errors=True)  # an environment takes a gigabyte
