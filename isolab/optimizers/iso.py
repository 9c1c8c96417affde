r"""Iso and IsoAdam: isometric optimizers for weight matrices.

Principle (Jackson, "An Isometric Stochastic Optimizer", arXiv:2307.12979): the norm of a matrix's
update must not change when an invertible linear transformation is applied to the layer's inputs or
outputs.  The formulas here are isolab's reading of that principle, not the paper's text:

.. math::
    A = E[x x^T], \quad B = E[g g^T], \quad M = \text{EMA of } E[x g^T], \qquad
    U = A^{-1/2} M B^{-1/2}

Symbols in the code: ``mu`` is M, ``factors`` are (A, B), ``roots`` are their inverse square roots.
A factor may be block-diagonal (see :func:`isolab.optimizers.linear.block_sizes`): a weight of shape
(fan_in, fan_out) is then seen as P x Q blocks, and U is isometric to transformations within blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformationExtraArgs, ScalarOrSchedule

from isolab.optimizers.dtypes import Scalar, at_least_float32, scalar_as
from isolab.optimizers.labels import FALLBACK, MATRIX, Labels, hidden_matrices
from isolab.optimizers.leaves import by_path, like_gradients
from isolab.optimizers.linear import BlockRule, Factors
from isolab.optimizers.matrix_roots import INVERSE_SQRT
from isolab.optimizers.moments import average, corrected, correction
from isolab.optimizers.whitening import MatrixState, Step, init_matrix, next_matrix

RefreshRule = int | Callable[[jax.Array], jax.Array]


class ScaleByIsoState(NamedTuple):
    """State of :func:`scale_by_iso`."""

    count: jax.Array  # type: ignore[assignment]  # (), int32
    refreshed: jax.Array  # (), int32: count of the last refresh
    matrices: dict[str, MatrixState]  # by path


class ScaleByIsoAdamState(NamedTuple):
    """State of :func:`scale_by_isoadam`."""

    iso: ScaleByIsoState
    nu: dict[str, jax.Array]  # by path: (P, Q), second moment of U
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
    root: Literal["eigh", "newton"] = "eigh",
) -> GradientTransformationExtraArgs:
    r"""Replaces the gradient of each matrix by :math:`U = A^{-1/2} M B^{-1/2}`.

    Without momentum the singular values of U are the canonical correlations of x and g: they lie
    in [0, 1], whatever invertible transformation is applied to the inputs or outputs.

    ``update(grads, state, params, factors=None)``: ``factors`` is a pytree as ``grads`` whose
    leaves are :class:`isolab.optimizers.linear.Factors` (exact factors, invariant to every
    invertible transformation).  Where it has none, A is the average of G G^T and B of G^T G
    (invariant to orthogonal ones).  They are read in refresh steps only, see :func:`refresh_due`.

    Args:
        b1: decay of M.
        b2: decay, per step, of A and B.
        damping: added to A and B, relative to their largest eigenvalue.
        refresh_every: an interval in steps, or a function of the step count.
        block_size: None for whole factors, or see :func:`isolab.optimizers.linear.block_sizes`.
        root: method of the inverse square root, "eigh" or "newton".

    Returns:
        A transformation of trees whose leaves are all matrices.  Moments are kept in float32 (or
        float64); updates have the gradient's dtype.  A leaf whose gradient is None is left alone;
        zero gradients give zero updates; NaN stays within its own matrix.

    Raises:
        ValueError: a leaf is not a matrix, or factors of a wrong shape.
    """
    if root not in INVERSE_SQRT:
        raise ValueError(f"root is {root!r}; allowed: {sorted(INVERSE_SQRT)}")

    def inverse_sqrt(factor: jax.Array) -> jax.Array:
        return INVERSE_SQRT[root](factor, scalar_as(damping, factor.dtype))

    def init(params: optax.Params) -> ScaleByIsoState:
        leaves = by_path(params)
        matrices = {key: init_matrix(key, leaf, block_size) for key, leaf in leaves.items()}
        return ScaleByIsoState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), matrices)

    def update(
        updates: optax.Updates,
        state: ScaleByIsoState,
        params: optax.Params | None = None,
        *,
        factors: Any = None,
        **extra: Any,
    ) -> tuple[optax.Updates, ScaleByIsoState]:
        del params, extra
        due = refresh_due(state.count, refresh_every)
        exact = by_path(factors, is_leaf=_is_factors)
        count = optax.safe_increment(state.count)
        refreshed = jnp.where(due, count, state.refreshed)
        old_share = jnp.asarray(b2, jnp.float32) ** (count - state.refreshed).astype(jnp.float32)
        step = Step(due, old_share, correction(b2, refreshed), correction(b1, count))
        whitened, matrices = {}, dict(state.matrices)
        for key, grad in by_path(updates).items():
            new = exact[key] if _is_factors(exact.get(key)) else None
            whitened[key], matrices[key] = next_matrix(
                key, grad, state.matrices[key], new, step, b1, inverse_sqrt
            )
        whitened_tree = jax.tree.unflatten(jax.tree.structure(updates), whitened.values())
        return whitened_tree, ScaleByIsoState(count, refreshed, matrices)

    return GradientTransformationExtraArgs(init, update)


def scale_by_isoadam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.95,
    eps: Scalar = 1e-8,
    *,
    size: Literal["rms", "graft"] = "rms",
    damping: Scalar = 1e-7,
    refresh_every: RefreshRule = 10,
    block_size: BlockRule = None,
    root: Literal["eigh", "newton"] = "eigh",
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
        eps: added to the root of v (rms) or to Adam's denominator (graft).  U has no units and is
            of order one or less, so it does not grow or shrink with the gradient.
        size: "rms" or "graft".
        b1, b2, damping, refresh_every, block_size, root: see :func:`scale_by_iso`.

    Source: isolab's reading of arXiv:2307.12979.
    """
    if size not in ("rms", "graft"):
        raise ValueError(f"size is {size!r}; allowed: 'rms', 'graft'")
    iso_rule = scale_by_iso(
        b1, b2, damping=damping, refresh_every=refresh_every, block_size=block_size, root=root
    )
    adam_rule = optax.scale_by_adam(b1, b2, eps, mu_dtype=jnp.float32)

    def init(params: optax.Params) -> ScaleByIsoAdamState:
        inner = iso_rule.init(params)
        nu = {
            key: jnp.zeros((m.factors.input.shape[0], m.factors.output.shape[0]), m.mu.dtype)
            for key, m in inner.matrices.items()
        }
        return ScaleByIsoAdamState(inner, nu, adam_rule.init(params) if size == "graft" else None)

    def update(
        updates: optax.Updates,
        state: ScaleByIsoAdamState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, ScaleByIsoAdamState]:
        whitened, inner = iso_rule.update(updates, state.iso, params, **extra)
        if size == "graft":
            target, adam = adam_rule.update(updates, state.adam, params)
            return jax.tree.map(_with_norm_of, whitened, target), state._replace(
                iso=inner, adam=adam
            )
        b1_t = jnp.asarray(b1, jnp.float32) ** inner.count.astype(jnp.float32)
        shrink = (1 - b1) / (1 + b1) * (1 + b1_t) / (1 - b1_t)
        resized, nu = {}, dict(state.nu)
        for key, u in by_path(whitened).items():
            (P, Q), dtype = nu[key].shape, nu[key].dtype
            u_PxNxQxM = u.astype(dtype).reshape(P, u.shape[0] // P, Q, u.shape[1] // Q)
            mean_square = jnp.mean(u_PxNxQxM**2, axis=(1, 3)) / shrink.astype(dtype)
            nu[key] = average(b2, nu[key], mean_square)
            v_hat = corrected(nu[key], correction(b2, inner.count))
            denominator = jnp.sqrt(v_hat) + scalar_as(eps, dtype)
            sized = u_PxNxQxM / denominator[:, None, :, None]
            resized[key] = sized.reshape(u.shape).astype(u.dtype)
        resized_tree = jax.tree.unflatten(jax.tree.structure(whitened), resized.values())
        return resized_tree, ScaleByIsoAdamState(inner, nu, None)

    return GradientTransformationExtraArgs(init, update)


def iso(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.95,
    eps: Scalar = 1e-8,
    *,
    weight_decay: ScalarOrSchedule = 0.0,
    labels: Labels = hidden_matrices,
    damping: Scalar = 1e-7,
    refresh_every: RefreshRule = 10,
    block_size: BlockRule = None,
    root: Literal["eigh", "newton"] = "eigh",
) -> GradientTransformationExtraArgs:
    r"""Iso: ``W <- W - lr * (U + decay * W)`` for matrices, Adam for the rest.

    Example:
        >>> params = {"w": jnp.ones((2, 3))}
        >>> tx = iso(0.1)
        >>> grads = {"w": jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])}
        >>> updates, _ = tx.update(grads, tx.init(params), params)
        >>> updates["w"].round(3)
        Array([[-0.1, -0. , -0. ],
               [-0. , -0.1, -0. ]], dtype=float32)
    """
    rule = scale_by_iso(
        b1, b2, damping=damping, refresh_every=refresh_every, block_size=block_size, root=root
    )
    return _assemble(rule, learning_rate, b1, b2, eps, weight_decay, labels)


def isoadam(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.95,
    eps: Scalar = 1e-8,
    *,
    weight_decay: ScalarOrSchedule = 0.0,
    labels: Labels = hidden_matrices,
    size: Literal["rms", "graft"] = "rms",
    damping: Scalar = 1e-7,
    refresh_every: RefreshRule = 10,
    block_size: BlockRule = None,
    root: Literal["eigh", "newton"] = "eigh",
) -> GradientTransformationExtraArgs:
    r"""IsoAdam: ``W <- W - lr * (U / sqrt(v) + decay * W)`` for matrices, Adam for the rest.

    Adam's learning rate, betas, schedule and (decoupled) weight decay carry over.

    Args:
        learning_rate: a number, a traced scalar, or a schedule.
        weight_decay: decoupled, multiplied by the learning rate, as in AdamW.
        labels: a function from params to a pytree of ``"matrix"`` / ``"vector"``, or that pytree.
        b1, b2, eps, size: see :func:`scale_by_isoadam`.
        damping, refresh_every, block_size, root: see :func:`scale_by_iso`.

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
    rule = scale_by_isoadam(
        b1,
        b2,
        eps,
        size=size,
        damping=damping,
        refresh_every=refresh_every,
        block_size=block_size,
        root=root,
    )
    return _assemble(rule, learning_rate, b1, b2, eps, weight_decay, labels)


def _assemble(
    rule: GradientTransformationExtraArgs,
    learning_rate: ScalarOrSchedule,
    b1: Scalar,
    b2: Scalar,
    eps: Scalar,
    weight_decay: ScalarOrSchedule,
    labels: Labels,
) -> GradientTransformationExtraArgs:
    rules = {MATRIX: rule, FALLBACK: optax.scale_by_adam(b1, b2, eps, mu_dtype=jnp.float32)}
    return optax.chain(
        like_gradients(optax.partition(rules, labels)),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def _passes_an_interval(count: jax.Array, rate: float, longest: int) -> jax.Array:
    def passed(count: jax.Array) -> jax.Array:
        t, knee = count.astype(jnp.float32), longest / rate
        grown = jnp.log(jnp.maximum(jnp.minimum(t, knee), 1.0)) / rate
        return jnp.floor(grown + jnp.maximum(t - knee, 0.0) / longest + 1e-4)

    return (count < 10) | (passed(count) > passed(count - 1))


def _with_norm_of(u: jax.Array, target: jax.Array) -> jax.Array:
    wide = at_least_float32(u.dtype)
    norm = jnp.linalg.norm(u.astype(wide))
    scale: jax.Array = jnp.linalg.norm(target.astype(wide)) / jnp.where(norm == 0, 1, norm)
    return (u.astype(wide) * scale).astype(u.dtype)


def _is_factors(leaf: Any) -> bool:
    return isinstance(leaf, Factors)
