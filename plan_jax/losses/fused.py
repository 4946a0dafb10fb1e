"""Scores of all pairs in one kernel that never writes similarities to memory (TPU).

A program holds one image's pixels on chip and goes through a block of reports, one at a
time. The derivative is that of the same lines: the backward kernels call `jax.vjp` on
them. There are two, because each sums over another axis of the grid: over reports for
pixels, over images for words.

Source: method (9); scores that stay on chip are FlashAttention's idea (arXiv 2205.14135).
"""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jaxtyping import Bool, Float

from plan_jax import shapes
from plan_jax.losses import contrastive
from plan_jax.losses import pair_scores
from plan_jax.losses import word_pixel

Array = shapes.Array

_LANES = 128  # reports of a block: their scores leave a program as one row


def scores(
    words: Float[Array, 'j t d'],
    pixels: Float[Array, 'i p d'],
    *,
    is_word: Bool[Array, 'j t'],
    is_pixel: Bool[Array, 'i p'],
    look: word_pixel.Look,
    interpret: bool = False,
) -> Float[Array, 'i j']:
  """As `pair_scores.reference`; extra memory is that of the result and of the gradients.

  Args:
    words: as there.
    pixels: as there.
    is_word: as there.
    is_pixel: as there.
    look: as there, of one round.
    interpret: runs the kernels as plain JAX, on any platform, to test them.

  Raises:
    ValueError: a look of several rounds.
  """
  if look.rounds != 1:
    raise ValueError(f'the fused kernel looks once, not {look.rounds} times; use blockwise')
  reports = len(words)
  block = min(_LANES, reports)
  words, is_word = (
      jnp.pad(x.astype(jnp.float32), [(0, -reports % block)] + [(0, 0)] * (x.ndim - 1))
      for x in (words, is_word[..., None]))
  queries = look.queries(words)
  is_pixel = is_pixel.astype(jnp.float32)[:, None]
  found = _scores(queries, contrastive.unit(words), pixels.astype(jnp.float32), is_word, is_pixel,
                  look.attend, block, interpret)
  return found[:, :reports]


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _scores(queries, words, pixels, is_word, is_pixel, attend, block, interpret):
  return _scores_forward(
      queries, words, pixels, is_word, is_pixel, attend, block, interpret)[0]


def _scores_forward(queries, words, pixels, is_word, is_pixel, attend, block, interpret):
  lane = functools.partial(jax.lax.broadcasted_iota, jnp.int32, (1, block), 1)

  def kernel(queries, words, is_word, pixels, is_pixel, *rest):
    *leaves, out = rest
    score = _pair(is_pixel=is_pixel[0], attend=_rebuilt(attend, leaves))

    def report(r, row):
      z = score(queries[r], words[r], pixels[0], is_word=is_word[r])
      return jnp.where(lane() == r, z, row)

    out[0] = jax.lax.fori_loop(0, block, report, jnp.zeros((1, block), jnp.float32))

  inputs = (queries, words, is_word, pixels, is_pixel)
  images, blocks = len(pixels), len(words) // block
  found = pl.pallas_call(
      kernel, grid=(images, blocks), interpret=interpret,
      in_specs=_specs(inputs, block, order=lambda i, j: (i, j)) + _scalar_specs(attend),
      out_specs=pl.BlockSpec((1, 1, block), lambda i, j: (i, 0, j)),
      out_shape=jax.ShapeDtypeStruct((images, 1, len(words)), jnp.float32))(
          *inputs, *_scalars(attend))
  return found[:, 0], (*inputs, attend)


def _scores_backward(block, interpret, kept, d_scores):
  *inputs, attend = kept
  queries, words, is_word, pixels, is_pixel = inputs
  images, blocks = len(pixels), len(words) // block
  # A lane cannot be read at an index that varies: each report's is given as a row of its own.
  d_scores = d_scores.T[..., None, None]  # [j i 1 1]

  def pull(refs, attend, r):
    queries, words, is_word, pixels, is_pixel, d_scores = refs
    score = functools.partial(
        _pair(is_pixel=is_pixel[0], attend=attend), is_word=is_word[r])
    _, back = jax.vjp(score, queries[r], words[r], pixels[0])
    return back(d_scores[r, 0])

  def for_pixels(*refs):
    *refs, out = refs
    attend_here = _rebuilt(attend, refs[6:])

    @pl.when(pl.program_id(1) == 0)
    def _():
      out[...] = jnp.zeros_like(out)

    def report(r, total):
      return total + pull(refs[:6], attend_here, r)[2]

    out[0] += jax.lax.fori_loop(0, block, report, jnp.zeros(out.shape[1:], jnp.float32))

  def for_words(*refs):
    *refs, d_queries, d_words = refs
    attend_here = _rebuilt(attend, refs[6:])

    @pl.when(pl.program_id(1) == 0)
    def _():
      d_queries[...] = jnp.zeros_like(d_queries)
      d_words[...] = jnp.zeros_like(d_words)

    def report(r, _):
      of_queries, of_words, _ = pull(refs[:6], attend_here, r)
      d_queries[r] += of_queries
      d_words[r] += of_words
      return 0

    jax.lax.fori_loop(0, block, report, 0)

  def call(kernel, grid, order, outputs):
    specs = _specs(inputs, block, order=order)
    of_scores = pl.BlockSpec((block, 1, 1, 1), lambda *k: (order(*k)[1], order(*k)[0], 0, 0))
    likes = [inputs[k] for k in outputs]
    return pl.pallas_call(
        kernel, grid=grid, interpret=interpret,
        in_specs=[*specs, of_scores, *_scalar_specs(attend)],
        out_specs=[specs[k] for k in outputs],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in likes])(
            *inputs, d_scores, *_scalars(attend))

  # The last axis of a grid is the one that is summed over.
  d_pixels, = call(for_pixels, (images, blocks), lambda i, j: (i, j), (3,))
  d_queries, d_words = call(for_words, (blocks, images), lambda j, i: (i, j), (0, 1))
  no_gradient = jax.tree.map(jnp.zeros_like, attend)
  return d_queries, d_words, d_pixels, None, None, no_gradient


_scores.defvjp(_scores_forward, _scores_backward)


def _pair(*, is_pixel, attend):
  """The score [1 1] of one report (queries, unit words) with one image."""

  def score(queries, words, pixels, *, is_word):
    similarity = jnp.dot(queries, pixels.T, preferred_element_type=jnp.float32)
    weights = attend(similarity, is_word=is_word[:, 0] > 0, is_pixel=is_pixel[0] > 0)
    regions = contrastive.unit(jnp.dot(weights, pixels, preferred_element_type=jnp.float32))
    cosine = jnp.sum(words * regions, axis=1, keepdims=True)
    logits = jnp.where(is_word > 0, pair_scores.WORD_SHARPNESS * cosine, -1e30)
    most = jax.lax.stop_gradient(jnp.max(logits, axis=0, keepdims=True))
    total = jnp.sum(jnp.where(is_word > 0, jnp.exp(logits - most), 0.0), axis=0, keepdims=True)
    is_empty = total <= 0
    return jnp.where(is_empty, 0.0, most + jnp.log(jnp.where(is_empty, 1.0, total)))

  return score


def _specs(inputs, block, *, order):
  """Blocks of reports and single images at the place that `order` makes of a grid index."""
  def spec(x, is_report):
    shape = (block if is_report else 1, *x.shape[1:])
    return pl.BlockSpec(shape, lambda *k: (order(*k)[1 if is_report else 0], 0, 0))
  return [spec(x, k < 3) for k, x in enumerate(inputs)]


def _scalars(attend):
  return [jnp.asarray(leaf, jnp.float32).reshape(1) for leaf in jax.tree.leaves(attend)]


def _scalar_specs(attend):
  return [pl.BlockSpec(memory_space=pltpu.SMEM) for _ in jax.tree.leaves(attend)]


def _rebuilt(attend, refs):
  """The `Attend` with its numbers read on chip."""
  return jax.tree.unflatten(jax.tree.structure(attend), [ref[0] for ref in refs])
