"""Detection on frozen maps: one anchor-free head is trained, the tower stays as it is.

Every cell of one map, that of about an eighth of the image's side, says for each class
whether an object is there, and where its box is. All maps take part: each is projected,
brought to that grid and added. Boxes are (x0, y0, x1, y1) in pixels of the evaluation's
frame of FRAME x FRAME, whatever the tower's image size.

Source: FCOS (Tian et al., ICCV 2019) with centre sampling; focal loss of Lin et al.
(ICCV 2017); GIoU of Rezatofighi et al. (CVPR 2019). Other than FCOS: boxes by class, so
that findings may lie over each other; centre and size in place of four distances, since
a box smaller than a cell need not hold the cell's centre; no centre-ness.
"""

import dataclasses
import functools
from typing import Any, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float
import numpy as np
import optax

from plan_jax.evals import detection
from plan_jax.evals import grounding
from plan_jax.probes import features
from plan_jax.probes import fit as fit_lib

FRAME = grounding.FRAME
SCORE_FLOOR = 0.05  # a weaker detection is none
NMS_IOU = 0.5
MAX_DETECTIONS = 100  # of one image
_RADIUS = 1.5  # cells from its centre that may stand for a box
_PRIOR = 0.01  # score of every cell at the start
_BOX_WEIGHT = 2.0  # of GIoU beside the focal loss


class Head(nn.Module):
  """Class logits and boxes of each cell: centre relative to the cell's, log size, in cells."""

  classes: int
  width: int
  grid: tuple[int, int]

  @nn.compact
  def __call__(
      self, stages: tuple[Float[jax.Array, 'b y x c'], ...],
  ) -> tuple[Float[jax.Array, 'b h w k'], Float[jax.Array, 'b h w k 4']]:
    x = sum(
        features.resized(nn.Dense(self.width, name=f'lateral_{i}')(stage), self.grid)
        for i, stage in enumerate(stages))
    x = features.ConvBlock(self.width, name='shared')(nn.relu(x))

    def branch(name, size, bias):
      hidden = features.ConvBlock(self.width, name=f'{name}_block')(x)
      return nn.Conv(
          size, (3, 3), kernel_init=nn.initializers.normal(0.01),
          bias_init=nn.initializers.constant(bias), name=name)(hidden)

    logits = branch('logits', self.classes, float(np.log(_PRIOR / (1 - _PRIOR))))
    boxes = branch('boxes', 4 * self.classes, 0.0)
    return logits, boxes.reshape(*logits.shape, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detector:
  """A trained head. `constants` are its input's moments and the log size boxes start from."""

  head: Head
  constants: Any
  fitted: fit_lib.Fitted

  def predict(self, maps: features.Maps, *, batch_size: int = 64) -> list[detection.Detections]:
    """What is found in each image, boxes in the frame, surest first."""
    found = []
    for start in range(0, len(maps), batch_size):
      part = maps.take(slice(start, start + batch_size))
      scores, boxes = jax.device_get(_predict(
          self.fitted.params, self.constants, part.stages, part.is_cell, head=self.head))
      found += [select(*row) for row in zip(scores, boxes)]
    return found


def train(
    maps: features.Maps,
    truths: Sequence[detection.Truth],
    *,
    val_maps: features.Maps,
    val_truths: Sequence[detection.Truth],
    classes: int,
    width: int = 64,
    settings: fit_lib.Settings = fit_lib.Settings(),
    label: str = '',
) -> Detector:
  """A detector from maps and boxes in the frame.

  Args:
    maps: of the training images.
    truths: their boxes; an image without any is a negative example.
    val_maps: of the validation images, whose loss chooses the step.
    val_truths: their boxes.
    classes: how many; ids are 0 .. classes - 1.
    width: channels of the head.
    settings: of the training.
    label: shows progress under this name.

  Raises:
    ValueError: lists of different lengths, an empty split, maps that are not finite, or no
      box to learn from.
  """
  for found, expected in ((maps, truths), (val_maps, val_truths)):
    if len(found) != len(expected):
      raise ValueError(f'maps of {len(found)} images, boxes of {len(expected)}')
  sizes = [box[2:] - box[:2] for truth in truths for box in truth.boxes]
  if not sizes:
    raise ValueError(f'none of {len(truths)} training images has a box: nothing to learn')
  grid = maps.stages[_used(maps)].shape[1:3]
  head = Head(classes=classes, width=width, grid=grid)
  constants = {
      'scale': features.moments(maps),
      'log_size': np.log(np.array(sizes, np.float64) * grid[::-1] / FRAME).mean(0).astype(
          np.float32)}

  def arrays(of: features.Maps, boxes: Sequence[detection.Truth]):
    return {
        'stages': of.stages, 'is_cell': of.is_cell,
        'boxes': np.array([targets(truth, grid=grid, classes=classes) for truth in boxes])}

  fitted = fit_lib.fit(
      _loss, head, fit_lib.initial(head, maps.stages, seed=settings.seed),
      constants=constants, train=arrays(maps, truths),
      val=arrays(val_maps, val_truths), settings=settings, label=label)
  return Detector(head=head, constants=constants, fitted=fitted)


def targets(
    truth: detection.Truth, *, grid: tuple[int, int], classes: int,
) -> Float[np.ndarray, 'h w k 4']:
  """The box, in cells, that each cell and class is to predict; zeros where there is none.

  A box belongs to the cell that holds its centre and to those cells whose centres lie
  in it and within 1.5 cells of its centre. Of several boxes of a class the smallest wins.
  """
  out = np.zeros((*grid, classes, 4), np.float32)
  scale = np.array([grid[1], grid[0]] * 2) / FRAME
  boxes = truth.boxes.astype(np.float64) * scale
  area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
  x, y = np.arange(grid[1]) + 0.5, np.arange(grid[0])[:, None] + 0.5
  for i in np.argsort(-area, kind='stable'):
    x0, y0, x1, y1 = boxes[i]
    centre_x, centre_y = (x0 + x1) / 2, (y0 + y1) / 2
    near = (np.abs(x - centre_x) <= _RADIUS) & (np.abs(y - centre_y) <= _RADIUS)
    mine = near & (x > x0) & (x < x1) & (y > y0) & (y < y1)
    mine[min(int(centre_y), grid[0] - 1), min(int(centre_x), grid[1] - 1)] = True
    out[mine, truth.classes[i]] = boxes[i]
  return out


def select(
    scores: Float[np.ndarray, 'h w k'], boxes: Float[np.ndarray, 'h w k 4'],
) -> detection.Detections:
  """Detections of one image: those above the floor, of overlapping ones of a class the surest."""
  kind = np.broadcast_to(np.arange(scores.shape[-1]), scores.shape)
  size = boxes[..., 2:] - boxes[..., :2]
  usable = (scores >= SCORE_FLOOR) & (size > 0).all(axis=-1)
  scores, boxes, kind = scores[usable], boxes[usable], kind[usable]
  order = np.argsort(-scores, kind='stable')
  kept: list[int] = []
  while len(order) and len(kept) < MAX_DETECTIONS:
    best, rest = order[0], order[1:]
    kept.append(int(best))
    overlaps = (kind[rest] == kind[best]) & (iou(boxes[best], boxes[rest]) > NMS_IOU)
    order = rest[~overlaps]
  return detection.Detections(boxes=boxes[kept], scores=scores[kept], classes=kind[kept])


def iou(box: Float[np.ndarray, '4'], boxes: Float[np.ndarray, 'n 4']) -> Float[np.ndarray, 'n']:
  """Intersection over union of one box with each of n, all with area."""
  low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
  both = np.maximum(high - low, 0).prod(axis=1)
  area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
  return both / ((box[2:] - box[:2]).prod() + area - both)


def giou(
    a: Float[jax.Array, '... 4'], b: Float[jax.Array, '... 4'],
) -> Float[jax.Array, '...']:
  """Generalised IoU, -1..1, of boxes with area."""
  def area(low, high):
    return jnp.prod(jnp.maximum(high - low, 0), axis=-1)

  both = area(jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:]))
  union = area(a[..., :2], a[..., 2:]) + area(b[..., :2], b[..., 2:]) - both
  hull = area(jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:]))
  tiny = 1e-9
  return both / jnp.maximum(union, tiny) - (hull - union) / jnp.maximum(hull, tiny)


def _used(maps: features.Maps) -> int:
  """Which map's cells predict: the third from the coarsest, stage 2 of a ResNet."""
  return max(0, len(maps.stages) - 3)


def _apply(head: Head, params, constants, stages, is_cell):
  """Logits, and boxes (corners, in cells)."""
  stages = features.standardised(stages, is_cell, constants['scale'])
  logits, raw = head.apply({'params': params}, stages)
  rows, columns = head.grid
  centre = jnp.stack(jnp.meshgrid(jnp.arange(columns), jnp.arange(rows)), -1) + 0.5  # (x, y)
  centre = centre[:, :, None] + raw[..., :2]
  half = jnp.exp(jnp.clip(raw[..., 2:], -6, 6) + constants['log_size']) / 2
  return logits, jnp.concatenate([centre - half, centre + half], axis=-1)


def _loss(head: Head, params, constants, batch):
  """Focal loss over the cells with image and GIoU loss over those with a box; per such."""
  logits, boxes = _apply(head, params, constants, batch['stages'], batch['is_cell'])
  wanted = batch['boxes']
  has_box = wanted[..., 2] > wanted[..., 0]
  counts = _cells(head, batch['is_cell'])[..., None] | has_box
  focal = optax.sigmoid_focal_loss(logits, has_box.astype(jnp.float32), alpha=0.25, gamma=2.0)
  # A box for every cell, so that no gradient passes through an undefined one.
  unit = jnp.array([0.0, 0.0, 1.0, 1.0])
  overlap = giou(jnp.where(has_box[..., None], boxes, unit),
                 jnp.where(has_box[..., None], wanted, unit))
  total = jnp.sum(focal, where=counts) + _BOX_WEIGHT * jnp.sum(1 - overlap, where=has_box)
  return total, jnp.sum(has_box).astype(jnp.float32)


def _cells(
    head: Head, is_cell: tuple[Bool[jax.Array, 'b y x'], ...]) -> Bool[jax.Array, 'b h w']:
  return next(mask for mask in is_cell if mask.shape[1:] == head.grid)


@functools.partial(jax.jit, static_argnames='head')
def _predict(params, constants, stages, is_cell, *, head):
  """Scores, 0 in cells without image, and boxes in the frame, clipped to it."""
  logits, boxes = _apply(head, params, constants, stages, is_cell)
  scores = jnp.where(_cells(head, is_cell)[..., None], jax.nn.sigmoid(logits), 0)
  rows, columns = head.grid
  return scores, jnp.clip(boxes * (FRAME / jnp.array([columns, rows] * 2)), 0, FRAME)
