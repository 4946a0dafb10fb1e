"""Image-report records on disk: what a row holds, and reading it at random.

A directory written by `python -m plan_jax.data.prepare` holds one ArrayRecord
file a shard (`group_size:1`, so that a random read touches one record),
`dataset.json` (the card), `vocab.txt`, and the two files that tfds wants. A
record is a serialised `tf.train.Example` laid out as tfds lays it out, hence
`tfds.builder_from_directory(DIR).as_data_source('train')` reads it as well.
This module is the only one that touches tfds.
"""

import contextlib
import dataclasses
import json
import pathlib
from typing import Any, Iterator, Mapping, Sequence

from array_record.python import array_record_data_source
from array_record.python import array_record_module
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_info
from tensorflow_datasets.core import naming
from tensorflow_datasets.core import splits as splits_lib
from tensorflow_datasets.proto import tf_example_pb2

from plan_jax import errors

DATASET_NAME = 'plan_records'
SPLITS = ('train', 'val', 'test')
CARD_NAME = 'dataset.json'
VOCABULARY_NAME = 'vocab.txt'
FORMAT_VERSION = 2  # 2: negatives, uncertain, annotated
_READABLE = (1, 2)

# One record a chunk, for random reads; the pictures are compressed already.
_WRITER_OPTIONS = 'group_size:1,uncompressed'


class RecordsError(errors.UserError):
  """Records that cannot be read; the message names the path and the fix."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phrase:
  """A phrase and where in the image it is."""

  text: str  # as a report would say it
  category: str  # finding, lower case, e.g. 'pleural effusion'
  boxes: np.ndarray  # float32 [n 4], (x0, y0, x1, y1), shares of width and height, 0..1
  mask: bytes = b''  # 1-bit PNG of the stored image's size, b'' when only boxes are known


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
  """One image with its report."""

  id: str
  image: bytes  # encoded 8-bit grey JPEG or PNG
  text: str
  patient: str
  split: str  # 'train' | 'val' | 'test'
  labels: tuple[str, ...]  # positive classes, lower case
  negatives: tuple[str, ...] = ()  # classes marked absent; what is in no list was not mentioned
  uncertain: tuple[str, ...] = ()  # classes marked uncertain
  phrases: tuple[Phrase, ...] = ()
  # Somebody looked for places: no phrases then means that there is nothing to find.
  is_annotated: bool = False


class Records:
  """The examples of one split, by position: a grain source.

  Files are opened at the first read, in each process anew, so that an instance
  is cheap to pickle. Threads may share one.

  Args:
    directory: written by `python -m plan_jax.data.prepare`.
    split: 'train', 'val' or 'test'; a split without rows has length 0.

  Raises:
    RecordsError: if `directory` holds no complete records, or no such split.
  """

  def __init__(self, directory: str | pathlib.Path, split: str):
    self.directory = pathlib.Path(directory)
    self.split = split
    card = read_card(directory)
    if split not in card['splits']:
      raise RecordsError(
          f'{directory} has no split {split!r}; it has {sorted(card["splits"])}.')
    lengths = card['shards'][split]
    paths = [self.directory / name for name in shard_names(split, len(lengths))]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
      raise RecordsError(
          f'{directory} lacks {len(missing)} of {len(paths)} files of split {split!r}, first '
          f'{missing[0]}; run plan_jax.data.prepare again with the same arguments.')
    self._content_hash = card['content_hash']
    self._length = sum(lengths)
    # 'path[start:end]' spares opening every file for its length.
    self._source = array_record_data_source.ArrayRecordDataSource(
        [f'{path}[0:{length}]' for path, length in zip(paths, lengths)]) if paths else None

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < self._length:
      raise IndexError(f'record {index} of {self._length} ({self.directory}, {self.split})')
    try:
      return decode(self._source[index])
    except Exception as error:  # The reader and protobuf raise types of their own.
      raise RecordsError(
          f'record {index} of split {self.split!r} in {self.directory} is damaged '
          f'({type(error).__name__}); remove the directory and prepare it again.') from error

  def __repr__(self) -> str:
    return f'Records({self.split!r}, {self._length} rows, {self._content_hash[:12]})'


def read_card(directory: str | pathlib.Path) -> dict[str, Any]:
  """The `dataset.json` of a records directory (docs/records.md lists its keys).

  Raises:
    UserError: if it is absent, damaged, of another format version, or in a bucket.
  """
  errors.require_local(directory, option='records')
  path = pathlib.Path(directory) / CARD_NAME
  fix = 'make one with: python -m plan_jax.data.prepare --help'
  if not path.parent.is_dir():
    raise RecordsError(f'records directory {str(directory)!r} does not exist; {fix}')
  if not path.is_file():
    raise RecordsError(
        f'{str(directory)!r} holds no finished records ({CARD_NAME} is missing); {fix}')
  try:
    card = json.loads(path.read_text('utf-8'))
    version = card['format_version']
  except (ValueError, KeyError, TypeError) as error:
    raise RecordsError(f'{path} is damaged ({error}); prepare the records again.') from error
  if version not in _READABLE:
    raise RecordsError(
        f'{path} has format_version {version}, this release reads {_READABLE}; '
        'prepare the records again.')
  return card


def vocabulary_path(directory: str | pathlib.Path) -> pathlib.Path:
  """The WordPiece vocabulary stored with the records."""
  return pathlib.Path(directory) / VOCABULARY_NAME


def shard_names(split: str, shards: int) -> list[str]:
  """File names of a split, as tfds expects them."""
  return [f'{DATASET_NAME}-{split}.array_record-{i:05d}-of-{shards:05d}' for i in range(shards)]


@contextlib.contextmanager
def shard_writer(path: pathlib.Path) -> Iterator[array_record_module.ArrayRecordWriter]:
  """An ArrayRecord writer, closed at the end in any case."""
  writer = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)
  try:
    yield writer
  finally:
    writer.close()


def read_shard(path: pathlib.Path) -> list[bytes]:
  """All records of a file that `shard_writer` wrote."""
  reader = array_record_module.ArrayRecordReader(str(path))
  try:
    return reader.read_all()
  finally:
    reader.close()


def open_shard(path: pathlib.Path) -> array_record_data_source.ArrayRecordDataSource:
  """The encoded records of one shard, by position; reading a damaged one raises.

  Raises:
    RecordsError: the file is absent, cut short, or no shard.
  """
  if not path.is_file():
    raise RecordsError(f'{path.name} is missing; prepare the records again.')
  try:
    return array_record_data_source.ArrayRecordDataSource([str(path)])
  except Exception as error:  # The reader raises types of its own.
    raise RecordsError(f'{path.name} is damaged; prepare the records again.') from error


def encode(example: Example) -> bytes:
  """Serialises to the `tf.train.Example` that tfds reads; equal input, equal bytes."""
  boxes = [phrase.boxes for phrase in example.phrases]
  owner = [i for i, box in enumerate(boxes) for _ in box]
  columns = {
      'id': [example.id],
      'image': [example.image],
      'text': [example.text],
      'patient': [example.patient],
      'split': [example.split],
      'labels': list(example.labels),
      'negatives': list(example.negatives),
      'uncertain': list(example.uncertain),
      'phrases/text': [phrase.text for phrase in example.phrases],
      'phrases/category': [phrase.category for phrase in example.phrases],
      'phrases/mask': [phrase.mask for phrase in example.phrases],
  }
  proto = tf_example_pb2.Example()
  feature = proto.features.feature
  for key, values in columns.items():
    # SetInParent: tfds writes an empty list, not nothing, for an empty sequence.
    feature[key].bytes_list.SetInParent()
    feature[key].bytes_list.value.extend(
        value.encode('utf-8') if isinstance(value, str) else value for value in values)
  feature['annotated'].int64_list.value.append(int(example.is_annotated))
  feature['boxes/phrase'].int64_list.SetInParent()
  feature['boxes/phrase'].int64_list.value.extend(owner)
  feature['boxes/box'].float_list.SetInParent()
  feature['boxes/box'].float_list.value.extend(float(x) for box in boxes for x in box.ravel())
  return proto.SerializeToString(deterministic=True)


def decode(record: bytes) -> Example:
  """The inverse of `encode`.

  Format 1 has neither negatives nor uncertain, and does not say whether an image without
  phrases was looked at: it counts as such, as it did under format 1.

  Raises:
    Exception: of any type, if the bytes are damaged.
  """
  feature = tf_example_pb2.Example.FromString(record).features.feature
  texts = _strings(feature, 'phrases/text')
  boxes = np.array(feature['boxes/box'].float_list.value, np.float32).reshape(-1, 4)
  owner = np.array(feature['boxes/phrase'].int64_list.value, np.int64)
  if len(owner) != len(boxes) or not all(0 <= i < len(texts) for i in owner):
    raise ValueError(f'{len(boxes)} boxes, whose phrases are {owner} of {len(texts)}')
  phrases = tuple(
      Phrase(text=text, category=category, boxes=boxes[owner == i], mask=mask)
      for i, (text, category, mask) in enumerate(zip(
          texts, _strings(feature, 'phrases/category'),
          feature['phrases/mask'].bytes_list.value, strict=True)))
  return Example(
      id=_strings(feature, 'id')[0],
      image=feature['image'].bytes_list.value[0],
      text=_strings(feature, 'text')[0],
      patient=_strings(feature, 'patient')[0],
      split=_strings(feature, 'split')[0],
      labels=tuple(_strings(feature, 'labels')),
      negatives=tuple(_strings(feature, 'negatives')),
      uncertain=tuple(_strings(feature, 'uncertain')),
      phrases=phrases,
      is_annotated='annotated' not in feature or bool(feature['annotated'].int64_list.value[0]))


def _strings(feature: Mapping[str, Any], key: str) -> Sequence[str]:
  return [value.decode('utf-8') for value in feature[key].bytes_list.value]


def write_tfds_files(
    directory: str | pathlib.Path, *, shards: Mapping[str, Sequence[int]],
    sizes: Mapping[str, int]):
  """Writes `features.json` and `dataset_info.json`.

  Args:
    directory: where the shards are.
    shards: split -> rows of each shard; splits without rows are left out.
    sizes: split -> bytes.
  """
  identity = dataset_info.DatasetIdentity(
      name=DATASET_NAME, version=tfds.core.Version(f'{FORMAT_VERSION}.0.0'),
      data_dir=str(directory), module_name='plan_jax')
  info = tfds.core.DatasetInfo(
      builder=identity, features=_tfds_features(),
      description='Medical images with report text; see dataset.json.')
  info.set_file_format('array_record')
  template = naming.ShardedFileTemplate(
      data_dir=directory, dataset_name=DATASET_NAME, filetype_suffix='array_record')
  info.set_splits(splits_lib.SplitDict([
      splits_lib.SplitInfo(
          name=split, shard_lengths=list(lengths), num_bytes=sizes[split],
          filename_template=template.replace(split=split))
      for split, lengths in shards.items() if lengths]))
  info.write_to_directory(str(directory))


def _tfds_features() -> tfds.features.FeaturesDict:
  """What tfds is told about the layout that `encode` writes."""
  features = tfds.features
  text = features.Text()
  return features.FeaturesDict({
      'id': text,
      'image': features.Image(shape=(None, None, 1), encoding_format='jpeg'),
      'text': text,
      'patient': text,
      'split': text,
      'labels': features.Sequence(text),
      'negatives': features.Sequence(text),
      'uncertain': features.Sequence(text),
      'annotated': np.bool_,
      'phrases': features.Sequence({
          'text': text, 'category': text,
          'mask': features.Tensor(shape=(), dtype=np.object_)}),
      'boxes': features.Sequence({
          'box': features.Tensor(shape=(4,), dtype=np.float32), 'phrase': np.int64}),
  })
