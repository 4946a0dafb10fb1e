"""Bootstrap intervals: every figure of an evaluation carries one."""

import dataclasses
import math
from typing import Any, Sequence

from jaxtyping import Float
import numpy as np

REPLICATES = 1000
LEVEL = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
  """A measured value, its 95 % bootstrap interval, and the samples it rests on.

  A figure that cannot be computed (no sample, a single class) is NaN
  throughout; `n` still counts the samples that were offered.
  """

  value: float
  low: float
  high: float
  n: int

  def as_json(self) -> dict[str, float | int | None]:
    """The fixed shape of metrics.json; NaN becomes null."""
    return {'value': plain(self.value), 'low': plain(self.low),
            'high': plain(self.high), 'n': self.n}

  def __str__(self) -> str:
    if math.isnan(self.value):
      return 'undefined'
    return f'{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]'


def resample(
    groups: Sequence[Any],
    *,
    replicates: int = REPLICATES,
    seed: int,
) -> Float[np.ndarray, 'r n']:
  """How often each sample occurs in each bootstrap replicate.

  Groups (patients, images) are drawn with replacement and bring all their
  samples along, because samples of one group are not independent. One group per
  sample gives the ordinary bootstrap.
  """
  if not len(groups):
    return np.zeros((replicates, 0), np.float32)
  _, member = np.unique(np.asarray(groups), return_inverse=True)
  count = int(member.max()) + 1
  rng = np.random.default_rng(seed)
  draws = rng.integers(count, size=(replicates, count))
  offset = np.arange(replicates)[:, None] * count
  times = np.bincount((draws + offset).ravel(), minlength=replicates * count)
  return times.reshape(replicates, count)[:, member].astype(np.float32)


def figure(value: float, replicates: Float[np.ndarray, 'r'], *, n: int) -> Figure:
  """A figure from its point value and its replicates; NaN replicates do not count."""
  defined = replicates[np.isfinite(replicates)]
  if not len(defined) or math.isnan(value):
    return Figure(value=math.nan, low=math.nan, high=math.nan, n=n)
  tail = (1 - LEVEL) / 2
  low, high = np.quantile(defined, (tail, 1 - tail))
  return Figure(value=float(value), low=float(low), high=float(high), n=n)


def weighted_means(
    values: Float[np.ndarray, 'n'], times: Float[np.ndarray, 'r n'],
) -> Float[np.ndarray, 'r']:
  """Mean of the defined (not NaN) values in each replicate; NaN where there is none."""
  defined = np.isfinite(values)
  total = times @ np.where(defined, values, 0).astype(np.float64)
  weight = times @ defined.astype(np.float64)
  return np.where(weight > 0, total / np.maximum(weight, 1), math.nan)


def mean_figure(values: Float[np.ndarray, 'n'], times: Float[np.ndarray, 'r n']) -> Figure:
  """Mean over the defined values, with the interval of the replicates `times`."""
  defined = values[np.isfinite(values)]
  value = float(defined.mean()) if len(defined) else math.nan
  return figure(value, weighted_means(values, times), n=len(defined))


def nan_mean(values: Float[np.ndarray, '... k']) -> Float[np.ndarray, '...']:
  """Mean over the last axis without NaN entries (NaN where all are), no warnings."""
  defined = np.isfinite(values)
  count = defined.sum(-1)
  total = np.where(defined, values, 0).sum(-1)
  return np.where(count > 0, total / np.maximum(count, 1), math.nan)


def plain(value: float) -> float | None:
  """A number as JSON holds it: six digits, NaN as null."""
  return None if math.isnan(value) else round(float(value), 6)
