"""Word-region match of every report with every image, without the array of all pairs.

Three algorithms and one signature: `reference` holds everything in memory and is the
oracle of the others; `blockwise` goes tile by tile; `ring` does so while the words
travel from device to device, so that no device ever holds all of them. A fourth, fused
into one kernel, is in `fused`.

Source: method (9) on top of (3)-(6); GLoRIA (ICCV 2021) for the aggregation.
"""

import dataclasses
import functools
import math

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from plan_jax import shapes
from plan_jax.losses import contrastive
from plan_jax.losses import word_pixel

Array = shapes.Array

WORD_SHARPNESS = 5.0  # of the log-sum-exp over words, as published by GLoRIA

# A TPU's compiler keeps tiles of this size on the chip, larger ones in main memory, which then is
# what the scores wait for (docs/scale.md); a CPU's stay in its cache (docs/performance.md).
MOST_MIB = {'tpu': 32, 'cpu': 16}
_COPIES = 6  # fp32 arrays of a tile's size that its backward pass holds at once
_SIDE_BY_SIDE = 2  # images whose products a CPU runs at once, each on its cores
_RUNGS = 4  # lengths that a tile of reports can be cut to


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
  """How many images and reports are matched at a time; each divides its axis."""

  images: int
  reports: int


def choose_tile(
    *, images: int, reports: int, words: int, pixels: int, mib: float, platform: str,
) -> Tile:
  """The largest tile that fits into the budget and into what is near the cores; one pair at least.

  Args:
    images: that one device holds.
    reports: that it matches them with at a time (a ring's step: those of one device).
    words: of a report, padding included.
    pixels: of an image.
    mib: byte budget, of which `MOST_MIB` are used.
    platform: cpu, gpu or tpu. On a CPU few images and many reports, for the products of `_scores`.
      Else about as many images as reports: least is read for a pair.
  """
  mib = min(mib, MOST_MIB.get(platform, mib))
  pairs = max(1, int(mib * 2**20) // (_COPIES * 4 * words * pixels))
  tile_images = _largest_divisor(
      images, at_most=min(pairs, _SIDE_BY_SIDE) if platform == 'cpu' else math.isqrt(pairs))
  return Tile(images=tile_images,
              reports=_largest_divisor(reports, at_most=max(1, pairs // tile_images)))


def has_gram(*, has_relation: bool, rounds: int, pixels: int, dim: int) -> bool:
  """Whether regions are not computed, only their lengths and products with their words."""
  return not has_relation and rounds == 1 and pixels < dim


def _largest_divisor(number: int, *, at_most: int) -> int:
  return max(n for n in range(1, min(number, at_most) + 1) if number % n == 0)


def reference(
    words: Float[Array, 'j t d'],
    pixels: Float[Array, 'i p d'],
    *,
    is_word: Bool[Array, 'j t'],
    is_pixel: Bool[Array, 'i p'],
    look: word_pixel.Look,
) -> Float[Array, 'i j']:
  """Soft-region match of every report with every image, fp32, larger is better.

  Z_ij = log sum_l exp(5 cos(word l of report j, its region on image i)). A report
  without words scores 0 with every image. Several arrays [i, j, t, p] are in memory.

  Args:
    words: word vectors of all reports; need not have length 1.
    pixels: pixel vectors of all images.
    is_word: real words.
    is_pixel: real pixels.
    look: how words find their regions.
  """
  return _scores(*_prepared(words, pixels, look), look, is_word, is_pixel)


def blockwise(
    words: Float[Array, 'j t d'],
    pixels: Float[Array, 'i p d'],
    *,
    is_word: Bool[Array, 'j t'],
    is_pixel: Bool[Array, 'i p'],
    look: word_pixel.Look,
    tile: Tile,
) -> Float[Array, 'i j']:
  """As `reference`, in peak extra memory of about 24 * tile * t * p bytes, on one device.

  Reports are sorted by length, and a tile computes the first quarter, half, three quarters
  or all of the words, whichever holds its longest report.

  Raises:
    ValueError: if the tile does not divide images and reports.
  """
  if len(pixels) % tile.images or len(words) % tile.reports:
    raise ValueError(f'{tile} does not divide {len(pixels)} images and {len(words)} reports; '
                     'use choose_tile()')
  lengths = jnp.max(jnp.where(is_word, jnp.arange(1, is_word.shape[1] + 1), 0), axis=1)
  order = jnp.argsort(lengths)
  reports, images = _prepared(words, pixels, look)
  reports, is_word, lengths = jax.tree.map(
      lambda x: einops.rearrange(
          jnp.take(x, order, axis=0), '(n j) ... -> n j ...', j=tile.reports),
      (reports, is_word, lengths))
  images, is_pixel = jax.tree.map(
      lambda x: einops.rearrange(x, '(m i) ... -> m i ...', i=tile.images), (images, is_pixel))
  scores = _tiled(reports, images, look, is_word, is_pixel, jnp.max(lengths, axis=1))
  return einops.rearrange(scores, 'n m i j -> (m i) (n j)')[:, jnp.argsort(order)]


@jax.custom_vjp
def _tiled(
    reports: tuple[Array, Array | None],
    images: tuple[Array, Array | None],
    look: word_pixel.Look,
    is_word: Bool[Array, 'n j t'],
    is_pixel: Bool[Array, 'm i p'],
    most: Int[Array, 'n'],
) -> Float[Array, 'n m i j']:
  """All tiles, one after the other; `most` words are in the longest report of a tile.

  Reports and images as of `_prepared`, in tiles: [n j ...] and [m i ...].
  """

  def of_reports(some):
    reports, is_word, most = some
    return jax.lax.map(
        lambda some: _at_rung(_scores_cut_to, most, reports, some[0], look, is_word, some[1]),
        (images, is_pixel))

  return jax.lax.map(of_reports, (reports, is_word, most))


def _tiled_forward(*arguments):
  return _tiled(*arguments), arguments


def _tiled_backward(arguments, d_scores):
  # Written out: autodiff of the loops would compute a tile twice again, for the loop and for
  # the branch of its length, and keep one gradient of all words for each image.
  reports, images, look, is_word, is_pixel, most = arguments

  def of_reports(carry, some):
    reports, is_word, most, d_scores = some

    def of_images(carry, some):
      images, is_pixel, d_images, d_scores = some
      d_reports, more, d_look = _at_rung(
          _pull_cut_to, most, reports, images, look, is_word, is_pixel, d_scores)
      return (jax.tree.map(jnp.add, carry, (d_reports, d_look)),
              jax.tree.map(jnp.add, d_images, more))

    d_images, d_look = carry
    zeros = jax.tree.map(jnp.zeros_like, reports)
    (d_reports, d_look), d_images = jax.lax.scan(
        of_images, (zeros, d_look), (images, is_pixel, d_images, d_scores))
    return (d_images, d_look), d_reports

  zeros = jax.tree.map(jnp.zeros_like, (images, look))
  (d_images, d_look), d_reports = jax.lax.scan(
      of_reports, zeros, (reports, is_word, most, d_scores))
  return d_reports, d_images, d_look, None, None, None


_tiled.defvjp(_tiled_forward, _tiled_backward)


def ring(
    words: Float[Array, 'j t d'],
    pixels: Float[Array, 'i p d'],
    *,
    is_word: Bool[Array, 'j t'],
    is_pixel: Bool[Array, 'i p'],
    look: word_pixel.Look,
    tile: Tile,
    axis: str,
) -> Float[Array, 'i n*j']:
  """The local images with the reports of all n devices of a mesh axis, under `shard_map`.

  Arguments are the device's own; reports come back in the order of the devices. Words
  (and, backward, their gradients) travel once around; memory does not grow with n.
  """
  return _ring(words, pixels, look, is_word, is_pixel, tile, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _ring(words, pixels, look, is_word, is_pixel, tile, axis):
  def step(reports, _):
    scores = blockwise(reports[0], pixels, is_word=reports[1], is_pixel=is_pixel, look=look,
                       tile=tile)
    return _to_next(reports, axis), scores

  _, scores = jax.lax.scan(step, (words, is_word), length=jax.lax.axis_size(axis))
  # At step k the device d holds what device d + k sent.
  scores = jnp.roll(scores, jax.lax.axis_index(axis), axis=0)
  return einops.rearrange(scores, 'n i j -> i (n j)')


def _ring_forward(words, pixels, look, is_word, is_pixel, tile, axis):
  scores = _ring(words, pixels, look, is_word, is_pixel, tile, axis)
  return scores, (words, pixels, look, is_word, is_pixel)


def _ring_backward(tile, axis, kept, d_scores):
  # Scores are computed again: autodiff of the scan would keep the words of all devices.
  words, pixels, look, is_word, is_pixel = kept
  size = jax.lax.axis_size(axis)
  d_scores = einops.rearrange(d_scores, 'i (n j) -> n i j', n=size)
  d_scores = jnp.roll(d_scores, -jax.lax.axis_index(axis), axis=0)

  def step(carry, d_scores):
    reports, d_words, d_here = carry
    _, pull = jax.vjp(
        lambda words, pixels, look: blockwise(
            words, pixels, is_word=reports[1], is_pixel=is_pixel, look=look, tile=tile),
        reports[0], pixels, look)
    more, *more_here = pull(d_scores)
    d_here = jax.tree.map(jnp.add, d_here, tuple(more_here))
    return (*_to_next((reports, d_words + more), axis), d_here), None

  zeros = jax.tree.map(jnp.zeros_like, (words, (pixels, look)))
  (_, d_words, d_here), _ = jax.lax.scan(step, ((words, is_word), *zeros), d_scores)
  return d_words, *d_here, None, None


_ring.defvjp(_ring_forward, _ring_backward)


def _to_next(values, axis: str):
  size = jax.lax.axis_size(axis)
  return jax.lax.ppermute(values, axis, [(k, (k - 1) % size) for k in range(size)])


def _at_rung(function, most, reports, images, look, is_word, *rest):
  """`function` of the first rung of a ladder that holds `most` words."""
  length = is_word.shape[1]
  rungs = sorted({min(length, -(-length * k // (8 * _RUNGS)) * 8) for k in range(1, _RUNGS + 1)})
  first = jnp.sum(most > jnp.array(rungs[:-1], most.dtype))
  return jax.lax.switch(
      first, [functools.partial(function, rung) for rung in rungs],
      reports, images, look, is_word, *rest)


def _scores_cut_to(rung, reports, images, look, is_word, is_pixel):
  reports, is_word = jax.tree.map(lambda x: x[:, :rung], (reports, is_word))
  return _scores(reports, images, look, is_word, is_pixel)


def _pull_cut_to(rung, reports, images, look, is_word, is_pixel, d_scores):
  """Gradients by reports, images and look."""
  _, pull = jax.vjp(
      lambda reports, images, look: _scores_cut_to(
          rung, reports, images, look, is_word, is_pixel),
      reports, images, look)
  return pull(d_scores)


def _prepared(words, pixels, look):
  """What all tiles need: words and what they first ask with, pixels and their Gram matrices.

  Queries are None where the words are, Gram matrices where regions are computed.
  """
  words, pixels = words.astype(jnp.float32), pixels.astype(jnp.float32)
  queries = None if look.relation is None else look.queries(words)
  grams = None
  if has_gram(has_relation=queries is not None, rounds=look.rounds, pixels=pixels.shape[1],
              dim=words.shape[-1]):
    grams = jnp.einsum('ipd,iqd->ipq', pixels, pixels)
  return (words, queries), (pixels, grams)


def _scores(reports, images, look, is_word, is_pixel) -> Float[Array, 'i j']:
  def of_image(image, is_pixel):
    return _image_scores(*reports, *image, look=look, is_word=is_word, is_pixel=is_pixel)

  if len(is_pixel) > _SIDE_BY_SIDE:
    return jax.vmap(of_image)(images, is_pixel)
  # Products in batches take a CPU twice as long as plain ones. Of these it runs those of two images
  # side by side, which keeps its cores busier than sharing each product does.
  return jnp.stack([
      of_image(*jax.tree.map(lambda x: x[k], (images, is_pixel))) for k in range(len(is_pixel))])


def _image_scores(words, queries, pixels, gram, *, look, is_word, is_pixel) -> Float[Array, 'j']:
  """All reports with one image [p d]: the products are those of two matrices."""
  if gram is not None:
    cosine = _gram_cosine(words, pixels, gram, look=look, is_word=is_word, is_pixel=is_pixel)
  else:
    *_, regions = word_pixel.summed(
        words, words if queries is None else queries, pixels, look=look, is_word=is_word,
        is_pixel=is_pixel)
    cosine = contrastive.cosine(words, regions)
  return contrastive.masked_logsumexp(WORD_SHARPNESS * cosine, where=is_word, axis=-1)


def _gram_cosine(words, pixels, gram, *, look, is_word, is_pixel) -> Float[Array, 'j t']:
  """cos(word, region) without the region c: w.c = sum_p a s, |c|^2 = a^T (V V^T) a.

  The second product then costs p instead of d an element; pays where p < d.
  """
  similarity = jnp.einsum('jtd,pd->jtp', words, pixels)
  weights = look.attend(similarity, is_word=is_word, is_pixel=is_pixel)
  dot = jnp.sum(weights * similarity, axis=-1)
  square = _quadratic(weights, gram)
  return dot * contrastive.rsqrt(square) * contrastive.rsqrt(jnp.sum(jnp.square(words), axis=-1))


@jax.custom_vjp
def _quadratic(a: Float[Array, 'j t p'], gram: Float[Array, 'p p']) -> Float[Array, 'j t']:
  """a^T G a of each row, G symmetric: backward, the product aG is there already."""
  return _quadratic_forward(a, gram)[0]


def _quadratic_forward(a, gram):
  product = jnp.einsum('jtp,pq->jtq', a, gram)
  return jnp.sum(a * product, axis=-1), (a, product)


def _quadratic_backward(kept, g):
  a, product = kept
  weighted = a * g[..., None]
  return 2 * g[..., None] * product, jnp.einsum('jtp,jtq->pq', weighted, a)


_quadratic.defvjp(_quadratic_forward, _quadratic_backward)
