"""Segmentation: Dice of masks cut at one half, per image and class."""

import dataclasses
import math
from typing import Any, Iterable, Mapping, Sequence

from jaxtyping import Bool, Float
import numpy as np

from plan_jax.evals import bootstrap

PROTOCOL = 'segmentation/dice_at_half_positive_images'
THRESHOLD = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
  """Dice of each image and class, and whether the truth holds any of that class.

  Nothing predicted where nothing is scores 1, anything predicted there 0.
  """

  dice: Float[np.ndarray, 'n k']
  has_truth: Bool[np.ndarray, 'n k']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Category:
  """Mean Dice over the images that hold the class, and over all images."""

  dice: bootstrap.Figure
  dice_all: bootstrap.Figure

  def as_json(self) -> dict[str, Any]:
    return {'dice': self.dice.as_json(), 'dice_all': self.dice_all.as_json()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmentation(Category):
  """Means over images, then over classes.

  `dice` is the main figure: over the images with truth, so that many healthy images
  cannot raise it. A class without any truth has no `dice` and is left out of its mean,
  though not out of that of `dice_all`.
  """

  classes: Mapping[str, Category]
  images: int

  @property
  def undefined(self) -> tuple[str, ...]:
    return tuple(name for name, part in self.classes.items() if math.isnan(part.dice.value))

  def as_json(self) -> dict[str, Any]:
    return {
        'protocol': PROTOCOL,
        **super().as_json(),
        'classes': {name: part.as_json() for name, part in self.classes.items()},
        'images': self.images,
        'undefined': list(self.undefined),
    }


def dice(
    predicted: Bool[np.ndarray, 'h w k'], truth: Bool[np.ndarray, 'h w k'],
) -> Float[np.ndarray, 'k']:
  """2 |P and T| / (|P| + |T|) of each class; 1 where both are empty."""
  if predicted.shape != truth.shape:
    raise ValueError(
        f'prediction {predicted.shape} and truth {truth.shape} disagree: both are [h w k] in '
        'one frame')
  both = (predicted & truth).sum(axis=(0, 1))
  total = predicted.sum(axis=(0, 1)) + truth.sum(axis=(0, 1))
  return np.where(total > 0, 2 * both / np.maximum(total, 1), 1.0)


def score_all(
    probabilities: Iterable[Float[np.ndarray, 'h w k']],
    truths: Iterable[Bool[np.ndarray, 'h w k']],
    *,
    classes: int,
) -> Scores:
  """`dice` of each image, one at a time; a pixel counts from a probability of .5 on.

  `classes` is k, which no image would tell where there is none.
  """
  rows, present = [], []
  for probability, truth in zip(probabilities, truths, strict=True):
    truth = np.asarray(truth, bool)
    rows.append(dice(np.asarray(probability) >= THRESHOLD, truth))
    present.append(truth.any(axis=(0, 1)))
  return Scores(
      dice=np.array(rows, np.float64).reshape(-1, classes),
      has_truth=np.array(present, bool).reshape(-1, classes))


def segmentation(
    scores: Scores,
    *,
    classes: Sequence[str],
    groups: Sequence[Any],
    seed: int = 0,
    replicates: int = bootstrap.REPLICATES,
) -> Segmentation:
  """The protocol's means with intervals; `groups` names each image's patient."""
  n = len(scores.dice)
  if scores.dice.shape != (n, len(classes)) or len(groups) != n:
    raise ValueError(
        f'Dice {scores.dice.shape}, {len(classes)} classes and {len(groups)} groups disagree: '
        'one row an image, one column a class')
  times = bootstrap.resample(groups, replicates=replicates, seed=seed)
  positive = np.where(scores.has_truth, scores.dice, math.nan)
  parts = {
      name: Category(
          dice=bootstrap.mean_figure(positive[:, k], times),
          dice_all=bootstrap.mean_figure(scores.dice[:, k], times))
      for k, name in enumerate(classes)}
  return Segmentation(
      dice=_over_classes(positive, times), dice_all=_over_classes(scores.dice, times),
      classes=parts, images=n)


def _over_classes(
    values: Float[np.ndarray, 'n k'], times: Float[np.ndarray, 'r n'],
) -> bootstrap.Figure:
  """Mean over images, then over the classes that have one; n counts images."""
  point = float(bootstrap.nan_mean(bootstrap.nan_mean(values.T)))
  draws = [bootstrap.weighted_means(column, times) for column in values.T]
  return bootstrap.figure(
      point, bootstrap.nan_mean(np.stack(draws, -1)) if draws else np.array([]),
      n=int(np.isfinite(values).any(axis=1).sum()))
