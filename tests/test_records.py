"""Records: encoding, random access, tfds, and what damaged directories say."""

import dataclasses
import json
import pickle
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from plan_jax.data import records
from plan_jax.data import rows
from plan_jax.data import writer


def _png(value: int) -> bytes:
  picture = np.full((12, 10), value, np.uint8)
  return cv2.imencode('.png', picture)[1].tobytes()


def _example(index: int) -> records.Example:
  boxes = np.array([[0, 0, 0.5, 1], [0.25, 0.125, 0.75, 0.5]], np.float32)
  phrases = (
      records.Phrase(text='small effusion', category='pleural effusion', boxes=boxes[:1],
                     mask=b'\x89PNG\xff\x00'),
      records.Phrase(text='nowhere', category='edema', boxes=np.zeros((0, 4), np.float32)),
      records.Phrase(text='two places', category='edema', boxes=boxes),
  )
  return records.Example(
      id=f'id-{index}', image=_png(index), text='Größe: 3 cm.' if index else '',
      patient=f'p{index}', split='test' if index % 5 == 4 else 'train',
      labels=('edema', 'pleural effusion') if index % 2 else (),
      negatives=('fracture',) if index % 4 else (), uncertain=('mass',) if index % 7 else (),
      phrases=phrases if index % 3 else (), is_annotated=bool(index % 2))


def _make(index: int) -> rows.Outcome:
  example = _example(index)
  return rows.Outcome(
      example=example, id=example.id, split=example.split, pixels=str(index), original=(10, 12),
      stored=(10, 12), sources=(('made', index),))


@pytest.fixture(name='directory', scope='module')
def _directory(tmp_path_factory):
  directory = tmp_path_factory.mktemp('records') / 'out'
  writer.write(
      writer.Source(items=range(20), make=_make, item_key=str, about={'image_size': 12}, rows=20),
      options=writer.Options(directory=directory, shard_rows=6, vocab_size=400))
  return directory


def _assert_same(a: records.Example, b: records.Example):
  for name in ('id', 'image', 'text', 'patient', 'split', 'labels', 'negatives', 'uncertain',
               'is_annotated'):
    assert getattr(a, name) == getattr(b, name), name
  assert len(a.phrases) == len(b.phrases)
  for one, two in zip(a.phrases, b.phrases):
    assert (one.text, one.category, one.mask) == (two.text, two.category, two.mask)
    assert one.boxes.dtype == two.boxes.dtype == np.float32
    np.testing.assert_array_equal(one.boxes, two.boxes)


@pytest.mark.parametrize('index', range(4))
def test_encode_and_decode_are_inverse(index):
  _assert_same(records.decode(records.encode(_example(index))), _example(index))


def test_format_1_reads_as_before():
  proto = tf_example_pb2.Example.FromString(records.encode(_example(3)))
  for key in ('negatives', 'uncertain', 'annotated'):  # what format 2 added
    del proto.features.feature[key]
  old = records.decode(proto.SerializeToString())
  _assert_same(old, dataclasses.replace(
      _example(3), negatives=(), uncertain=(), is_annotated=True))


def test_a_card_of_format_1_is_read(directory, tmp_path):
  copy = _copy(directory, tmp_path / 'copy')
  card = json.loads((copy / 'dataset.json').read_text())
  (copy / 'dataset.json').write_text(json.dumps({**card, 'format_version': 1}))
  assert len(records.Records(copy, 'train')) == 16


def test_encoding_is_deterministic():
  assert records.encode(_example(1)) == records.encode(_example(1))
  assert records.encode(_example(1)) != records.encode(_example(2))


def test_records_read_back_in_order(directory):
  train = records.Records(directory, 'train')
  expected = [_example(i) for i in range(20) if i % 5 != 4]
  assert len(train) == 16
  for example, want in zip(train, expected, strict=True):  # ends by IndexError
    _assert_same(example, want)
  assert records.read_card(directory)['shards']['train'] == [6, 5, 5]


def test_split_without_rows_is_empty(directory):
  assert len(records.Records(directory, 'val')) == 0
  assert not list(records.Records(directory, 'val'))


def test_index_must_be_in_range(directory):
  train = records.Records(directory, 'train')
  for index in (-1, 16):
    with pytest.raises(IndexError):
      train[index]
  assert train[np.int64(15)].id == 'id-18'


def test_pickle_reopens(directory):
  train = records.Records(directory, 'train')
  first = train[0]
  data = pickle.dumps(train)
  assert len(data) < 4096
  _assert_same(pickle.loads(data)[0], first)


def test_random_reads_are_fast(directory):
  train = records.Records(directory, 'train')
  train[0]
  times = []
  for index in np.random.default_rng(0).integers(0, 16, 300):
    start = time.perf_counter()
    train[index]
    times.append(time.perf_counter() - start)
  assert np.median(times) < 5e-4


def test_tfds_reads_the_same_without_tensorflow(directory):
  code = f'''
import sys
import tensorflow_datasets as tfds
from plan_jax.data import records
train = tfds.builder_from_directory({str(directory)!r}).as_data_source('train')
ours = records.Records({str(directory)!r}, 'train')
assert len(train) == len(ours) == 16
for theirs, example in zip(train, ours):
  assert theirs['id'].decode() == example.id and theirs['text'].decode() == example.text
  for name in ('labels', 'negatives', 'uncertain'):
    assert [label.decode() for label in theirs[name]] == list(getattr(example, name))
  assert bool(theirs['annotated']) == example.is_annotated
  assert [text.decode() for text in theirs['phrases']['text']] == [
      phrase.text for phrase in example.phrases]
  assert theirs['image'].shape == (12, 10, 1)
  assert sum(len(phrase.boxes) for phrase in example.phrases) == len(theirs['boxes']['box'])
assert list(train[1]['phrases']['mask']) == [p.mask for p in ours[1].phrases]
assert list(train[1]['boxes']['phrase']) == [0, 2, 2]
assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules
print('equal')
'''
  done = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True, check=False)
  assert done.stdout.strip() == 'equal', done.stderr


def test_card_and_vocabulary(directory):
  card = records.read_card(directory)
  assert card['splits'] == {'train': 16, 'val': 0, 'test': 4}
  assert card['classes'] == ['edema', 'pleural effusion']
  assert card['class_counts']['edema'] == {'train': 8, 'val': 0, 'test': 2}
  assert (card['negatives'], card['uncertain']) == ({'fracture': 15}, {'mass': 17})
  assert (card['labelled'], card['annotated']) == (19, 10)
  tokens = records.vocabulary_path(directory).read_text('utf-8').splitlines()
  assert len(tokens) == card['vocab_size'] and tokens[0] == '[PAD]'
  assert 'größe' not in json.dumps(card).lower()


def test_absent_and_unfinished_directories_are_named(tmp_path):
  with pytest.raises(records.RecordsError, match='nowhere.* does not exist'):
    records.Records(tmp_path / 'nowhere', 'train')
  with pytest.raises(records.RecordsError, match='dataset.json is missing'):
    records.Records(tmp_path, 'train')


@pytest.mark.parametrize('content, message', [
    ('{', 'damaged'), ('[]', 'damaged'), ('{}', 'damaged'), ('{"format_version": 7}', 'reads .1, 2.'),
])
def test_bad_card_is_named(tmp_path, content, message):
  (tmp_path / 'dataset.json').write_text(content)
  with pytest.raises(records.RecordsError, match=message):
    records.read_card(tmp_path)


def test_unknown_split_names_the_known(directory):
  with pytest.raises(records.RecordsError, match=r"'dev'.*'test', 'train', 'val'"):
    records.Records(directory, 'dev')


def _copy(directory, target):
  target.mkdir()
  for path in directory.iterdir():
    (target / path.name).write_bytes(path.read_bytes())
  return target


def test_missing_shard_is_named(directory, tmp_path):
  copy = _copy(directory, tmp_path / 'copy')
  (copy / records.shard_names('train', 3)[1]).unlink()
  with pytest.raises(records.RecordsError, match='1 of 3 files.*-00001-of-00003'):
    records.Records(copy, 'train')


def test_flipped_bit_costs_one_record(directory, tmp_path):
  copy = _copy(directory, tmp_path / 'copy')
  path = copy / records.shard_names('train', 3)[0]
  data = bytearray(path.read_bytes())
  place = data.index(_png(2))
  data[place + 60] ^= 1
  path.write_bytes(data)
  train = records.Records(copy, 'train')
  with pytest.raises(records.RecordsError, match='record 2 of split'):
    train[2]
  _assert_same(train[1], _example(1))
  _assert_same(train[3], _example(3))
