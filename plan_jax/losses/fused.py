"""Scores of all pairs in one kernel that never writes similarities to memory (TPU).

A program holds one image's pixels on chip and goes through a block of reports, one at a
time; several blocks fill a row of scores, which stays on chip until then. The derivative
is that of the same lines: the backward kernels call `jax.vjp` on them. There are two,
because each sums over another axis of the grid: over reports for pixels, over images for
words.

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

_LANES = 128  # scores of a row, the least that a TPU writes; several blocks of reports fill it
_REPORTS = 8  # of a block at most; a power of two
_BLOCK_BYTES = 2**19  # of a block's words: eight such fit beside the rest into 16 MiB on chip


def scores(
    words: Float[Array, 'j t d'],
    pixels: Float[Array, 'i p d'],
    *,
    is_word: Bool[Array, 'j t'],
    is_pixel: Bool[Array, 'i p'],
    look: word_pixel.Look,
    interpret: bool = False,
) -> Float[Array, 'i j']:
  """As `pair_scores.reference`; in main memory are a few copies of words and pixels, none a pair.

  These are fp32: unit words, words turned by the relation, and their gradients. A pair has
  its score and, backward, the gradient of it, 4 bytes each.

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
  block = _reports_of_a_block(*words.shape[1:])
  words, is_word = (
      jnp.pad(x.astype(jnp.float32), [(0, -reports % block), (0, 0), (0, 0)])
      for x in (words, is_word[:, None]))  # [j 1 t]: as [j t 1] a TPU pads each word to 128
  queries = look.queries(words)
  is_pixel = is_pixel.astype(jnp.float32)[:, None]
  found = _scores(queries, contrastive.unit(words), pixels.astype(jnp.float32), is_word, is_pixel,
                  look.attend, block, interpret)
  return found[:, :reports]


def _reports_of_a_block(words: int, dim: int) -> int:
  of_one = 4 * _up(words, 8) * _up(dim, 128)
  fit = max(_BLOCK_BYTES // of_one, 1)
  return min(_REPORTS, 1 << (fit.bit_length() - 1))


def _up(size: int, multiple: int) -> int:
  return -(-size // multiple) * multiple


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _scores(queries, words, pixels, is_word, is_pixel, attend, block, interpret):
  return _scores_forward(
      queries, words, pixels, is_word, is_pixel, attend, block, interpret)[0]


def _scores_forward(queries, words, pixels, is_word, is_pixel, attend, block, interpret):

  def kernel(queries, words, is_word, pixels, is_pixel, *rest):
    *leaves, out = rest
    score = _pair(is_pixel=is_pixel[0], attend=_rebuilt(attend, leaves))
    first = _first_lane(pl.program_id(1), block)

    @pl.when(first == 0)
    def _():
      out[...] = jnp.zeros_like(out)

    def report(r, row):
      z = score(queries[r], words[r], pixels[0], is_word=_column(is_word[r]))
      return jnp.where(_lane() == first + r, z, row)

    out[0] = jax.lax.fori_loop(0, block, report, out[0])

  inputs = (queries, words, is_word, pixels, is_pixel)
  images, blocks = len(pixels), len(words) // block
  found = pl.pallas_call(
      kernel, grid=(images, blocks), interpret=interpret,
      in_specs=_specs(inputs, block, order=lambda i, j: (i, j)) + _scalar_specs(attend),
      out_specs=_row_spec(block, order=lambda i, j: (i, j)),
      out_shape=jax.ShapeDtypeStruct((images, 1, _up(len(words), _LANES)), jnp.float32))(
          *inputs, *_scalars(attend))
  return found[:, 0, :len(words)], (*inputs, attend)


def _scores_backward(block, interpret, kept, d_scores):
  *inputs, attend = kept
  queries, words, is_word, pixels, is_pixel = inputs
  images, blocks = len(pixels), len(words) // block
  # Rows as in the forward pass: as [j i 1 1] a TPU pads each to 512 bytes.
  d_scores = jnp.pad(d_scores, [(0, 0), (0, -len(words) % _LANES)])[:, None]

  def pull(refs, attend, r, *, first):
    queries, words, is_word, pixels, is_pixel, d_scores = refs
    score = functools.partial(
        _pair(is_pixel=is_pixel[0], attend=attend), is_word=_column(is_word[r]))
    _, back = jax.vjp(score, queries[r], words[r], pixels[0])
    # A lane cannot be read at an index that varies.
    return back(jnp.sum(jnp.where(_lane() == first + r, d_scores[0], 0.0), axis=1, keepdims=True))

  def for_pixels(*refs):
    *refs, out = refs
    attend_here, first = _rebuilt(attend, refs[6:]), _first_lane(pl.program_id(1), block)

    @pl.when(pl.program_id(1) == 0)
    def _():
      out[...] = jnp.zeros_like(out)

    def report(r, total):
      return total + pull(refs[:6], attend_here, r, first=first)[2]

    out[0] += jax.lax.fori_loop(0, block, report, jnp.zeros(out.shape[1:], jnp.float32))

  def for_words(*refs):
    *refs, d_queries, d_words = refs
    attend_here, first = _rebuilt(attend, refs[6:]), _first_lane(pl.program_id(0), block)

    @pl.when(pl.program_id(1) == 0)
    def _():
      d_queries[...] = jnp.zeros_like(d_queries)
      d_words[...] = jnp.zeros_like(d_words)

    def report(r, _):
      of_queries, of_words, _ = pull(refs[:6], attend_here, r, first=first)
      d_queries[r] += of_queries
      d_words[r] += of_words
      return 0

    jax.lax.fori_loop(0, block, report, 0)

  def call(kernel, grid, order, outputs):
    specs = _specs(inputs, block, order=order)
    likes = [inputs[k] for k in outputs]
    return pl.pallas_call(
        kernel, grid=grid, interpret=interpret,
        in_specs=[*specs, _row_spec(block, order=order), *_scalar_specs(attend)],
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


def _lane():
  return jax.lax.broadcasted_iota(jnp.int32, (1, _LANES), 1)


def _first_lane(block_index, block):
  """Where a block's scores begin in their row."""
  return jax.lax.rem(block_index * block, _LANES)  # `%` asks which TPU this machine has


def _column(row):
  """[1 t] as [t 1], as a sum: no layout on chip is asked to change."""
  square = (row.shape[1], row.shape[1])
  own = (jax.lax.broadcasted_iota(jnp.int32, square, 0)
         == jax.lax.broadcasted_iota(jnp.int32, square, 1))
  return jnp.sum(jnp.where(own, row, 0.0), axis=1, keepdims=True)


def _row_spec(block, *, order):
  """The row of scores that holds the block of reports."""
  def place(*k):
    image, reports = order(*k)
    return image, 0, jax.lax.div(reports * block, _LANES)  # as above
  return pl.BlockSpec((1, 1, _LANES), place)


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
