"""Segmentation on frozen maps: a light U-Net decoder is trained, the tower stays as it is.

From the coarsest map on, features are brought to the next finer map's grid and joined with
it; after the finest map they are doubled until the grid is a quarter of the frame or finer.
Masks are those of the evaluation's frame of FRAME x FRAME pixels.

Source: U-Net (Ronneberger et al., MICCAI 2015); BCE plus soft Dice as in V-Net (Milletari et
al., 3DV 2016), the Dice over the batch, so that images without the class count in it.
"""

import dataclasses
import functools
from typing import Any, Iterable, Iterator

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float
import numpy as np

from plan_jax.evals import grounding
from plan_jax.probes import features
from plan_jax.probes import fit as fit_lib

FRAME = grounding.FRAME
_PRIOR = 0.02  # probability of every pixel at the start
_SMOOTH = 1.0  # pixels added to both sides of the Dice ratio


class Decoder(nn.Module):
  """Logits of each class on `grid`; widths go with the maps from coarse to fine."""

  classes: int
  width: int
  grids: tuple[tuple[int, int], ...]  # of the steps, coarse to fine

  @nn.compact
  def __call__(
      self, stages: tuple[Float[jax.Array, 'b y x c'], ...],
  ) -> Float[jax.Array, 'b h w k']:
    coarse_first = stages[::-1]
    x = 0.0
    for i, grid in enumerate(self.grids):
      width = max(16, self.width // 2**i)
      if i:
        x = features.resized(nn.Dense(width, name=f'narrow_{i}')(x), grid)
      if i < len(coarse_first):
        x = x + nn.Dense(width, name=f'skip_{i}')(coarse_first[i])
      x = features.ConvBlock(width, name=f'block_{i}')(nn.relu(x))
    return nn.Conv(
        self.classes, (1, 1), name='logits',
        bias_init=nn.initializers.constant(float(np.log(_PRIOR / (1 - _PRIOR)))))(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmenter:
  """A trained decoder. `constants` are the moments of its input."""

  head: Decoder
  constants: Any
  fitted: fit_lib.Fitted

  def predict(
      self, maps: features.Maps, *, batch_size: int = 64,
  ) -> Iterator[Float[np.ndarray, 'side side k']]:
    """Probability of each class in each pixel of the frame, an image at a time; 0 in padding."""
    for start in range(0, len(maps), batch_size):
      part = maps.take(slice(start, start + batch_size))
      grids = jax.device_get(_predict(
          self.fitted.params, self.constants, part.stages, part.is_cell, head=self.head))
      for grid, is_cell in zip(grids, part.is_cell[0], strict=True):
        is_image = cv2.resize(
            is_cell.astype(np.uint8), (FRAME, FRAME), interpolation=cv2.INTER_NEAREST) > 0
        # cv2 drops the last axis of a single class, and resizes four channels at most.
        yield np.stack([
            np.where(is_image, cv2.resize(np.ascontiguousarray(plane), (FRAME, FRAME)), 0)
            for plane in np.moveaxis(grid, -1, 0)], axis=-1)


def train(
    maps: features.Maps,
    masks: Iterable[Bool[np.ndarray, 'side side k']],
    *,
    val_maps: features.Maps,
    val_masks: Iterable[Bool[np.ndarray, 'side side k']],
    classes: int,
    width: int = 64,
    settings: fit_lib.Settings = fit_lib.Settings(),
    label: str = '',
) -> Segmenter:
  """A decoder from maps and masks in the frame.

  Args:
    maps: of the training images.
    masks: theirs, one by one as they are needed; kept at the decoder's resolution only.
    val_maps: of the validation images, whose loss chooses the step.
    val_masks: theirs.
    classes: k.
    width: channels at the coarsest map; half as many at each finer step, at least 16.
    settings: of the training.
    label: shows progress under this name.

  Raises:
    ValueError: maps and masks of different numbers or shapes, an empty split, or maps that
      are not finite.
  """
  grids = step_grids(maps)
  head = Decoder(classes=classes, width=width, grids=grids)

  def arrays(of: features.Maps, truth: Iterable[np.ndarray]):
    return {'stages': of.stages, 'is_cell': of.is_cell,
            'share': _shares(truth, count=len(of), grid=grids[-1], classes=classes)}

  data, val_data = arrays(maps, masks), arrays(val_maps, val_masks)
  constants = {'scale': features.moments(maps)}
  fitted = fit_lib.fit(
      _loss, head, fit_lib.initial(head, maps.stages, seed=settings.seed),
      constants=constants, train=data, val=val_data, settings=settings, label=label)
  return Segmenter(head=head, constants=constants, fitted=fitted)


def step_grids(maps: features.Maps) -> tuple[tuple[int, int], ...]:
  """Grids of the decoder's steps, coarse to fine; the last has at least FRAME / 4 rows."""
  grids = [stage.shape[1:3] for stage in maps.stages[::-1]]
  while grids[-1][0] < FRAME // 4:
    grids.append((2 * grids[-1][0], 2 * grids[-1][1]))
  return tuple(grids)


def _shares(
    masks: Iterable[Bool[np.ndarray, 'side side k']], *, count: int, grid: tuple[int, int],
    classes: int,
) -> Float[np.ndarray, 'n h w k']:
  """How much of each cell of the decoder's grid is inside, float16."""
  out = np.zeros((count, *grid, classes), np.float16)
  number = -1
  for number, mask in enumerate(masks):
    if number >= count or mask.shape != (FRAME, FRAME, classes):
      raise ValueError(
          f'mask {number} of {count} images has shape {mask.shape}; need one '
          f'[{FRAME} {FRAME} {classes}] an image')
    for k in np.flatnonzero(mask.any(axis=(0, 1))):
      plane = np.ascontiguousarray(mask[:, :, k], np.float32)
      out[number, :, :, k] = cv2.resize(plane, grid[::-1], interpolation=cv2.INTER_AREA)
  if number + 1 != count:
    raise ValueError(f'{number + 1} masks for maps of {count} images')
  return out


def _apply(head: Decoder, params, constants, stages, is_cell):
  stages = features.standardised(stages, is_cell, constants['scale'])
  return head.apply({'params': params}, stages)


def _loss(head: Decoder, params, constants, batch):
  """Binary cross entropy, mean over pixels, and 1 - Dice over the batch; mean over classes."""
  logits = _apply(head, params, constants, batch['stages'], batch['is_cell'])
  share = batch['share'].astype(jnp.float32)
  entropy = jnp.mean(
      jnp.maximum(logits, 0) - logits * share + jnp.log1p(jnp.exp(-jnp.abs(logits))))
  probability = jax.nn.sigmoid(logits)
  both = jnp.sum(probability * share, axis=(0, 1, 2))
  total = jnp.sum(probability, axis=(0, 1, 2)) + jnp.sum(share, axis=(0, 1, 2))
  dice = (2 * both + _SMOOTH) / (total + _SMOOTH)
  count = jnp.float32(len(logits))
  return count * (entropy + jnp.mean(1 - dice)), count


@functools.partial(jax.jit, static_argnames='head')
def _predict(params, constants, stages, is_cell, *, head):
  return jax.nn.sigmoid(_apply(head, params, constants, stages, is_cell))
