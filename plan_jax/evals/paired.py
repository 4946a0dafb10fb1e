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
    return {**self.figure.as_json(), 'deviation': _plain(self.deviation), 'runs': self.runs}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
  """Arm minus reference, runs paired by seed and replicates by their samples.

  `p_value` is of the paired t test over the seeds (undefined for one); `relative` is the
  difference as a share of the reference's mean.
  """

  figure: bootstrap.Figure
  relative: float
  p_value: float

  def as_json(self) -> dict[str, Any]:
    return {**self.figure.as_json(), 'relative': _plain(self.relative),
            'p_value': _plain(self.p_value)}


def summary(runs: Sequence[Run], *, n: int, seed: int = 0) -> Summary:
  """Mean over runs; the interval resamples the test samples and the runs."""
  values = np.array([value for value, _ in runs])
  draws = _over_runs(np.stack([draws for _, draws in runs]), seed=seed)
  return Summary(
      figure=bootstrap.figure(float(values.mean()), draws, n=n),
      deviation=float(values.std(ddof=1)) if len(runs) > 1 else math.nan, runs=len(runs))


def difference(
    runs: Sequence[Run], reference: Sequence[Run], *, n: int, seed: int = 0) -> Difference:
  """`runs` minus `reference`, run k with run k (the same seed).

  The replicates of all runs must come from the same draws of the same samples. Samples
  and seeds are resampled together: an interval that leaves out 0 speaks of both.

  Raises:
    ValueError: different numbers of runs.
  """
  if len(runs) != len(reference):
    raise ValueError(f'{len(runs)} runs cannot be paired with {len(reference)}')
  values = np.array([a - b for (a, _), (b, _) in zip(runs, reference)])
  draws = np.stack([a - b for (_, a), (_, b) in zip(runs, reference)])
  base = float(np.mean([value for value, _ in reference]))
  p_value = math.nan
  if len(values) > 1 and values.std() > 0:
    p_value = float(stats.ttest_1samp(values, 0).pvalue)
  return Difference(
      figure=bootstrap.figure(float(values.mean()), _over_runs(draws, seed=seed), n=n),
      relative=float(values.mean()) / base if base else math.nan, p_value=p_value)


def _over_runs(draws: Float[np.ndarray, 's r'], *, seed: int) -> Float[np.ndarray, 'r']:
  """Mean over runs drawn with replacement, anew in each replicate."""
  count, replicates = draws.shape
  chosen = np.random.default_rng([seed, count]).integers(count, size=(count, replicates))
  return np.take_along_axis(draws, chosen, axis=0).mean(axis=0)


def _plain(value: float) -> float | None:
  return None if math.isnan(value) else round(float(value), 6)
