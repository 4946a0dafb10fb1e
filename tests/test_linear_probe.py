"""The linear probe against scikit-learn used directly, and its undefined cases."""

import math

import numpy as np
import pytest
from sklearn import linear_model
from sklearn import metrics as sklearn_metrics
from sklearn import pipeline
from sklearn import preprocessing

from plan_jax.evals import linear_probe


def _split(n: int, *, seed: int, classes: int = 2, noise: float = 1.0) -> linear_probe.Split:
  """Features of very unlike scales; class k shows in feature k."""
  rng = np.random.default_rng(seed)
  features = rng.normal(size=(n, 8))
  positive = features[:, :classes] + noise * rng.normal(size=(n, classes)) > 0.5
  return linear_probe.Split(
      features=(features * 10.0 ** np.arange(-4, 4)).astype(np.float32), is_positive=positive)


def _probe(train, val, test, **changes) -> linear_probe.LinearProbe:
  return linear_probe.linear_probe(train=train, val=val, test=test, **{
      'classes': [f'c{k}' for k in range(train.is_positive.shape[1])],
      'groups': range(len(test)), 'replicates': 100, **changes})


def test_all_labels_equal_scikit_learn_with_its_best_penalty():
  train, val, test = (_split(n, seed=s) for n, s in ((200, 0), (150, 1), (180, 2)))
  got = _probe(train, val, test, shares=(1.0,)).shares[1.0]
  for k in range(2):
    losses, aurocs = {}, {}
    for strength in linear_probe.STRENGTHS:
      layer = pipeline.make_pipeline(
          preprocessing.StandardScaler(),
          linear_model.LogisticRegression(C=strength, max_iter=5000, tol=1e-8))
      layer.fit(train.features.astype(np.float64), train.is_positive[:, k])
      losses[strength] = sklearn_metrics.log_loss(
          val.is_positive[:, k], layer.predict_proba(val.features))
      aurocs[strength] = sklearn_metrics.roc_auc_score(
          test.is_positive[:, k], layer.decision_function(test.features))
    best = min(losses, key=losses.get)
    assert got.classes[f'c{k}'].strengths == (best,)
    assert got.classes[f'c{k}'].auroc.value == pytest.approx(aurocs[best], abs=2e-3)
  values = [part.auroc.value for part in got.classes.values()]
  assert got.macro_auroc.value == pytest.approx(np.mean(values)) and min(values) > 0.7
  assert got.macro_auroc.low < got.macro_auroc.value < got.macro_auroc.high
  assert (got.labelled, got.subsets, got.undefined) == (200, 1, ())


def test_more_labels_help_and_the_shape_is_fixed():
  train, val, test = (_split(n, seed=s) for n, s in ((800, 3), (200, 4), (300, 5)))
  result = _probe(train, val, test)
  few, more, all_of_them = (result.shares[share] for share in (0.01, 0.1, 1.0))
  assert few.macro_auroc.value < more.macro_auroc.value < all_of_them.macro_auroc.value
  assert [part.subsets for part in (few, more, all_of_them)] == [3, 3, 1]
  assert [part.labelled for part in (few, more, all_of_them)] == [8, 80, 800]
  json = result.as_json()
  assert json['protocol'] == 'linear_probe/frozen_pooled_logistic'
  assert list(json['shares']) == ['0.01', '0.1', '1']
  assert (json['train'], json['val'], json['test']) == (800, 200, 300)
  entry = json['shares']['0.1']['classes']['c1']
  assert entry['positives'] == test.is_positive[:, 1].sum() and entry['n'] == 300
  assert entry['prevalence'] == round(test.is_positive[:, 1].mean(), 6)
  assert len(entry['strengths']) == entry['subsets'] == 3
  assert _probe(train, val, test).as_json() == json


def test_the_figure_is_the_mean_over_the_subsets():
  train, val, test = (_split(n, seed=s, classes=1) for n, s in ((300, 6), (100, 7), (200, 8)))
  got = _probe(train, val, test, shares=(0.1,), seed=5).shares[0.1]
  values = []
  for rows in linear_probe.subset_rows(300, share=0.1, subsets=3, seed=5):
    layer, = linear_probe.fit(train.take(rows), val, test, strengths=linear_probe.STRENGTHS)
    values.append(sklearn_metrics.roc_auc_score(test.is_positive[:, 0], layer.scores))
  assert len(set(values)) == 3
  assert got.macro_auroc.value == pytest.approx(np.mean(values))


def test_subsets_are_nested_and_differ():
  small = linear_probe.subset_rows(500, share=0.02, subsets=3, seed=1)
  large = linear_probe.subset_rows(500, share=0.3, subsets=3, seed=1)
  assert [len(rows) for rows in (*small, *large)] == [10] * 3 + [150] * 3
  for few, many in zip(small, large):
    assert set(few) <= set(many) and len(set(few)) == 10
  assert len({tuple(rows) for rows in small}) == 3
  assert [len(rows) for rows in linear_probe.subset_rows(5, share=0.01, subsets=2, seed=0)] == [
      1, 1]
  with pytest.raises(ValueError, match='share 1.5'):
    linear_probe.subset_rows(5, share=1.5, subsets=2, seed=0)


def test_classes_without_both_label_values_are_undefined():
  train, val, test = (_split(n, seed=s, classes=3) for n, s in ((400, 9), (80, 10), (90, 11)))
  train.is_positive[:, 1] = False
  train.is_positive[0, 1] = True  # in all labels one positive, in the subsets none
  assert all(0 not in rows for rows in linear_probe.subset_rows(
      400, share=0.05, subsets=3, seed=0))
  test.is_positive[:, 2] = True
  result = _probe(train, val, test, shares=(0.05, 1.0))
  few, all_of_them = result.shares[0.05], result.shares[1.0]
  assert few.undefined == ('c1', 'c2') and all_of_them.undefined == ('c2',)
  assert few.classes['c1'].subsets == 0 and all_of_them.classes['c1'].subsets == 1
  assert few.macro_auroc.value == few.classes['c0'].auroc.value
  json = few.as_json()
  assert json['classes']['c1'] == {
      'value': None, 'low': None, 'high': None, 'n': 90, 'strengths': [], 'subsets': 0,
      'positives': int(test.is_positive[:, 1].sum()),
      'prevalence': round(test.is_positive[:, 1].mean(), 6)}


def test_one_label_value_in_every_split():
  splits = [linear_probe.Split(features=np.random.default_rng(s).normal(size=(20, 3)),
                               is_positive=np.ones((20, 1), bool)) for s in range(3)]
  result = _probe(*splits)
  for part in result.shares.values():
    assert math.isnan(part.macro_auroc.value) and part.undefined == ('c0',)


def test_constant_features_tell_nothing():
  train, val, test = (_split(n, seed=s) for n, s in ((60, 12), (30, 13), (40, 14)))
  flat = [linear_probe.Split(features=np.full((len(part), 4), 7.0), is_positive=part.is_positive)
          for part in (train, val, test)]
  figure = _probe(*flat, shares=(1.0,)).shares[1.0].macro_auroc
  assert (figure.value, figure.low, figure.high) == (0.5, 0.5, 0.5)


def test_validation_with_one_label_value_still_chooses():
  train, val, test = (_split(n, seed=s) for n, s in ((100, 15), (30, 16), (60, 17)))
  val.is_positive[:] = False
  part = _probe(train, val, test, shares=(1.0,)).shares[1.0]
  assert part.undefined == () and part.macro_auroc.value > 0.6


def test_bad_input_is_named():
  split = _split(10, seed=0)
  with pytest.raises(ValueError, match=r'\(3, 2\).*\(4, 1\)'):
    linear_probe.Split(features=np.zeros((3, 2)), is_positive=np.zeros((4, 1), bool))
  with pytest.raises(ValueError, match='val labels .0, 2.'):
    _probe(split, split.take(np.arange(0)), split)
  with pytest.raises(ValueError, match='9 groups for 10 test images'):
    _probe(split, split, split, groups=range(9))
