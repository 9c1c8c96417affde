"""Small result frames to draw, and every chart of them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import polars as pl

from isolab import charts
from isolab.analysis.epsilon import eps_lines
from isolab.analysis.optimum import at_best_rate, optima
from isolab.analysis.ranking import ranking
from isolab.analysis.transfer import exponents, regrets, sensitivities
from isolab.measure.coordinates import slopes
from isolab.measure.gradients import SecondMoment, damped_shares, gradient_exponents, root_histogram
from isolab.theory.tables import rate_lines
from isolab.theory.update_function import update_function
from isolab.training.config import RunConfig

RATES = (0.001, 0.003, 0.01, 0.02, 0.04, 0.08, 0.16)
BEST = {"adam": (-5.3, 1.83), "isoadam": (-4.8, 1.56), "muon": (-4.3, 1.58)}
POWERS = {"global": -1.0, "full": 0.0, "none": -0.5}
BY = ["parameterization", "rate_rule"]
LAYERS = {"embedding": 0.0, "blocks/0/up": -0.5, "blocks/0/down": 0.5, "logits": 1.0}
EPSILONS = (1e-2, 1e-4, 1e-8, 1e-20, 0.0)
SCALES = (1.0, 2.0**-20, 2.0**-60)
WIDTHS = (32, 64, 128)
ROLES = ("embedding", "hidden", "readout", "vector")
LOSS = "final_validation_loss"


def grid(**columns):
    """A row for each combination of the columns' values."""
    return pl.DataFrame(list(itertools.product(*columns.values())), list(columns), orient="row")


def noise(frame, scale):
    """The same noise each time, a number for each of the frame's rows."""
    return pl.Series(scale * np.random.default_rng(0).normal(size=len(frame)))


def sweep(best=BEST, seeds=3, steps=400, gone=()):
    """A rate sweep with parabolas in log2(rate) and some noise; ``gone``: (name, rate, seed)."""
    runs = grid(optimizer=best, learning_rate=RATES, seed=range(seeds), steps=[steps])
    log = pl.col("learning_rate").log(2)
    lowest, least = (
        pl.col("optimizer").replace_strict({name: its[i] for name, its in best.items()})
        for i in (0, 1)
    )
    lost = pl.Series("diverged", [row[:3] in gone for row in runs.rows()])
    loss = least + 0.03 * (log - lowest) ** 2 + noise(runs, 0.01)
    return runs.with_columns(lost, pl.when(lost).then(math.inf).otherwise(loss).alias(LOSS))


def with_curves(runs, points=21):
    """The same runs with curves that fall from 5.5; a diverged one rises and ends in NaN."""
    steps = np.linspace(0, 400, points).round().astype(int)
    curves = []
    for end, diverged in runs.select(LOSS, "diverged").rows():
        end = 2.0 if diverged else end
        curve = end + (5.5 - end) * np.exp(-steps / 40)
        if diverged:
            curve[points // 2 :] += np.arange(points - points // 2)
            curve[-4:] = [np.nan, np.inf, np.nan, np.nan]
        curves.append(curve.astype(np.float32).tolist())
    each = [steps.tolist()] * len(runs)
    return runs.with_columns(
        pl.Series("curve_step", each), pl.Series("curve_validation_loss", curves)
    )


def lost_curves():
    """Curves at one rate; a seed of Adam diverged."""
    return with_curves(sweep(gone=(("adam", 0.04, 1),)).filter(learning_rate=0.04))


def horizons():
    """Adam at four horizons, IsoAdam at one."""
    lowest = {steps: (-5.3, 1.3 + 16 * steps**-0.57) for steps in (200, 400, 800, 1600)}
    adam = [sweep({"adam": best}, steps=steps) for steps, best in lowest.items()]
    return pl.concat([*adam, sweep({"isoadam": (-4.8, 1.3 + 11 * 400**-0.6)})])


def times():
    """Step times with three repeats."""
    over = {"adam": 1.0, "isoadam": 1.2, "muon": 1.3}
    frame = grid(optimizer=over, width=WIDTHS, repeat=(0.9, 1.0, 1.2))
    ms = pl.col("optimizer").replace_strict(over) * pl.col("repeat") * pl.col("width") ** 1.5 / 500
    return frame.with_columns(step_ms=ms)


def changes():
    """Changes of updates, with two that are exactly 0."""
    sizes = {("adam", "inputs"): 0.5, ("isoadam", "inputs"): 2e-6, ("adam", "loss"): 1e-2}
    rows = [(*case, size * 2.0**k) for case, size in sizes.items() for k in range(-2, 3)]
    rows += [("adam_atan2", "loss", 0.0)] * 2
    return pl.DataFrame(rows, ["optimizer", "condition", "relative_change"], orient="row")


def transfer(
    parameterizations=("standard", "mup"), rules=("global", "full"), widths=WIDTHS, gone=(),
    seeds=2, shift=0.0,
):  # fmt: skip
    """A rate sweep over widths: parabolas in log2(rate) whose lowest points move as a power."""
    rates = [2.0**k for k in range(-11, -3)]
    names = (parameterizations, rules, widths, rates, range(seeds))
    runs = grid(**dict(zip([*BY, "width", "learning_rate", "seed"], names, strict=True)))
    log, width = pl.col("learning_rate").log(2), pl.col("width")
    power = pl.col("rate_rule").replace_strict(POWERS)
    away = log + 6 - shift - power * (width / 64).log(2)
    loss = 2 + 16 / width + 0.03 * away**2 + noise(runs, 0.005)
    lost = pl.Series([(row[0], *row[2:]) in gone for row in runs.rows()])
    return runs.with_columns(pl.when(lost).then(math.inf).otherwise(loss).alias(LOSS))


def both(reference, yours=None):
    """Reference runs, and a reader's: the same ones unless others are given."""
    frames = {"reference": reference, "yours": reference if yours is None else yours}
    return pl.concat(its.with_columns(origin=pl.lit(name)) for name, its in frames.items())


def both_transfers():
    """Reference runs, and a reader's at two of their widths and another one."""
    return both(transfer(), transfer(widths=(32, 48, 64), shift=0.5))


def best(runs, by=BY):
    """Best rates."""
    return optima(runs, [*by, "width"])


def fitted(runs, by=BY):
    """Powers fitted to best rates, and theory's."""
    found = exponents(runs, by)
    return found.with_columns(theory=pl.col("rate_rule").replace_strict(POWERS))


def check(widths=(32, 64, 256), seeds=(0, 1), steps=(0, 1, 4)):
    """A coordinate check whose layers go as powers of the width, seeds a factor of 2 apart."""
    names = {"parameterization": ["mup"], "width": widths, "seed": seeds, "step": steps}
    layer, order = pl.col("layer"), {name: i for i, name in enumerate(LAYERS)}
    power = layer.replace_strict(LAYERS)
    size = 2.0 ** pl.col("seed") * (pl.col("width") / 32) ** power
    return grid(**names, layer=LAYERS).with_columns(
        order=layer.replace_strict(order),
        activation_rms=size,
        change_rms=pl.when(pl.col("step") > 0).then(0.1 * size),
    )


def aligned(steps=(0, 1, 2, 5, 10, 100), lost=()):
    """Alignments that rise from 1/2 towards 1; none of changes at step 0."""
    names = {"width": (32, 64), "seed": (0, 1, 2), "step": steps, "layer": ["z", "readout", "a"]}
    frame = grid(**names, kind=["weights", "change", "update"])
    frame = frame.filter((pl.col("step") > 0) | (pl.col("kind") == "weights"))
    layer = pl.col("layer")
    value = 0.5 + 0.4 * pl.col("step") / 100 + 0.01 * pl.col("seed") + 0.02 * (layer == "z")
    gone = pl.Series([its in lost for its in frame.select("layer", "step").rows()])
    return frame.with_columns(
        role=pl.when(layer == "readout").then(layer).otherwise(pl.lit("hidden")),
        alignment=pl.when(gone).then(math.nan).otherwise(value),
    )


def cells(over="width", values=WIDTHS, lost=(), epsilons=EPSILONS):
    """A map of Adam with two rules of eps, and of Adam-atan2; ``lost``: (variant, eps, value)."""
    adam = grid(variant=["adam", "adam, eps per layer"], eps=epsilons, **{over: values})
    frame = pl.concat([adam, grid(variant=["adam_atan2"], eps=[None], **{over: values})])
    place = [(*epsilons, None).index(eps) % len(epsilons) / 4 for eps in frame["eps"]]
    loss = 2.0 + pl.Series(place) + 0.3 * pl.Series([values.index(v) for v in frame[over]])
    gone = pl.Series([row in lost for row in frame.rows()])
    return frame.with_columns(
        loss=pl.when(gone).then(math.inf).otherwise(loss), seeds=3, diverged=gone.cast(int)
    )


def gradients(names=("standard", "mean_field"), widths=(32, 64, 256), seeds=(0, 1)):
    """Gradients of hidden layers that fall as width to the -0.9, of others as width to the -0.1."""
    frame = grid(parameterization=names, step=[0], width=widths, seed=seeds, role=ROLES)
    power = pl.when(pl.col("role") == "hidden").then(-0.9).otherwise(-0.1)
    of_role = pl.col("role").replace_strict({role: 3.0**-i for i, role in enumerate(ROLES)})
    size = 1e-3 * 2.0 ** pl.col("seed") * of_role * pl.col("width") ** power
    return frame.with_columns(gradient_rms=size)


def eps_curves(over="width", widths=(32, 64, 256)):
    """Where eps equals the gradient's size."""
    its = gradients(("mean_field",), widths)
    if over == "width":
        return eps_lines(its, base_width=32)
    scales = pl.DataFrame({"loss_scale": list(SCALES)})
    lines = eps_lines(its, 32).filter(width=64).join(scales, how="cross")
    return lines.with_columns(pl.col("eps") * pl.col("loss_scale"))


def moments():
    """Second moments of two roles, a fifth of the embedding's exactly 0."""
    rng = np.random.default_rng(0)
    return [
        SecondMoment(
            RunConfig(width=width), role,
            np.sort(np.float32(np.append(10 ** rng.normal(-4, 1, 200) / width, [0.0] * zeros))),
        )
        for width in (32, 64)
        for role, zeros in (("embedding", 50), ("hidden", 0))
    ]  # fmt: skip


def spectra(size=300):
    """Eigenvalues that fall as index to the -1, -2, ..."""
    layers = [
        f"blocks/{block}/{name}" for block in (0, 1) for name in ("attention/qkv", "mlp/down")
    ]
    frame = grid(layer=layers, side=["input", "output"], index=range(1, size + 1))
    power = pl.Series(np.repeat(np.arange(1.0, 9.0), size))
    return frame.with_columns(eigenvalue=pl.col("index") ** -power)


INSIDE = pl.DataFrame(
    {
        "step": [40] * 4,
        "layer": ["embedding", "blocks/0/mlp_norm", "blocks/0/mlp/up", "readout"],
        "role": ["embedding", "vector", "hidden", "readout"],
        "relative_update": [0.002, 0.0, 0.03, 0.4],
        "alignment": [None, None, 0.75, -0.25],
    }
)
THEORY = rate_lines([32, 128, 512], 32).filter(
    pl.col("parameterization").is_in(["mup", "standard"]), pl.col("rule") != "adafactor"
)
GONE = tuple(("mup", 128, 2.0**-4, seed) for seed in (0, 1))
ORIGIN = [*BY, "origin"]
TWO_GONE = (("adam", 0.16, 0), ("adam", 0.16, 1))


BY_SCALE = cells("loss_scale", SCALES), "loss_scale", eps_curves("loss_scale")
EVERY = {
    "loss_vs_rate": lambda: charts.loss_vs_rate(sweep(gone=TWO_GONE)),
    "loss_curves": lambda: charts.loss_curves(at_best_rate(with_curves(sweep()), ["optimizer"])),
    "loss_curves lost": lambda: charts.loss_curves(lost_curves()),
    "loss_vs_steps": lambda: charts.loss_vs_steps(horizons()),
    "step_time": lambda: charts.step_time(times()),
    "invariance": lambda: charts.invariance(changes()),
    "theory_rates": lambda: charts.theory_rates(THEORY),
    "update_function": lambda: charts.update_function(update_function()),
    "loss_by_width": lambda: charts.loss_by_width(transfer(gone=GONE), *BY),
    "best_rate_vs_width": lambda: charts.best_rate_vs_width(
        best(transfer()), fitted(transfer()), columns="parameterization"
    ),
    "ranking": lambda: charts.ranking(ranking(transfer(gone=GONE), BY)),
    "regrets": lambda: charts.regrets(regrets(transfer(), BY), "parameterization"),
    "sensitivities": lambda: charts.sensitivities(sensitivities(transfer(("mup",), gone=GONE), BY)),
    "coordinates": lambda: charts.coordinates(check()),
    "coordinates step": lambda: charts.coordinates(check(), columns="step"),
    "coordinate_slopes": lambda: charts.coordinate_slopes(slopes(check())),
    "alignment": lambda: charts.alignment(aligned()),
    "loss_by_eps": lambda: charts.loss_by_eps(
        cells(lost=[("adam", 0.0, 128)]), lines=eps_curves(widths=WIDTHS)
    ),
    "loss_by_eps scale": lambda: charts.loss_by_eps(*BY_SCALE),
    "loss_by_eps alone": lambda: charts.loss_by_eps(cells().filter(variant="adam_atan2")),
    "gradient_sizes": lambda: charts.gradient_sizes(gradients(), gradient_exponents(gradients())),
    "root_histogram": lambda: charts.root_histogram(root_histogram(moments()), [1e-8, 1e-4]),
    "damped_shares": lambda: charts.damped_shares(damped_shares(moments(), [1e-8, 1e-6, 1e-4])),
    "layers_inside": lambda: charts.layers_inside(INSIDE),
    "spectra": lambda: charts.spectra(spectra(), note="blocks 0, 1 of 9 only"),
}
BOTH_ORIGINS = {
    "loss_vs_rate": lambda: charts.loss_vs_rate(both(sweep())),
    "loss_curves": lambda: charts.loss_curves(both(lost_curves())),
    "loss_vs_steps": lambda: charts.loss_vs_steps(both(horizons())),
    "step_time": lambda: charts.step_time(both(times())),
    "loss_by_width": lambda: charts.loss_by_width(both_transfers(), *BY),
    "best_rate_vs_width": lambda: charts.best_rate_vs_width(
        best(both_transfers(), ORIGIN), fitted(both_transfers(), ORIGIN), *BY, "origin"
    ),
    "ranking": lambda: charts.ranking(both(ranking(transfer(), BY))),
    "regrets": lambda: charts.regrets(regrets(both_transfers(), ORIGIN), "parameterization"),
    "coordinates": lambda: charts.coordinates(both(check())),
    "coordinate_slopes": lambda: charts.coordinate_slopes(both(slopes(check()))),
    "alignment": lambda: charts.alignment(both(aligned())),
    "loss_by_eps": lambda: charts.loss_by_eps(both(cells()), rows="origin"),
    "gradient_sizes": lambda: charts.gradient_sizes(
        both(gradients()), both(gradient_exponents(gradients()))
    ),
}
