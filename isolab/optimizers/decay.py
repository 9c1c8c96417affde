"""The way from a rule to an optimizer: weight decay, with a mask or independent, and the rate."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformation, GradientTransformationExtraArgs, ScalarOrSchedule

from isolab.optimizers.checks import check
from isolab.optimizers.dtypes import scalar_as
from isolab.optimizers.leaves import is_none, like_gradients


def with_decay(
    rule: GradientTransformation,
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule | None = 0.0,
    mask: Any = None,
    independent_weight_decay: ScalarOrSchedule | None = None,
) -> GradientTransformationExtraArgs:
    r"""Returns the optimizer :math:`W \leftarrow W - \eta (U + \lambda W) - \lambda' W`.

    Its arithmetic is float32 or wider, and its updates have the gradients' dtypes.

    Args:
        rule: from gradients to U.
        learning_rate: :math:`\eta`, a number, a scalar or a schedule.
        weight_decay: :math:`\lambda`, multiplied by the rate as in AdamW; None leaves the step out.
        mask: as in :func:`optax.adamw`: a pytree of booleans, or a function from the parameters to
            one, that says which of them decay, in both ways.
        independent_weight_decay: :math:`\lambda'`, a number or schedule that is not multiplied by
            the rate.
    """
    check(learning_rate=learning_rate)
    steps = [rule]
    if weight_decay is not None:
        steps.append(_add_decayed(weight_decay, mask))
    steps.append(_scale_by_rate(learning_rate))
    if independent_weight_decay is not None:
        decay = independent_weight_decay
        negative = (lambda count: -decay(count)) if callable(decay) else -decay
        steps.append(_add_decayed(negative, mask))
    return like_gradients(optax.chain(*steps))


def _add_decayed(decay: Any, mask: Any) -> GradientTransformation:
    """As optax's ``add_decayed_weights``, but a decay of 0 needs no parameters."""
    if isinstance(decay, int | float) and decay == 0:
        return optax.identity()

    def init(params: optax.Params) -> Any:
        del params
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)) if callable(decay) else ()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("weight decay needs the parameters: update(grads, state, params)")
        value = decay(state.count) if callable(decay) else decay

        def decayed(update: Any, param: Any) -> Any:
            return None if update is None else update + scalar_as(value, param.dtype) * param

        if callable(decay):
            state = optax.ScaleByScheduleState(optax.safe_increment(state.count))
        return jax.tree.map(decayed, updates, params, is_leaf=is_none), state

    plain = GradientTransformation(init, update)
    return plain if mask is None else optax.masked(plain, mask)


def _scale_by_rate(learning_rate: Any) -> GradientTransformation:
    """As optax's ``scale_by_learning_rate``; a traced rate widens no dtype."""
    if not isinstance(learning_rate, jax.Array):
        return optax.scale_by_learning_rate(learning_rate)
    return optax.stateless_with_tree_map(lambda u, _: scalar_as(-learning_rate, u.dtype) * u)
