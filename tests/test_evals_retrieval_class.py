"""Class-level retrieval against a brute-force count, and balanced samples."""

import math

import numpy as np
import pytest

from plan_jax.evals import retrieval


def _run(similarity, image_class, text_class, **changes) -> retrieval.ClassRetrieval:
  return retrieval.class_retrieval(np.asarray(similarity), **{
      'image_class': image_class, 'text_class': text_class,
      'image_groups': range(len(image_class)), 'text_groups': range(len(text_class)), **changes})


def _worst_precision(row, is_hit, k: int) -> float:
  """Share of hits in the top k under the order of equals that is worst for the query."""
  order = sorted(range(len(row)), key=lambda j: (-row[j], is_hit[j]))
  return sum(is_hit[j] for j in order[:k]) / k


def test_precision_equals_a_brute_force_count_with_ties():
  rng = np.random.default_rng(0)
  similarity = rng.integers(0, 6, (25, 40)).astype(np.float32)
  image_class, text_class = rng.integers(0, 4, 25), rng.integers(0, 4, 40)
  similarity += 2 * (image_class[:, None] == text_class)
  got = _run(similarity, image_class, text_class, replicates=20)
  for k in (1, 2, 5, 10):
    by_image = [_worst_precision(similarity[i], text_class == image_class[i], k)
                for i in range(25)]
    by_text = [_worst_precision(similarity[:, j], image_class == text_class[j], k)
               for j in range(40)]
    assert got.image_to_text.precision[k].value == pytest.approx(np.mean(by_image))
    assert got.text_to_image.precision[k].value == pytest.approx(np.mean(by_text))
  assert got.image_to_text.chance == pytest.approx(
      np.mean([np.mean(text_class == c) for c in image_class]))
  assert got.image_to_text.precision[5].n == 25 and got.text_to_image.precision[5].n == 40


def test_a_constant_model_gets_no_credit_and_a_perfect_one_all():
  labels = np.repeat(np.arange(5), 20)
  constant = _run(np.zeros((100, 100)), labels, labels)
  assert [constant.image_to_text.precision[k].value for k in (1, 10)] == [0, 0]
  assert constant.image_to_text.chance == pytest.approx(0.2)
  perfect = _run(labels[:, None] == labels, labels, labels)
  figure = perfect.text_to_image.precision[10]
  assert (figure.value, figure.low, figure.high) == (1, 1, 1)


def test_shape_names_and_cutoffs_beyond_the_candidates():
  names = ['edema', 'edema', 'normal', 'mass']
  got = _run(np.eye(4)[:, :3], names, names[:3], cutoffs=(1, 3, 4), replicates=10)
  json = got.as_json()
  assert json['protocol'] == 'retrieval/class_precision'
  assert set(json['image_to_text']) == {'p@1', 'p@3', 'chance'}  # 3 texts
  assert set(json['text_to_image']) == {'p@1', 'p@3', 'p@4', 'chance'}  # 4 images
  assert (json['images'], json['texts'], json['classes']) == (4, 3, 3)
  assert set(json['image_to_text']['p@1']) == {'value', 'low', 'high', 'n'}
  # The class without any text cannot be found: it counts 0, not nothing.
  assert got.image_to_text.precision[3].value == pytest.approx((2 / 3 + 2 / 3 + 1 / 3 + 0) / 4)


def test_interval_resamples_queries_by_their_groups():
  rng = np.random.default_rng(1)
  labels = rng.integers(0, 3, 120)
  patient = np.repeat(np.arange(12), 10)
  good = rng.random(12) < 0.5  # of some patients every image is easy, of the others none
  similarity = rng.normal(size=(120, 120)) + 9 * (
      (labels[:, None] == labels) & good[patient][:, None])
  single = _run(similarity, labels, labels).image_to_text.precision[5]
  grouped = _run(similarity, labels, labels, image_groups=patient).image_to_text.precision[5]
  assert single.value == grouped.value
  assert grouped.high - grouped.low > 1.5 * (single.high - single.low)
  assert _run(similarity, labels, labels).image_to_text.precision[5] == single


def test_nothing_to_retrieve_and_disagreeing_shapes():
  got = _run(np.zeros((0, 3)), [], ['a', 'b', 'a'])
  assert math.isnan(got.image_to_text.precision[1].value) and not got.text_to_image.precision
  assert got.as_json()['image_to_text']['chance'] is None
  with pytest.raises(ValueError, match=r'\(2, 3\), 2 image classes with 2 groups and 2 text'):
    _run(np.zeros((2, 3)), ['a', 'b'], ['a', 'b'])


def test_balanced_sample_takes_examples_of_one_class_only():
  sets = [{'a'}, {'a', 'b'}, {'b'}, set(), {'a'}, {'c'}, {'b'}, {'a'}, {'b'}, {'b', 'c'}] * 3
  got = retrieval.balanced_sample(sets, per_class=4, seed=0)
  assert got.classes == ('a', 'b', 'c')
  assert np.bincount(got.class_id).tolist() == [4, 4, 3]  # c has three such examples
  assert len(set(got.rows)) == len(got.rows) and (np.diff(got.rows) > 0).all()
  for row, k in zip(got.rows, got.class_id):
    assert sets[row] == {got.classes[k]}
  again = retrieval.balanced_sample(sets, per_class=4, seed=0)
  np.testing.assert_array_equal(got.rows, again.rows)
  others = [retrieval.balanced_sample(sets, per_class=4, seed=s).rows.tolist() for s in range(5)]
  assert len({str(rows) for rows in others}) > 1


def test_balanced_sample_of_given_classes():
  sets = [{'a'}, {'a', 'other'}, {'b'}, {'other'}]
  got = retrieval.balanced_sample(sets, per_class=5, seed=0, classes=['b', 'a', 'absent'])
  assert got.rows.tolist() == [0, 2] and got.class_id.tolist() == [1, 0]
  assert got.classes == ('b', 'a', 'absent')
  assert not len(retrieval.balanced_sample([], per_class=5, seed=0).rows)
