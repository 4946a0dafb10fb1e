"""The contrast of reports with images by their words: term (9) of the method."""

import dataclasses
import functools

import einops
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Bool, Float

from plan_jax import config
from plan_jax import shapes
from plan_jax.losses import contrastive
from plan_jax.losses import fused
from plan_jax.losses import pair_scores
from plan_jax.losses import word_pixel

Array = shapes.Array

LOGIT_SCALE = 10.0  # of (9), as published by GLoRIA

_GATHERED_MIB = 1024  # above it the words of all devices are not gathered


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """How a batch is matched, and what that costs each device in a step.

  Attributes:
    algorithm: which.
    is_global: negatives from the whole batch, else from the device's part of it.
    tile: of `pair_scores.blockwise` (a ring's: of one of its steps).
    tflop: of matrix products, forward and backward, with what is computed again; padding counts.
    mib: of temporary arrays that live at once: copies and gradients of words in scope and of own
      pixels, and the tile's (GLoRIA's attention needs a third less of these).
    wire_mib: received by each device, forward and backward.
  """

  algorithm: config.Algorithm
  is_global: bool
  tile: pair_scores.Tile
  tflop: float
  mib: float
  wire_mib: float

  def __str__(self) -> str:
    scope = 'the global batch' if self.is_global else "each device's part"
    return (f'{self.algorithm}, negatives of {scope}, {self.tile.images} images x '
            f'{self.tile.reports} reports at a time; a device and step: {self.tflop:.3g} TFLOP, '
            f'{self.mib:.3g} MiB, {self.wire_mib:.3g} MiB received (estimates)')


def plan(
    *,
    batch: int,
    words: int,
    pixels: int,
    dim: int,
    is_global: bool,
    mib: int,
    devices: int = 1,
    platform: str = 'cpu',
    algorithm: config.Algorithm = config.Algorithm.AUTO,
    has_relation: bool = False,
    rounds: int = 1,
) -> Plan:
  """How to match a batch of pairs that `devices` share in equal parts, and what it costs.

  Args:
    batch: pairs, over all devices.
    words: of a report, padding included.
    pixels: of an image.
    dim: of the joint space.
    is_global: scope of the negatives.
    mib: byte budget of a tile (see `pair_scores.choose_tile`).
    devices: that share the batch.
    platform: of the devices: cpu, gpu or tpu.
    algorithm: `auto` takes tiles of words that are gathered once, which costs as many FLOPs as a
      ring and a third less on the wire; a ring where the words of all are more than a GiB. It
      never takes `reference`, slower where it fits (docs/performance.md), nor `fused`,
      which has been compiled for TPUs but never timed on one.
    has_relation: of the look; it and the rounds say which products there are.
    rounds: likewise.

  Raises:
    ValueError: if `devices` does not divide the batch, or the platform has no kernel.
  """
  if batch % devices:
    raise ValueError(f'a batch of {batch} pairs cannot be shared by {devices} devices equally')
  if algorithm is config.Algorithm.FUSED and platform != 'tpu':
    raise ValueError(
        f"objective.algorithm = 'fused' is a kernel for TPUs, this is {platform}; use 'auto'")
  own = batch // devices
  gathers = is_global and devices > 1
  of_words = batch * words * dim * 4 / 2**20
  if algorithm is config.Algorithm.AUTO:
    is_large = gathers and of_words > _GATHERED_MIB
    algorithm = config.Algorithm.RING if is_large else config.Algorithm.BLOCKWISE
  if algorithm is config.Algorithm.RING and not gathers:
    algorithm = config.Algorithm.BLOCKWISE  # nothing to send around
  a_ring = algorithm is config.Algorithm.RING
  reports = batch if is_global and not a_ring else own
  if algorithm in (config.Algorithm.REFERENCE, config.Algorithm.FUSED):
    tile = pair_scores.Tile(images=own, reports=reports)
  else:
    tile = pair_scores.choose_tile(
        images=own, reports=reports, words=words, pixels=pixels, mib=mib, platform=platform)
  # Words, forward and backward, and gradients; or words once, and gradients.
  wire_mib = 3 * of_words if a_ring else 2 * of_words * (devices - 1) / devices
  return Plan(
      algorithm=algorithm, is_global=is_global, tile=tile,
      tflop=own * (batch if is_global else own) * words * pixels / 1e12 * _flop_of_an_element(
          algorithm, pixels=pixels, dim=dim, has_relation=has_relation, rounds=rounds),
      mib=_held_mib(algorithm, tile, images=own, reports=reports, words=words, pixels=pixels, dim=dim,
                    gathers=gathers, has_relation=has_relation, rounds=rounds),
      wire_mib=wire_mib if gathers else 0.0)


def _held_mib(
    algorithm, tile, *, images, reports, words, pixels, dim, gathers, has_relation, rounds,
) -> float:
  """Temporary memory. The numbers of copies are those of compiled programs (see the tests)."""
  copies = 2 + 3 * has_relation + 1.5 * gathers  # in the order of their lengths; queries; gradients
  if algorithm is config.Algorithm.RING:
    copies = 6 + 4 * has_relation  # those that travel as well, and where they arrive
  of_words, of_pixels = reports * words * dim, images * pixels * dim
  has_gram = pair_scores.has_gram(
      has_relation=has_relation, rounds=rounds, pixels=pixels, dim=dim)
  grams = 3 * images * pixels**2 * (has_gram and algorithm is not config.Algorithm.FUSED)
  of_pair = 6 * pixels if has_gram else rounds * (6 * pixels + 2 * dim)  # for a word: weights, regions
  pairs = 0 if algorithm is config.Algorithm.FUSED else tile.images * tile.reports * words * of_pair
  return 4 * (copies * of_words + 2 * of_pixels + grams + pairs) / 2**20


def _flop_of_an_element(algorithm, *, pixels, dim, has_relation, rounds) -> float:
  """FLOPs that a word and a pixel cost: products of similarities and of regions (or Gram's)."""
  if pair_scores.has_gram(has_relation=has_relation, rounds=rounds, pixels=pixels, dim=dim):
    forward, backward = dim + pixels, 2 * dim + pixels
  else:
    asked_again = (rounds - 1) * has_relation * dim / pixels  # with the region mixed in
    forward = (2 * rounds + asked_again) * dim
    backward = 2 * forward
  match algorithm:
    case config.Algorithm.REFERENCE:
      return 2 * (forward + backward)
    case config.Algorithm.FUSED:  # two kernels backward, for words and for pixels; no Gram form
      return 22 * dim
  return 2 * (2 * forward + backward)


def responsibilities(
    cosine: Float[Array, '... t'], *, is_word: Bool[Array, '... t']
) -> Float[Array, '... t']:
  """How much each word carries of its report's Z: the gradient of Z by its cosine, sum 1.

  0 for padding words, and for a report without words.

  Source: method (9), (18).
  """
  logits = jnp.where(is_word, pair_scores.WORD_SHARPNESS * cosine, -1e30)
  return jnp.where(is_word, jax.nn.softmax(logits, axis=-1), 0.0)


@jax.named_scope('cross_pair')  # profiles and compile_check tell its time by it
def batch_loss(
    words: Float[Array, 'b t d'],
    pixels: Float[Array, 'b p d'],
    *,
    is_word: Bool[Array, 'b t'],
    is_pixel: Bool[Array, 'b p'],
    look: word_pixel.Look,
    is_global: bool,
    mib: int,
    mesh: jax.sharding.Mesh,
    algorithm: config.Algorithm = config.Algorithm.AUTO,
) -> Float[Array, '']:
  """Symmetric cross-entropy over 10 Z, Z as in `pair_scores`; mean of the two directions.

  Empty reports and blank images take no part.

  Args:
    words: word vectors of a batch of pairs, split over the mesh; need not have length 1.
    pixels: likewise.
    is_word: real words.
    is_pixel: real pixels.
    look: how words find their regions.
    is_global: see `plan`.
    mib: likewise.
    mesh: of one axis, over which the batch is split.
    algorithm: see `plan`.

  Raises:
    ValueError: as `plan` does.

  Source: method (9).
  """
  how = plan(
      batch=len(words), words=words.shape[1], pixels=pixels.shape[1], dim=words.shape[2],
      is_global=is_global, mib=mib, devices=mesh.size,
      platform=mesh.devices.flat[0].platform, algorithm=algorithm,
      has_relation=look.relation is not None, rounds=look.rounds)
  is_word = is_word & jnp.any(is_pixel, axis=-1, keepdims=True)
  axis, = mesh.axis_names
  rows = PartitionSpec(axis)
  scores = jax.shard_map(
      functools.partial(_local_scores, how=how, axis=axis), mesh=mesh,
      in_specs=(rows, rows, rows, rows, PartitionSpec()), out_specs=rows, check_vma=False)(
          words, pixels, is_word, is_pixel, look)
  groups = 1 if how.is_global else mesh.size
  return contrastive.symmetric_cross_entropy(
      LOGIT_SCALE * einops.rearrange(scores, '(g i) j -> g i j', g=groups),
      is_pair=einops.rearrange(jnp.any(is_word, axis=-1), '(g b) -> g b', g=groups))


def _local_scores(words, pixels, is_word, is_pixel, look, *, how: Plan, axis: str):
  """A device's images with the reports that are in scope."""
  if how.algorithm is config.Algorithm.RING:
    return pair_scores.ring(words, pixels, is_word=is_word, is_pixel=is_pixel, look=look,
                            tile=how.tile, axis=axis)
  if how.is_global:
    words, is_word = jax.lax.all_gather((words, is_word), axis, tiled=True)
  if how.algorithm is config.Algorithm.REFERENCE:
    return pair_scores.reference(
        words, pixels, is_word=is_word, is_pixel=is_pixel, look=look)
  if how.algorithm is config.Algorithm.FUSED:
    return fused.scores(words, pixels, is_word=is_word, is_pixel=is_pixel, look=look)
  return pair_scores.blockwise(
      words, pixels, is_word=is_word, is_pixel=is_pixel, look=look, tile=how.tile)
