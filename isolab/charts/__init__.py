"""Charts of result frames: what a person sees of a sweep.

Every chart takes a polars frame and returns an Altair chart on tidy, aggregated rows without NaN
or infinity. What cannot be drawn at its place is drawn at the edge with a mark of its own or named
in the subtitle, never dropped.

Colours tell series apart: an optimizer has the same colour everywhere
(:data:`OPTIMIZER_COLOURS`), and so has a parameterization, a rate rule or a role. ``rows`` and
``columns`` name the columns whose values go down and across the panels of small multiples. A column
``origin`` ("reference" or "yours"), where a frame has it, tells a reader's own runs, solid and
filled, from the reference results, dashed and hollow.

Every chart raises ValueError for missing columns, no rows, two rows at one place, an unknown
origin, a number at or below 0 on a log axis, and where rows and columns are the same column; its
docstring names what else it refuses.

Click a legend entry to keep or release it, drag to pan, Shift and wheel to zoom, double click to
reset; tooltips hold the numbers. Call :func:`enable_offline_renderer` once in a notebook.
"""

from isolab.charts.curves import loss_curves, loss_vs_steps
from isolab.charts.epsilon import damped_shares, root_histogram
from isolab.charts.exponents import best_rate_vs_width, gradient_sizes
from isolab.charts.heat import loss_by_eps
from isolab.charts.inside import layers_inside, spectra
from isolab.charts.optimizers import invariance, step_time, theory_rates, update_function
from isolab.charts.rates import loss_by_width, loss_vs_rate
from isolab.charts.renderer import enable_offline_renderer
from isolab.charts.scores import ranking, regrets, sensitivities
from isolab.charts.sizes import alignment, coordinate_slopes, coordinates
from isolab.charts.theme import OPTIMIZER_COLOURS

__all__ = [
    "OPTIMIZER_COLOURS",
    "alignment",
    "best_rate_vs_width",
    "coordinate_slopes",
    "coordinates",
    "damped_shares",
    "enable_offline_renderer",
    "gradient_sizes",
    "invariance",
    "layers_inside",
    "loss_by_eps",
    "loss_by_width",
    "loss_curves",
    "loss_vs_rate",
    "loss_vs_steps",
    "ranking",
    "regrets",
    "root_histogram",
    "sensitivities",
    "spectra",
    "step_time",
    "theory_rates",
    "update_function",
]
