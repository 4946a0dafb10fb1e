"""Contrastive cross-entropies: over a batch of pairs, and inside one sample."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from plan_jax import shapes

Array = shapes.Array

_NEVER = -1e30  # a logit that softmax rounds to 0; finite, so that no gradient is NaN


def unit(x: Float[Array, '... d']) -> Float[Array, '... d']:
  """Scales vectors to length 1; the zero vector stays zero, with zero gradient."""
  return x * rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True))


@jax.custom_vjp
def cosine(a: Float[Array, '... d'], b: Float[Array, '... d']) -> Float[Array, '...']:
  """Cosine of two vectors, -1..1; 0, without gradient, where one is zero."""
  return _cosine_forward(a, b)[0]


def _cosine_forward(a, b):
  scale_a, scale_b = (rsqrt(jnp.sum(jnp.square(x), axis=-1)) for x in (a, b))
  # From |a + b|^2 of unit vectors: to sum products of two arrays, XLA's code for CPUs takes ten
  # times as long as to sum squares.
  square = jnp.sum(jnp.square(a * scale_a[..., None] + b * scale_b[..., None]), axis=-1)
  value = jnp.where((scale_a > 0) & (scale_b > 0), 0.5 * square - 1.0, 0.0)
  return value, (a, b, value, scale_a, scale_b)


def _cosine_backward(kept, g):
  # Without the sums over d that autodiff takes: they are the cosine again.
  a, b, value, scale_a, scale_b = (x if x.ndim > g.ndim else x[..., None] for x in kept)
  a, b, g = a * scale_a, b * scale_b, g[..., None]
  return g * scale_a * (b - value * a), g * scale_b * (a - value * b)


cosine.defvjp(_cosine_forward, _cosine_backward)


def rsqrt(square: Float[Array, '...']) -> Float[Array, '...']:
  """1 / sqrt of a vector's squared length; 0, without gradient, of a vector of zeros."""
  is_zero = square < 1e-12
  return jnp.where(is_zero, 0.0, jax.lax.rsqrt(jnp.where(is_zero, 1.0, square)))


def masked_logsumexp(
    x: Float[Array, '...'], *, where: Bool[Array, '...'], axis: int
) -> Float[Array, '...']:
  """log sum exp over the True entries of `where`; 0, without gradient, if there are none."""
  total = jax.nn.logsumexp(jnp.where(where, x, _NEVER), axis=axis)
  return jnp.where(jnp.any(where, axis=axis), total, 0.0)


def symmetric_cross_entropy(
    logits: Float[Array, '... i j'], *, is_pair: Bool[Array, '... b'] | None = None
) -> Float[Array, '']:
  """Mean over pairs and both directions of -log softmax at the diagonal.

  Args:
    logits: image-by-report scores; pair b is the entry (b, b). Leading axes are
      independent groups.
    is_pair: False takes a pair out, as anchor and as negative. Default: all real.

  Returns:
    The mean over real pairs; 0 without gradient if there are none, 0 also where
    a pair has no negatives.
  """
  if is_pair is None:
    is_pair = jnp.ones(logits.shape[:-1], bool)
  logits = logits.astype(jnp.float32)
  both = is_pair[..., :, None] & is_pair[..., None, :]
  # A masked sum stays where the logits are; jnp.diagonal would gather and scatter.
  is_positive = jnp.eye(logits.shape[-1], dtype=bool) & both
  positive = jnp.sum(jnp.where(is_positive, logits, 0.0), axis=-1)
  to_reports = masked_logsumexp(logits, where=both, axis=-1) - positive
  to_images = masked_logsumexp(logits, where=both, axis=-2) - positive
  return 0.5 * jnp.sum(to_reports + to_images) / jnp.maximum(jnp.sum(is_pair), 1)


def global_loss(
    images: Float[Array, 'i d'],
    texts: Float[Array, 'j d'],
    *,
    temperature: Float[Array, ''] | float,
) -> Float[Array, '']:
  """Symmetric InfoNCE of pooled unit vectors, averaged over the two directions.

  A batch of one pair gives 0.

  Source: method (2); ConVIRT, arXiv 2010.00747.
  """
  logits = jnp.einsum('id,jd->ij', images, texts, preferred_element_type=jnp.float32)
  return symmetric_cross_entropy(logits / temperature)


def matched_contrast(
    first: Float[Array, 'b n d'],
    second: Float[Array, 'b n d'],
    *,
    weights: Float[Array, 'b n'],
    is_negative: Bool[Array, 'b n n'],
    temperature: float,
) -> Float[Array, '']:
  """Contrast inside each sample: `first[b, n]` belongs to `second[b, n]`.

  Args:
    first: one side (words, or pixels).
    second: what each item of `first` is matched with (regions, or word mixtures).
    weights: weight of each item in its sample, sum 1, or all 0 to leave the
      sample out.
    is_negative: [b, n, m]: item m is a negative of item n; symmetric. The
      diagonal is the positive whatever it holds.
    temperature: divides the dot products.

  Returns:
    The weighted cross-entropy, mean of the two directions, mean over the samples
    with a positive weight; 0 if there are none.

  Source: method (7) and (8).
  """
  first, second = first.astype(jnp.float32), second.astype(jnp.float32)
  logits = jnp.einsum('bnd,bmd->bnm', first, second) / temperature
  positive = jnp.sum(first * second, axis=-1) / temperature
  is_candidate = is_negative | jnp.eye(logits.shape[-1], dtype=bool)
  logits = jnp.where(is_candidate, logits, _NEVER)
  first_to_second = jax.nn.logsumexp(logits, axis=-1) - positive
  second_to_first = jax.nn.logsumexp(logits, axis=-2) - positive
  samples = jnp.sum(jnp.any(weights > 0, axis=-1))
  return 0.5 * jnp.sum(weights * (first_to_second + second_to_first)) / jnp.maximum(samples, 1)
