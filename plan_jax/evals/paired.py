"""Paired comparison of two ways to train, over seeds and over the same test samples."""

import dataclasses
import math
from typing import Any, Sequence

from jaxtyping import Float
import numpy as np
from scipy import stats

from plan_jax.evals import bootstrap

Run = tuple[float, Float[np.ndarray, 'r']]  # a figure of one run, and its replicates


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
  """A figure over the runs (seeds) of one arm: mean, interval, spread of the runs."""

  figure: bootstrap.Figure
  deviation: float  # between runs; NaN for a single one
  runs: int

  def as_json(self) -> dict[str, Any]:
    return {**self.figure.as_json(), 'deviation': bootstrap.plain(self.deviation), 'runs': self.runs}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
  """One arm minus another, runs paired by seed and replicates by their samples.

  `p_value` is of the paired t test over the seeds (undefined for one); `relative` is the
  difference as a share of the other arm's mean.
  """

  figure: bootstrap.Figure
  relative: float
  p_value: float

  def as_json(self) -> dict[str, Any]:
    return {**self.figure.as_json(), 'relative': bootstrap.plain(self.relative),
            'p_value': bootstrap.plain(self.p_value)}


def summary(runs: Sequence[Run], *, n: int) -> Summary:
  """Mean over runs, with an interval over samples and runs (see `interval`)."""
  values = np.array([value for value, _ in runs])
  return Summary(
      figure=interval(values, np.stack([draws for _, draws in runs]), n=n),
      deviation=float(values.std(ddof=1)) if len(runs) > 1 else math.nan, runs=len(runs))


def difference(runs: Sequence[Run], other: Sequence[Run], *, n: int) -> Difference:
  """`runs` minus `other`, run k with run k (the same seed).

  The replicates of all runs must come from the same draws of the same samples.

  Raises:
    ValueError: different numbers of runs.
  """
  if len(runs) != len(other):
    raise ValueError(f'{len(runs)} runs cannot be paired with {len(other)}')
  values = np.array([a - b for (a, _), (b, _) in zip(runs, other)])
  draws = np.stack([a - b for (_, a), (_, b) in zip(runs, other)])
  base = float(np.mean([value for value, _ in other]))
  p_value = math.nan
  if len(values) > 1 and values.std() > 0:
    p_value = float(stats.ttest_1samp(values, 0).pvalue)
  return Difference(
      figure=interval(values, draws, n=n),
      relative=float(values.mean()) / base if base else math.nan, p_value=p_value)


def interval(
    values: Float[np.ndarray, 's'], draws: Float[np.ndarray, 's r'], *, n: int,
) -> bootstrap.Figure:
  """Mean over s runs with a 95 % interval over samples and runs.

  The two variances add up: that of the mean over the bootstrap of the samples, and that
  of the mean over runs, s^2 / S, which has S - 1 degrees of freedom. A percentile
  bootstrap of three runs would cover 74 %, not 95 %. A single run has the bootstrap
  interval of its samples: nothing is known of other runs.

  Source: Satterthwaite, Biometrics Bulletin 1946, for the degrees of freedom.
  """
  mean_draws = draws.mean(axis=0)
  mean = float(values.mean())
  if len(values) == 1 or not np.isfinite(values).all():
    return bootstrap.figure(mean, mean_draws, n=n)
  of_runs = float(values.var(ddof=1)) / len(values)
  total = of_runs + float(np.nanvar(mean_draws))
  if total == 0:
    return bootstrap.Figure(value=mean, low=mean, high=mean, n=n)
  freedom = total**2 * (len(values) - 1) / of_runs**2 if of_runs else math.inf
  half = float(stats.t.ppf(0.5 + bootstrap.LEVEL / 2, freedom)) * math.sqrt(total)
  return bootstrap.Figure(value=mean, low=mean - half, high=mean + half, n=n)
