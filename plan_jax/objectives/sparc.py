"""SPARC: the global term, and words against their sparse regions inside each pair."""

import jax.numpy as jnp

from plan_jax import shapes
from plan_jax.losses import contrastive
from plan_jax.losses import terms
from plan_jax.losses import word_pixel

TEMPERATURE = 0.1  # of the fine-grained term

# A word's region: the cells whose min-max scaled similarity reaches 1/P.
LOOK = word_pixel.Look(relation=None, attend=word_pixel.Salient(per_cell=1.0))


def sparc_loss(outputs: shapes.Outputs) -> shapes.Terms:
  """The global term plus the fine-grained term.

  Both with weight 1; the paper weighs them by dataset and learns the temperatures.
  Regions are means of the pixels as they are before normalisation, as in the paper's
  pseudo-code.

  Source: SPARC (Bica et al., arXiv 2401.09865), equations (1)-(6).
  """
  image, text = outputs.image, outputs.text
  fine = fine_loss(
      text.words, image.pixels * image.pixel_norm[..., None],
      is_word=text.is_word & jnp.any(image.is_pixel, 1, keepdims=True), is_pixel=image.is_pixel)
  parts = {
      'global': contrastive.global_loss(
          image.pooled, text.pooled, temperature=outputs.temperature),
      'word_region': fine}
  return shapes.Terms(
      total=sum(parts.values()), parts=parts, diagnostics={'temperature': outputs.temperature})


def fine_loss(words, pixels, *, is_word, is_pixel):
  """Unit words [b t d] against the regions of all words of their report, and back.

  `pixels` [b p d] need not have length 1. The published form: words count alike, and a
  repeated word is a negative of itself.
  """
  match = word_pixel.relate(words, pixels, look=LOOK, is_word=is_word, is_pixel=is_pixel)
  return word_pixel.word_region_loss(
      words, match.regions, weights=terms.uniform_weights(is_word),
      is_negative=is_word[:, :, None] & is_word[:, None], temperature=TEMPERATURE)
