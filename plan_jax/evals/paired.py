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

  `p_value` is of the t test over the runs (undefined where their spread is);
  `relative` is the difference as a share of the other arm's mean.
  """

  figure: bootstrap.Figure
  relative: float
  p_value: float

  def as_json(self) -> dict[str, Any]:
    return {**self.figure.as_json(), 'relative': bootstrap.plain(self.relative),
            'p_value': bootstrap.plain(self.p_value)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
  """Variance over runs, and its degrees of freedom."""

  variance: float
  freedom: int


def pooled_spread(arms: Sequence[Sequence[float]]) -> Spread | None:
  """The variance of a run that arms of one kind share, from the runs of each.

  It says more than the two or three runs of one arm, if the arms spread alike. None where
  no arm has two runs.

  Source: one-way analysis of variance, the part within groups.
  """
  arms = [np.array(values) for values in arms if np.isfinite(values).all()]
  freedom = sum(len(values) - 1 for values in arms)
  if not freedom:
    return None
  within = sum(float(np.sum((values - values.mean())**2)) for values in arms)
  return Spread(variance=within / freedom, freedom=freedom)


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
  return _difference(values, draws, other, n=n, spread=_own_spread(values), weight=1 / len(runs))


def difference_of_means(
    runs: Sequence[Run], other: Sequence[Run], *, n: int, spread: Spread | None,
) -> Difference:
  """The mean of `runs` minus that of `other`, each of any number of runs.

  Replicates as in `difference`; `spread` is that of one run of either.
  """
  values, draws = (
      [np.mean([run[k] for run in group], axis=0) for group in (runs, other)] for k in (0, 1))
  return _difference(
      np.array([values[0] - values[1]]), (draws[0] - draws[1])[None], other, n=n, spread=spread,
      weight=1 / len(runs) + 1 / len(other))


def _difference(values, draws, other, *, n, spread, weight) -> Difference:
  base = float(np.mean([value for value, _ in other]))
  p_value = math.nan
  if spread and spread.variance > 0:
    t = values.mean() / math.sqrt(spread.variance * weight)
    p_value = float(2 * stats.t.sf(abs(t), spread.freedom))
  return Difference(
      figure=_interval(values, draws, n=n, spread=spread, weight=weight),
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
  return _interval(values, draws, n=n, spread=_own_spread(values), weight=1 / len(values))


def _interval(values, draws, *, n, spread, weight) -> bootstrap.Figure:
  mean_draws = draws.mean(axis=0)
  mean = float(values.mean())
  if not spread or not np.isfinite(values).all():
    return bootstrap.figure(mean, mean_draws, n=n)
  of_runs = spread.variance * weight
  total = of_runs + float(np.nanvar(mean_draws))
  if total == 0:
    return bootstrap.Figure(value=mean, low=mean, high=mean, n=n)
  freedom = total**2 * spread.freedom / of_runs**2 if of_runs else math.inf
  half = float(stats.t.ppf(0.5 + bootstrap.LEVEL / 2, freedom)) * math.sqrt(total)
  return bootstrap.Figure(value=mean, low=mean - half, high=mean + half, n=n)


def _own_spread(values: Float[np.ndarray, 's']) -> Spread | None:
  return pooled_spread([values])
