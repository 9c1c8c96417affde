r"""Iso and IsoAdam: isometric optimizers for weight matrices.

Principle (Jackson, "An Isometric Stochastic Optimizer", arXiv:2307.12979): the norm of a matrix's
update must not change when an invertible linear transformation is applied to the layer's inputs or
outputs.  The formulas here are isolab's reading of that principle, not the paper's text:

.. math::
    A = E[x x^T], \quad B = E[g g^T], \quad M = \text{EMA of } E[x g^T], \qquad
    U = A^{-1/2} M B^{-1/2}

Symbols in the code: ``mu`` is M, ``factors`` are (A, B), ``roots`` are their inverse square roots.
A factor may be block-diagonal (see :func:`isolab.optimizers.factors.block_sizes`): a weight of
shape (fan_in, fan_out) is then seen as P x Q blocks, and U is isometric to transformations within
blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import GradientTransformationExtraArgs, ScalarOrSchedule

from isolab.optimizers.adam import scale_by_adam
from isolab.optimizers.checks import check
from isolab.optimizers.decay import with_decay
from isolab.optimizers.dtypes import Scalar, scalar_as
from isolab.optimizers.factors import BlockRule, Factors, block_sizes
from isolab.optimizers.leaves import by_path
from isolab.optimizers.matrix_roots import INVERSE_SQRT
from isolab.optimizers.moments import average, corrected, correction, zero_moments
from isolab.optimizers.partition import by_view, is_factors
from isolab.optimizers.views import Labels, View, fold
from isolab.optimizers.whitening import (
    MatrixState,
    Step,
    back,
    blocks,
    init_matrix,
    next_matrix,
    replicated,
)

RefreshRule = int | Callable[[jax.Array], jax.Array]

# no Python int: optax.inject_hyperparams would make a traced number of it
LARGEST_SIDE: Final[Any] = np.int64(8192)
"""Longest side of a matrix, or of a block, that is whitened unless another is given."""


class ScaleByIsoState(NamedTuple):
    """State of :func:`scale_by_iso`."""

    count: jax.Array  # type: ignore[assignment]  # (), int32
    refreshed: jax.Array  # (), int32: count of the last refresh
    mu: Any  # like params, first moment of the gradient
    matrices: Any  # MatrixState by path; where there is no parameter, a number in its place


class ScaleByIsoAdamState(NamedTuple):
    """State of :func:`scale_by_isoadam`."""

    iso: ScaleByIsoState
    nu: Any  # by path: (stack..., P, Q), second moment of U; or a number, as in ScaleByIsoState
    adam: optax.ScaleByAdamState | None  # for ``size="graft"`` only


def refresh_due(count: jax.Array, refresh_every: RefreshRule = 10) -> jax.Array:
    """Returns whether step ``count`` (0 for the first) refreshes factors and roots.

    Every step for the first ten, then every ``refresh_every`` steps.  A training loop asks this to
    know in which steps exact factors are read; in the others it may pass zeros.

    Example:
        >>> [int(t) for t in range(40) if refresh_due(jnp.int32(t), 10)]
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 30]
    """
    if callable(refresh_every):
        return refresh_every(count)
    return (count < 10) | (count % refresh_every == 0)


def growing_interval(rate: float = 0.1, longest: int = 100) -> Callable[[jax.Array], jax.Array]:
    """Returns a refresh rule whose interval grows as ``rate * count``, up to ``longest`` steps.

    The factors move fast at first and settle later, so later roots stay good for longer.  Step t
    is due when the sum of 1 / interval passes a whole number in it; so the rule needs no state.
    """
    return partial(_passes_an_interval, rate=rate, longest=longest)


def scale_by_iso(
    b1: Scalar = 0.9,
    b2: Scalar = 0.95,
    *,
    damping: Scalar = 1e-7,
    refresh_every: RefreshRule = 10,
    block_size: BlockRule = None,
    max_side: int | None = LARGEST_SIDE,
    root: Literal["eigh", "newton"] = "eigh",
    views: Mapping[str, View] | None = None,
) -> GradientTransformationExtraArgs:
    r"""Replaces the gradient of each matrix by :math:`U = A^{-1/2} M B^{-1/2}`.

    Without momentum the singular values of U are the canonical correlations of x and g: they lie
    in [0, 1], whatever invertible transformation is applied to the inputs or outputs.

    ``update(grads, state, params, factors=None)``: ``factors`` is a pytree as ``grads`` whose
    leaves are :class:`isolab.optimizers.factors.Factors` (exact factors, invariant to every
    invertible transformation).  Where it has none, A is the average of G G^T and B of G^T G
    (invariant to orthogonal ones), and U is multiplied by the root of their trace: the update does
    not change with the gradient's scale.  Factors are read in refresh steps only, see
    :func:`refresh_due`.

    Args:
        b1: decay of M.
        b2: decay, per step, of A and B.
        damping: added to A and B, relative to their largest eigenvalue.
        refresh_every: an interval in steps, or a function of the step count.
        block_size: None for whole factors, or see :func:`isolab.optimizers.factors.block_sizes`.
        max_side: a longer side, or block of one, is not whitened; None for no bound.  Beside one
            that is, by an exact factor, U has the units of the gradient.
        root: method of the inverse square root, "eigh" or "newton".
        views: by path, how each parameter is seen as matrices (stack..., fan_in, fan_out), whose
            factors are (stack..., blocks, size, size); default: each has two dimensions.

    Returns:
        A transformation of trees whose leaves are all matrices.  Moments are kept in float32 (or
        float64); updates have the gradient's dtype.  A leaf whose gradient is None is left alone;
        zero gradients give zero updates; NaN stays within its own matrix.

    Raises:
        ValueError: a leaf is not a matrix, or factors of a wrong shape or at no matrix's path.
    """
    core = _Whitening(
        b1, b2, damping, refresh_every, block_size, max_side, root, views, scale_free=True
    )

    def update(
        updates: optax.Updates,
        state: ScaleByIsoState,
        params: optax.Params | None = None,
        *,
        factors: Any = None,
        **extra: Any,
    ) -> tuple[optax.Updates, ScaleByIsoState]:
        del params, extra
        whitened, state = core.update(updates, state, factors)
        return core.back(whitened, updates), state

    return GradientTransformationExtraArgs(core.init, update)


@dataclasses.dataclass(frozen=True)
class _Whitening:
    """The hyperparameters of :func:`scale_by_iso`, and what they make of a tree of matrices."""

    b1: Scalar
    b2: Scalar
    damping: Scalar
    refresh_every: RefreshRule
    block_size: BlockRule
    max_side: int | None
    root: str
    views: Mapping[str, View] | None
    scale_free: bool

    def __post_init__(self) -> None:
        if self.root not in INVERSE_SQRT:
            raise ValueError(f"root is {self.root!r}; allowed: {sorted(INVERSE_SQRT)}")
        for name in ("block_size", "max_side"):
            if isinstance(getattr(self, name), jax.Array):
                raise ValueError(f"{name} is traced; under inject_hyperparams, name it static")
        block_sizes(1, 1, self.block_size)
        check(
            b1=self.b1, b2=self.b2, damping=self.damping, refresh_every=self.refresh_every,
            max_side=self.max_side,
        )  # fmt: skip

    def view(self, path: str, shape: tuple[int, ...]) -> View:
        if self.views is not None:
            return self.views[path]
        if len(shape) != 2:
            raise ValueError(
                f"iso: {path} has shape {shape}; allowed: two dimensions."
                " Choose the parameters that it treats by `labels`"
            )
        return View((0,), (1,))

    def init(self, params: optax.Params) -> ScaleByIsoState:
        matrices = {
            path: init_matrix(leaf, self.view(path, leaf.shape), self.block_size, self.max_side)
            for path, leaf in by_path(params).items()
        }
        zero = jnp.zeros((), jnp.int32)
        return ScaleByIsoState(zero, zero.copy(), zero_moments(params), _or_number(matrices))

    def update(
        self, updates: optax.Updates, state: ScaleByIsoState, factors: Any
    ) -> tuple[dict[str, jax.Array], ScaleByIsoState]:
        """Returns each leaf's U by path, (stack..., fan_in, fan_out), and the state."""
        due = refresh_due(state.count, self.refresh_every)
        count = optax.safe_increment(state.count)
        refreshed = jnp.where(due, count, state.refreshed)
        elapsed = (count - state.refreshed).astype(jnp.float32)
        old_share = jnp.asarray(self.b2, jnp.float32) ** elapsed
        step = Step(
            due, old_share, correction(self.b2, refreshed), correction(self.b1, count),
            self.scale_free,
        )  # fmt: skip
        exact = _exact_factors(factors, state.matrices)
        mu, whitened, matrices = by_path(state.mu), {}, state.matrices
        for path, grad in by_path(updates).items():
            wide = grad.astype(mu[path].dtype)
            mu[path] = average(self.b1, mu[path], wide)
            whitened[path], new = next_matrix(
                wide, mu[path], matrices[path], exact.get(path, Factors(None, None)),
                self.view(path, grad.shape), step, self._inverse_sqrt,
            )  # fmt: skip
            matrices = matrices | {path: new}
        mu_tree = jax.tree.unflatten(jax.tree.structure(state.mu), mu.values())
        return whitened, ScaleByIsoState(count, refreshed, mu_tree, matrices)

    def back(self, matrices: Mapping[str, jax.Array], updates: optax.Updates) -> optax.Updates:
        """Returns a tree like ``updates`` of matrices by path."""
        leaves = [
            back(matrices[path], self.view(path, grad.shape), grad)
            for path, grad in by_path(updates).items()
        ]
        return jax.tree.unflatten(jax.tree.structure(updates), leaves)

    def _inverse_sqrt(self, factor: jax.Array) -> jax.Array:
        return INVERSE_SQRT[self.root](factor, scalar_as(self.damping, factor.dtype))


def _or_number(by_key: dict[str, Any]) -> Any:
    """Returns a number for an empty dictionary: optax.tree.map_params then finds a leaf there."""
    return by_key or jnp.zeros(())


def _exact_factors(factors: Any, matrices: Mapping[str, MatrixState]) -> dict[str, Factors]:
    """Returns the factors by path; None for a side that is not whitened."""
    exact = {}
    for path, given in by_path(factors, is_leaf=is_factors).items():
        if not isinstance(matrices, Mapping) or path not in matrices or not is_factors(given):
            known = sorted(matrices) if isinstance(matrices, Mapping) else []
            raise ValueError(f"factors have {path!r}, which is no matrix; there are: {known}")
        kept = matrices[path].factors
        for side in Factors._fields:
            got, wanted = getattr(given, side), getattr(kept, side)
            if got is not None and wanted is not None and got.shape != wanted.shape:
                raise ValueError(
                    f"factors[{path!r}].{side} has shape {got.shape}; the optimizer keeps"
                    f" {wanted.shape} (value_grad_factors and the optimizer must have the"
                    " same block_size)"
                )
        pairs = zip(given, kept, strict=True)
        exact[path] = Factors(*(None if theirs is None else one for one, theirs in pairs))
    return exact


def scale_by_isoadam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.95,
    eps: Scalar = 1e-8,
    *,
    size: Literal["rms", "graft"] = "rms",
    damping: Scalar = 1e-7,
    refresh_every: RefreshRule = 10,
    block_size: BlockRule = None,
    max_side: int | None = LARGEST_SIDE,
    root: Literal["eigh", "newton"] = "eigh",
    views: Mapping[str, View] | None = None,
) -> GradientTransformationExtraArgs:
    r"""Iso's update, sized as Adam sizes its step: one second moment per matrix.

    ``rms`` divides U by :math:`\sqrt{v}`, where v estimates the mean square of the whitened
    *gradient* from that of U, which an average with decay b1 makes smaller by a known factor:

    .. math:: v = \text{EMA}_{b_2}\, \text{mean}(U^2) / r_t, \qquad
              r_t = \frac{1 - b_1}{1 + b_1} \cdot \frac{1 + b_1^t}{1 - b_1^t}

    (for gradients that are mostly noise).  So each matrix is whitened once per step.  Where A and B
    are diagonal this is Adam's step up to sampling error.  ``graft`` gives U the Frobenius norm of
    Adam's update for that matrix.  With blocks, each block has its own v.

    Args:
        eps: added to the root of v (rms) or to Adam's denominator (graft).  With exact factors U
            has no units and is of order one or less; without them it is about one over the
            gradient.
        size: "rms" or "graft".
        b1, b2, damping, refresh_every, block_size, max_side, root, views: see
            :func:`scale_by_iso`.

    Source: isolab's reading of arXiv:2307.12979.
    """
    if size not in ("rms", "graft"):
        raise ValueError(f"size is {size!r}; allowed: 'rms', 'graft'")
    check(eps=eps)
    core = _Whitening(
        b1, b2, damping, refresh_every, block_size, max_side, root, views, scale_free=False
    )
    adam_rule = scale_by_adam(b1, b2, eps)

    def init(params: optax.Params) -> ScaleByIsoAdamState:
        inner = core.init(params)
        nu = {
            path: jnp.zeros((*one.size.shape, *blocks(one)), one.size.dtype)
            for path, one in inner.matrices.items()
        } if isinstance(inner.matrices, dict) else {}  # fmt: skip
        adam = adam_rule.init(params) if size == "graft" else None
        return ScaleByIsoAdamState(inner, _or_number(nu), adam)

    def update(
        updates: optax.Updates,
        state: ScaleByIsoAdamState,
        params: optax.Params | None = None,
        *,
        factors: Any = None,
        **extra: Any,
    ) -> tuple[optax.Updates, ScaleByIsoAdamState]:
        del extra
        whitened, inner = core.update(updates, state.iso, factors)
        nu, adam = state.nu, state.adam
        if size == "graft":
            target, adam = adam_rule.update(updates, state.adam, params)
            for path, leaf in by_path(target).items():
                wanted = fold(replicated(leaf), core.view(path, leaf.shape))
                whitened[path] = _with_norm_of(whitened[path], wanted)
        else:
            b1_t = jnp.asarray(b1, jnp.float32) ** inner.count.astype(jnp.float32)
            shrink = (1 - b1) / (1 + b1) * (1 + b1_t) / (1 - b1_t)
            for path, u in whitened.items():
                whitened[path], new = _sized(u, nu[path], b2, eps, shrink, inner.count)
                nu = nu | {path: new}
        return core.back(whitened, updates), ScaleByIsoAdamState(inner, nu, adam)

    return GradientTransformationExtraArgs(init, update)


def _sized(
    u: jax.Array, nu: jax.Array, b2: Scalar, eps: Scalar, shrink: jax.Array, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns U over the root of its blocks' second moments, and these, (stack..., P, Q)."""
    (*stack, P, Q), dtype = nu.shape, nu.dtype
    u_PxNxQxM = u.reshape(*stack, P, u.shape[-2] // P, Q, u.shape[-1] // Q)
    mean_square = jnp.mean(u_PxNxQxM**2, axis=(-3, -1)) / shrink.astype(dtype)
    nu = average(b2, nu, mean_square)
    denominator = jnp.sqrt(corrected(nu, correction(b2, count))) + scalar_as(eps, dtype)
    return (u_PxNxQxM / denominator[..., :, None, :, None]).reshape(u.shape), nu


def _with_norm_of(u: jax.Array, target: jax.Array) -> jax.Array:
    norm = jnp.linalg.norm(u, axis=(-2, -1), keepdims=True)
    wanted = jnp.linalg.norm(target, axis=(-2, -1), keepdims=True)
    scaled: jax.Array = u * (wanted / jnp.where(norm == 0, 1, norm))
    return scaled


def iso(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.95,
    eps: Scalar = 1e-8,
    *,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
    independent_weight_decay: ScalarOrSchedule | None = None,
    labels: Labels = None,
    damping: Scalar = 1e-7,
    refresh_every: RefreshRule = 10,
    block_size: BlockRule = None,
    max_side: int | None = LARGEST_SIDE,
    root: Literal["eigh", "newton"] = "eigh",
) -> GradientTransformationExtraArgs:
    r"""Iso: ``W <- W - lr * (U + decay * W)`` for matrices, Adam for the rest.

    Arguments as of :func:`isoadam`.

    Example:
        >>> params = {"w": jnp.ones((2, 3))}
        >>> tx = iso(0.1)
        >>> grads = {"w": jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])}
        >>> updates, _ = tx.update(grads, tx.init(params), params)
        >>> updates["w"].round(3)
        Array([[-0.141, -0.   , -0.   ],
               [-0.   , -0.141, -0.   ]], dtype=float32)
    """
    make_rule = partial(
        scale_by_iso, b1, b2, damping=damping, refresh_every=refresh_every,
        block_size=block_size, max_side=max_side, root=root,
    )  # fmt: skip
    rest = scale_by_adam(b1, b2, eps)
    rule = by_view(lambda views: make_rule(views=views), rest, labels, max_side, block_size)
    return with_decay(rule, learning_rate, weight_decay, mask, independent_weight_decay)


def isoadam(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.95,
    eps: Scalar = 1e-8,
    *,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
    independent_weight_decay: ScalarOrSchedule | None = None,
    labels: Labels = None,
    size: Literal["rms", "graft"] = "rms",
    damping: Scalar = 1e-7,
    refresh_every: RefreshRule = 10,
    block_size: BlockRule = None,
    max_side: int | None = LARGEST_SIDE,
    root: Literal["eigh", "newton"] = "eigh",
) -> GradientTransformationExtraArgs:
    r"""IsoAdam: ``W <- W - lr * (U / sqrt(v) + decay * W)`` for matrices, Adam for the rest.

    Adam's learning rate, betas, schedule and (decoupled) weight decay carry over.

    Args:
        learning_rate: a number, a traced scalar, or a schedule.
        weight_decay, mask, independent_weight_decay: decoupled, see
            :func:`isolab.optimizers.decay.with_decay`.
        labels: which parameters are matrices, and how: None infers it from names and shapes; or
            ``"matrix"``, ``"vector"`` or ``optax.contrib.MuonDimensionNumbers`` by path, see
            :func:`isolab.optimizers.views.resolve`.
        b1, b2, eps, size: see :func:`scale_by_isoadam`.
        damping, refresh_every, block_size, max_side, root: see :func:`scale_by_iso`.  A matrix of
            which both sides are longer than ``max_side`` gets Adam.

    Returns:
        ``update(grads, state, params, factors=None)``; see :func:`scale_by_iso` for ``factors``.

    Example:
        >>> params = {"w": jnp.ones((2, 3))}
        >>> tx = isoadam(0.1)
        >>> grads = {"w": jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])}
        >>> updates, _ = tx.update(grads, tx.init(params), params)
        >>> updates["w"].round(2)  # rms 0.1: that of Adam's first step
        Array([[-0.17, -0.  , -0.  ],
               [-0.  , -0.17, -0.  ]], dtype=float32)
    """
    make_rule = partial(
        scale_by_isoadam, b1, b2, eps, size=size, damping=damping, refresh_every=refresh_every,
        block_size=block_size, max_side=max_side, root=root,
    )  # fmt: skip
    rest = scale_by_adam(b1, b2, eps)
    rule = by_view(lambda views: make_rule(views=views), rest, labels, max_side, block_size)
    return with_decay(rule, learning_rate, weight_decay, mask, independent_weight_decay)


def _passes_an_interval(count: jax.Array, rate: float, longest: int) -> jax.Array:
    def passed(count: jax.Array) -> jax.Array:
        t, knee = count.astype(jnp.float32), longest / rate
        grown = jnp.log(jnp.maximum(jnp.minimum(t, knee), 1.0)) / rate
        return jnp.floor(grown + jnp.maximum(t - knee, 0.0) / longest + 1e-4)

    return (count < 10) | (passed(count) > passed(count - 1))
