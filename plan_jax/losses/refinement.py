"""Progressive refinement: targets from a teacher, and which words to trust."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from plan_jax import shapes
from plan_jax.losses import word_pixel

Array = shapes.Array

_EPS = 1e-6


def _gaussian(size: int, sigma: float) -> np.ndarray:
  """Weights [to, from] of a Gaussian blur along one axis; rows are not normalised."""
  offset = np.arange(size)[:, None] - np.arange(size)[None]
  return np.exp(-0.5 * np.square(offset / sigma)).astype(np.float32)


def smooth(
    maps: Float[Array, 'b t p'],
    *,
    is_pixel: Bool[Array, 'b p'],
    grid: tuple[int, int],
    sigma: float,
) -> Float[Array, 'b t p']:
  """Gaussian blur on the grid, over real pixels only; padding gives 0.

  Args:
    maps: rows in row-major order of the grid.
    is_pixel: real pixels; the others neither give nor take (normalised convolution).
    grid: rows and columns of the grid.
    sigma: in cells; 0 returns the maps, masked.

  Raises:
    ValueError: if the grid does not have p cells.
  """
  rows, columns = grid
  if rows * columns != maps.shape[-1]:
    raise ValueError(f'grid={grid} has {rows * columns} cells, the maps {maps.shape[-1]}')
  mask = is_pixel[:, None].astype(jnp.float32)
  maps = maps * mask
  if sigma == 0:
    return maps

  def blur(x):
    x = x.reshape(*x.shape[:-1], rows, columns)
    x = jnp.einsum('yh,bthw,xw->btyx', _gaussian(rows, sigma), x, _gaussian(columns, sigma))
    return x.reshape(*x.shape[:-2], -1)

  return mask * blur(maps) / jnp.maximum(blur(mask), _EPS)


def targets(
    similarity: Float[Array, 'b t p'],
    *,
    is_pixel: Bool[Array, 'b p'],
    grid: tuple[int, int],
    blur: float,
    fixed: Float[Array, ''] | float,
    per_cell: Float[Array, ''] | float,
    percentile: Float[Array, ''] | float,
    gamma: Float[Array, ''] | float,
) -> Float[Array, 'b t p']:
  """Q: where the teacher sees each word, thresholded and sharpened; no gradient.

  Args:
    similarity: the teacher's S.
    is_pixel: real pixels.
    grid: rows and columns.
    blur: Gaussian sigma, cells.
    fixed: see `word_pixel.threshold`; taken on the smoothed map.
    per_cell: same.
    percentile: same.
    gamma: power of what is left, > 0.

  Returns:
    Rows that sum to 1; all 0 where the teacher's row is constant or nothing of it
    reaches the threshold, since such a row says nothing.

  Source: method (13); soft targets as in LoVT (arXiv 2112.02889).
  """
  scaled = word_pixel.min_max(jax.lax.stop_gradient(similarity), is_pixel=is_pixel)
  scaled = smooth(scaled, is_pixel=is_pixel, grid=grid, sigma=blur)
  sigma = word_pixel.threshold(
      scaled, is_pixel=is_pixel, fixed=fixed, per_cell=per_cell, percentile=percentile)
  kept = jnp.where((scaled >= sigma) & (scaled > 0), scaled, 0.0) ** gamma
  total = jnp.sum(kept, axis=-1, keepdims=True)
  return jnp.where(total > _EPS, kept / jnp.maximum(total, _EPS), 0.0)


def refinement_loss(
    similarity: Float[Array, 'b t p'],
    target: Float[Array, 'b t p'],
    *,
    weights: Float[Array, 'b t'],
    is_pixel: Bool[Array, 'b p'],
    temperature: float,
) -> Float[Array, '']:
  """Weighted mean over words of KL(target || softmax over pixels of S / temperature).

  Args:
    similarity: the student's S.
    target: Q of (13); rows of 0 do not count.
    weights: rho * omega of the kept words, 0 for the others; need not sum to 1.
    is_pixel: real pixels.
    temperature: divides S.

  Returns:
    The mean in nats, over the whole batch; 0 if no word counts.

  Source: method (14).
  """
  logits = jnp.where(is_pixel[:, None], similarity.astype(jnp.float32) / temperature, -1e30)
  log_share = jax.nn.log_softmax(logits, axis=-1)
  surprise = jax.scipy.special.xlogy(target, target) - target * log_share
  divergence = jnp.sum(jnp.where(is_pixel[:, None], surprise, 0.0), axis=-1)
  weights = jnp.where(jnp.any(target > 0, axis=-1), weights, 0.0)
  return jnp.sum(weights * divergence) / jnp.maximum(jnp.sum(weights), _EPS)


def reliable_words(
    words: Float[Array, 'b t d'],
    pixels: Float[Array, 'b p d'],
    *,
    look: word_pixel.Look,
    is_word: Bool[Array, 'b t'],
    is_pixel: Bool[Array, 'b p'],
    others: int,
    margin: Float[Array, ''] | float,
) -> Bool[Array, 'b t']:
  """rho: does the word prefer its own image to the mean of a few others by `margin`?

  The score of a word on an image is its cosine with its region there. The others are
  the next images of the batch, blank ones left out; all real words are reliable where
  there is no other image. No gradient.

  Args:
    words: unit vectors (the teacher's).
    pixels: unit vectors (the teacher's).
    look: how words find their regions (the teacher's).
    is_word: real words.
    is_pixel: real pixels.
    others: how many images to compare with, at most b - 1 are.
    margin: delta, a difference of cosines.

  Source: method (15).
  """
  words, pixels, look = jax.lax.stop_gradient((words, pixels, look))

  def score(pixels, is_pixel):
    match = word_pixel.relate(
        words, pixels, look=look, is_word=is_word, is_pixel=is_pixel)
    return jnp.einsum('btd,btd->bt', words.astype(jnp.float32), match.regions)

  def compare(state, _):
    pixels, is_pixel, total, seen = state
    pixels, is_pixel = jnp.roll(pixels, -1, axis=0), jnp.roll(is_pixel, -1, axis=0)
    is_image = jnp.any(is_pixel, axis=-1, keepdims=True)
    total += jnp.where(is_image, score(pixels, is_pixel), 0.0)
    return (pixels, is_pixel, total, seen + is_image), None

  start = (pixels, is_pixel, jnp.zeros(is_word.shape), jnp.zeros((len(is_word), 1)))
  (_, _, total, seen), _ = jax.lax.scan(
      compare, start, length=min(others, len(is_word) - 1))
  gain = score(pixels, is_pixel) - total / jnp.maximum(seen, 1)
  return is_word & ((gain > margin) | (seen == 0))
