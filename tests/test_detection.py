"""Average precision against pycocotools and hand-made cases."""

import contextlib
import io
import math
import time

import numpy as np
from pycocotools import coco
from pycocotools import cocoeval
import pytest

from plan_jax.evals import bootstrap
from plan_jax.evals import detection


def _truth(*boxes, classes=None) -> detection.Truth:
  return detection.Truth(
      boxes=np.reshape(np.array(boxes, np.float32), (-1, 4)),
      classes=np.zeros(len(boxes), int) if classes is None else np.array(classes, int))


def _found(*rows, classes=None) -> detection.Detections:
  """Rows of (x0, y0, x1, y1, score)."""
  rows = np.reshape(np.array(rows, np.float64), (-1, 5))
  return detection.Detections(
      boxes=rows[:, :4], scores=rows[:, 4],
      classes=np.zeros(len(rows), int) if classes is None else np.array(classes, int))


def _random_set(images: int, *, classes: int, seed: int):
  """Noisy copies of true boxes, misses, false alarms, and images without a box."""
  rng = np.random.default_rng(seed)
  truths, found = [], []
  for i in range(images):
    count = 0 if i % 4 == 0 else int(rng.integers(1, 4))
    corner = rng.uniform(0, 120, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 80, (count, 2))], axis=1)
    ids = rng.integers(0, classes, count)
    kept = rng.random(count) < 0.8
    noisy = boxes[kept] + rng.normal(0, 6, (kept.sum(), 4))
    extra = int(rng.integers(0, 3))
    corner = rng.uniform(0, 150, (extra, 2))
    false = np.concatenate([corner, corner + rng.uniform(15, 60, (extra, 2))], axis=1)
    scores = np.concatenate([rng.uniform(0.2, 1, kept.sum()), rng.uniform(0, 0.8, extra)])
    truths.append(detection.Truth(boxes=boxes, classes=ids))
    found.append(detection.Detections(
        boxes=np.concatenate([noisy, false]), scores=scores,
        classes=np.concatenate([ids[kept], rng.integers(0, classes, extra)])))
  return truths, found


def _pycocotools(truths, found, *, classes: int) -> np.ndarray:
  """AP [class, threshold] through the library's own loading of results."""
  boxes = [(i, *box, k) for i, t in enumerate(truths) for box, k in zip(t.boxes, t.classes)]
  truth = coco.COCO()
  with contextlib.redirect_stdout(io.StringIO()):
    truth.dataset = {
        'info': {}, 'images': [{'id': i, 'width': 300, 'height': 300} for i in range(len(truths))],
        'categories': [{'id': k} for k in range(classes)],
        'annotations': [
            {'id': n + 1, 'image_id': i, 'category_id': int(k), 'iscrowd': 0,
             'bbox': [x0, y0, x1 - x0, y1 - y0], 'area': (x1 - x0) * (y1 - y0)}
            for n, (i, x0, y0, x1, y1, k) in enumerate(boxes)]}
    truth.createIndex()
    results = truth.loadRes([
        {'image_id': i, 'category_id': int(k), 'score': s, 'bbox': [x0, y0, x1 - x0, y1 - y0]}
        for i, row in enumerate(found)
        for (x0, y0, x1, y1), s, k in zip(row.boxes, row.scores, row.classes)])
    evaluation = cocoeval.COCOeval(truth, results, 'bbox')
    evaluation.params.iouThrs = np.linspace(0.4, 0.75, 8)
    evaluation.evaluate()
    evaluation.accumulate()
  return evaluation.eval['precision'][:, :, :, 0, -1].mean(axis=1).T  # all sizes, 100


def test_points_and_unit_weights_equal_pycocotools():
  truths, found = _random_set(60, classes=3, seed=0)
  want = _pycocotools(truths, found, classes=3)
  assert 0.2 < want.mean() < 0.8
  points, matches = detection.match(truths, found, classes=3)
  np.testing.assert_allclose(points, want, atol=1e-12)
  ones = np.ones((1, 60))
  own = [[detection.weighted_ap(part, ones)[0] for part in row] for row in matches]
  np.testing.assert_allclose(own, want, atol=1e-12)
  result = detection.detection(
      truths, found, classes=['a', 'b', 'c'], groups=np.arange(60), replicates=50)
  assert result.map.value == pytest.approx(want.mean(), abs=1e-12)
  assert result.ap[0.5].value == pytest.approx(want[:, 2].mean(), abs=1e-12)
  assert result.classes['b'].ap.value == pytest.approx(want[1].mean(), abs=1e-12)
  assert result.map.low < result.map.value < result.map.high
  assert (result.images, result.images_without_boxes, result.map.n) == (60, 15, 60)


def test_whole_weights_equal_pycocotools_on_the_duplicated_set():
  truths, found = _random_set(40, classes=2, seed=1)
  times = bootstrap.resample(np.arange(40), replicates=6, seed=3)
  assert (times == 0).any() and (times >= 2).any()
  _, matches = detection.match(truths, found, classes=2)
  own = np.array([[detection.weighted_ap(part, times) for part in row] for row in matches])
  for r, weights in enumerate(times.astype(int)):
    index = np.repeat(np.arange(40), weights)
    want = _pycocotools([truths[i] for i in index], [found[i] for i in index], classes=2)
    np.testing.assert_allclose(own[:, :, r], want, atol=1e-12)


def test_average_precision_by_hand():
  # Surest first: a hit, a false alarm on a healthy image, a hit; a third box is missed.
  truths = [_truth((0, 0, 10, 10)), _truth(), _truth((0, 0, 10, 10), (50, 50, 70, 70))]
  found = [_found((0, 0, 10, 10, 0.9)), _found((5, 5, 9, 9, 0.8)), _found((0, 0, 10, 10, 0.7))]
  result = detection.detection(truths, found, classes=['x'], groups=[0, 1, 2])
  # Recall 0 to .33 at precision 1 (34 points), to .66 at 2/3 (33 points), then 0.
  assert result.map.value == pytest.approx((34 + 33 * 2 / 3) / 101)
  skipping = detection.detection(
      truths, found, classes=['x'], groups=[0, 1, 2],
      variant=detection.Variant.SKIPS_EMPTY)
  assert skipping.map.value == pytest.approx(67 / 101)  # the false alarm was free
  assert (skipping.images, skipping.images_left_out, skipping.images_without_boxes) == (2, 1, 0)
  assert skipping.as_json()['protocol'] == 'detection/map_40_75_mgca_skips_empty'


def test_the_skipping_variant_also_forgives_missed_images():
  truths = [_truth((0, 0, 10, 10)), _truth((0, 0, 10, 10))]
  found = [_found((0, 0, 10, 10, 0.9)), _found()]
  honest, skipping = (
      detection.detection(truths, found, classes=['x'], groups=[0, 1], variant=variant)
      for variant in detection.Variant)
  assert honest.map.value == pytest.approx(51 / 101)
  assert skipping.map.value == pytest.approx(1)


@pytest.mark.parametrize('shift, hits', [(3.0, 3), (1.0, 8), (9.0, 0)])
def test_thresholds_count_by_iou(shift, hits):
  # A 10 x 10 box shifted by s has IoU (10 - s) / (10 + s): 7/13 = .538, 9/11 = .818, 1/19.
  truths, found = [_truth((0, 0, 10, 10))], [_found((shift, 0, 10 + shift, 10, 0.5))]
  result = detection.detection(truths, found, classes=['x'], groups=[0])
  assert [part.value for part in result.ap.values()] == pytest.approx(
      [1.0] * hits + [0.0] * (8 - hits))
  assert result.map.value == pytest.approx(hits / 8)
  assert list(result.as_json()['ap']) == [
      '0.40', '0.45', '0.50', '0.55', '0.60', '0.65', '0.70', '0.75']


def test_a_second_detection_of_a_box_and_another_class_are_false_alarms():
  truths = [_truth((0, 0, 10, 10), (40, 40, 60, 60), classes=[0, 1])]
  twice = _found((0, 0, 10, 10, 0.9), (0, 0, 10, 10, 0.8), (40, 40, 60, 60, 0.7),
                 classes=[0, 0, 0])
  result = detection.detection(truths, [twice], classes=['a', 'b'], groups=[0])
  assert result.classes['a'].ap.value == pytest.approx(1)  # a false alarm after the last hit
  assert result.classes['b'].ap.value == 0
  assert result.map.value == pytest.approx(0.5)


def test_no_boxes_no_detections_nothing_at_all():
  nothing = detection.detection(
      [_truth()] * 3, [_found((0, 0, 5, 5, 0.5))] * 3, classes=['x'], groups=range(3))
  assert math.isnan(nothing.map.value) and nothing.undefined == ('x',)
  assert nothing.as_json()['map'] == {'value': None, 'low': None, 'high': None, 'n': 3}
  blind = detection.detection(
      [_truth((0, 0, 5, 5))] * 3, [_found()] * 3, classes=['x', 'y'], groups=range(3))
  assert (blind.map.value, blind.map.low, blind.map.high) == (0, 0, 0)
  assert blind.undefined == ('y',) and blind.classes['x'].boxes == 3
  none = detection.detection(
      [_truth((0, 0, 5, 5))], [_found()], classes=['x'], groups=[0],
      variant=detection.Variant.SKIPS_EMPTY)
  assert math.isnan(none.map.value) and none.images == 0 and none.images_left_out == 1
  empty = detection.detection([], [], classes=['x'], groups=[])
  assert math.isnan(empty.map.value) and empty.map.n == 0


def test_images_of_one_patient_stay_together():
  truths, found = _random_set(48, classes=1, seed=4)
  alone = detection.detection(
      truths * 4, found * 4, classes=['x'], groups=np.arange(192)).map
  grouped = detection.detection(
      truths * 4, found * 4, classes=['x'], groups=list(range(48)) * 4).map
  assert grouped.value == alone.value
  assert grouped.high - grouped.low > 1.5 * (alone.high - alone.low)
  again = detection.detection(
      truths * 4, found * 4, classes=['x'], groups=np.arange(192)).map
  assert again == alone


def test_a_thousand_images_are_fast():
  truths, found = _random_set(1000, classes=2, seed=5)
  start = time.perf_counter()
  detection.detection(truths, found, classes=['a', 'b'], groups=np.arange(1000))
  assert time.perf_counter() - start < 30


def test_bad_input_is_named():
  with pytest.raises(ValueError, match='without area'):
    _truth((3, 3, 3, 9))
  with pytest.raises(ValueError, match=r'\(1, 4\).*\(2,\)'):
    detection.Truth(boxes=np.ones((1, 4)), classes=np.zeros(2, int))
  with pytest.raises(ValueError, match='finite'):
    _found((0, 0, 1, 1, math.nan))
  with pytest.raises(ValueError, match='1 classes are named'):
    detection.detection([_truth((0, 0, 1, 1), classes=[1])], [_found()], classes=['x'], groups=[0])
  with pytest.raises(ValueError, match='1 truths, 2 lists'):
    detection.detection([_truth()], [_found()] * 2, classes=['x'], groups=[0])
