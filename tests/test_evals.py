"""Evaluation protocols against published numbers, scikit-learn, and hand-made cases."""

import math
import pathlib
import time

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from plan_jax.evals import bootstrap
from plan_jax.evals import grounding
from plan_jax.evals import retrieval
from plan_jax.evals import zero_shot

ORACLE = pathlib.Path(__file__).parent / 'vectors' / 'ms_cxr_metric.npz'


# ---- bootstrap


def test_resample_counts_and_groups():
  times = bootstrap.resample(['a', 'a', 'b', 'c'], replicates=200, seed=1)
  assert times.shape == (200, 4)
  np.testing.assert_array_equal(times[:, 0], times[:, 1])  # a group stays together
  np.testing.assert_array_equal(times[:, [0, 2, 3]].sum(1), 3)  # three groups drawn
  np.testing.assert_array_equal(
      times, bootstrap.resample(['a', 'a', 'b', 'c'], replicates=200, seed=1))
  assert (times != bootstrap.resample(['a', 'a', 'b', 'c'], replicates=200, seed=2)).any()


def test_mean_interval_matches_the_normal_theory():
  values = np.random.default_rng(0).normal(size=400)
  times = bootstrap.resample(np.arange(400), replicates=4000, seed=0)
  got = bootstrap.mean_figure(values, times)
  half = 1.96 * values.std() / math.sqrt(400)
  assert got.value == pytest.approx(values.mean())
  assert got.high - got.value == pytest.approx(half, rel=0.1)
  assert got.value - got.low == pytest.approx(half, rel=0.1)


def test_undefined_values_are_left_out_and_an_empty_mean_is_null():
  times = bootstrap.resample(np.arange(3), replicates=50, seed=0)
  got = bootstrap.mean_figure(np.array([1.0, math.nan, 3.0]), times)
  assert (got.value, got.n) == (2.0, 2)
  empty = bootstrap.mean_figure(np.zeros(0), bootstrap.resample([], replicates=50, seed=0))
  assert empty.as_json() == {'value': None, 'low': None, 'high': None, 'n': 0}
  assert str(empty) == 'undefined'


# ---- zero-shot


def test_fast_auroc_equals_sklearn_with_ties_and_replicates():
  rng = np.random.default_rng(3)
  scores = rng.integers(0, 12, size=150).astype(np.float64)  # many ties
  positive = rng.random(150) < 0.3
  times = bootstrap.resample(np.arange(150), replicates=20, seed=5)
  got = zero_shot.aurocs(scores, positive, times)
  for weights, value in zip(times, got, strict=True):
    index = np.repeat(np.arange(150), weights.astype(int))
    assert value == pytest.approx(
        sklearn_metrics.roc_auc_score(positive[index], scores[index]), abs=1e-12)
  plain = zero_shot.aurocs(scores, positive, np.ones((1, 150), np.float32))
  assert plain[0] == pytest.approx(sklearn_metrics.roc_auc_score(positive, scores), abs=1e-12)


def test_zero_shot_reports_single_label_classes_as_undefined():
  rng = np.random.default_rng(0)
  labels = np.stack([np.arange(60) % 3 == 0, np.ones(60, bool), np.zeros(60, bool)], 1)
  scores = rng.normal(size=(60, 3)) + labels
  got = zero_shot.zero_shot(
      scores, labels, classes=('effusion', 'always', 'never'), groups=np.arange(60))
  assert got.undefined == ('always', 'never')
  assert got.classes['always'].positives == 60 and got.classes['never'].positives == 0
  assert got.macro_auroc.value == got.classes['effusion'].auroc.value
  assert got.macro_auroc.low < got.macro_auroc.value < got.macro_auroc.high
  json = got.as_json()
  assert json['classes']['never'] == {
      'value': None, 'low': None, 'high': None, 'n': 60, 'positives': 0, 'prevalence': 0.0}
  assert json['undefined'] == ['always', 'never']
  assert set(json['macro_auroc']) == {'value', 'low', 'high', 'n'}


def test_zero_shot_is_seeded_and_fast():
  rng = np.random.default_rng(1)
  labels = rng.random((1000, 12)) < 0.2
  scores = rng.normal(size=(1000, 12)) + 0.5 * labels
  names = [f'c{k}' for k in range(12)]
  start = time.perf_counter()
  first = zero_shot.zero_shot(scores, labels, classes=names, groups=np.arange(1000))
  assert time.perf_counter() - start < 10
  again = zero_shot.zero_shot(scores, labels, classes=names, groups=np.arange(1000))
  assert first.as_json() == again.as_json()
  other = zero_shot.zero_shot(scores, labels, classes=names, groups=np.arange(1000), seed=1)
  assert first.macro_auroc.value == other.macro_auroc.value
  assert first.macro_auroc.low != other.macro_auroc.low


def test_patients_with_many_images_widen_the_interval():
  rng = np.random.default_rng(2)
  patient = np.repeat(np.arange(30), 10)
  labels = (rng.random(30) < 0.5)[patient][:, None]
  scores = (rng.normal(size=30)[patient])[:, None] + 0.3 * labels
  single = zero_shot.zero_shot(scores, labels, classes=['c'], groups=np.arange(300)).macro_auroc
  grouped = zero_shot.zero_shot(scores, labels, classes=['c'], groups=patient).macro_auroc
  assert grouped.high - grouped.low > 1.5 * (single.high - single.low)


def test_ensemble_averages_before_normalising():
  vectors = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
  np.testing.assert_allclose(zero_shot.ensemble(vectors), np.array([1, 2]) / math.sqrt(5))


def test_zero_shot_names_disagreeing_shapes():
  with pytest.raises(ValueError, match=r'\(3, 2\).*\(3, 1\)'):
    zero_shot.zero_shot(
        np.zeros((3, 2)), np.zeros((3, 1), bool), classes=['a', 'b'], groups=[0, 1, 2])


# ---- retrieval


def test_ranks_by_hand():
  similarity = np.array([[0.9, 0.1, 0.2], [0.8, 0.5, 0.6], [0.7, 0.7, 0.7]])
  ids = np.arange(3)
  # Ties count against the query: the last row is constant, its rank is the worst.
  np.testing.assert_array_equal(retrieval.ranks(similarity, text_id=ids), [1, 3, 3])
  # With reports 1 and 2 identical, image 1 finds its report through number 2.
  np.testing.assert_array_equal(
      retrieval.ranks(similarity, text_id=np.array([0, 1, 1])), [1, 2, 2])


def test_a_constant_model_retrieves_nothing():
  got = retrieval.retrieval(np.zeros((40, 40)), text_id=np.arange(40), groups=np.arange(40))
  assert got.image_to_text.recall[10].value == 0
  assert got.image_to_text.median_rank.value == 40


def test_retrieval_directions_and_shape():
  n = 30
  similarity = np.eye(n) + np.tri(n, k=-1) * 2  # image i prefers every report before i
  got = retrieval.retrieval(
      similarity, text_id=[f't{i}' for i in range(n)], groups=np.arange(n))
  assert got.image_to_text.recall[1].value == pytest.approx(1 / n)
  assert got.image_to_text.recall[5].value == pytest.approx(5 / n)
  assert got.text_to_image.recall[10].value == pytest.approx(10 / n)
  assert got.image_to_text.median_rank.value == 15.5
  low, high = got.image_to_text.median_rank.low, got.image_to_text.median_rank.high
  assert 8 < low < 15.5 < high < 23
  json = got.as_json()
  assert set(json['image_to_text']) == {'r@1', 'r@5', 'r@10', 'median_rank'}
  assert json['candidates'] == json['distinct_texts'] == n
  # All reports identical: every candidate is a hit.
  same = retrieval.retrieval(similarity, text_id=['t'] * n, groups=np.arange(n))
  assert same.image_to_text.recall[1].value == 1 and same.distinct_texts == 1


def test_retrieval_of_nothing_is_undefined():
  got = retrieval.retrieval(np.zeros((0, 0)), text_id=[], groups=[])
  assert math.isnan(got.image_to_text.recall[1].value)
  assert math.isnan(got.text_to_image.median_rank.value)


# ---- grounding


@pytest.fixture(scope='module')
def oracle():
  arrays = np.load(ORACLE)
  grids = np.einsum('nhwd,nd->nhw', arrays['patches'], arrays['text'])
  return arrays, grids, list(arrays['masks'] > 0)


def test_maps_equal_the_published_code(oracle):
  arrays, grids, _ = oracle
  got = grounding.to_frame(grids)
  np.testing.assert_allclose(got, arrays['maps'], atol=1e-4 * np.abs(arrays['maps']).max())


@pytest.mark.parametrize('margin', [False, True])
def test_scores_equal_the_published_code(oracle, margin):
  arrays, grids, truths = oracle
  suffix = '_margin' if margin else ''
  got = grounding.score_all(grids, truths, margin=margin, block=3)
  np.testing.assert_allclose(got.cnr, arrays['cnr' + suffix], rtol=1e-4)
  np.testing.assert_allclose(got.iou, arrays['iou' + suffix], rtol=1e-4, atol=1e-9)


def test_averages_go_over_phrases_then_categories_then_thresholds():
  iou = np.array([[0.2] * 5, [0.4] * 5, [0.9, math.nan, math.nan, math.nan, math.nan]])
  scores = grounding.Scores(
      cnr=np.array([1.0, -3.0, 2.0]), iou=iou, pointing=np.array([1.0, 0.0, 1.0]))
  got = grounding.grounding(scores, categories=['a', 'a', 'b'], groups=[0, 0, 1])
  assert got.cnr.value == pytest.approx((-1 + 2) / 2)
  assert got.abs_cnr.value == pytest.approx((2 + 2) / 2)
  assert got.pointing.value == pytest.approx((0.5 + 1) / 2)
  assert got.miou.value == pytest.approx(((0.3 + 0.9) / 2 + 4 * 0.3) / 5)
  assert got.categories['a'].cnr.n == 2 and got.categories['b'].miou.value == 0.9
  json = got.as_json()
  assert json['protocol'] == 'grounding/ms_cxr'
  assert set(json['cnr']) == {'value', 'low', 'high', 'n'}
  assert json['categories']['a']['cnr']['value'] == -1


def test_perfect_inverted_and_constant_maps():
  truth = np.zeros((224, 224), bool)
  truth[64:128, 64:128] = True
  good = np.zeros((14, 14), np.float32)
  good[4:8, 4:8] = 1
  got = grounding.score_all(np.stack([good, -good, np.ones_like(good)]), [truth] * 3)
  assert got.cnr[0] > 1.5 and got.cnr[1] == pytest.approx(-got.cnr[0])
  assert got.iou[0].mean() > 0.6 and got.pointing[0] == 1 and got.pointing[1] == 0
  assert math.isnan(got.cnr[2]) and np.isnan(got.iou[2]).all() and got.pointing[2] == 0


def test_truth_outside_the_frame_or_everywhere():
  grid = np.random.default_rng(0).normal(size=(2, 7, 7)).astype(np.float32)
  edge = np.zeros((224, 224), bool)
  edge[:5] = True  # inside the frame, outside the margin variant's centre
  empty = np.zeros((224, 224), bool)
  got = grounding.score_all(grid, [edge, empty])
  assert np.isfinite(got.cnr[0]) and math.isnan(got.cnr[1]) and math.isnan(got.pointing[1])
  assert math.isnan(grounding.score_all(grid[:1], [edge], margin=True).cnr[0])
  full = grounding.score_all(grid[:1], [np.ones((224, 224), bool)])
  assert math.isnan(full.cnr[0]) and full.pointing[0] == 1
  figures = grounding.grounding(got, categories=['a', 'a'], groups=[0, 1])
  assert figures.undefined == 1 and figures.cnr.n == 1


def test_no_phrases_at_all():
  got = grounding.grounding(
      grounding.score_all(np.zeros((0, 7, 7)), []), categories=[], groups=[])
  assert got.as_json()['cnr'] == {'value': None, 'low': None, 'high': None, 'n': 0}


def test_centre_map_peaks_at_the_centre():
  grid = grounding.centre_map((9, 9))
  assert np.unravel_index(grid.argmax(), grid.shape) == (4, 4)
  np.testing.assert_allclose(grid, grid[::-1, ::-1], rtol=1e-6)
  truth = np.zeros((224, 224), bool)
  truth[90:134, 90:134] = True
  assert grounding.score_all(grid[None], [truth]).cnr[0] > 1
