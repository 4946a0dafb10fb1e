"""Word-region match of every report with every image, in bounded memory."""

import functools
from typing import Callable

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from plan_jax import shapes
from plan_jax.losses import contrastive
from plan_jax.losses import word_pixel

Array = shapes.Array

# Of (9), as published by GLoRIA.
WORD_SHARPNESS = 5.0
LOGIT_SCALE = 10.0

_COPIES = 6  # fp32 arrays of a block's size that its backward pass holds at once


def block_size(reports: int, *, images: int, words: int, pixels: int, mib: int) -> int:
  """The largest divisor of `reports` whose block fits into `mib` MiB, at least 1.

  `images` counts those that one device holds.
  """
  of_one_report = _COPIES * 4 * images * words * pixels
  fitting = max(1, int(mib * 2**20) // of_one_report)
  return max(n for n in range(1, min(reports, fitting) + 1) if reports % n == 0)


def pair_scores(
    words: Float[Array, 'j t d'],
    pixels: Float[Array, 'i p d'],
    *,
    relation: Float[Array, 'd d'],
    is_word: Bool[Array, 'j t'],
    is_pixel: Bool[Array, 'i p'],
    attend: word_pixel.Attend,
    rounds: int,
    block: int,
) -> Float[Array, 'i j']:
  """Soft-region match of every report with every image, fp32, larger is better.

  Z_ij = log sum_l exp(5 cos(word l of report j, its region on image i)).
  A report without words scores 0 with every image. Peak extra memory: about
  24 * block * i * t * p bytes; nothing of size [i, j, t, p] exists.

  Args:
    words: word vectors of all reports; need not have length 1.
    pixels: pixel vectors of all images.
    relation: Delta of (3).
    is_word: real words.
    is_pixel: real pixels.
    attend: similarities to weights, (4)-(6).
    rounds: of (17b).
    block: reports handled at a time.

  Raises:
    ValueError: if `block` does not divide j.

  Source: method (9) on top of (3)-(6); GLoRIA (ICCV 2021) for the aggregation.
  """
  if words.shape[0] % block:
    raise ValueError(
        f'block={block} does not divide the {words.shape[0]} reports; use block_size()')

  def score(reports):
    words, is_word = reports
    match = word_pixel.relate(
        words[:, None], pixels[None], relation=relation, is_word=is_word[:, None],
        is_pixel=is_pixel[None], attend=attend, rounds=rounds)
    cosine = jnp.einsum('jtd,jitd->jit', contrastive.unit(words), match.regions)
    return contrastive.masked_logsumexp(
        WORD_SHARPNESS * cosine, where=is_word[:, None], axis=-1)

  # The backward pass computes a block again, but for its thresholds.
  score = jax.checkpoint(
      score, policy=jax.checkpoint_policies.save_only_these_names(word_pixel.THRESHOLD))
  blocks = jax.tree.map(
      lambda x: x.reshape(-1, block, *x.shape[1:]), (words.astype(jnp.float32), is_word))
  scores = jax.lax.map(score, blocks)
  return scores.reshape(words.shape[0], pixels.shape[0]).T


def responsibilities(
    cosine: Float[Array, '... t'], *, is_word: Bool[Array, '... t']
) -> Float[Array, '... t']:
  """How much each word carries of its report's Z: the gradient of Z by its cosine, sum 1.

  0 for padding words, and for a report without words.

  Source: method (9), (18).
  """
  logits = jnp.where(is_word, WORD_SHARPNESS * cosine, -1e30)
  return jnp.where(is_word, jax.nn.softmax(logits, axis=-1), 0.0)


def batch_loss(
    words: Float[Array, 'b t d'],
    pixels: Float[Array, 'b p d'],
    *,
    relation: Float[Array, 'd d'],
    is_word: Bool[Array, 'b t'],
    is_pixel: Bool[Array, 'b p'],
    attend: word_pixel.Attend,
    rounds: int,
    is_global: bool,
    mib: int,
    devices: int = 1,
    replicate: Callable[[Array], Array] = lambda x: x,
) -> Float[Array, '']:
  """Symmetric cross-entropy over 10 Z, Z as in `pair_scores`; mean of the two directions.

  Empty reports and blank images take no part.

  Args:
    words: as in `pair_scores`, of a batch of pairs.
    pixels: likewise.
    relation: Delta of (3).
    is_word: real words.
    is_pixel: real pixels.
    attend: similarities to weights.
    rounds: of (17b).
    is_global: negatives from the whole batch, else from each device's part of it.
    mib: byte budget of a block.
    devices: how many share the batch, in contiguous equal parts.
    replicate: puts a full copy of an array on each device; changes no value.

  Source: method (9).
  """
  is_word = is_word & jnp.any(is_pixel, axis=-1, keepdims=True)
  groups = 1 if is_global else devices
  if is_global:
    words, is_word = replicate(words), replicate(is_word)
  words, pixels, is_word, is_pixel = (
      einops.rearrange(x, '(g b) ... -> g b ...', g=groups)
      for x in (words, pixels, is_word, is_pixel))
  reports, cells = words.shape[1], pixels.shape[2]
  scores = functools.partial(
      pair_scores, relation=relation, attend=attend, rounds=rounds,
      block=block_size(
          reports, images=reports * groups // devices, words=words.shape[2], pixels=cells,
          mib=mib))
  logits = LOGIT_SCALE * jax.vmap(
      lambda words, pixels, is_word, is_pixel: scores(
          words, pixels, is_word=is_word, is_pixel=is_pixel))(
              words, pixels, is_word, is_pixel)
  return contrastive.symmetric_cross_entropy(logits, is_pair=jnp.any(is_word, axis=-1))
