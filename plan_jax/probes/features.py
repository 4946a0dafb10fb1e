"""Frozen feature maps as the heads take them, on one scale for every tower."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int
import numpy as np

_CHUNK = 64  # images whose maps are held in fp32 at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Maps:
  """Maps of n images, finest first, and which of their cells hold image.

  A map covers the whole frame, a square: cell (i, j) of an h x w map lies at
  [i / h, (i + 1) / h] of its height and [j / w, (j + 1) / w] of its width. The stages
  of `inference.Model.image_maps` are such maps.
  """

  stages: tuple[Float[np.ndarray, 'n h w c'], ...]
  is_cell: tuple[Bool[np.ndarray, 'n h w'], ...]

  def __post_init__(self):
    shapes = [stage.shape[:3] for stage in self.stages]
    if not shapes or shapes != [mask.shape for mask in self.is_cell]:
      raise ValueError(
          f'maps {shapes} and masks {[mask.shape for mask in self.is_cell]} disagree: one mask '
          '[n h w] for each map [n h w c], one map at least')
    if len({shape[0] for shape in shapes}) > 1 or shapes != sorted(
        shapes, key=lambda shape: -shape[1]):
      raise ValueError(f'maps {shapes}: of the same images, finest first')

  def __len__(self) -> int:
    return len(self.stages[0])

  def take(self, rows: Int[np.ndarray, 'm'] | slice) -> 'Maps':
    return Maps(stages=tuple(stage[rows] for stage in self.stages),
                is_cell=tuple(mask[rows] for mask in self.is_cell))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moments:
  """Mean and standard deviation of each channel of each map, over cells with image."""

  mean: tuple[Float[np.ndarray, 'c'], ...]
  deviation: tuple[Float[np.ndarray, 'c'], ...]


jax.tree_util.register_dataclass(Moments, data_fields=('mean', 'deviation'), meta_fields=())


def moments(maps: Maps) -> Moments:
  """Of the training maps. A channel that does not vary has deviation 1.

  Raises:
    ValueError: maps that are not finite.
  """
  means, deviations = [], []
  for stage, mask in zip(maps.stages, maps.is_cell, strict=True):
    total, square = np.zeros(stage.shape[-1]), np.zeros(stage.shape[-1])
    for start in range(0, len(stage), _CHUNK):
      part = slice(start, start + _CHUNK)
      cells = stage[part][mask[part]].astype(np.float32)
      total += cells.sum(axis=0, dtype=np.float64)
      square += np.square(cells, dtype=np.float64).sum(axis=0)
    if not np.isfinite(square).all():
      raise ValueError('feature maps are not finite: the tower has diverged')
    count = max(int(mask.sum()), 1)
    mean = total / count
    variance = np.maximum(square / count - mean**2, 0)
    varies = variance > 1e-8 * np.maximum(mean**2, 1e-8)
    means.append(mean.astype(np.float32))
    deviations.append(np.where(varies, np.sqrt(variance), 1).astype(np.float32))
  return Moments(mean=tuple(means), deviation=tuple(deviations))


def standardised(
    stages: tuple[Float[jax.Array, 'b h w c'], ...],
    is_cell: tuple[Bool[jax.Array, 'b h w'], ...],
    scale: Moments,
) -> tuple[Float[jax.Array, 'b h w c'], ...]:
  """Maps with mean 0 and deviation 1 in fp32, 0 in cells without image."""
  return tuple(
      jnp.where(mask[..., None], (stage.astype(jnp.float32) - mean) / deviation, 0)
      for stage, mask, mean, deviation in zip(
          stages, is_cell, scale.mean, scale.deviation, strict=True))


def resized(x: Float[jax.Array, 'b h w c'], grid: tuple[int, int]) -> Float[jax.Array, 'b y x c']:
  """Bilinear, half-pixel centres; as it is where the grid is the same."""
  if x.shape[1:3] == grid:
    return x
  return jax.image.resize(x, (x.shape[0], *grid, x.shape[-1]), 'bilinear', antialias=False)


class ConvBlock(nn.Module):
  """3x3 convolution, group norm, ReLU."""

  width: int

  @nn.compact
  def __call__(self, x: Float[jax.Array, 'b h w c']) -> Float[jax.Array, 'b h w k']:
    x = nn.Conv(self.width, (3, 3), use_bias=False, name='conv')(x)
    return nn.relu(nn.GroupNorm(num_groups=8, name='norm')(x))
