"""Yes or no from scores: thresholds from validation data, accuracy and F1 on others."""

import dataclasses
import math
from typing import Any, Mapping, Sequence

from jaxtyping import Bool, Float
import numpy as np
from sklearn import metrics as sklearn_metrics

from plan_jax.evals import bootstrap

PROTOCOL = 'zero_shot/threshold_of_best_f1_on_validation'


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassDecision:
  """One class: an image is called positive where its score reaches the threshold."""

  threshold: float
  accuracy: bootstrap.Figure
  f1: bootstrap.Figure

  def as_json(self) -> dict[str, Any]:
    return {'threshold': bootstrap.plain(self.threshold), 'accuracy': self.accuracy.as_json(),
            'f1': self.f1.as_json()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decisions:
  """Means over the classes that have a threshold, and every class.

  `top1_accuracy`: of the images of exactly one class, the share whose highest score is
  that class's; it needs no threshold.
  """

  macro_accuracy: bootstrap.Figure
  macro_f1: bootstrap.Figure
  top1_accuracy: bootstrap.Figure
  classes: Mapping[str, ClassDecision]

  def as_json(self) -> dict[str, Any]:
    return {
        'protocol': PROTOCOL,
        'macro_accuracy': self.macro_accuracy.as_json(),
        'macro_f1': self.macro_f1.as_json(),
        'top1_accuracy': self.top1_accuracy.as_json(),
        'classes': {name: found.as_json() for name, found in self.classes.items()},
    }


def best_thresholds(
    scores: Float[np.ndarray, 'b k'], is_positive: Bool[np.ndarray, 'b k'],
) -> Float[np.ndarray, 'k']:
  """The score at which each class's F1 is largest; NaN without positives or negatives."""
  found = np.full(scores.shape[1], math.nan)
  for k in range(scores.shape[1]):
    if 0 < is_positive[:, k].sum() < len(scores):
      precision, recall, steps = sklearn_metrics.precision_recall_curve(
          is_positive[:, k], scores[:, k])
      f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
      found[k] = steps[np.argmax(f1[:-1])]  # the last point is no threshold
  return found


def decide(
    scores: Float[np.ndarray, 'b k'],
    is_positive: Bool[np.ndarray, 'b k'],
    *,
    thresholds: Float[np.ndarray, 'k'],
    classes: Sequence[str],
    groups: Sequence[Any],
    seed: int = 0,
    replicates: int = bootstrap.REPLICATES,
) -> Decisions:
  """Accuracy and F1 of each class and their means, with bootstrap intervals.

  Arguments as in `zero_shot.zero_shot`; `thresholds` are those of other images
  (`best_thresholds`). A class without threshold is undefined; so is the F1 of a class
  without positives.
  """
  if scores.shape != is_positive.shape or not (
      scores.shape[1] == len(classes) == len(thresholds)):
    raise ValueError(
        f'scores {scores.shape}, labels {is_positive.shape}, {len(thresholds)} thresholds and '
        f'{len(classes)} classes disagree: one row an image, one column a class')
  n = len(scores)
  # The first row counts every image once: the figure itself.
  times = np.vstack([np.ones((1, n), np.float32), bootstrap.resample(
      groups, replicates=replicates, seed=seed)]).astype(np.float64)
  says = scores >= thresholds  # never, where there is no threshold
  right = _share(times @ (says == is_positive), times.sum(1, keepdims=True))
  f1 = _share(2 * times @ (says & is_positive),
              times @ says.astype(float) + times @ is_positive.astype(float))
  is_known = np.isfinite(thresholds)
  right = np.where(is_known, right, math.nan)
  f1 = np.where(is_known & (times @ is_positive.astype(float) > 0), f1, math.nan)

  single = is_positive.sum(1) == 1
  is_first = is_positive[np.arange(n), scores.argmax(1)] if scores.size else np.zeros(n, bool)
  first = _share(times @ (single & is_first), times @ single)

  def figure(draws, *, count=n):
    return bootstrap.figure(float(draws[0]), draws[1:], n=count)

  return Decisions(
      macro_accuracy=figure(bootstrap.nan_mean(right)),
      macro_f1=figure(bootstrap.nan_mean(f1)),
      top1_accuracy=figure(first if len(classes) > 1 else np.full(len(times), math.nan),
                           count=int(single.sum())),
      classes={
          name: ClassDecision(threshold=float(thresholds[k]), accuracy=figure(right[:, k]),
                              f1=figure(f1[:, k]))
          for k, name in enumerate(classes)})


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
  """part / whole, NaN where there is nothing."""
  return np.where(whole > 0, part / np.maximum(whole, 1e-12), math.nan)
