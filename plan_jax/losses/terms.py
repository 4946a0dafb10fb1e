"""Diagnostic terms: how much each word of a report matters, and which are kept."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from plan_jax import shapes

Array = shapes.Array


def uniform_weights(is_word: Bool[Array, 'b t']) -> Float[Array, 'b t']:
  """The same weight for each real word, sum 1 a report; 0 for a report without words."""
  return is_word / jnp.maximum(jnp.sum(is_word, axis=-1, keepdims=True), 1)


def masked_quantile(
    x: Float[Array, 'b t'], *, where: Bool[Array, 'b t'], share: float
) -> Float[Array, 'b 1']:
  """The `share` quantile (0..1) of each row's True entries, linear between neighbours.

  A row without any gives a finite number.
  """
  count = jnp.sum(where, axis=-1, keepdims=True)
  ordered = jnp.sort(jnp.where(where, x, jnp.finfo(x.dtype).max), axis=-1)
  position = share * jnp.maximum(count - 1, 0)
  low = jnp.floor(position).astype(int)
  high = jnp.minimum(low + 1, jnp.maximum(count - 1, 0))
  low_value = jnp.take_along_axis(ordered, low, axis=-1)
  high_value = jnp.take_along_axis(ordered, high, axis=-1)
  return low_value + (position - low) * (high_value - low_value)


def attention_weights(
    attention: Float[Array, 'b t'], *, is_word: Bool[Array, 'b t']
) -> Float[Array, 'b t']:
  """omega: attention clipped to its 10-90 % quantiles over the report, sum 1.

  Without attention on any word the weights are uniform; without words they are 0.

  Source: method (10); MGCA, arXiv 2210.06044.
  """
  attention = attention.astype(jnp.float32)
  low = masked_quantile(attention, where=is_word, share=0.1)
  high = masked_quantile(attention, where=is_word, share=0.9)
  clipped = jnp.where(is_word, jnp.clip(attention, low, high), 0.0)
  total = jnp.sum(clipped, axis=-1, keepdims=True)
  is_some = total > 0
  return jnp.where(is_some, clipped / jnp.where(is_some, total, 1.0), uniform_weights(is_word))


def keep_words(
    weights: Float[Array, 'b t'],
    *,
    is_word: Bool[Array, 'b t'],
    share: Float[Array, ''] | float,
    noise: Float[Array, 'b t'] | float,
) -> Bool[Array, 'b t']:
  """Marks the ceil(share * L) words with the largest log weight + noise.

  Gumbel noise makes this a draw without replacement in proportion to `weights`;
  noise 0 takes the largest. A rank mask: shapes do not depend on `share`.

  Source: method (11).
  """
  score = jnp.where(is_word, jnp.log(jnp.maximum(weights, 1e-20)) + noise, -jnp.inf)
  rank = jnp.argsort(jnp.argsort(-score, axis=-1), axis=-1)
  # 1e-4: the fp32 product of, say, 0.7 and 10 must not count as 8 words.
  kept = jnp.ceil(share * jnp.sum(is_word, axis=-1, keepdims=True) - 1e-4)
  return is_word & (rank < kept)


def draw_words(
    weights: Float[Array, 'b t'],
    *,
    is_word: Bool[Array, 'b t'],
    count: int,
    noise: Float[Array, 'b t'] | float,
) -> Int[Array, 'b n']:
  """Positions of the `count` words that `keep_words` would rank first, in no order.

  Padding comes last: a shorter report fills up with it. Static shape, so that what
  follows costs `count` words a report.

  Source: method (11).
  """
  score = jnp.where(is_word, jnp.log(jnp.maximum(weights, 1e-20)) + noise, -jnp.inf)
  return jax.lax.top_k(score, min(count, score.shape[-1]))[1]


def keep_negations(
    is_kept: Bool[Array, 'b t'], *, is_negation: Bool[Array, 'b t'], reach: int = 3
) -> Bool[Array, 'b t']:
  """Adds the negations of the kept words, otherwise the meaning flips.

  A negation is kept if one of the `reach` words after it is, or the word right before
  it. The words between come along: of "no pneumothorax, large effusion" with only
  "effusion" kept must not remain "no effusion".

  Source: method (12).
  """
  words = is_kept.shape[-1]

  def shift(x, by):  # shift(x, by)[t] = x[t - by], False beyond the ends
    return jnp.pad(x, ((0, 0), (max(by, 0), max(-by, 0))))[:, max(-by, 0):][:, :words]

  result = is_kept | (is_negation & shift(is_kept, 1))
  for distance in range(1, reach + 1):
    opens = is_negation & shift(is_kept, -distance)
    for step in range(distance):
      result |= shift(opens, step)
  return result
