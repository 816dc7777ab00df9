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
# # Exploring the variational objectives
#
# A latent-thought language model draws for each text some *thoughts* z from N(0, I), and a decoder writes the tokens x
# from them. What the thoughts of a given text are, p(z | x), cannot be computed; a *guide* q(z) is fitted in its place
# by raising an *objective*. This notebook looks at both.
#
# Two words recur. The **distortion** is E_q[-log p(x | z)], what the text still costs once its thoughts are known. The
# **rate** is KL(q || p), what the thoughts cost. Minus their sum is the ELBO, which is never above log p(x) in
# expectation. All figures are in **nats a text**, unless the axis says otherwise, and all scores are taken on noise
# that the fit has not seen, unless the text says otherwise.
#
# It runs from a bare kernel in a few minutes on two cores, and downloads nothing. It needs the extra `notebook`:
# `pip install -e '.[notebook]'`. Sentences that begin with **Seen** are computed from the numbers above them, so they
# hold for your run as well.

# %%
import io
import json
import math
import os
import random
import tempfile
import time
from pathlib import Path

import graphviz
import ipywidgets as widgets
import pyro
import pyro.distributions as dist
import torch
from IPython.display import SVG, Image, Markdown, display
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch

import pyro_ltm as ltm
from pyro_ltm import FastLoop
from pyro_ltm.guides import Delta, FullRank, Guide, MeanField, Mixture
from pyro_ltm.inference.log_joint import LogJoint
from pyro_ltm.noise import rsample_from
from pyro_ltm.objectives import (
    IWAE,
    MAP,
    AnalyticELBO,
    BetaELBO,
    FreeBits,
    MonteCarloELBO,
    Objective,
    Renyi,
    TargetRate,
)
from pyro_ltm.optimizers import Adam

started = time.perf_counter()
torch.set_num_threads(1)  # models this small gain nothing from a second
SHARE = float(os.environ.get("PYRO_LTM_NOTEBOOK_SHARE", "1"))  # of slow steps and texts; below 1 for a quick look
folder = Path(tempfile.mkdtemp(prefix="pyro-ltm-notebook-"))
# Okabe and Ito's colours, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
PINK, SKY, RED, BLACK = "#CC79A7", "#56B4E9", "#D55E00", "#000000"


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()


def show(figure):
    display(Image(png(figure)))


def say(text):
    display(Markdown(text))


def table(columns, rows):
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    say("\n".join("| " + " | ".join(line) + " |" for line in lines))


def share_of(count, least=2):
    return max(least, round(count * SHARE))


def standard_error(values):
    return float(values.std() / math.sqrt(len(values)))


# %% [markdown]
# ## 0. A language whose best score is known
#
# On real text nobody knows how many nats are the right ones. So the text here is made: each text has a *subject* (one
# of 4) and a *manner* (one of 4), and consists of eight clauses "the NOUN VERB .", the noun one of the subject's six,
# the verb one of the manner's four. Subject and manner together are log 16 nats, and whoever knows them pays
# log 6 + log 4 nats a clause.
#
# The decoder's self-attention sees the current token alone (`model.window=1`). It can learn which words follow which,
# but it cannot remember what the text is about: only thoughts can tell it.

# %%
SUBJECTS = """wave boat sail tide gull net | bread knife oven soup pan salt | song drum note choir harp flute
| rose seed tree bee leaf lawn"""
MANNERS = "rests waits sleeps dreams | roars shakes rings bursts | runs jumps flies turns | grows leans bends fades"
subjects, manners = ([part.split() for part in text.split("|")] for text in (SUBJECTS, MANNERS))
CLAUSES, VOCABULARY = 8, 390


def write_text(chance):
    nouns, verbs = chance.choice(subjects), chance.choice(manners)
    return " ".join(f"the {chance.choice(nouns)} {chance.choice(verbs)} ." for _ in range(CLAUSES))


chance = random.Random(0)
texts = [write_text(chance) for _ in range(3000)]
(folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
data = ltm.prepare(
    [str(folder / "texts.jsonl")],
    folder / "data",
    vocab_size=VOCABULARY,
    sequence_length=4 * CLAUSES + 1,
    packing="document",
).path
held_out = ltm.TokenDataset(data, "validation")
each = CLAUSES * (math.log(6) + math.log(4))
BEST, WITHOUT = each + math.log(16), CLAUSES * math.log(24 * 16)
print(texts[0])
print(f"the best possible, over whole texts:    {BEST:.1f} nats a text, of which subject and manner {math.log(16):.2f}")
print(f"without knowing subject and manner:     {WITHOUT:.1f} nats a text, if noun and verb are guessed anew each time")

# %% [markdown]
# ## 1. The model is a Pyro program
#
# **Look for** two sites in the plate `sequences`: `thoughts`, drawn from the prior, and `tokens`, observed. There is
# no encoder among them. `render_model` writes the graph in the DOT language, and Graphviz's program `dot` draws it.
# Where that is not installed, the cell says so, shows the DOT source, and draws the same relations with matplotlib.

# %%
BASE = [
    "model.dim=32",
    "model.layers=1",
    "model.thoughts=1",
    "model.window=1",
    "model.max_length=40",
    "slow.lr=0.04",
    "slow.warmup=20",
    "slow.eval_every=0",
    "slow.eval_sequences=1",
    "fast.steps=8",
]


def train(name, steps, *settings):
    """A decoder trained for so many slow steps, and the seconds that it took."""
    begun = time.perf_counter()
    config = ltm.apply_settings(ltm.preset("nano"), [*BASE, f"slow.steps={share_of(steps)}", *settings])
    run = ltm.train(config, data=data, out=folder / name, on_note=print)  # what it notices on the way
    return run, time.perf_counter() - begun


run, seconds = train("main", 250)
model = run.model.requires_grad_(False)  # from here on it is held still
batch = model.precompute(held_out.batch(range(share_of(24, 6))))
print(f"{sum(p.numel() for p in model.parameters())} parameters, {run.step} slow steps, {seconds:.0f} s")
print(pyro.poutine.trace(model).get_trace(batch).format_shapes())


def draw_relations():
    figure = Figure(figsize=(4.6, 1.9), layout="constrained")
    axes = figure.subplots()
    axes.add_patch(FancyBboxPatch((0.2, 0.25), 4.0, 1.1, boxstyle="round,pad=0.05", fill=False, color="0.4"))
    axes.text(4.2, 0.27, "sequences", ha="right", color="0.3")
    for x, name, colour in ((1.1, "thoughts", "white"), (3.2, "tokens", "0.85")):
        axes.scatter([x], [0.85], s=3600, color=colour, edgecolor="black", zorder=2)
        axes.text(x, 0.85, name, ha="center", va="center", fontsize=9, zorder=3)
    axes.annotate("", (2.72, 0.85), (1.58, 0.85), arrowprops={"arrowstyle": "-|>", "color": "black"})
    axes.set(xlim=(0, 4.4), ylim=(0.1, 1.5))
    axes.axis("off")
    return figure


graph = pyro.render_model(model, model_args=(batch,), render_distributions=True)
try:
    display(SVG(graph.pipe("svg")))
except graphviz.ExecutableNotFound:
    print("Graphviz's program 'dot' is not installed here: this is what render_model would have it draw,")
    print(graph.source)
    show(draw_relations())

# %% [markdown]
# An arrow says that the tokens depend on the thoughts; the grey site is observed. **Seen:** the trace has batch shape
# [24] at both sites, and event shapes [N, D] and [T].

# %% [markdown]
# ## 2. One text, and its posterior under four guides
#
# The text is the one of 24 whose thoughts carry most. A thought has 32 dimensions, and the decoder reads sums of them,
# so no single one says much. The figure shows the plane that says most: its first direction points from the prior's
# mean to the mean-field mean, its second, at a right angle, towards the point that `delta` finds. The contours are the
# true posterior on a grid over this plane, **with the thirty directions at right angles to it held at zero**, where the
# mean-field mean has them: a slice, not the marginal. So it need not have the width of q, and a guide may settle beside
# the plane. Arrows follow the mean of q over the fast steps; dots are draws from the last q.
#
# **Look for** paths that leave the prior's mean (0, 0) in large steps and slow down; a `delta` that has no width; and
# whether the richer families reach a better bound than `mean-field` here.

# %%
look = FastLoop(MeanField(1, 32), AnalyticELBO(particles=4), steps=24).fit(model, batch)
rates = look.score(model, batch).rate
index = int(rates.argmax())
one = batch.select(torch.tensor([index]))
print(held_out.tokenizer.decode(one.targets[0].tolist()))
guides = {
    "delta": (Delta(1, 32), MAP()),
    "mean-field": (MeanField(1, 32), AnalyticELBO(particles=8)),
    "full-rank": (FullRank(1, 32), AnalyticELBO(particles=8)),
    "mixture of 2": (Mixture(1, 32), MonteCarloELBO(particles=8)),
}
fitted, paths = {}, {}
for name, (guide, objective) in guides.items():
    path = paths[name] = []

    def watch(step, state, guide=guide, path=path):
        path.append(guide.distribution(state).mean.detach()[0].flatten())

    fitted[name] = FastLoop(guide, objective, steps=32).fit(model, one, watch=watch)
paths = {name: torch.stack(path) for name, path in paths.items()}

q = fitted["mean-field"].distribution
mean = q.mean.flatten()
along = mean / mean.norm()
aside = paths["delta"][-1] - (paths["delta"][-1] @ along) * along
plane = torch.stack([along, aside / aside.norm()])  # [2, 32]

SIDE = 41
reach = float(mean.norm())
across = [torch.linspace(-2, reach + 3, SIDE), torch.linspace(-3.5, 3.5, SIDE)]
points = torch.cartesian_prod(*across) @ plane
target = LogJoint(model, one)
with torch.no_grad():
    joint = torch.cat([target(part[:, None, None]) for part in points.split(256)]).view(SIDE, SIDE)
cells = (joint - joint.logsumexp((0, 1))).exp()

figure = Figure(figsize=(11, 3.1), layout="constrained")
panels = figure.subplots(1, 4, sharex=True, sharey=True)
for axes, (name, path) in zip(panels, paths.items(), strict=True):
    levels = cells.max().item() * torch.tensor([0.01, 0.1, 0.37, 0.8])
    axes.contour(*across, cells.T, levels=levels.tolist(), colors="0.55", linewidths=1)
    draws = fitted[name].with_noise(1).sample(150)[:, 0].flatten(1) @ plane.T
    axes.scatter(*draws.T, s=5, color=SKY, alpha=0.5)
    places = path @ plane.T
    moves = places[1:] - places[:-1]
    axes.quiver(*places[:-1].T, *moves.T, angles="xy", scale_units="xy", scale=1, color=BLUE, width=0.008)
    axes.plot(*places[0], "o", color=BLACK, markersize=5)
    axes.plot(*places[-1], "*", color=RED, markersize=11)
    axes.set(title=name, xlabel="z, towards the mean-field mean")
panels[0].set_ylabel("z, at a right angle")
handles = [
    Line2D([], [], color="0.55", label="true posterior, slice"),
    Line2D([], [], color=BLUE, label="mean of q, step by step"),
    Line2D([], [], color=BLACK, marker="o", linestyle="", label="start: the prior's mean"),
    Line2D([], [], color=RED, marker="*", linestyle="", markersize=10, label="after 32 steps"),
    Line2D([], [], color=SKY, marker=".", linestyle="", label="draws from q"),
]
figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
show(figure)

# %%
DRAWS = 512
rows, bounds = [], {}
for name, posterior in fitted.items():
    if not posterior.guide.has_density:
        rows.append([name, "no density", "-", "-"])
        continue
    terms = posterior.with_noise(2).score(model, one, particles=DRAWS)
    # With the KL in closed form only the distortion is sampled; without it all of log w is.
    sampled = terms.log_likelihood[:, 0] if terms.kl is not None else terms.log_weight[:, 0]
    error = standard_error(sampled)
    elbo = float(-terms.distortion - terms.rate)
    evidence = float(terms.log_weight.logsumexp(0) - math.log(DRAWS))
    bounds[name] = (elbo, error, evidence)
    rows.append([name, f"{elbo:.2f} ± {error:.2f}", f"{float(terms.rate):.2f}", f"{evidence:.2f}"])
table(["guide", "ELBO (± s.e.)", "rate", f"importance-weighted, {DRAWS} draws"], rows)
best = max(bounds, key=lambda name: bounds[name][0])
gain = bounds[best][0] - bounds["mean-field"][0]
spread = math.hypot(bounds[best][1], bounds["mean-field"][1])
verdict = (
    "mean-field itself"
    if best == "mean-field"
    else f"{best}, {gain:.2f} nats above mean-field, "
    + ("more than" if gain > 2 * spread else "less than")
    + " two standard errors of the difference"
)
first_half = float((paths["mean-field"][16] - paths["mean-field"][0]).norm())
second_half = float((paths["mean-field"][-1] - paths["mean-field"][16]).norm())
say(
    f"**Seen.** The mean-field mean moves by {first_half:.1f} in the first 16 steps and by {second_half:.1f} in the "
    f"last 16. It ends at {reach:.1f} from the prior's mean, which alone costs {reach**2 / 2:.2f} nats of the rate of "
    f"{float(fitted['mean-field'].with_noise(2).score(model, one).rate):.2f}; `delta` stays at "
    f"{float(paths['delta'][-1].norm()):.1f}, near the top of the slice. A likely reason for a difference: the slice "
    "has no noise in the other thirty directions, and q has. The best bound on this one text is that of "
    f"{verdict}. The last column estimates log p(x) itself: what a bound lacks to it is the price of its family and of "
    "few fast steps. A point has no density, and no bound judges it."
)

# %% [markdown]
# ## 3. Six objectives under one decoder
#
# The decoder is held still; only what the fast steps raise changes. 24 texts, mean-field,
# 24 fast steps (60 for the target rate, whose multiplier must settle), 4 draws.
#
# - `ELBO`: -distortion - rate. `beta`: -distortion - beta rate.
# - `IWAE`: log of the mean of K weights p(x, z) / q(z): a bound too, tighter as K grows. `Rényi` of order alpha lies
#   between: ELBO at 1, IWAE at 0, beyond ELBO above 1.
# - `free bits`: the first nats of the rate cost nothing. `target rate`: as many nats as asked for, held by a
#   multiplier.
#
# **Look for** one curve in the rate-distortion plane: beta, free bits and target rate choose a *place* on it. The
# dashed lines have slope -1, along them the ELBO is the same; the objective `ELBO` looks for the line that touches the
# curve lowest. Each family's curves over the fast steps start at the same height only where they estimate the same
# thing at q = prior.

# %%
FITS = {  # name: label, values, how to make it
    "beta": ("beta = {:g}", [0.05, 0.2, 0.5, 1.0, 2.0, 4.0], lambda value: BetaELBO(particles=4, beta=value)),
    "free bits": ("free bits, floor {:g}", [1.0, 2.0, 4.0, 6.0, 8.0], lambda value: FreeBits(particles=4, nats=value)),
    "target rate": ("target rate {:g}", [1.0, 2.0, 4.0, 6.0, 8.0], lambda value: TargetRate(particles=4, nats=value)),
    "IWAE": ("IWAE, {:g} draws", [2, 4, 8], lambda value: IWAE(particles=value)),
    "Rényi": ("Rényi, alpha = {:g}", [0.0, 0.5, 2.0], lambda value: Renyi(particles=4, alpha=value)),
    "ELBO": ("ELBO", [1.0], lambda value: AnalyticELBO(particles=4)),
}
COLOURS = dict(zip(FITS, (BLUE, ORANGE, GREEN, PINK, SKY, RED), strict=True))
MARKS = dict(zip(FITS, "osD^v*", strict=True))


def measure(objective, guide=None, steps=24, **fitting):
    """Scores of a fit of all 24 texts on fresh noise: means over texts, and standard errors."""
    guide = guide or MeanField(1, 32)
    posterior = FastLoop(guide, objective, steps=steps, **fitting).fit(model, batch)
    terms = posterior.with_noise(3).score(model, batch, particles=16)
    result = {"rate": terms.rate, "distortion": terms.distortion, "elbo": -terms.distortion - terms.rate}
    figures = {name: float(value.mean()) for name, value in result.items()}
    figures |= {f"{name}_error": standard_error(value) for name, value in result.items()}
    return figures | {"history": posterior.history.mean(1), "elbos": result["elbo"], "state": posterior.state}


def by_dimension(found):
    """[D] KL of each dimension, mean over texts, largest first."""
    mean, log_variance = found["state"]["loc"], found["state"]["log_variance"]
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return kl.mean((0, 1)).sort(descending=True).values


found = {
    (name, value): measure(make(value), steps=60 if name == "target rate" else 24)  # its multiplier has to settle
    for name, (_, values, make) in FITS.items()
    for value in values
}

# %%
figure = Figure(figsize=(11, 3.6), layout="constrained")
curves, plane = figure.subplots(1, 2)
chosen = [("ELBO", 1.0), ("IWAE", 8), ("Rényi", 0.5), ("beta", 0.2), ("free bits", 4.0), ("target rate", 4.0)]
for name, value in chosen:
    label = FITS[name][0].format(value)
    history = found[name, value]["history"][:24]
    curves.plot(range(len(history)), history, color=COLOURS[name], marker=MARKS[name], markevery=4, label=label)
curves.set(xlabel="fast steps done", ylabel="own value, nats a text", title="What each objective raises")
curves.legend(fontsize=8, loc="lower right")


def draw_plane(axes, chosen=None):
    top = max(one["rate"] for one in found.values())
    low = min(one["distortion"] + one["rate"] for one in found.values())
    for nats in range(0, 40, 2):
        axes.axline((0, low + nats), slope=-1, color="0.8", linestyle="--", linewidth=0.8)
    for name, (_, values, _) in FITS.items():
        x, y = ([found[name, value][part] for value in values] for part in ("rate", "distortion"))
        line = "-" if name in ("beta", "free bits", "target rate") else "none"
        fade = 1.0 if chosen is None else 0.35
        size = 13 if name == "ELBO" else 6
        style = {"linestyle": line, "marker": MARKS[name], "color": COLOURS[name], "markersize": size, "lw": 1}
        axes.plot(x, y, **style, label=name, alpha=fade)
    if chosen is not None:
        axes.plot(found[chosen]["rate"], found[chosen]["distortion"], "o", color=BLACK, fillstyle="none", markersize=14)
    high = max(one["distortion"] for one in found.values())
    axes.set(xlabel="rate, nats a text", ylabel="distortion, nats a text", xlim=(-0.3, top + 0.7))
    axes.set_ylim(low - top - 0.5, high + 1)
    axes.set_title("The rate-distortion plane")


draw_plane(plane)
plane.legend(fontsize=8)
show(figure)
rows = []
for name, value in chosen:
    one_found = found[name, value]
    label = FITS[name][0].format(value)
    parts = [f"{one_found[part]:.2f} ± {one_found[part + '_error']:.2f}" for part in ("rate", "distortion", "elbo")]
    rows.append([label, *parts])
table(["objective", "rate (± s.e. over texts)", "distortion", "ELBO, on fresh noise"], rows)

# %%
low, high = found["beta", 4.0], found["beta", 0.05]
difference = found["ELBO", 1.0]["elbos"] - found["IWAE", 8]["elbos"]
say(
    f"**Seen.** From beta = 4 to beta = 0.05 the rate goes from {low['rate']:.2f} to {high['rate']:.2f} nats, and the "
    f"distortion from {low['distortion']:.1f} to {high['distortion']:.1f}. Asked for 4 nats, the target rate holds "
    f"{found['target rate', 4.0]['rate']:.2f}; a floor of 4 nats leaves {found['free bits', 4.0]['rate']:.2f}. The "
    "left panel's curves must not be ranked: they are values of different objectives, and those of beta below 1 and of "
    f"the target rate are no bounds. Judged alike, by the ELBO, the q of `ELBO` is {float(difference.mean()):.2f} ± "
    f"{standard_error(difference):.2f} nats above the q of `IWAE` with 8 draws, which seeks another q: one whose "
    "best draws are good."
)

# %% [markdown]
# ### Sliders
#
# Everything is computed already; the sliders only choose what is drawn. Without a live kernel (on a web page, say)
# they do not move: the figure below them shows the same for some of their values.


# %%
def view(name, value):
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    plane, bars = figure.subplots(1, 2)
    draw_plane(plane, (name, value))
    bars.bar(range(1, 33), by_dimension(found[name, value]).tolist(), color=COLOURS[name])
    bars.set(xlabel="latent dimension, sorted", ylabel="KL, nats", ylim=(0, HIGHEST))
    chosen = found[name, value]
    bars.set_title(f"{FITS[name][0].format(value)}: ELBO {chosen['elbo']:.1f}, rate {chosen['rate']:.1f}")
    return png(figure)


HIGHEST = 1.05 * max(float(by_dimension(one_found).max()) for one_found in found.values())
picture = widgets.Image(value=view("beta", 1.0), format="png")
family = widgets.Dropdown(options=list(FITS), value="beta", description="objective")
setting = widgets.SelectionSlider(options=FITS["beta"][1], value=1.0, description="value")


def on_family(change):
    values = FITS[change["new"]][1]
    setting.unobserve(on_setting, "value")
    setting.options = values
    setting.value = values[0]
    setting.observe(on_setting, "value")
    picture.value = view(change["new"], values[0])


def on_setting(change):
    picture.value = view(family.value, change["new"])


family.observe(on_family, "value")
setting.observe(on_setting, "value")
display(widgets.VBox([widgets.HBox([family, setting]), picture]))

# %%
figure = Figure(figsize=(11, 4.6), layout="constrained")
panels = figure.subplots(3, 3, sharex=True, sharey=True)
still = {"beta": [4.0, 1.0, 0.2], "target rate": [1.0, 4.0, 8.0], "Rényi": [0.0, 0.5, 2.0]}
for line, (name, values) in zip(panels, still.items(), strict=True):
    for axes, value in zip(line, values, strict=True):
        axes.bar(range(1, 33), by_dimension(found[name, value]).tolist(), color=COLOURS[name])
        chosen = found[name, value]
        axes.set_title(
            f"{FITS[name][0].format(value)}: rate {chosen['rate']:.1f}, distortion {chosen['distortion']:.1f}",
            fontsize=9,
        )
    line[0].set_ylabel("KL, nats")
for axes in panels[-1]:
    axes.set_xlabel("latent dimension, sorted")
show(figure)

# %% [markdown]
# ## 4. Why the choice of noise matters
#
# A fast step needs a draw z = mean + width · noise. The noise may be *fresh* in each step, *antithetic* (each second
# draw mirrors the one before), or *fixed*: one draw for all steps, which is what the reference implementation does.
# A fit on fixed noise can learn that draw: it moves the mean so that this one z is good. Scored on the same draw it
# then looks better than it is, and the score is no bound. Two settings, both with 16 steps of one draw: the reference's
# (`examples/reference.toml`: q starts narrow, AdamW at 0.34) and the library's own (q starts at the prior, Adam at 0.5
# with eps = 1).
#
# **Look for** the gap between the two columns, and for texts whose score on the fit's own draw lies above an estimate
# of log p(x).

# %%
many = model.precompute(held_out.batch(range(share_of(64, 6))))
SETTINGS = {
    "reference": (
        MeanField(1, 32, init_loc=0.01, init_log_variance=-5.0, init_noise=0.1),
        Adam(lr=0.34, beta1=0.9, eps=1e-8, weight_decay=0.01),
    ),
    "library": (MeanField(1, 32), Adam()),
}
careful = FastLoop(MeanField(1, 32), AnalyticELBO(particles=4), steps=32).fit(model, many)
terms = careful.with_noise(4).score(model, many, particles=256)
log_evidence = terms.log_weight.logsumexp(0) - math.log(256)  # in expectation not above log p(x)
rows, gaps, above = [], {}, {}
for name, (guide, optimizer) in SETTINGS.items():
    for noise in ("fresh", "antithetic", "fixed"):
        posterior = FastLoop(guide, AnalyticELBO(), optimizer, steps=16, noise=noise).fit(model, many)
        scored = posterior.score(model, many), posterior.with_noise(5).score(model, many, particles=32)
        own, fresh = (-terms.distortion - terms.rate for terms in scored)
        gaps[name, noise], above[name, noise] = own - fresh, int((own > log_evidence).sum())
        figures = [f"{float(score.mean()):.2f} ± {standard_error(score):.2f}" for score in (own, fresh, own - fresh)]
        rows.append([f"{name}, {noise}", *figures, f"{above[name, noise]} of {len(own)}"])
table(["settings, noise", "on the fit's stream", "on fresh noise", "difference (paired)", "texts above log p(x)"], rows)
print(f"log p(x), importance-weighted estimate: {float(log_evidence.mean()):.2f} nats a text")

figure = Figure(figsize=(7, 2.8), layout="constrained")
axes = figure.subplots()
for shift, name, colour, mark in ((-0.08, "reference", ORANGE, "s"), (0.08, "library", BLUE, "o")):
    pairs = [gaps[name, noise] for noise in ("fresh", "antithetic", "fixed")]
    heights, errors = [float(gap.mean()) for gap in pairs], [2 * standard_error(gap) for gap in pairs]
    axes.errorbar([place + shift for place in range(3)], heights, errors, fmt=mark, color=colour, capsize=4, label=name)
axes.axhline(0, color="0.3", linestyle="--", linewidth=1)
axes.set_xticks(range(3), ["fresh", "antithetic", "fixed"])
axes.set(xlabel="noise of the fit", ylabel="own score less fresh score,\nnats a text (± 2 s.e.)", xlim=(-0.5, 2.5))
axes.legend(title="settings", fontsize=8, loc="upper left")
show(figure)

# %%
fixed, fresh, wide = gaps["reference", "fixed"], gaps["reference", "fresh"], gaps["library", "fixed"]
say(
    f"**Seen.** With the library's settings a fit on fixed noise is scored {float(wide.mean()):.1f} ± "
    f"{standard_error(wide):.1f} nats a text better on its own draw than on fresh noise. With the reference's it is "
    f"{float(fixed.mean()):.2f} ± {standard_error(fixed):.2f}: a q that starts narrow has little draw to learn, and "
    "pays for it with a KL that so few steps cannot take back (see its level in the table). On fresh noise the "
    "differences are "
    f"{float(fresh.mean()):.2f} ± {standard_error(fresh):.2f} and {float(gaps['library', 'fresh'].mean()):.2f} ± "
    f"{standard_error(gaps['library', 'fresh']):.2f}. "
    "One draw of a score may exceed log p(x) by chance; a bound may not on average. Above its estimate lie "
    f"{above['library', 'fixed']} texts of {len(wide)} with the library's settings on fixed noise, and "
    f"{above['library', 'fresh']} on fresh. After a fit on "
    "fresh or antithetic noise the stream goes on with draws that the fit has not seen (antithetic: but for a mirror "
    "image), so both columns estimate the same bound. On fixed noise the first column is a number about the draw, not "
    "about the model. That is why `evaluate` always scores on noise of its own."
)

# %% [markdown]
# ## 5. A posterior that collapses, and what prevents it
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
for name, (steps, settings) in WAYS.items():
    made, spent[name] = train(name.replace(" ", "-"), steps, *settings)
    # q is fitted by the objective of the training; the score has the whole KL and fresh noise all the same.
    amortized = made.loop.guide.learning == "amortized"
    trained[name] = made.evaluate(particles=8, sequences=share_of(64, 6), fast_steps=None if amortized else 32)


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
rate.barh(places, [nats(bound, "kl_nats_per_sequence") for bound in trained.values()], color=BLUE)
rate.axvline(math.log(16), color="0.3", linestyle="--", label="subject and manner: log 16")
rate.set(xlabel="rate: paid, nats a text", yticks=places, yticklabels=list(trained))
rate.legend(fontsize=8, loc="upper right")
gain = [nats(bound, "distortion_shuffled") - nats(bound, "distortion_nats_per_token") for bound in trained.values()]
reading.barh(places, gain, color=GREEN)
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
# ## 6. A guide and an objective of your own
#
# Nothing is registered in the library and no file of it changes. A **guide** gives its first state and the
# distribution that a state stands for; here independent Laplace distributions, with a sharper peak and heavier tails
# than Normals. So that its draws are keyed by text like all others, `rsample_from` learns how to make one of a
# standard normal. An **objective** gives one value for each text; here -distortion - gamma |rate - C|, which holds the
# rate at a *capacity* C by a penalty (Burgess and others, arXiv:1804.03599).
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


mine = {
    "mean-field, ELBO": measure(MonteCarloELBO(particles=8)),
    "Laplace, ELBO": measure(MonteCarloELBO(particles=8), DoubleExponential(1, 32)),
    "mean-field, target rate 4": found["target rate", 4.0],
    "mean-field, capacity 4": measure(Capacity(4.0)),
}
table(
    ["guide, objective", "rate (± s.e. over texts)", "distortion", "ELBO, on fresh noise"],
    [
        [name, *(f"{one[part]:.2f} ± {one[part + '_error']:.2f}" for part in ("rate", "distortion", "elbo"))]
        for name, one in mine.items()
    ],
)
normal, laplace = mine["mean-field, ELBO"], mine["Laplace, ELBO"]
paired = laplace["elbos"] - normal["elbos"]
held, goal = mine["mean-field, capacity 4"], mine["mean-field, target rate 4"]
say(
    f"**Seen.** The Laplace guide's ELBO less the Normal's, text by text: {float(paired.mean()):.2f} ± "
    f"{standard_error(paired):.2f} nats. Asked for 4 nats, the capacity objective holds {held['rate']:.2f} and the "
    f"target rate {goal['rate']:.2f}, at distortions of {held['distortion']:.1f} and {goal['distortion']:.1f}."
)

# %% [markdown]
# ## 7. Your guide in a whole run
#
# `ltm.train` takes a class or an object wherever it takes a name, and so do `run.infer`, `run.evaluate` and
# comparisons. The run folder keeps how to make each again. No name brings back a class of a notebook
# (`<__main__.DoubleExponential>` below), so `Run.load` is given it once more; one of a file is loaded by its name,
# `mymodule:MyGuide`, and only with `allow_code=True`: a run from a stranger must not run code.
#
# **Look for** what a run and a posterior say of themselves, and for two families under one decoder.

# %%
whole = ltm.apply_settings(ltm.preset("nano"), [*BASE, f"slow.steps={share_of(100)}"])
ltm.train(whole, data=data, out=folder / "mine", guide=DoubleExponential, objective=MonteCarloELBO(particles=2))
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
# `pyro-ltm guides` and `pyro-ltm objectives` list what there is; `examples/compare_guides.py` compares families and
# objectives on a whole run; docs/own-guide.md takes a guide of your own from a file to the command line;
# CONTRIBUTING.md says how to put one into the registry. Whether compute is better spent on fast steps, on slow steps or
# on a larger decoder, `pyro-ltm scale` measures (docs/scaling.md).

# %%
print(
    f"run in {time.perf_counter() - started:.0f} s"
    + ("" if SHARE == 1 else f", with {SHARE:g} of the slow steps and texts")
)
