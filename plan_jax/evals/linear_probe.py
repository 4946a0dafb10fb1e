"""Linear probe: what a linear layer reads off frozen features, with few or all labels.

The features are the pooled ones before projection (`shapes.ImageFeatures.backbone`).
The linear layer is scikit-learn's logistic regression, one problem for each class, on
features standardised by the labelled subset. Its solver runs to convergence, so what
early stopping is to a layer trained by gradient descent is here the strength of the L2
penalty: it is chosen for each class by the loss on the validation split, all of it
whatever the share of training labels.
"""

import dataclasses
import math
from typing import Any, Mapping, Sequence

from jaxtyping import Bool, Float, Int
import numpy as np
from sklearn import linear_model
from sklearn import metrics as sklearn_metrics
from sklearn import preprocessing

from plan_jax.evals import bootstrap
from plan_jax.evals import zero_shot

PROTOCOL = 'linear_probe/frozen_pooled_logistic'
SHARES = (0.01, 0.1, 1.0)
STRENGTHS = (1.0, 0.1, 1e-2, 1e-3, 1e-4)  # scikit-learn's C: small is a strong penalty
_MAX_ITERATIONS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
  """Features of a split's images and which classes they show."""

  features: Float[np.ndarray, 'n c']
  is_positive: Bool[np.ndarray, 'n k']

  def __post_init__(self):
    if self.features.ndim != 2 or len(self.features) != len(self.is_positive):
      raise ValueError(
          f'features {self.features.shape} and labels {self.is_positive.shape} disagree: one '
          'row an image in both')

  def __len__(self) -> int:
    return len(self.features)

  def take(self, rows: Int[np.ndarray, 'm']) -> 'Split':
    return Split(features=self.features[rows], is_positive=self.is_positive[rows])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassResult(zero_shot.ClassResult):
  """AUROC of one class on the test split: the mean over the subsets that define it.

  `subsets` counts them: a subset whose images all share the label value teaches
  nothing. `strengths` are the penalties chosen, one for each of them.
  """

  subsets: int
  strengths: tuple[float, ...]

  def as_json(self) -> dict[str, Any]:
    return {**super().as_json(), 'subsets': self.subsets, 'strengths': list(self.strengths)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
  """Figures with this share of the training labels: means over `subsets` random subsets."""

  labelled: int
  subsets: int
  macro_auroc: bootstrap.Figure
  classes: Mapping[str, ClassResult]

  @property
  def undefined(self) -> tuple[str, ...]:
    return tuple(
        name for name, result in self.classes.items() if math.isnan(result.auroc.value))

  def as_json(self) -> dict[str, Any]:
    return {
        'labelled': self.labelled,
        'subsets': self.subsets,
        'macro_auroc': self.macro_auroc.as_json(),
        'classes': {name: result.as_json() for name, result in self.classes.items()},
        'undefined': list(self.undefined),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbe:
  """Every share of the training labels; images of each split."""

  shares: Mapping[float, Share]
  train: int
  val: int
  test: int

  def as_json(self) -> dict[str, Any]:
    return {
        'protocol': PROTOCOL,
        'shares': {f'{share:g}': part.as_json() for share, part in self.shares.items()},
        'train': self.train,
        'val': self.val,
        'test': self.test,
    }


def linear_probe(
    *,
    train: Split,
    val: Split,
    test: Split,
    classes: Sequence[str],
    groups: Sequence[Any],
    shares: Sequence[float] = SHARES,
    subsets: int = 3,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
    replicates: int = bootstrap.REPLICATES,
) -> LinearProbe:
  """AUROC on `test` of linear layers fitted to shares of `train`.

  A class is undefined at a share if no subset, or not the test split, holds both label
  values. The interval resamples the test images by their `groups` (patients) and
  leaves the fitted layers as they are.

  Args:
    train: the labels of which `shares` are used.
    val: chooses the penalty.
    test: what the figures are about.
    classes: names of the k classes.
    groups: patient of each test image.
    shares: of the training labels, above 0 to 1. At 1 there is one subset only.
    subsets: random subsets of each smaller share.
    strengths: penalties to choose from.
    seed: of the subsets and of the bootstrap.
    replicates: of the bootstrap.

  Raises:
    ValueError: shapes that disagree, an empty split, or a share out of range.
  """
  for name, split in (('train', train), ('val', val), ('test', test)):
    if not len(split) or split.is_positive.shape[1:] != (len(classes),):
      raise ValueError(
          f'{name} labels {split.is_positive.shape}: need at least one image, and one column '
          f'for each of {len(classes)} classes')
  if len(groups) != len(test):
    raise ValueError(f'{len(groups)} groups for {len(test)} test images')
  times = bootstrap.resample(groups, replicates=replicates, seed=seed)
  found = {}
  for share in shares:
    drawn = subset_rows(len(train), share=share, subsets=subsets, seed=seed)
    fits = [fit(train.take(rows), val, test, strengths=strengths) for rows in drawn]
    found[share] = _share(fits, test, labelled=len(drawn[0]), classes=classes, times=times)
  return LinearProbe(shares=found, train=len(train), val=len(val), test=len(test))


def subset_rows(
    n: int, *, share: float, subsets: int, seed: int,
) -> list[Int[np.ndarray, 'm']]:
  """Rows of each random subset, ascending; a single subset of all rows at share 1.

  With the same seed, the subsets of a smaller share lie within those of a larger one.
  """
  if not 0 < share <= 1:
    raise ValueError(f'share {share} of the labels: must be above 0, and 1 at most')
  if share == 1:
    return [np.arange(n)]
  size = max(1, round(share * n))
  return [np.sort(np.random.default_rng([seed, number]).permutation(n)[:size])
          for number in range(subsets)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
  """One class's layer: its penalty and its scores on the test split."""

  strength: float
  scores: Float[np.ndarray, 'n']


def fit(
    train: Split, val: Split, test: Split, *, strengths: Sequence[float],
) -> list[Fit | None]:
  """The layer of each class that has the smallest validation loss (mean cross entropy).

  None for a class whose `train` labels are all the same. Features that do not vary in
  `train` count nothing.
  """
  scaler = preprocessing.StandardScaler().fit(np.asarray(train.features, np.float64))
  inputs = [scaler.transform(split.features) for split in (train, val, test)]
  found = []
  for labels, val_labels in zip(train.is_positive.T, val.is_positive.T, strict=True):
    mixed = labels.any() and not labels.all()
    found.append(
        _fit_class(*inputs, labels=labels, val_labels=val_labels, strengths=strengths)
        if mixed else None)
  return found


def _fit_class(
    train: Float[np.ndarray, 'n c'],
    val: Float[np.ndarray, 'm c'],
    test: Float[np.ndarray, 'l c'],
    *,
    labels: Bool[np.ndarray, 'n'],
    val_labels: Bool[np.ndarray, 'm'],
    strengths: Sequence[float],
) -> Fit:
  best, lowest = None, math.inf
  # From the strongest penalty on, each solution starting the next.
  layer = linear_model.LogisticRegression(max_iter=_MAX_ITERATIONS, warm_start=True)
  for strength in sorted(strengths):
    layer.set_params(C=strength).fit(train, labels)
    loss = sklearn_metrics.log_loss(
        val_labels, layer.predict_proba(val), labels=[False, True])
    if best is None or loss < lowest:
      best, lowest = Fit(strength=strength, scores=layer.decision_function(test)), loss
  return best


def _share(
    fits: Sequence[Sequence[Fit | None]],
    test: Split,
    *,
    labelled: int,
    classes: Sequence[str],
    times: Float[np.ndarray, 'r n'],
) -> Share:
  """Means over subsets, then over classes; the same resampled images for all of them."""
  n, once = len(test), np.ones((1, len(test)))
  results, points, draws = {}, [], []
  for k, name in enumerate(classes):
    positive = test.is_positive[:, k]
    done = [layers[k] for layers in fits if layers[k] is not None]
    point, draw = math.nan, np.full(len(times), math.nan)
    if done:
      point = float(np.mean([zero_shot.aurocs(layer.scores, positive, once)[0] for layer in done]))
      draw = np.mean([zero_shot.aurocs(layer.scores, positive, times) for layer in done], axis=0)
    points.append(point)
    draws.append(draw)
    results[name] = ClassResult(
        auroc=bootstrap.figure(point, draw, n=n), positives=int(positive.sum()),
        subsets=len(done), strengths=tuple(layer.strength for layer in done))
  macro = float(bootstrap.nan_mean(np.array(points)))
  return Share(
      labelled=labelled, subsets=len(fits), classes=results,
      macro_auroc=bootstrap.figure(macro, bootstrap.nan_mean(np.stack(draws, -1)), n=n))
