"""Paired comparison of two ways to train, over seeds and over the same test samples."""

import dataclasses
import math
from typing import Any, Mapping, Sequence

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

  `p_value` is of the paired t test over the seeds (undefined for one without a pooled
  spread); `relative` is the difference as a share of the other arm's mean.
  """

  figure: bootstrap.Figure
  relative: float
  p_value: float

  def as_json(self) -> dict[str, Any]:
    return {**self.figure.as_json(), 'relative': bootstrap.plain(self.relative),
            'p_value': bootstrap.plain(self.p_value)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
  """Variance of the difference of two arms within a seed, and its degrees of freedom."""

  variance: float
  freedom: int


def pooled_spread(values: Mapping[tuple[str, int], float]) -> Spread | None:
  """The spread that arms of one kind share, from all their runs by (arm, seed).

  What an arm and a seed explain, each added to the other, is taken out; the rest is what
  runs differ by. None where nothing is left to estimate it from. It says more than the
  two or three differences of one arm, if the arms spread alike.

  Source: two-way analysis of variance without replication.
  """
  runs = [run for run, value in values.items() if math.isfinite(value)]
  arms, seeds = (sorted({run[axis] for run in runs}) for axis in (0, 1))
  design = np.array([[arm == a for a in arms] + [seed == s for s in seeds] for arm, seed in runs],
                    float).reshape(len(runs), len(arms) + len(seeds))
  freedom = len(runs) - int(np.linalg.matrix_rank(design)) if runs else 0
  if not freedom:
    return None
  found = np.array([values[run] for run in runs])
  residual = found - design @ np.linalg.lstsq(design, found, rcond=None)[0]
  return Spread(variance=2 * float(residual @ residual) / freedom, freedom=freedom)


def summary(runs: Sequence[Run], *, n: int) -> Summary:
  """Mean over runs, with an interval over samples and runs (see `interval`)."""
  values = np.array([value for value, _ in runs])
  return Summary(
      figure=interval(values, np.stack([draws for _, draws in runs]), n=n),
      deviation=float(values.std(ddof=1)) if len(runs) > 1 else math.nan, runs=len(runs))


def difference(
    runs: Sequence[Run], other: Sequence[Run], *, n: int, spread: Spread | None = None,
) -> Difference:
  """`runs` minus `other`, run k with run k (the same seed).

  The replicates of all runs must come from the same draws of the same samples. `spread`
  as in `interval`.

  Raises:
    ValueError: different numbers of runs.
  """
  if len(runs) != len(other):
    raise ValueError(f'{len(runs)} runs cannot be paired with {len(other)}')
  values = np.array([a - b for (a, _), (b, _) in zip(runs, other)])
  draws = np.stack([a - b for (_, a), (_, b) in zip(runs, other)])
  base = float(np.mean([value for value, _ in other]))
  spread, p_value = spread or _own_spread(values), math.nan
  if spread and spread.variance > 0:
    t = values.mean() / math.sqrt(spread.variance / len(values))
    p_value = float(2 * stats.t.sf(abs(t), spread.freedom))
  return Difference(
      figure=interval(values, draws, n=n, spread=spread),
      relative=float(values.mean()) / base if base else math.nan, p_value=p_value)


def interval(
    values: Float[np.ndarray, 's'], draws: Float[np.ndarray, 's r'], *, n: int,
    spread: Spread | None = None,
) -> bootstrap.Figure:
  """Mean over s runs with a 95 % interval over samples and runs.

  The two variances add up: that of the mean over the bootstrap of the samples, and that
  of the mean over runs, v / S, v being that of these runs or, if given, `spread`. A
  percentile bootstrap of three runs would cover 74 %, not 95 %. A single run without
  `spread` has the bootstrap interval of its samples: nothing is known of other runs.

  Source: Satterthwaite, Biometrics Bulletin 1946, for the degrees of freedom.
  """
  mean_draws = draws.mean(axis=0)
  mean = float(values.mean())
  spread = spread or _own_spread(values)
  if not spread or not np.isfinite(values).all():
    return bootstrap.figure(mean, mean_draws, n=n)
  of_runs = spread.variance / len(values)
  total = of_runs + float(np.nanvar(mean_draws))
  if total == 0:
    return bootstrap.Figure(value=mean, low=mean, high=mean, n=n)
  freedom = total**2 * spread.freedom / of_runs**2 if of_runs else math.inf
  half = float(stats.t.ppf(0.5 + bootstrap.LEVEL / 2, freedom)) * math.sqrt(total)
  return bootstrap.Figure(value=mean, low=mean - half, high=mean + half, n=n)


def _own_spread(values: Float[np.ndarray, 's']) -> Spread | None:
  if len(values) == 1:
    return None
  return Spread(variance=float(values.var(ddof=1)), freedom=len(values) - 1)
