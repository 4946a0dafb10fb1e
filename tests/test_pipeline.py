"""Tests of plan_jax.data.pipeline."""

from concurrent import futures
import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import pickle
import signal
import threading

import cv2
import jax
import numpy as np
import pytest

from plan_jax import config
from plan_jax import mesh as mesh_lib
from plan_jax import shapes
from plan_jax.data import packed
from plan_jax.data import pipeline
from plan_jax.data import records as records_lib
from plan_jax.data import tokenize

SIZE = 32
COUNT = 22
SETTINGS = config.Data(image_size=SIZE, max_pieces=16, max_words=8, threads=2)
STILL = config.Augment(min_area=1.0, rotate_degrees=0.0, brightness=0.0, contrast=0.0)


def _example(index):
  image = np.random.default_rng(index).integers(0, 256, (30, 40)).astype(np.uint8)
  return records_lib.Example(
      id=f'case{index}', image=cv2.imencode('.png', image)[1].tobytes(),
      text=f'word{index} no effusion', patient=f'p{index}', split='train', labels=())


EXAMPLES = [_example(i) for i in range(COUNT)]
VOCABULARY = tokenize.train_vocabulary([e.text for e in EXAMPLES], size=200)
TOKENIZER = tokenize.Tokenizer(VOCABULARY, max_pieces=16, max_words=8)
FORM_TO_INDEX = {int(TOKENIZER(e.text).word_form[0]): i for i, e in enumerate(EXAMPLES)}


def _batches(*, records=EXAMPLES, settings=SETTINGS, batch_size=8, seed=0, start_step=0, **hosts):
  return pipeline.batches(
      records, tokenizer=TOKENIZER, settings=settings, batch_size=batch_size, seed=seed,
      start_step=start_step, **hosts)


def _take(iterator, count):
  with contextlib.closing(iterator):
    return list(itertools.islice(iterator, count))


def _assert_equal(a: shapes.Batch, b: shapes.Batch):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


def _order(batches):
  return [FORM_TO_INDEX[int(form)] for batch in batches for form in batch.word_form[:, 0]]


def _threads():
  return [t for t in threading.enumerate() if t.name == 'to_device']


def test_shapes_and_types():
  (batch,) = _take(_batches(), 1)
  kinds = {name: (value.shape, value.dtype) for name, value in vars(batch).items()}
  assert kinds == {
      'image': ((8, SIZE, SIZE), np.uint8), 'extent': ((8, 4), np.int32),
      'pieces': ((8, 16), np.int32), 'piece_word': ((8, 16), np.int32),
      'word_form': ((8, 8), np.int32), 'is_negation': ((8, 8), np.bool_)}
  assert batch.is_negation[:, 1].all() and batch.is_negation.sum() == 8


def test_image_and_text_of_a_row_belong_together():
  still = config.Data(image_size=40, max_pieces=16, max_words=8, augment=STILL)
  for batch in _take(_batches(settings=still), 3):
    for row in range(8):
      index = FORM_TO_INDEX[int(batch.word_form[row, 0])]
      y0, x0, y1, x1 = batch.extent[row]
      expected = cv2.imdecode(
          np.frombuffer(EXAMPLES[index].image, np.uint8), cv2.IMREAD_GRAYSCALE)
      np.testing.assert_array_equal(batch.image[row, y0:y1, x0:x1], expected)


def test_every_epoch_sees_every_record_once_in_an_order_of_its_own():
  order = _order(_take(_batches(batch_size=2), 3 * COUNT // 2))
  epochs = [order[i * COUNT:(i + 1) * COUNT] for i in range(3)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(COUNT))
  assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
  assert epochs[0] != list(range(COUNT))


def test_a_record_is_augmented_anew_each_epoch():
  batches = _take(_batches(batch_size=2), COUNT)
  views = {}
  for batch in batches:
    for form, image in zip(batch.word_form[:, 0], batch.image, strict=True):
      views.setdefault(int(form), []).append(image)
  assert all(len(v) == 2 and (v[0] != v[1]).any() for v in views.values())


class _Seen(tokenize.Tokenizer):
  """Notes what it is asked for."""

  def __init__(self):
    super().__init__(VOCABULARY, max_pieces=16, max_words=8)
    self.texts = []

  def __call__(self, text):
    self.texts.append(text)
    return super().__call__(text)


def test_a_report_is_tokenised_once():
  tokenizer = _Seen()
  batches = pipeline.batches(
      EXAMPLES, tokenizer=tokenizer, settings=config.Data(
          image_size=SIZE, max_pieces=16, max_words=8, threads=1),
      batch_size=2, seed=0, start_step=0)
  assert sorted(_order(_take(batches, 2 * COUNT // 2))) == sorted(2 * list(range(COUNT)))
  assert sorted(tokenizer.texts) == sorted(example.text for example in EXAMPLES)


def test_packed_tokens_are_what_the_tokenizer_says():
  long = ' '.join(f'word{k}' for k in range(200))
  texts = [*(example.text for example in EXAMPLES), '', 'no', long]
  # 200 words do not fit into eight bits, 70,000 pieces not into sixteen.
  wide = [*VOCABULARY, *(f'longword{k}' for k in range(70_000))]
  for tokenizer, asked in (
      (TOKENIZER, texts),
      (tokenize.Tokenizer(wide, max_pieces=600, max_words=200), [*texts, 'longword69999'])):
    packer = packed.Packer(tokenizer)
    for _ in range(2):  # made, then kept
      arrays = packer.unpack([packer(text) for text in asked])
      for name, array in arrays.items():
        expected = np.stack([getattr(tokenizer(text), name) for text in asked])
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)


def test_reports_that_were_kept_stay_and_others_are_tokenised_again():
  tokenizer = _Seen()
  texts = [f'word{k}' for k in range(40)]
  packer = packed.Packer(tokenizer, mib=0.003)
  first = [packer(text) for text in texts]
  kept = len(packer._kept)
  assert 5 < kept < 20 and kept * len(first[0]) < 0.003 * 2**20
  assert [packer(text) for text in reversed(texts)] == first[::-1]
  assert tokenizer.texts == [*texts, *reversed(texts[kept:])]


def test_threads_share_a_packer_and_processes_copy_it():
  packer = packed.Packer(TOKENIZER, mib=0.003)
  texts = [f'word{k} no effusion' for k in range(30)] * 20
  expected = [packed.Packer(TOKENIZER)(text) for text in texts]
  with futures.ThreadPoolExecutor(8) as pool:
    assert list(pool.map(packer, texts)) == expected
  assert len(packer._kept) <= packer._limit + 8
  copy = pickle.loads(pickle.dumps(packer))
  assert [copy(text) for text in texts] == expected


def test_seeds_differ_and_neighbours_share_no_epoch():
  epochs = {}
  for seed in (0, 1, 2):
    order = _order(_take(_batches(batch_size=2, seed=seed), 2 * COUNT // 2))
    epochs[seed] = [tuple(order[:COUNT]), tuple(order[COUNT:])]
  assert len({epoch for pair in epochs.values() for epoch in pair}) == 6


@pytest.mark.parametrize('threads', [1, 2, 5])
@pytest.mark.parametrize('hosts', [1, 2, 4])
def test_the_global_batches_are_the_same_for_any_hosts_and_threads(hosts, threads):
  reference = _take(_batches(), 7)  # over two epoch borders
  settings = config.Data(image_size=SIZE, max_pieces=16, max_words=8, threads=threads)
  parts = [_take(_batches(settings=settings, host=h, hosts=hosts), 7) for h in range(hosts)]
  for step, expected in enumerate(reference):
    joined = jax.tree.map(lambda *x: np.concatenate(x), *(part[step] for part in parts))
    _assert_equal(joined, expected)


def test_processes_give_the_same_batches_name_what_is_damaged_and_end():
  settings = dataclasses.replace(SETTINGS, workers=2, threads=1)
  with contextlib.closing(_batches(settings=settings, start_step=1)) as batches:
    for batch, expected in zip(itertools.islice(batches, 5), _take(_batches(), 6)[1:], strict=True):
      _assert_equal(batch, expected)
    children = multiprocessing.active_children()
    assert len(children) == 2
    os.kill(children[0].pid, signal.SIGTERM)  # meant for the process that trains
    assert len(list(itertools.islice(batches, 4))) == 4
  assert not any(child.is_alive() for child in children)
  damaged = dataclasses.replace(EXAMPLES[7], id='case7', image=EXAMPLES[7].image[:-60])
  with contextlib.closing(_batches(
      records=[*EXAMPLES[:7], damaged, *EXAMPLES[8:]], settings=settings)) as batches:
    with pytest.raises(pipeline.DataError, match='record case7 of split train: .*prepare'):
      list(itertools.islice(batches, COUNT))


@pytest.mark.parametrize('start', [1, 3, 6])
def test_starting_later_continues_bitwise(start):
  reference = _take(_batches(), 9)
  for expected, batch in zip(
      reference[start:], _take(_batches(start_step=start), 9 - start), strict=True):
    _assert_equal(batch, expected)
  second = _take(_batches(start_step=start, host=1, hosts=2), 1)[0]
  _assert_equal(second, jax.tree.map(lambda x: x[4:], reference[start]))


def test_a_start_far_away_is_immediate():
  (batch,) = _take(_batches(start_step=10**9), 1)
  assert batch.image.shape[0] == 8


def test_impossible_batches_name_the_fix():
  with pytest.raises(pipeline.DataError, match='batch_size=8 over hosts=3: take a multiple of 3'):
    _batches(hosts=3)
  with pytest.raises(pipeline.DataError, match='22 records for batch_size=24.*at most'):
    _batches(batch_size=24)
  assert len(set(_order(_take(_batches(batch_size=COUNT), 1)))) == COUNT


@pytest.mark.parametrize('through_device', [False, True])
def test_a_damaged_record_is_named(through_device):
  damaged = records_lib.Example(
      id='case7', image=EXAMPLES[7].image[:-60], text='secret words', patient='p', split='train',
      labels=())
  records = [*EXAMPLES[:7], damaged, *EXAMPLES[8:]]
  batches = _batches(records=records)
  if through_device:
    batches = pipeline.to_device(batches, _sharding())
  with pytest.raises(pipeline.DataError, match='record case7 of split train: .*prepare') as caught:
    _take(batches, COUNT)
  assert 'secret' not in str(caught.value)


# --- to the device ---


def _sharding():
  return mesh_lib.split(mesh_lib.make_mesh())


def test_device_batches_equal_the_host_batches_and_are_sharded():
  sharding = _sharding()
  with contextlib.closing(pipeline.to_device(_batches(), sharding)) as placed:
    for expected in _take(_batches(), 4):
      batch = next(placed)
      assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(batch))
      _assert_equal(jax.tree.map(np.asarray, batch), expected)
  assert not _threads()


class _Counting:
  """Batches that count themselves, and fail after `until`."""

  def __init__(self, until, error=None):
    self.given, self.is_closed = 0, False
    self._until, self._error = until, error
    self._batch = _take(_batches(), 1)[0]

  def __iter__(self):
    return self

  def __next__(self):
    if self.given == self._until:
      raise self._error or StopIteration
    self.given += 1
    return self._batch

  def close(self):
    self.is_closed = True


def test_reading_ahead_is_bounded_and_closing_stops_it():
  source = _Counting(until=100)
  placed = pipeline.to_device(source, _sharding(), depth=3)
  next(placed)
  placed.close()
  assert source.given <= 1 + 3 + 1  # taken, waiting, in the thread's hands
  assert source.is_closed and not _threads()


def test_an_iterator_that_ends_ends_the_result():
  source = _Counting(until=5)
  assert len(list(pipeline.to_device(source, _sharding()))) == 5
  assert source.is_closed and not _threads()


def test_an_exception_comes_out_after_the_batches_before_it():
  source = _Counting(until=3, error=RuntimeError('no more'))
  placed = pipeline.to_device(source, _sharding())
  for _ in range(3):
    next(placed)
  with pytest.raises(RuntimeError, match='no more'):
    next(placed)
  assert source.is_closed and not _threads()


def test_reading_ahead_needs_a_depth():
  with pytest.raises(ValueError, match='depth=0'):
    pipeline.to_device(iter(()), _sharding(), depth=0)
