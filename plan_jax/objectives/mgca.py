"""MGCA: instances, tokens inside each pair, and prototypes of the batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from plan_jax import shapes
from plan_jax.losses import contrastive
from plan_jax.losses import terms
from plan_jax.losses import word_pixel

Array = shapes.Array

PROTOTYPES = 500
TOKEN_TEMPERATURE = 0.1
PROTOTYPE_TEMPERATURE = 0.2
TOKEN_WEIGHT = 0.7
PROTOTYPE_WEIGHT = 0.5
_SINKHORN_ROUNDS = 3
_SINKHORN_WIDTH = 0.05


def mgca_loss(outputs: shapes.Outputs, *, renormalise: bool) -> shapes.Terms:
  """Instance, token and prototype alignment, weighted as in the published code.

  Args:
    outputs: the forward pass, with prototypes.
    renormalise: see `token_loss`; the published ResNet variant does, the ViT's does not.

  Source: MGCA (Wang et al., NeurIPS 2022) and its code. There the prototypes stay fixed
  for the first epoch; here they are learned from the start. The temperature of instances,
  published as .07, is the model's.
  """
  image, text = outputs.image, outputs.text
  parts = {
      'global': 2 * contrastive.global_loss(
          image.pooled, text.pooled, temperature=outputs.temperature),
      'token': token_loss(
          text.words, image.pixels, is_word=text.is_word, is_pixel=image.is_pixel,
          word_attention=text.attention, pixel_attention=image.attention,
          renormalise=renormalise),
      'prototype': prototype_loss(image.pooled, text.pooled, outputs.prototypes)}
  total = (parts['global'] + TOKEN_WEIGHT * parts['token']
           + PROTOTYPE_WEIGHT * parts['prototype'])
  return shapes.Terms(total=total, parts=parts, diagnostics={})


def attend(
    similarity: Float[Array, '... t p'],
    *,
    is_word: Bool[Array, '... t'],
    is_pixel: Bool[Array, '... p'],
) -> Float[Array, '... t p']:
  """A word's softmax over the pixels."""
  logits = jnp.where(is_pixel[..., None, :], similarity / TOKEN_TEMPERATURE, -1e30)
  mask = is_word[..., None] & is_pixel[..., None, :]
  return jnp.where(mask, jax.nn.softmax(logits, axis=-1), 0.0)


LOOK = word_pixel.Look(relation=None, attend=jax.tree_util.Partial(attend))


def token_loss(
    words: Float[Array, 'b t d'],
    pixels: Float[Array, 'b p d'],
    *,
    is_word: Bool[Array, 'b t'],
    is_pixel: Bool[Array, 'b p'],
    word_attention: Float[Array, 'b t'],
    pixel_attention: Float[Array, 'b p'],
    renormalise: bool,
) -> Float[Array, '']:
  """Word against attended region, and pixel against attended words, of unit vectors.

  The published form: padding words stay in the word side's denominators.

  Args:
    words: word vectors.
    pixels: pixel vectors.
    is_word: real words.
    is_pixel: real pixels.
    word_attention: [CLS] attention, clipped and normalised here.
    pixel_attention: the same for pixels.
    renormalise: a pixel's mean of words is scaled to length 1.
  """
  everything = jnp.ones_like(is_word)
  match = word_pixel.relate(
      words, pixels, look=LOOK, is_word=everything, is_pixel=is_pixel)
  has_pixels = jnp.any(is_pixel, axis=-1, keepdims=True)
  word = word_pixel.word_region_loss(
      words, match.regions, temperature=TOKEN_TEMPERATURE,
      weights=terms.attention_weights(word_attention, is_word=is_word & has_pixels),
      is_negative=jnp.ones(is_word.shape + is_word.shape[-1:], bool))
  mixtures = word_pixel.word_mixtures(
      match.similarity, words, is_word=is_word, temperature=TOKEN_TEMPERATURE,
      normalise=renormalise)
  has_words = jnp.any(is_word, axis=-1, keepdims=True)
  pixel = word_pixel.pixel_word_loss(
      pixels, mixtures, is_pixel=is_pixel, temperature=TOKEN_TEMPERATURE,
      weights=terms.attention_weights(pixel_attention, is_word=is_pixel & has_words))
  return word + pixel


def prototype_loss(
    images: Float[Array, 'b d'], texts: Float[Array, 'b d'], prototypes: Float[Array, 'k d'],
) -> Float[Array, '']:
  """Each modality predicts the other's soft assignment to the prototypes."""
  prototypes = contrastive.unit(prototypes)
  image_logits, text_logits = (
      jnp.einsum('bd,kd->bk', x, prototypes, preferred_element_type=jnp.float32)
      for x in (images, texts))

  def predict(logits, of):
    log_share = jax.nn.log_softmax(logits / PROTOTYPE_TEMPERATURE, axis=-1)
    return -jnp.mean(jnp.sum(assign(of) * log_share, axis=-1))

  return 0.5 * (predict(image_logits, text_logits) + predict(text_logits, image_logits))


def assign(logits: Float[Array, 'b k']) -> Float[Array, 'b k']:
  """Shares of the prototypes, used evenly over the batch (Sinkhorn), no gradient."""
  shares = jnp.exp(jax.lax.stop_gradient(logits) / _SINKHORN_WIDTH)
  shares /= jnp.sum(shares)
  for _ in range(_SINKHORN_ROUNDS):
    shares /= jnp.sum(shares, axis=0, keepdims=True) * shares.shape[1]
    shares /= jnp.sum(shares, axis=1, keepdims=True) * shares.shape[0]
  return shares / jnp.sum(shares, axis=1, keepdims=True)
