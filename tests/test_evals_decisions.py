"""Tests of plan_jax.evals.decisions."""

import math

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from plan_jax.evals import decisions


def _data(seed, *, n=200, classes=3):
  rng = np.random.default_rng(seed)
  is_positive = rng.random((n, classes)) < 0.3
  return is_positive + rng.normal(size=(n, classes)), is_positive


def test_thresholds_have_the_best_f1():
  scores, is_positive = _data(0)
  found = decisions.best_thresholds(scores, is_positive)
  for k in range(3):
    best = max(sklearn_metrics.f1_score(is_positive[:, k], scores[:, k] >= at)
               for at in scores[:, k])
    assert sklearn_metrics.f1_score(is_positive[:, k], scores[:, k] >= found[k]) == (
        pytest.approx(best, abs=1e-9))


def test_figures_equal_scikit_learn():
  thresholds = decisions.best_thresholds(*_data(0))
  scores, is_positive = _data(1)
  got = decisions.decide(scores, is_positive, thresholds=thresholds, classes=list('abc'),
                         groups=np.arange(200), replicates=100)
  says = scores >= thresholds
  for k, found in enumerate(got.classes.values()):
    assert found.f1.value == pytest.approx(sklearn_metrics.f1_score(is_positive[:, k], says[:, k]))
    assert found.accuracy.value == pytest.approx((is_positive[:, k] == says[:, k]).mean())
    assert found.f1.low < found.f1.value < found.f1.high
  assert got.macro_f1.value == pytest.approx(
      sklearn_metrics.f1_score(is_positive, says, average='macro'))
  single = is_positive.sum(1) == 1
  assert got.top1_accuracy.n == single.sum() > 50
  assert got.top1_accuracy.value == pytest.approx(sklearn_metrics.accuracy_score(
      is_positive[single].argmax(1), scores[single].argmax(1)))


def test_what_cannot_be_told_is_undefined():
  scores, is_positive = _data(0)
  is_positive[:, 1] = False
  thresholds = decisions.best_thresholds(scores, is_positive)
  assert math.isnan(thresholds[1]) and np.isfinite(thresholds[[0, 2]]).all()
  got = decisions.decide(scores, is_positive, thresholds=thresholds, classes=list('abc'),
                         groups=np.arange(200), replicates=20)
  assert math.isnan(got.classes['b'].f1.value) and math.isnan(got.classes['b'].accuracy.value)
  assert got.macro_f1.value == pytest.approx(
      (got.classes['a'].f1.value + got.classes['c'].f1.value) / 2)
  assert got.as_json()['classes']['b']['threshold'] is None
  # A threshold, but nobody with the finding here: right or wrong, but no F1.
  other = decisions.decide(scores, is_positive, thresholds=np.zeros(3), classes=list('abc'),
                           groups=np.arange(200), replicates=20)
  assert math.isnan(other.classes['b'].f1.value)
  assert other.classes['b'].accuracy.value == pytest.approx((scores[:, 1] < 0).mean())


def test_disagreeing_shapes_are_named():
  with pytest.raises(ValueError, match=r'2 thresholds and 3 classes disagree'):
    decisions.decide(np.zeros((4, 3)), np.zeros((4, 3), bool), thresholds=np.zeros(2),
                     classes=list('abc'), groups=range(4))
