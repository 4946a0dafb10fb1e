"""A batch part by part, one after the other: what is inside is in memory for one part at a time.

Source: GradCache (Gao et al., arXiv 2101.06983), here by rematerialisation.
"""

import functools
from typing import Any, Callable

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from plan_jax import shapes

Array = shapes.Array


def run(function: Callable[..., Any], *inputs: Any, parts: int) -> Any:
  """`function(k, *inputs)` of part k of the batch; backward, each part once more.

  Args:
    function: of the part's number and its pairs.
    inputs: trees of arrays whose leading axis is that of the batch.
    parts: how many; must divide each device's share of the batch.

  Returns:
    What the function gives for each part, one after the other on a new leading axis.
  """
  return jax.lax.map(
      lambda part: jax.checkpoint(function)(part[0], *part[1]),
      (jnp.arange(parts), _split(inputs, parts=parts)))


def run_with_sums(
    function: Callable[..., Array],
    x: Float[Array, 'b *n c'],
    is_real: Bool[Array, 'b *n'],
    *,
    sums: Callable[..., Any],
    total: Any,
    parts: int,
) -> Array:
  """`function(total, x, is_real)` of each part as `run` gives it; gradients go through the total.

  Backward, the gradient of each part overwrites its values: where plain derivatives of two passes
  over the batch, one for the sums and one for the rest, hold both and what they add up to, this
  holds one array as large as `x`.

  Args:
    function: of the total and a part's items.
    x: items, such as tokens of an image.
    is_real: which of them count.
    sums: a tree of numbers that a part, `sums(x, is_real)`, adds to the total.
    total: the same of the whole batch, found before; its own derivative is not looked at.
    parts: as in `run`.
  """
  x, is_real = _split((x, is_real), parts=parts)
  # What the functions hold besides (parameters) must be arguments where derivatives are written out.
  function, of_function = jax.closure_convert(function, total, x[0], is_real[0])
  sums, of_sums = jax.closure_convert(sums, x[0], is_real[0])
  return _with_sums(function, sums, (of_function, of_sums), total, x, is_real)


def joined(parts: Any) -> Any:
  """The batch that came out of `run`, in its order."""
  return jax.tree.map(
      lambda x: einops.rearrange(x, 'n (d b) ... -> (d n b) ...', d=_devices()), parts)


def _split(inputs: Any, *, parts: int) -> Any:
  # Each part holds a piece of every device's pairs, so that nothing changes its device.
  return jax.tree.map(
      lambda x: einops.rearrange(x, '(d n b) ... -> n (d b) ...', n=parts, d=_devices()), inputs)


def _devices() -> int:
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.size


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _with_sums(function, sums, held, total, x, is_real):
  return jax.lax.map(lambda part: function(total, *part, *held[0]), (x, is_real))


def _with_sums_forward(function, sums, held, total, x, is_real):
  return _with_sums(function, sums, held, total, x, is_real), (held, total, x, is_real)


def _with_sums_backward(function, sums, kept, d_out):
  (of_function, of_sums), total, x, is_real = kept

  def of_total(found, part):
    x, is_real, d_out = part
    _, pull = jax.vjp(lambda total: function(total, x, is_real, *of_function), total)
    return jax.tree.map(jnp.add, found, pull(d_out)[0]), None

  d_total, _ = jax.lax.scan(of_total, jax.tree.map(jnp.zeros_like, total), (x, is_real, d_out))

  def of_part(k, carry):
    d_held, x = carry
    _, pull = jax.vjp(
        lambda held, x: (function(total, x, is_real[k], *held[0]), sums(x, is_real[k], *held[1])),
        (of_function, of_sums), x[k])
    more, d_x = pull((d_out[k], d_total))
    return jax.tree.map(jnp.add, d_held, more), x.at[k].set(d_x)

  zeros = jax.tree.map(jnp.zeros_like, (of_function, of_sums))
  d_held, d_x = jax.lax.fori_loop(0, len(x), of_part, (zeros, x))
  return d_held, None, d_x, None


_with_sums.defvjp(_with_sums_forward, _with_sums_backward)
