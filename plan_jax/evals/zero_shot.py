"""Zero-shot classification: prompt ensembles, AUROC per class and macro."""

import dataclasses
import math
from typing import Any, Mapping, Sequence

from jaxtyping import Bool, Float
import numpy as np
from sklearn import metrics as sklearn_metrics

from plan_jax.evals import bootstrap

PROTOCOL = 'zero_shot/prompt_ensemble_auroc'  # '_words' is added where words count as well


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassResult:
  """One class: AUROC (undefined when the data hold one label value only)."""

  auroc: bootstrap.Figure
  positives: int

  @property
  def prevalence(self) -> float:
    return self.positives / self.auroc.n if self.auroc.n else math.nan

  def as_json(self) -> dict[str, Any]:
    return {**self.auroc.as_json(), 'positives': self.positives,
            'prevalence': bootstrap.plain(self.prevalence)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShot:
  """Macro AUROC over the defined classes, and every class, undefined ones too."""

  macro_auroc: bootstrap.Figure
  classes: Mapping[str, ClassResult]

  @property
  def undefined(self) -> tuple[str, ...]:
    return tuple(
        name for name, result in self.classes.items() if math.isnan(result.auroc.value))

  def as_json(self) -> dict[str, Any]:
    return {
        'protocol': PROTOCOL,
        'macro_auroc': self.macro_auroc.as_json(),
        'classes': {name: result.as_json() for name, result in self.classes.items()},
        'undefined': list(self.undefined),
    }


def ensemble(vectors: Float[np.ndarray, 'm d']) -> Float[np.ndarray, 'd']:
  """One unit vector for several prompts: averaged, then normalised."""
  mean = vectors.mean(axis=0)
  return mean / max(float(np.linalg.norm(mean)), 1e-12)


def zero_shot(
    scores: Float[np.ndarray, 'b k'],
    is_positive: Bool[np.ndarray, 'b k'],
    *,
    classes: Sequence[str],
    groups: Sequence[Any],
    seed: int = 0,
    replicates: int = bootstrap.REPLICATES,
) -> ZeroShot:
  """AUROC of each class and their mean, with bootstrap intervals.

  `scores` are larger for a more likely class; `groups` names the patient of each
  image, the unit that is resampled. A class whose images are all positive or
  all negative has no AUROC: it is reported as undefined and left out of the
  macro mean. In a replicate the macro mean is over the classes that it defines.
  """
  if scores.shape != is_positive.shape or scores.shape[1] != len(classes):
    raise ValueError(
        f'scores {scores.shape}, labels {is_positive.shape} and {len(classes)} classes '
        'disagree: one row an image, one column a class')
  n = len(scores)
  times = bootstrap.resample(groups, replicates=replicates, seed=seed)
  results, points, draws = {}, [], []
  for k, name in enumerate(classes):
    positives = int(is_positive[:, k].sum())
    if 0 < positives < n:
      point = float(sklearn_metrics.roc_auc_score(is_positive[:, k], scores[:, k]))
      draw = aurocs(scores[:, k], is_positive[:, k], times)
    else:
      point, draw = math.nan, np.full(replicates, math.nan)
    points.append(point)
    draws.append(draw)
    results[name] = ClassResult(auroc=bootstrap.figure(point, draw, n=n), positives=positives)
  macro = float(bootstrap.nan_mean(np.array(points))) if points else math.nan
  spread = bootstrap.nan_mean(np.stack(draws, -1)) if draws else np.array([])
  return ZeroShot(macro_auroc=bootstrap.figure(macro, spread, n=n), classes=results)


def roc(
    scores: Float[np.ndarray, 'n'], is_positive: Bool[np.ndarray, 'n'],
) -> tuple[Float[np.ndarray, 'm'], Float[np.ndarray, 'm']]:
  """The ROC curve: false and true positive rate, 0..1; both labels must occur."""
  false, true, _ = sklearn_metrics.roc_curve(is_positive, scores)
  return false, true


def aurocs(
    scores: Float[np.ndarray, 'n'],
    is_positive: Bool[np.ndarray, 'n'],
    times: Float[np.ndarray, 'r n'],
) -> Float[np.ndarray, 'r']:
  """AUROC of each replicate, where sample n occurs `times[r, n]` times.

  The Mann-Whitney form: the share of positive-negative pairs in the right order,
  ties counting half. NaN where a replicate holds one label value only.
  """
  if not len(scores):
    return np.full(len(times), math.nan)
  order = np.argsort(scores, kind='stable')
  ranked = scores[order]
  starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
  times = times[:, order].astype(np.float64)
  positive = is_positive[order]
  # One column for each distinct score, so that ties share a column.
  up = np.add.reduceat(times * positive, starts, axis=1)
  down = np.add.reduceat(times * ~positive, starts, axis=1)
  below = np.cumsum(down, axis=1) - down / 2
  pairs = up.sum(1) * down.sum(1)
  wins = (up * below).sum(1)
  return np.where(pairs > 0, wins / np.maximum(pairs, 1), math.nan)
