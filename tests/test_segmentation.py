"""Dice against scikit-learn's F1 and hand-made cases."""

import math

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from plan_jax.evals import segmentation


def test_dice_equals_the_f1_score_of_pixels():
  rng = np.random.default_rng(0)
  probability = rng.random((4, 9, 7, 3)).astype(np.float32)
  truth = rng.random((4, 9, 7, 3)) < 0.3
  got = segmentation.score_all(probability, truth, classes=3)
  assert got.dice.shape == (4, 3) and got.has_truth.all()
  for i in range(4):
    for k in range(3):
      want = sklearn_metrics.f1_score(
          truth[i, :, :, k].ravel(), probability[i, :, :, k].ravel() >= 0.5)
      assert got.dice[i, k] == pytest.approx(want)


def test_dice_by_hand_and_one_half_counts():
  truth = np.zeros((4, 4, 1), bool)
  truth[:2, :2] = True
  probability = np.zeros((4, 4, 1), np.float32)
  probability[0, :, 0] = 0.5  # four pixels, two of them true
  assert segmentation.dice(probability >= 0.5, truth)[0] == pytest.approx(2 * 2 / (4 + 4))
  scores = segmentation.score_all([probability, probability * 0.99], [truth, truth], classes=1)
  np.testing.assert_allclose(scores.dice[:, 0], [0.5, 0])


def test_healthy_images_count_in_dice_all_only():
  full, none = np.ones((2, 2, 1)), np.zeros((2, 2, 1))
  cases = [(full, full), (none, full), (none, none), (full, none)]  # (prediction, truth)
  scores = segmentation.score_all(*zip(*cases), classes=1)
  np.testing.assert_array_equal(scores.dice[:, 0], [1, 0, 1, 0])
  result = segmentation.segmentation(scores, classes=['x'], groups=range(4))
  assert (result.dice.value, result.dice.n) == (0.5, 2)
  assert (result.dice_all.value, result.dice_all.n) == (0.5, 4)
  # A thousand healthy images, all of them left empty, raise the one and not the other.
  many = segmentation.score_all(
      [*list(zip(*cases))[0], *[none] * 1000], [*list(zip(*cases))[1], *[none] * 1000], classes=1)
  result = segmentation.segmentation(many, classes=['x'], groups=range(1004))
  assert result.dice.value == 0.5 and result.dice_all.value == pytest.approx(1002 / 1004)


def test_means_go_over_images_then_classes():
  scores = segmentation.Scores(
      dice=np.array([[1.0, 0.2, 1.0], [0.0, 0.4, 1.0], [0.5, 0.9, 0.0]]),
      has_truth=np.array([[True, True, False], [True, True, False], [True, False, False]]))
  result = segmentation.segmentation(scores, classes=['a', 'b', 'never'], groups=[0, 1, 2])
  assert result.classes['a'].dice.value == pytest.approx(0.5)
  assert result.classes['b'].dice.value == pytest.approx(0.3)
  assert result.classes['b'].dice_all.value == pytest.approx(0.5)
  assert result.dice.value == pytest.approx((0.5 + 0.3) / 2)
  assert result.dice_all.value == pytest.approx((0.5 + 0.5 + 2 / 3) / 3)
  assert result.undefined == ('never',) and result.dice.n == 3
  json = result.as_json()
  assert json['protocol'] == 'segmentation/dice_at_half_positive_images'
  assert json['classes']['never']['dice'] == {'value': None, 'low': None, 'high': None, 'n': 0}
  assert json['undefined'] == ['never'] and json['images'] == 3


def test_interval_is_that_of_the_mean_and_follows_patients():
  rng = np.random.default_rng(2)
  patient = np.repeat(np.arange(40), 10)
  dice = np.clip(rng.normal(0.6, 0.15, 40)[patient], 0, 1)[:, None]
  scores = segmentation.Scores(dice=dice, has_truth=np.ones((400, 1), bool))
  alone = segmentation.segmentation(scores, classes=['x'], groups=range(400)).dice
  half = 1.96 * dice.std() / math.sqrt(400)
  assert alone.high - alone.value == pytest.approx(half, rel=0.15)
  grouped = segmentation.segmentation(scores, classes=['x'], groups=patient).dice
  assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_nothing_and_disagreeing_shapes():
  empty = segmentation.segmentation(
      segmentation.score_all([], [], classes=2), classes=['a', 'b'], groups=[])
  assert math.isnan(empty.dice.value) and empty.undefined == ('a', 'b')
  with pytest.raises(ValueError, match=r'\(2, 2, 1\).*\(3, 2, 1\)'):
    segmentation.dice(np.zeros((2, 2, 1), bool), np.zeros((3, 2, 1), bool))
  with pytest.raises(ValueError, match='2 classes and 1 groups'):
    segmentation.segmentation(
        segmentation.score_all([np.zeros((2, 2, 1))], [np.zeros((2, 2, 1))], classes=1),
        classes=['a', 'b'], groups=[0])
