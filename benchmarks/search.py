"""The fast loop's recipe, searched: steps, optimizer, rate, tokens a step, warm-ups, guide and objective, by Optuna.

    pip install -e '.[search]'
    python -m benchmarks.search --text tinyshakespeare --out runs/search [--minutes 20] [--shared ../shared]
    python -m benchmarks.search --table

Each trial trains `nano` with a window of 8 for as many slow steps as a fixed number of operations allows, fast steps
included, so a dear fast loop gets fewer slow steps. Its value is the honest bound on validation text, fitted the same
way for all; while it trains, its own loop's validation bound is what Optuna prunes by. Trials are kept one by one in
benchmarks/search.log, Optuna's journal, which another call goes on with. The second form prints the best of each text.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.pages import FIGURES, table
from benchmarks.texts import TEXTS, Parts, prepared
from benchmarks.trained import configure, judge, operations, train
from pyro_ltm.errors import UserError
from pyro_ltm.training.trainer import Progress

JOURNAL = FIGURES / "search.log"
BUDGET = 60
"""Slow steps of `nano`'s own recipe, all tokens in each of 4 fast steps, whose operations are a trial's."""
SEQUENCES, PARTICLES = {128: 96, 512: 24}, 4
"""Validation sequences by their length, and draws, for a trial's value."""
LOOKS = 4
"""Validations while a trial trains."""
SLOW = ["model.window=8", "slow.warmup=10", "slow.lr_final=0.0", "slow_optimizer.name=muon", "slow.lr=0.06"]
"""The slow loop of every trial."""
OBJECTIVES: dict[str, tuple[str, ...]] = {
    "analytic-elbo": (),
    "stl": (),
    "iwae": ("objective.particles=2",),
    "dreg": ("objective.particles=2",),
    "free-bits": ("objective.nats=8.0",),
    "beta": ("objective.beta=0.5",),
    "target-rate": ("objective.nats=10.0",),
}
WARMS = ("analytic-elbo", "stl", "free-bits", "beta")
"""Objectives with a warm-up of the KL."""
GUIDES = ("mean-field", "low-rank", "kronecker", "layered", "semi-amortized")
COMMON = {"guide": "mean-field", "objective": "analytic-elbo", "warmup": 0.3, "decoder_warmup": 0.1}
KNOWN: list[dict[str, Any]] = [
    # The search begins with these: part of the tokens or all of them, by either optimizer; and an encoder's start.
    {"steps": 4, "optimizer": "natural", "lr": 0.7, "subsample": 4},
    {"steps": 4, "optimizer": "adam", "lr": 1.0, "eps": 1.0, "subsample": 4},
    {"steps": 4, "optimizer": "natural", "lr": 0.3, "subsample": 4, "decoder_warmup": 0.3},
    {"steps": 4, "optimizer": "natural", "lr": 0.7, "subsample": 1},
    {"steps": 4, "optimizer": "adam", "lr": 0.5, "eps": 1.0, "subsample": 1},
    {"steps": 8, "optimizer": "adam", "lr": 0.5, "eps": 0.1, "subsample": 8},
    {"steps": 2, "optimizer": "natural", "lr": 0.3, "subsample": 1, "guide": "semi-amortized"},
]


def suggested(trial: Any) -> list[str]:
    """Settings of a trial."""
    steps = trial.suggest_categorical("steps", [1, 2, 4, 8, 16])
    optimizer = trial.suggest_categorical("optimizer", ["adam", "natural"])
    lr = trial.suggest_float("lr", 0.1, 1.0, log=True)
    subsample = trial.suggest_categorical("subsample", [1, 2, 4, 8])
    guide = trial.suggest_categorical("guide", GUIDES)
    objective = trial.suggest_categorical("objective", list(OBJECTIVES))
    alone = trial.suggest_categorical("decoder_warmup", [0.0, 0.1, 0.3])
    settings = [
        f"fast.steps={steps}",
        f"fast.subsample={subsample}",
        f"optimizer.name={optimizer}",
        f"optimizer.lr={lr:.3g}",
        f"guide.name={guide}",
        f"objective.name={objective}",
        *OBJECTIVES[objective],
        f"slow.decoder_warmup={alone}",
    ]
    if optimizer == "adam":
        settings.append(f"optimizer.eps={trial.suggest_categorical('eps', [1.0, 0.1, 0.01])}")
    if objective in WARMS:
        settings.append(f"objective.warmup={trial.suggest_categorical('warmup', [0.0, 0.3, 0.6])}")
    return settings


def steps_for(budget: int, settings: list[str], parts: Parts, batch_size: int) -> int:
    """Slow steps that cost at most `budget` operations; at least 8, below which nothing is learned."""
    ten = configure("nano", parts.train, [*settings, f"slow.batch_size={batch_size}", "slow.steps=10"])
    return max(8, 10 * budget // operations(ten, parts.train))


def objective_of(name: str, parts: Parts, slow: list[str]) -> Any:
    """Function that Optuna minimizes: nats a token on validation text."""
    import optuna

    text = TEXTS[name]
    nano = configure("nano", parts.train, [*slow, f"slow.batch_size={text.batch_size}", f"slow.steps={BUDGET}"])
    budget = operations(nano, parts.train)

    def measure(trial: Any) -> float:
        settings = [*slow, *suggested(trial)]
        try:
            steps = steps_for(budget, settings, parts, text.batch_size)
            every = max(1, steps // LOOKS)
            more = [f"slow.steps={steps}", f"slow.eval_every={every}", "slow.eval_sequences=16"]
            config = configure("nano", parts.train, [*settings, f"slow.batch_size={text.batch_size}", *more])

            def watch(progress: Progress) -> None:
                if progress.validation is not None and 0 < progress.step < steps:
                    trial.report(progress.validation.nats_per_token, progress.step // every)
                    if trial.should_prune():
                        raise optuna.TrialPruned

            trained = train(config, parts.train, parts.validation, watch=watch)
            bound = judge(trained.run, parts.validation, SEQUENCES[text.length], particles=PARTICLES)
        except UserError as error:  # a pair that is refused, or a training that ran away
            trial.set_user_attr("refused", str(error)[:200])
            raise optuna.TrialPruned from None
        trial.set_user_attr("settings", settings)
        trial.set_user_attr("slow steps", steps)
        trial.set_user_attr("seconds", round(trained.seconds, 1))
        trial.set_user_attr("rate", round(bound.kl_nats_per_sequence, 2))
        trial.set_user_attr("importance-weighted", round(bound.iwae_nats_per_token, 4))
        return bound.nats_per_token

    return measure


def storage_of(journal: Path) -> Any:
    """Where Optuna keeps its trials; a journal that is not there is made."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return JournalStorage(JournalFileBackend(str(journal)))


def study_of(name: str, journal: Path) -> Any:
    """The study of a text, begun or gone on with."""
    import optuna

    return optuna.create_study(
        study_name=name,
        storage=storage_of(journal),
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=0, multivariate=True, n_startup_trials=8),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
    )


def found(journal: Path) -> dict[str, list[Any]]:
    """The trials of each text in a journal, which stays as it is. Raises UserError where there is none."""
    import optuna

    if not journal.is_file():
        raise UserError(f"{journal}: missing; a search writes it")
    storage = storage_of(journal)
    names = optuna.get_all_study_names(storage)  # `create_study` would note a study once more
    return {name: optuna.load_study(study_name=name, storage=storage).trials for name in TEXTS if name in names}


def best(trials: Sequence[Any], count: int = 8) -> str:
    """The best of a text's trials, and how many there were."""
    done = sorted((one for one in trials if one.state.name == "COMPLETE"), key=lambda one: one.value)
    rows = [
        [
            f"{one.value:.4f}",
            f"{one.user_attrs['importance-weighted']:.4f}",
            one.user_attrs["rate"],
            one.user_attrs["slow steps"],
            ", ".join(f"{key} {_short(value)}" for key, value in one.params.items()),
        ]
        for one in done[:count]
    ]
    refused = sum("refused" in one.user_attrs for one in trials)
    pruned = sum(one.state.name == "PRUNED" for one in trials) - refused
    columns = ["ELBO, validation", "importance-weighted", "rate", "slow steps", "recipe"]
    counts = f"{len(trials)} trials: {len(done)} to the end, {pruned} pruned, {refused} refused."
    return f"{table(columns, rows)}\n{counts}\n"


def _short(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("runs/search"))
    parser.add_argument("--text", choices=list(TEXTS), default="tinyshakespeare")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--trials", type=int, help="so many more trials at most")
    parser.add_argument("--journal", type=Path, default=JOURNAL)
    parser.add_argument("--table", action="store_true", help="print what was found, search no further")
    options = parser.parse_args(arguments)
    if options.table:
        for name, trials in found(options.journal).items():
            print(f"{name}\n\n{best(trials)}")
        return
    torch.set_num_threads(1)
    parts = prepared(options.text, options.shared / "data", options.out)
    study = study_of(options.text, options.journal)
    if not study.trials:
        for known in KNOWN:
            study.enqueue_trial({**COMMON, **known})
    study.optimize(objective_of(options.text, parts, SLOW), n_trials=options.trials, timeout=60 * options.minutes)
    print(best(study.trials))


if __name__ == "__main__":
    main()
