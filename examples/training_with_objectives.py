# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Training with objectives, and with a guide of your own
#
# [The first notebook](variational_objectives.ipynb) held a decoder still and looked at guides and objectives. Here
# decoders learn under them, from the same made language: a text has a *subject* and a *manner*, together log 16 nats,
# and only thoughts can tell them to the decoder.
#
# Two words recur. The **distortion** is E_q[-log p(x | z)], what the text still costs once its thoughts are known. The
# **rate** is KL(q || p), what the thoughts cost. Minus their sum is the ELBO, which is never above log p(x) in
# expectation. All figures are in **nats a text**, unless the axis says otherwise, and all scores are taken on noise
# that the fit has not seen, unless the text says otherwise.
#
# It runs in a few minutes on two cores, with `made_language.py` beside it, and downloads nothing. It needs the extra
# `notebook`: `pip install -e '.[notebook]'`. Sentences that begin with **Seen** are computed from the numbers above
# them, so they hold for your run as well.

# %%
import math
import tempfile
import time
from pathlib import Path

import made_language as made
import pyro.distributions as dist
import torch
from made_language import (
    BEST,
    compared,
    measure,
    prepare,
    say,
    say_time,
    settings,
    share_of,
    show,
    standard_error,
    table,
    train,
    write_texts,
)
from matplotlib.figure import Figure

import pyro_ltm as ltm
from pyro_ltm.guides import Guide
from pyro_ltm.noise import rsample_from
from pyro_ltm.objectives import MonteCarloELBO, Objective, TargetRate

started = time.perf_counter()
folder = Path(tempfile.mkdtemp(prefix="pyro-ltm-notebook-"))
texts = write_texts(3000)
data = prepare(texts, folder)

# %% [markdown]
# ## 1. A posterior that collapses, and what prevents it
#
# A decoder that can do something without z learns that first. As long as z says nothing, every nat of rate is a pure
# loss, and the way down is q = prior: rate 0, the thoughts are never learnt. An *amortized* guide (an encoder, as in a
# VAE) falls for it easily: encoder and decoder must learn one another's language at the same time.
#
# Six ways to train the same decoder. An encoder takes no fast steps, so it gets more slow steps; the table has the
# seconds. Each is judged by rate and distortion of its own fit on fresh noise, and by the **distortion with another
# text's thoughts**. That last figure matters: a rate says what is *paid* for thoughts, and only a distortion that
# rises when they are swapped says that the decoder *reads* them.
#
# **Look for** the rows with rate 0, and for those where the swapped distortion stands clear of the own one.

# %%
ENCODER = [
    "guide.name=amortized",
    "guide.width=32",
    "guide.encoder_layers=1",
    "slow.lr=0.005",
]
WAYS = {
    "encoder, full KL": (400, [*ENCODER, "objective.warmup=0.0"]),
    "encoder, KL warm-up": (400, [*ENCODER, "objective.warmup=0.6"]),
    "encoder, free bits": (400, [*ENCODER, "objective.name=free-bits", "objective.nats=4.0"]),
    "fast steps, full KL": (150, ["objective.warmup=0.0"]),
    "fast steps, KL warm-up": (150, ["objective.warmup=0.6"]),
    "fast steps, target rate": (150, ["objective.name=target-rate", "objective.nats=4.0"]),
}
trained, spent = {}, {}
for name, (steps, more) in WAYS.items():
    other, spent[name] = train(folder, data, name.replace(" ", "-"), steps, *more)
    # q is fitted by the objective of the training; the score has the whole KL and fresh noise all the same.
    amortized = other.loop.guide.learning == "amortized"
    trained[name] = other.evaluate(
        particles=8, sequences=share_of(64, 6), fast_steps=None if amortized else share_of(32)
    )


def nats(bound, part):
    """A figure in nats a text."""
    per_text = bound.tokens / bound.sequences
    return getattr(bound, part) * (1 if part == "kl_nats_per_sequence" else per_text)


table(
    ["way", "slow steps", "seconds", "rate", "distortion", "with another's thoughts", "minus ELBO (± s.e.)"],
    [
        [
            name,
            f"{share_of(WAYS[name][0])}",
            f"{spent[name]:.0f}",
            f"{nats(bound, 'kl_nats_per_sequence'):.2f}",
            f"{nats(bound, 'distortion_nats_per_token'):.1f}",
            f"{nats(bound, 'distortion_shuffled'):.1f}",
            f"{nats(bound, 'nats_per_token'):.1f} ± {nats(bound, 'nats_per_token_stderr'):.1f}",
        ]
        for name, bound in trained.items()
    ],
)
figure = Figure(figsize=(9, 3.2), layout="constrained")
rate, reading = figure.subplots(1, 2, sharey=True)
places = list(range(len(trained)))[::-1]
rate.barh(places, [nats(bound, "kl_nats_per_sequence") for bound in trained.values()], color=made.BLUE)
rate.axvline(math.log(16), color="0.3", linestyle="--", label="subject and manner: log 16")
rate.set(xlabel="rate: paid, nats a text", yticks=places, yticklabels=list(trained))
rate.legend(fontsize=8, loc="upper right")
gain = [nats(bound, "distortion_shuffled") - nats(bound, "distortion_nats_per_token") for bound in trained.values()]
reading.barh(places, gain, color=made.GREEN)
reading.set(xlabel="rise when swapped: read, nats a text")
show(figure)

# %%
collapsed = [name for name, bound in trained.items() if nats(bound, "kl_nats_per_sequence") < 0.1]
awake = [name for (name, _), rise in zip(trained.items(), gain, strict=True) if rise > 1]
leader = min(trained, key=lambda name: trained[name].nats_per_token)
say(
    f"**Seen.** Rate below 0.1: {', '.join(collapsed) or 'none'}. Thoughts that the decoder reads (the distortion "
    f"rises by more than a nat): {', '.join(awake) or 'none'}. The lowest bound on the cost of a text is that of "
    f"*{leader}*, {nats(trained[leader], 'nats_per_token'):.1f} nats, where {BEST:.1f} is the best possible: keeping "
    "thoughts awake is not yet the best model, and a floor or a target is charged in full here. Warm-up is the usual "
    "advice; whether it was enough for the encoder in so few steps, the table says. One seed each."
)

# %% [markdown]
# ## 2. A guide and an objective of your own
#
# Nothing is registered in the library and no file of it changes. A **guide** gives its first state and the
# distribution that a state stands for; here independent Laplace distributions, with a sharper peak and heavier tails
# than Normals. So that its draws are keyed by text like all others, `rsample_from` learns how to make one of a
# standard normal. An **objective** gives one value for each text; here -distortion - gamma |rate - C|, which holds the
# rate at a *capacity* C by a penalty (Burgess and others, arXiv:1804.03599).
#
# Both fit 24 texts under one decoder, which the paper's guide and objective trained.
#
# **Look for** the new guide beside `mean-field` on the same ELBO, and for rates beside that of `TargetRate`, which
# holds its target by a multiplier.


# %%
class DoubleExponential(Guide):
    """Independent Laplace distributions: a mean and a width for each latent dimension."""

    def init(self, batch):
        mean = torch.zeros(batch.size, self.thoughts, self.dim)
        return {"mean": mean, "log_width": mean - 0.5 * math.log(2)}  # the variance 2 width^2 is the prior's

    def distribution(self, state):
        return dist.Laplace(state["mean"], state["log_width"].exp()).to_event(2)


@rsample_from.register
def laplace_from_normals(distribution: dist.Laplace, normals):
    share = torch.special.ndtr(normals(distribution.loc.shape)).clamp(1e-6, 1 - 1e-6) - 0.5
    return distribution.loc - distribution.scale * share.sign() * torch.log1p(-2 * share.abs())


class Capacity(Objective):
    """-distortion - gamma |rate - nats|."""

    reads_kl = True

    def __init__(self, nats=4.0, gamma=5.0, particles=4):
        super().__init__(particles)
        self.nats, self.gamma = nats, gamma

    def value(self, terms):
        return -terms.distortion - self.gamma * (terms.rate - self.nats).abs()


run, _ = train(folder, data, "main", 250)
model = run.model.requires_grad_(False)  # from here on it is held still
batch = model.precompute(ltm.TokenDataset(data, "validation").batch(range(share_of(24, 6))))
mine = {
    "mean-field, ELBO": measure(model, batch, MonteCarloELBO(particles=8)),
    "Laplace, ELBO": measure(model, batch, MonteCarloELBO(particles=8), DoubleExponential(1, 32)),
    "mean-field, target rate 4": measure(model, batch, TargetRate(particles=4, nats=4.0), steps=60),  # it must settle
    "mean-field, capacity 4": measure(model, batch, Capacity(4.0)),
}
compared(mine, "guide, objective")
normal, laplace = mine["mean-field, ELBO"], mine["Laplace, ELBO"]
paired = laplace["elbos"] - normal["elbos"]
held, goal = mine["mean-field, capacity 4"], mine["mean-field, target rate 4"]
say(
    f"**Seen.** The Laplace guide's ELBO less the Normal's, text by text: {float(paired.mean()):.2f} ± "
    f"{standard_error(paired):.2f} nats. Asked for 4 nats, the capacity objective holds {held['rate']:.2f} and the "
    f"target rate {goal['rate']:.2f}, at distortions of {held['distortion']:.1f} and {goal['distortion']:.1f}."
)

# %% [markdown]
# ## 3. Your guide in a whole run
#
# `ltm.train` takes a class or an object wherever it takes a name, and so do `run.infer`, `run.evaluate` and
# comparisons. The run folder keeps how to make each again. No name brings back a class of a notebook
# (`<__main__.DoubleExponential>` below), so `Run.load` is given it once more; one of a file is loaded by its name,
# `mymodule:MyGuide`, and only with `allow_code=True`: a run from a stranger must not run code.
#
# **Look for** what a run and a posterior say of themselves, and for two families under one decoder.

# %%
own = {"guide": DoubleExponential, "objective": MonteCarloELBO(particles=2)}
ltm.train(settings(100), data=data, out=folder / "mine", **own)
again = ltm.Run.load(folder / "mine", guide=DoubleExponential)
print(str(again).replace(f"{folder}/", ""))
print(again.infer(texts[:2])[1])
sharp, round_ = (again.evaluate(particles=4, sequences=share_of(64, 6), guide=guide) for guide in (None, "mean-field"))
apart = round_.sequence_nats - sharp.sequence_nats
mean = float(apart.mean())
say(
    "**Seen.** Under a decoder trained with Laplace posteriors a text costs at most "
    f"{nats(sharp, 'nats_per_token'):.1f} nats by {sharp.guide}. By {round_.guide} in its place the bound is "
    f"{abs(mean):.2f} ± {standard_error(apart):.2f} nats {'lower' if mean < 0 else 'higher'}."
)

# %% [markdown]
# ## Where to go on
#
# docs/own-guide.md takes a guide of your own from a file to the command line; CONTRIBUTING.md says how to put one into
# the registry. Whether compute is better spent on fast steps, on slow steps or on a larger decoder, `pyro-ltm scale`
# measures (docs/scaling.md).

# %%
say_time(started)
