"""GLoRIA: the global term, and words matched with attended regions across pairs."""

from typing import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from plan_jax import config
from plan_jax import shapes
from plan_jax.losses import contrastive
from plan_jax.losses import cross_pair

Array = shapes.Array

SHARPNESS = 4.0  # of the attention over pixels


def gloria_loss(
    outputs: shapes.Outputs,
    *,
    settings: config.Objective,
    devices: int = 1,
    replicate: Callable[[Array], Array] = lambda x: x,
) -> shapes.Terms:
  """Global and local contrast, each the sum of its two directions.

  Args:
    outputs: the forward pass. Words and pixels enter as they are before normalisation.
    settings: of these, `negatives` and `block_mib`.
    devices: as in `plan.plan_loss`.
    replicate: as in `plan.plan_loss`.

  Source: GLoRIA (Huang et al., ICCV 2021) and its code: temperatures 4, 5, 10, sum; the
  global term's, published as .1, is that of the model.
  """
  image, text = outputs.image, outputs.text
  parts = {
      'global': 2 * contrastive.global_loss(
          image.pooled, text.pooled, temperature=outputs.temperature),
      'cross_pair': 2 * cross_pair.batch_loss(
          text.words * text.word_norm[..., None], image.pixels * image.pixel_norm[..., None],
          relation=jnp.zeros_like(outputs.relation), is_word=text.is_word,
          is_pixel=image.is_pixel, attend=attend, rounds=1,
          is_global=settings.negatives is config.Negatives.GLOBAL, mib=settings.block_mib,
          devices=devices, replicate=replicate)}
  return shapes.Terms(total=sum(parts.values()), parts=parts, diagnostics={})


def attend(
    similarity: Float[Array, '... t p'],
    *,
    is_word: Bool[Array, '... t'],
    is_pixel: Bool[Array, '... p'],
) -> Float[Array, '... t p']:
  """GLoRIA's attention: softmax over the words of each pixel, then over the pixels."""
  share = jax.nn.softmax(jnp.where(is_word[..., None], similarity, -1e30), axis=-2)
  logits = jnp.where(is_pixel[..., None, :], SHARPNESS * share, -1e30)
  weights = jax.nn.softmax(logits, axis=-1)
  return jnp.where(is_word[..., None] & is_pixel[..., None, :], weights, 0.0)
