"""GLoRIA: the global term, and words matched with attended regions across pairs."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from plan_jax import config
from plan_jax import shapes
from plan_jax.losses import contrastive
from plan_jax.losses import cross_pair
from plan_jax.losses import word_pixel

Array = shapes.Array

SHARPNESS = 4.0  # of the attention over pixels


def gloria_loss(
    outputs: shapes.Outputs,
    *,
    settings: config.Objective,
    mesh: jax.sharding.Mesh,
) -> shapes.Terms:
  """Global and local contrast, each the sum of its two directions.

  Args:
    outputs: the forward pass. Words and pixels enter as they are before normalisation.
    settings: of these, `negatives`, `algorithm` and `block_mib`.
    mesh: as in `plan.plan_loss`.

  Source: GLoRIA (Huang et al., ICCV 2021) and its code: temperatures 4, 5, 10, sum; the
  global term's, published as .1, is that of the model.
  """
  image, text = outputs.image, outputs.text
  parts = {
      'global': 2 * contrastive.global_loss(
          image.pooled, text.pooled, temperature=outputs.temperature),
      'cross_pair': 2 * cross_pair.batch_loss(
          text.words * text.word_norm[..., None], image.pixels * image.pixel_norm[..., None],
          look=LOOK, is_word=text.is_word, is_pixel=image.is_pixel,
          is_global=settings.negatives is config.Negatives.GLOBAL, mib=settings.block_mib,
          mesh=mesh, algorithm=settings.algorithm)}
  return shapes.Terms(total=sum(parts.values()), parts=parts, diagnostics={})


def attend(
    similarity: Float[Array, '... t p'],
    *,
    is_word: Bool[Array, '... t'],
    is_pixel: Bool[Array, '... p'],
) -> Float[Array, '... t p']:
  """GLoRIA's attention: softmax over the words of each pixel, then over the pixels.

  The second softmax is not divided by its sum (see `word_pixel.Attend`); its logits lie in
  0..SHARPNESS.
  """
  # Masks are added: selected by them, every gradient would be masked again.
  no_word, no_pixel = (jnp.where(x, 0.0, -1e30) for x in (is_word[..., None], is_pixel[..., None, :]))
  return jnp.exp(SHARPNESS * _softmax_over_words(similarity + no_word) + (no_word + no_pixel))


@jax.custom_vjp
def _softmax_over_words(logits: Float[Array, '... t p']) -> Float[Array, '... t p']:
  return jax.nn.softmax(logits, axis=-2)


def _softmax_forward(logits):
  share = _softmax_over_words(logits)
  return share, share


def _softmax_backward(share, g):
  # The product is used twice: XLA then keeps it, and does not sum products of two arrays over
  # words, for which its code for CPUs takes ten times as long.
  product = share * g
  return (product - share * jnp.sum(product, axis=-2, keepdims=True),)


_softmax_over_words.defvjp(_softmax_forward, _softmax_backward)

LOOK = word_pixel.Look(relation=None, attend=jax.tree_util.Partial(attend))
