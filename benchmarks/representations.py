"""Are thoughts worth having as features? Probe, neighbours and clusters of labelled texts, beside what costs less.

    python -m benchmarks.representations --out runs/representations --shared ../shared [--only proposals] [--seeds 0,1]
    python -m benchmarks.representations --out runs/representations --dial [--hours 1]
    python -m benchmarks.representations --table runs/representations

The first trains and judges row after row, the most important first, and keeps each as a file in OUT/rows: whoever stops
it loses the row under way, and the same call goes on with the next. A row is a set of texts (see `kinds`), features and
a seed. The second makes the rows of docs/rate.md, on `four-kinds`: what a rate buys, and what makes it dear. The third
puts all rows into benchmarks/representations-DATE.json and their tables into the pages, and draws the picture.

Every model learns in 300 slow steps from other texts of the same kinds. Features are posterior means, fitted as in
training. Of each: the accuracy of a linear probe and of the 10 nearest neighbours (cosine), both over five folds, and
the normalized mutual information of k-means with the labels. Of a model also its bound, its rate, the exchange rate
against the twin of the same seed, how much of a text is written again from its thoughts alone, and how much of two
texts from between their thoughts (see `rewriting`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import normalized_mutual_info_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from benchmarks import pages, rate_picture, rows
from benchmarks import representations_tables as tables
from benchmarks.interleave import machine
from benchmarks.kinds import SETS, Judged, judged
from benchmarks.rewriting import rewritten
from benchmarks.trained import TWIN, configure, train
from pyro_ltm.runs import Run
from pyro_ltm.runs.batches import text_batches
from pyro_ltm.scores import evaluate_bound
from pyro_ltm.thoughts.baselines import EMBEDDING, SHUFFLED, SINGULAR, UNTRAINED, baselines
from pyro_ltm.thoughts.diagnostics import Thoughts
from pyro_ltm.thoughts.probes import FOLDS, linear_probe

NEIGHBOURS, PARTICLES, BATCH = 10, 8, 50
OURS, LIKELIHOOD = "nano-thoughts", "nano"
TFIDF = "TF-IDF of words, 64 singular vectors"
MODELS: Mapping[str, tuple[str, Sequence[str]]] = {
    "twin": (OURS, TWIN),
    OURS: (OURS, []),
    LIKELIHOOD: (LIKELIHOOD, []),
}
"""Preset and settings, by the name of the features; a twin has none, and says what texts cost without thoughts."""
DECODERS: Mapping[str, Sequence[str]] = {
    "900 slow steps": ["slow.steps=900"],
    "window 8": ["model.window=8"],
    "Muon": ["slow_optimizer.name=muon", "slow.lr=0.06"],
    "1 layer": ["model.layers=1"],
    "width 128": ["model.dim=128", "model.embedding_scale=11.314"],
}
"""What the decoder is and how it learns: each has a twin of its own."""
THOUGHTS: Mapping[str, Sequence[str]] = {
    **{f"thoughts of {dim} numbers": [f"model.thought_dim={dim}"] for dim in (4, 16, 64)},
    **{f"rate {nats}": [f"objective.nats={nats}"] for nats in (5, 10, 20, 80)},
    "natural gradient": ["optimizer.name=natural", "optimizer.lr=0.3"],
    "low-rank:8": ["guide.name=low-rank", "guide.rank=8"],
    "mixture prior": ["prior.name=mixture", "prior.components=32"],
    "a multiplier a text": ["objective.name=target-rate", "objective.nats=40"],
    "decoder_warmup": ["slow.decoder_warmup=0.1"],
    "cross-attention from zero": ["model.zero_cross_attention=true"],
    "16 thoughts": ["model.thoughts=16"],
    "4 fast steps": ["fast.steps=4"],
    "64 fast steps": ["fast.steps=64"],
}
"""What thoughts are and how they are fitted: the twin is that of `OURS`."""
GUIDES = ("student-t", "full-rank", "kronecker", "layered", "mixture", "flow", "semi-amortized")
"""Families besides the mean field and `low-rank:8`: is the rate held with each?"""
DIAL: Mapping[str, tuple[str, Sequence[str]]] = {
    **{name: (OURS, settings) for name, settings in (*THOUGHTS.items(), *DECODERS.items())},
    **{name: (OURS, [f"guide.name={name}"]) for name in GUIDES},
    **{f"twin, {name}": (OURS, [*TWIN, *settings]) for name, settings in DECODERS.items()},
}
"""Likewise, for the page of the dial: what a rate buys, and what makes it dear."""


@dataclass(frozen=True)
class Row:
    """One model, or features that need none, and the seed of all that is random."""

    texts: str
    features: str
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        return "-".join(f"{self.texts} {self.features} s{self.seed}".translate(PLAIN).split())


PLAIN = str.maketrans(":,=/", "    ")


def planned(sets: Sequence[str], seeds: Sequence[int], dial: bool) -> Iterator[Row]:
    """The rows in order: of each seed the sets in turn, the twin before the models that are compared with it."""
    if dial:
        yield from (Row("four-kinds", name, seed) for seed in seeds for name in (*MODELS, *DIAL))
        return
    yield from (Row(texts, TFIDF, 0) for texts in sets)
    for seed in seeds:
        yield from (Row(texts, name, seed) for texts in sets for name in MODELS)


def measure(row: Row, data: Path, out: Path) -> dict[str, Any]:
    """The figures of a row."""
    began = time.process_time()
    texts = judged(row.texts, data, out / "sets")
    result = {"texts": row.texts, "features_named": row.features, "seed": row.seed, "dial": row.features in DIAL}
    result |= {"machine": machine(), "documents": len(texts.texts)}
    if row.features == TFIDF:
        words = TfidfVectorizer(sublinear_tf=True).fit_transform(texts.texts)
        found = torch.from_numpy(TruncatedSVD(SINGULAR, random_state=row.seed).fit_transform(words))
        return result | {"features": {TFIDF: scored(found, texts, row.seed)}}
    name, settings = {**MODELS, **DIAL}[row.features]
    config = configure(name, texts.tokens, [f"seed={row.seed}", *settings])
    run = train(config, texts.tokens).run
    result |= {"settings": list(settings), "preset": name, "slow_steps": config.slow.steps}
    result |= {"slow": f"{config.slow_optimizer.name} {config.slow.lr}", "twin": not config.model.thoughts}
    result |= {"training_seconds": round(time.process_time() - began, 1), **likelihood(run, texts)}
    if config.model.thoughts:
        thoughts = Thoughts.fit(run.model, text_batches(run, texts.texts, BATCH), run.loop, seed=row.seed)
        features = {row.features: thoughts.means}
        if row.features == OURS:
            others = baselines(run, thoughts)
            features |= {kind: others[kind] for kind in (UNTRAINED, EMBEDDING, SHUFFLED)}
        result |= {"features": {kind: scored(one, texts, row.seed) for kind, one in features.items()}}
        result |= rewritten(run, thoughts)
    return result


def scored(features: Tensor, texts: Judged, seed: int) -> dict[str, Any]:
    """Accuracies and mutual information, by label."""
    flat = torch.nn.functional.normalize(features.flatten(1).double(), dim=1).numpy()
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    found = {}
    for name, labels in texts.labels.items():
        near = KNeighborsClassifier(NEIGHBOURS, metric="cosine")
        clusters = KMeans(len(set(labels)), n_init=10, random_state=seed).fit_predict(flat)
        probe = linear_probe(features, labels, name=name, seed=seed)
        found[name] = {
            "probe": round(probe.accuracy, 4),
            "probe_stderr": round(probe.stderr, 4),
            "neighbours": round(float(cross_val_score(near, flat, labels, cv=folds).mean()), 4),
            "clusters": round(float(normalized_mutual_info_score(labels, clusters)), 4),
        }
    return found


def likelihood(run: Run, texts: Judged) -> dict[str, Any]:
    """The bound on the texts, and the nats of each, for the twin's exchange rate."""
    particles = PARTICLES if run.config.model.thoughts else 1
    bound = evaluate_bound(
        run.model, text_batches(run, texts.texts, BATCH), run.loop.with_density(), particles=particles, seed=1
    )
    kept = {
        "nats_per_token": bound.nats_per_token,
        "iwae_nats_per_token": bound.iwae_nats_per_token,
        "rate": bound.kl_nats_per_sequence,
        "rate_stderr": bound.kl_nats_per_sequence_stderr,
        "without_thoughts": bound.distortion_zeroed,
        "shuffled": bound.distortion_shuffled,
        "distortion": bound.distortion_nats_per_token,
    }
    own = {"nats": bound.sequence_nats, "rates": bound.sequence_rate}
    return {
        **{name: round(value, 5) for name, value in kept.items()},
        "tokens": bound.tokens,
        **{name: [round(value, 3) for value in values.tolist()] for name, values in own.items()},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line above."""
    parser = rows.parser(__doc__ or "", seeds="0,1,2,3,4")
    parser.add_argument("--dial", action="store_true", help="the rows of docs/rate.md")
    options = rows.chosen(parser, arguments)
    if options.table:
        found = rows.publish("representations", rows.known(options.table))
        pages.write(tables.tables(found))
        rate_picture.draw(found)
        return
    seeds, sets = [int(seed) for seed in options.seeds.split(",")], [name for name in SETS if options.only in name]

    def line(row: Any) -> str:
        return tables.line(row, rows.known(options.out))

    rows.go_on(options, lambda _: planned(sets, seeds, options.dial), measure, line)


if __name__ == "__main__":
    main()
