"""Detection: average precision over IoU .40 to .75, from boxes and scores.

Boxes are (x0, y0, x1, y1) in any one unit, continuous, x1 > x0. Matching and point
values are those of `pycocotools` (AP by 101-point interpolation, all box sizes, at most
100 detections an image and class); the interval weights the detections matched once.

  COCO         every image counts, so false alarms on healthy images cost precision.
  SKIPS_EMPTY  images without a box, and images without a detection, are left out, as
               MGCA's published code does: false alarms on healthy images and images missed
               altogether are free. That code keeps detections of confidence .5 and more.

Source: Lin et al. (COCO, ECCV 2014); Wang et al. (MGCA, NeurIPS 2022), `ssl_detector.py`.
"""

import contextlib
import dataclasses
import enum
import io
import math
from typing import Any, Mapping, Sequence

from jaxtyping import Bool, Float, Int
import numpy as np
from pycocotools import coco
from pycocotools import cocoeval
from scipy import sparse

from plan_jax.evals import bootstrap

IOU_THRESHOLDS = (0.40, 0.45, 0.50, 0.55, 0.60, 0.65, 0.70, 0.75)
MAX_DETECTIONS = 100  # of one class in one image
_RECALLS = np.linspace(0.0, 1.0, 101)


class Variant(enum.StrEnum):
  """Which images count; the value is the protocol's name."""

  COCO = 'detection/map_40_75'
  SKIPS_EMPTY = 'detection/map_40_75_mgca_skips_empty'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truth:
  """The boxes of one image, none being legal, and their class ids 0..k-1."""

  boxes: Float[np.ndarray, 'n 4']
  classes: Int[np.ndarray, 'n']

  def __post_init__(self):
    _require_boxes(self.boxes, self.classes)
    if not (self.boxes[:, 2:] > self.boxes[:, :2]).all():
      raise ValueError(
          f'a true box without area can never be found: {self.boxes.tolist()}; leave out boxes '
          'outside the frame')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detections:
  """What was found in one image, in any order; larger scores are surer."""

  boxes: Float[np.ndarray, 'n 4']
  scores: Float[np.ndarray, 'n']
  classes: Int[np.ndarray, 'n']

  def __post_init__(self):
    _require_boxes(self.boxes, self.classes)
    if len(self.scores) != len(self.boxes) or not np.isfinite(self.scores).all():
      raise ValueError(f'{len(self.boxes)} boxes need as many finite scores: {self.scores}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matches:
  """One class at one threshold: its detections, surest first, and the boxes to find."""

  image: Int[np.ndarray, 'd']
  is_hit: Bool[np.ndarray, 'd']
  boxes: Int[np.ndarray, 'n']  # of this class in each image


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassResult:
  """AP of one class, mean over thresholds; undefined where the class has no box."""

  ap: bootstrap.Figure
  boxes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection:
  """mAP: mean over the classes that have a box, then over thresholds.

  `images`, `boxes` and `detections` are those that count, `images_without_boxes` among
  them; `images_left_out` is 0 but for the variant that skips.
  """

  variant: Variant
  map: bootstrap.Figure
  ap: Mapping[float, bootstrap.Figure]  # by IoU threshold, mean over classes
  classes: Mapping[str, ClassResult]
  images: int
  images_without_boxes: int
  images_left_out: int
  boxes: int
  detections: int

  @property
  def undefined(self) -> tuple[str, ...]:
    return tuple(name for name, part in self.classes.items() if math.isnan(part.ap.value))

  def as_json(self) -> dict[str, Any]:
    return {
        'protocol': str(self.variant),
        'map': self.map.as_json(),
        'ap': {f'{threshold:.2f}': part.as_json() for threshold, part in self.ap.items()},
        'classes': {name: {**part.ap.as_json(), 'boxes': part.boxes}
                    for name, part in self.classes.items()},
        'images': self.images,
        'images_without_boxes': self.images_without_boxes,
        'images_left_out': self.images_left_out,
        'boxes': self.boxes,
        'detections': self.detections,
        'undefined': list(self.undefined),
    }


def detection(
    truths: Sequence[Truth],
    found: Sequence[Detections],
    *,
    classes: Sequence[str],
    groups: Sequence[Any],
    variant: Variant = Variant.COCO,
    seed: int = 0,
    replicates: int = bootstrap.REPLICATES,
) -> Detection:
  """Average precision of n images, with intervals over `groups` (their patients).

  In a replicate the mean is over the classes that have a box in it. Equal scores keep
  the order of the images, as pycocotools has it.

  Raises:
    ValueError: lists of different lengths, or a class id that `classes` does not name.
  """
  if not len(truths) == len(found) == len(groups):
    raise ValueError(
        f'{len(truths)} truths, {len(found)} lists of detections and {len(groups)} groups '
        'disagree: one of each an image')
  for row in (*truths, *found):
    if len(row.classes) and not 0 <= row.classes.min() <= row.classes.max() < len(classes):
      raise ValueError(f'class ids {row.classes.tolist()}: {len(classes)} classes are named')
  kept = [i for i in range(len(truths)) if variant is Variant.COCO or (
      len(truths[i].boxes) and len(found[i].boxes))]
  truths, found = [truths[i] for i in kept], [found[i] for i in kept]
  times = bootstrap.resample([groups[i] for i in kept], replicates=replicates, seed=seed)
  points, matches = match(truths, found, classes=len(classes))
  draws = np.array([
      [weighted_ap(part, times) for part in row] for row in matches], np.float64)
  draws = draws.reshape(len(classes), len(IOU_THRESHOLDS), replicates)

  def figure(point, draw):
    return bootstrap.figure(float(point), draw, n=len(kept))

  by_threshold = bootstrap.nan_mean(points.T)
  threshold_draws = bootstrap.nan_mean(np.moveaxis(draws, 0, -1))
  return Detection(
      variant=variant,
      map=figure(bootstrap.nan_mean(by_threshold), bootstrap.nan_mean(threshold_draws.T)),
      ap={threshold: figure(by_threshold[t], threshold_draws[t])
          for t, threshold in enumerate(IOU_THRESHOLDS)},
      classes={
          name: ClassResult(
              ap=figure(bootstrap.nan_mean(points[k]), bootstrap.nan_mean(draws[k].T)),
              boxes=int(matches[k][0].boxes.sum()))
          for k, name in enumerate(classes)},
      images=len(kept),
      images_without_boxes=sum(not len(truth.boxes) for truth in truths),
      images_left_out=len(groups) - len(kept),
      boxes=sum(len(truth.boxes) for truth in truths),
      detections=sum(len(row.boxes) for row in found))


def match(
    truths: Sequence[Truth], found: Sequence[Detections], *, classes: int,
) -> tuple[Float[np.ndarray, 'k 8'], list[list[Matches]]]:
  """pycocotools' AP of each class and threshold (NaN without a box), and its matches."""
  evaluation = _coco_evaluation(truths, found, classes=classes)
  points = np.full((classes, len(IOU_THRESHOLDS)), math.nan)
  if truths and classes:
    precision = evaluation.eval['precision'][:, :, :, 0, 0]  # [threshold, recall, class]
    points = np.where(precision >= 0, precision, math.nan).mean(axis=1).T
  matches = []
  for k in range(classes):
    rows = evaluation.evalImgs[k * len(truths):(k + 1) * len(truths)]
    rows = [(i, row) for i, row in enumerate(rows) if row is not None]
    boxes = np.zeros(len(truths), int)
    for i, row in rows:
      boxes[i] = len(row['gtIds'])
    scores = np.concatenate([row['dtScores'] for _, row in rows] or [[]])
    order = np.argsort(-scores, kind='stable')
    image = np.repeat([i for i, _ in rows], [len(row['dtIds']) for _, row in rows])
    hits = np.concatenate(
        [row['dtMatches'] > 0 for _, row in rows] or [np.zeros((len(IOU_THRESHOLDS), 0))], axis=1)
    matches.append([
        Matches(image=image[order].astype(int), is_hit=hit[order].astype(bool), boxes=boxes)
        for hit in hits])
  return points, matches


def weighted_ap(
    matches: Matches, times: Float[np.ndarray, 'r n'],
) -> Float[np.ndarray, 'r']:
  """AP of each replicate, in which image n occurs `times[r, n]` times; NaN without a box.

  With whole numbers this is pycocotools' AP of the set that holds each image so often.
  """
  wanted = times.astype(np.float64) @ matches.boxes
  hits = np.flatnonzero(matches.is_hit)
  if not len(hits):
    return np.where(wanted > 0, 0.0, math.nan)
  # Recall grows, and precision peaks, at hits alone. Sums up to each hit of the weights of
  # hits, and of all detections (misses since the last hit, added up by a sparse product).
  weights = times.T.astype(np.float64)  # [image, replicate]
  found = np.cumsum(weights[matches.image[hits]], axis=0)
  step = np.searchsorted(hits, np.arange(len(matches.image)))  # the next hit, or none
  before = step < len(hits)
  counts = sparse.csr_matrix(
      (np.ones(before.sum()), (step[before], matches.image[before])),
      shape=(len(hits), len(weights)))
  returned = np.cumsum(counts @ weights, axis=0)
  precision = found / (returned + np.spacing(1))
  envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
  recall = found / np.where(wanted > 0, wanted, 1)
  values = np.full(len(wanted), math.nan)
  for r in np.flatnonzero(wanted > 0):
    first = np.searchsorted(recall[:, r], _RECALLS, side='left')
    values[r] = envelope[first[first < len(hits)], r].sum() / len(_RECALLS)
  return values


def _coco_evaluation(
    truths: Sequence[Truth], found: Sequence[Detections], *, classes: int,
) -> cocoeval.COCOeval:
  """pycocotools' evaluation; what it prints is dropped."""
  with contextlib.redirect_stdout(io.StringIO()):
    evaluation = cocoeval.COCOeval(
        _coco(truths, classes=classes), _coco(found, classes=classes), 'bbox')
    params = evaluation.params
    params.iouThrs = np.array(IOU_THRESHOLDS)
    params.recThrs = _RECALLS
    params.maxDets = [MAX_DETECTIONS]
    params.areaRng, params.areaRngLbl = [[0, 1e10]], ['all']
    evaluation.evaluate()
    evaluation.accumulate()
  return evaluation


def _coco(rows: Sequence[Truth | Detections], *, classes: int) -> coco.COCO:
  """The images' boxes as pycocotools keeps them; ids start at 1, 0 means no match there."""
  annotations = []
  for i, row in enumerate(rows):
    scores = row.scores if isinstance(row, Detections) else np.ones(len(row.boxes))
    for box, score, k in zip(row.boxes.astype(np.float64), scores, row.classes, strict=True):
      size = np.maximum(box[2:] - box[:2], 0)
      annotations.append({
          'id': len(annotations) + 1, 'image_id': i, 'category_id': int(k), 'iscrowd': 0,
          'score': float(score), 'bbox': [*box[:2], *size], 'area': float(size.prod())})
  index = coco.COCO()
  index.dataset = {
      'images': [{'id': i} for i in range(len(rows))],
      'categories': [{'id': k} for k in range(classes)], 'annotations': annotations}
  index.createIndex()
  return index


def _require_boxes(boxes: np.ndarray, classes: np.ndarray) -> None:
  if boxes.ndim != 2 or boxes.shape[1:] != (4,) or classes.shape != boxes.shape[:1]:
    raise ValueError(f'boxes {boxes.shape} and classes {classes.shape}: need [n 4] and [n]')
  if not np.isfinite(boxes).all():
    raise ValueError(f'boxes must be finite: {boxes.tolist()}')
