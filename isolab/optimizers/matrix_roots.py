r"""Inverse square roots of positive semi-definite matrices, :math:`(A + \epsilon I)^{-1/2}`.

Two methods with one signature: ``eigh`` (exact, quick on a CPU) and ``newton`` (matrix products
only, quick on accelerators).  Both damp by ``damping`` times the largest eigenvalue, serve all of
float32's range by powers of four, and are differentiated by the formula of Daleckii and Krein.

On a CPU, eigendecompositions are made one matrix at a time.  Two batched ones that run at once can
deadlock in jaxlib 0.10: each waits, on a worker thread, for parts of its batch that queue behind
the other.  And LAPACK should have one thread (``threadpoolctl.threadpool_limits(1, "blas")``, as
:func:`isolab.training.train.train` does): its own threads contend with XLA's, which made 16
decompositions of size 256 take 5 to 50 times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from isolab.optimizers.dtypes import exponent, power_of_two

_Pair = tuple[jax.Array, jax.Array]
_Carry = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


@jax.custom_jvp
def inverse_sqrt_eigh(a: jax.Array, damping: float | jax.Array = 1e-7) -> jax.Array:
    r"""Returns :math:`(A + \delta \lambda_{max} I)^{-1/2}` by eigendecomposition.

    Args:
        a: shape (..., n, n), symmetric positive semi-definite, float32 or float64.
        damping: :math:`\delta`, relative to the largest eigenvalue.

    Returns:
        Shape (..., n, n).  A matrix of zeros gives zeros; NaN gives NaN.

    Example:
        >>> inverse_sqrt_eigh(jnp.diag(jnp.array([4.0, 16.0])), damping=0.0).diagonal().round(3)
        Array([0.5 , 0.25], dtype=float32)
    """
    a, unit = _near_one(a)
    eigenvalues, vectors = _eigh(a)
    largest = eigenvalues[..., -1:]
    floor = jnp.maximum(damping, jnp.finfo(a.dtype).eps) * largest
    damped = jnp.maximum(jnp.maximum(eigenvalues, 0) + damping * largest, floor)
    scale = jnp.where(largest > 0, jax.lax.rsqrt(damped), jnp.where(largest <= 0, 0, largest))
    return (vectors * scale[..., None, :]) @ vectors.mT * unit


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def inverse_sqrt_newton(
    a: jax.Array, damping: float | jax.Array = 1e-7, max_iterations: int = 40
) -> jax.Array:
    r"""Returns :math:`(A + \delta \lambda I)^{-1/2}` by the coupled Newton-Schulz iteration.

    .. math:: T = (3I - Z Y)/2, \quad Y \leftarrow Y T, \quad Z \leftarrow T Z,

    from :math:`Y = A/\lambda, Z = I`, where :math:`\lambda` bounds the largest eigenvalue; Z then
    tends to :math:`(A/\lambda)^{-1/2}` (Higham, Functions of Matrices, section 6.7).  The bound is
    the largest absolute row sum.

    Args:
        a: as for :func:`inverse_sqrt_eigh`.
        damping: relative to a power-iteration estimate of the largest eigenvalue.
        max_iterations: bound on the iterations; condition number 1e4 needs about 17.

    Returns:
        Shape (..., n, n), within 1e-3 relative of ``eigh`` up to condition number 1e4.
    """
    n = a.shape[-1]
    a, unit = _near_one(a)
    eye = jnp.broadcast_to(jnp.eye(n, dtype=a.dtype), a.shape)
    largest = _largest_eigenvalue(a)
    damped = a + damping * largest * eye
    bound = jnp.max(jnp.sum(jnp.abs(damped), axis=-1, keepdims=True), axis=-2, keepdims=True)
    tolerance = 4 * n * jnp.finfo(a.dtype).eps

    def unfinished(carry: _Carry) -> jax.Array:
        iteration, _, _, error, last = carry
        improving = (error < last) | (error > 0.1)  # rounding ends the progress before tolerance
        return (iteration < max_iterations) & jnp.any((error > tolerance) & improving)

    def refine(carry: _Carry) -> _Carry:
        iteration, y, z, error, _ = carry
        zy = z @ y
        t = 1.5 * eye - 0.5 * zy
        return iteration + 1, y @ t, t @ z, jnp.max(jnp.abs(zy - eye), axis=(-1, -2)), error

    start = jnp.where(bound > 0, damped / jnp.where(bound > 0, bound, 1), eye)
    large = jnp.full(a.shape[:-2], jnp.finfo(a.dtype).max, a.dtype)
    carry = (jnp.int32(0), start, eye, large, large)
    _, _, z, _, _ = jax.lax.while_loop(unfinished, refine, carry)
    scale = jnp.where(bound > 0, jax.lax.rsqrt(bound), jnp.where(bound <= 0, 0, bound))
    return z * scale * unit


def _near_one(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns a / 4**k and 2**-k, of its inverse root; k is 0 for entries that need no help.

    Both are exact, but a decomposition's last bits may depend on k: LAPACK's thresholds do not
    scale.
    """
    largest = jnp.max(jnp.abs(a), axis=(-2, -1), keepdims=True)
    power = exponent(largest)
    far = jnp.isfinite(largest) & (largest > 0) & (jnp.abs(power) > 48)
    unit = power_of_two(jnp.where(far, -(power + 1) >> 1, 0), a.dtype)
    return a * unit * unit, unit


def _derivative(
    root: jax.Array, da: jax.Array, damping: jax.Array, ddamping: jax.Array
) -> jax.Array:
    r"""Returns the derivative of a root Z, with the same vectors as A and :math:`z = a^{-1/2}`.

    .. math:: dZ_{ij} = -\frac{z_i^2 z_j^2}{z_i + z_j} dA_{ij} \quad \text{among the vectors of A}
    """
    z, vectors = _eigh(root)
    inside = vectors.mT @ da @ vectors
    # A's largest eigenvalue, by which damping is scaled, belongs to the smallest of the root
    largest = jnp.where(z[..., :1] > 0, z[..., :1] ** -2, 0) / (1 + damping)
    moved = damping * inside[..., :1, 0] + ddamping * largest
    inside += moved[..., None] * jnp.broadcast_to(jnp.eye(z.shape[-1], dtype=z.dtype), root.shape)
    total = z[..., :, None] + z[..., None, :]
    product = z[..., :, None] * z[..., None, :]
    ratio = jnp.where(total > 0, product * (product / total), 0)
    return vectors @ (-ratio * inside) @ vectors.mT


@inverse_sqrt_eigh.defjvp
def _eigh_jvp(primals: _Pair, tangents: _Pair) -> _Pair:
    root = inverse_sqrt_eigh(*primals)
    return root, _derivative(root, tangents[0], primals[1], tangents[1])


@inverse_sqrt_newton.defjvp
def _newton_jvp(max_iterations: int, primals: _Pair, tangents: _Pair) -> _Pair:
    root = inverse_sqrt_newton(*primals, max_iterations)
    return root, _derivative(root, tangents[0], primals[1], tangents[1])


@jax.custom_batching.sequential_vmap  # type: ignore[untyped-decorator]
def _eigh_one(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    eigenvalues, vectors = jnp.linalg.eigh(a)
    return eigenvalues, vectors


def _eigh(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    def one_by_one(a: jax.Array) -> tuple[jax.Array, jax.Array]:
        matrices = a.reshape(-1, *a.shape[-2:])
        # a batch of one needs no loop, and XLA may then run several side by side
        each = (
            [x[None] for x in _eigh_one(matrices[0])]
            if len(matrices) == 1
            else jax.vmap(_eigh_one)(matrices)
        )
        return each[0].reshape(a.shape[:-1]), each[1].reshape(a.shape)

    def batched(a: jax.Array) -> tuple[jax.Array, jax.Array]:
        eigenvalues, vectors = jnp.linalg.eigh(a)
        return eigenvalues, vectors

    result: tuple[jax.Array, jax.Array] = jax.lax.platform_dependent(
        a, cpu=one_by_one, default=batched
    )
    return result


def _largest_eigenvalue(a: jax.Array, iterations: int = 12) -> jax.Array:
    """Returns the Rayleigh quotient after power iterations, shape (..., 1, 1)."""
    vector = jnp.sum(jnp.abs(a), axis=-1, keepdims=True)

    def normalise(v: jax.Array) -> jax.Array:
        norm = jnp.linalg.norm(v, axis=-2, keepdims=True)
        return v / jnp.where(norm > 0, norm, 1)

    vector = jax.lax.fori_loop(0, iterations, lambda _, v: normalise(a @ v), normalise(vector))
    quotient: jax.Array = vector.mT @ a @ vector
    return quotient


INVERSE_SQRT: dict[str, Callable[..., jax.Array]] = {
    "eigh": inverse_sqrt_eigh,
    "newton": inverse_sqrt_newton,
}
