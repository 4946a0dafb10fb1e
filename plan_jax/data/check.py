"""Reads every record of a directory: what is in it, and whatever is wrong.

Problems name file, position and id of a record, and never its text or its patient.
"""

import array
import collections
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any, Iterator, Mapping

import cv2
import numpy as np
import tqdm

from plan_jax.data import augment
from plan_jax.data import card as card_lib
from plan_jax.data import records
from plan_jax.data import rows
from plan_jax.data import writer

_CARD_KEYS = {
    'content_hash': str, 'rows': dict, 'splits': dict, 'shards': dict, 'images': dict,
    'text': dict, 'classes': list, 'class_counts': dict, 'phrases': dict, 'vocab_hash': str}
_COUNTED = ('splits', 'text', 'classes', 'class_counts', 'phrases')  # of the card, told by records
_MARKED = ('labelled', 'annotated', 'negatives', 'uncertain')  # the same, since format 2
_TFDS_FILES = ('features.json', 'dataset_info.json')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """Something wrong: with a file, or with the record at a position of it."""

  file: str
  what: str
  position: int = -1  # -1: the file as a whole
  id: str = ''

  def __str__(self) -> str:
    if self.position < 0:
      return f'{self.file}: {self.what}'
    name = f' ({self.id})' if self.id else ''
    return f'{self.file}, record {self.position}{name}: {self.what}'


class Measures:
  """Numbers of the records of a split, one entry each but for `box_areas`."""

  def __init__(self):
    self.words = array.array('l')
    self.widths = array.array('l')
    self.heights = array.array('l')
    self.greys = array.array('f')  # mean, 0..255
    self.box_areas = array.array('f')  # one a box, share of the image
    self.patients: set[str] = set()
    self.classes: collections.Counter[str] = collections.Counter()  # records that have it
    self.uncertain: collections.Counter[str] = collections.Counter()  # the same, marked so
    self.categories: collections.Counter[str] = collections.Counter()
    self.empty = self.labelled = self.annotated = self.phrases = self.boxes = self.masks = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
  """What a directory of records holds.

  Attributes:
    card: `dataset.json`.
    problems: in the order of the files.
    measures: by split; records that cannot be read are in none.
    samples: records drawn by lot, without those whose image cannot be read.
  """

  card: Mapping[str, Any]
  problems: tuple[Problem, ...]
  measures: Mapping[str, Measures]
  samples: tuple[records.Example, ...]


def check(directory: str | os.PathLike[str], *, samples: int = 0) -> Contents:
  """Reads and checks everything; shows progress.

  Args:
    directory: written by `python -m plan_jax.data.prepare`.
    samples: how many records to draw, the same ones each time.

  Raises:
    records.RecordsError: no finished records there, or a card that cannot be used.
  """
  directory = pathlib.Path(directory)
  card = _card(directory)
  reader = _Reader(card, samples=samples)
  problems = list(_files(directory, card))
  with tqdm.tqdm(
      total=reader.total, unit='record', desc='checking', smoothing=0.05,
      mininterval=0.2 if os.isatty(2) else 10, dynamic_ncols=True) as bar:
    for split, lengths in card['shards'].items():
      for name, length in zip(records.shard_names(split, len(lengths)), lengths):
        problems += reader.shard(directory / name, split=split, length=length, bar=bar)
  problems += reader.compare()
  return Contents(
      card=card, problems=tuple(problems), measures=reader.measures, samples=tuple(reader.drawn))


def _card(directory: pathlib.Path) -> dict[str, Any]:
  card = records.read_card(directory)
  wrong = [key for key, kind in _CARD_KEYS.items() if not isinstance(card.get(key), kind)]
  if not wrong:
    shards = card['shards']
    lengths = [n for split in shards.values() for n in (split if isinstance(split, list) else [0])]
    whole = lengths and all(isinstance(n, int) and n > 0 for n in lengths)
    wrong = [] if whole and set(shards) == set(records.SPLITS) else ['shards']
    rejected = card['rows'].get('rejected')
    if not isinstance(rejected, dict) or not all(isinstance(n, int) for n in rejected.values()):
      wrong.append('rows')
  if wrong:
    raise records.RecordsError(
        f'{directory / records.CARD_NAME} lacks {", ".join(wrong)}, or has it in another form; '
        'prepare the records again.')
  return card


def _files(directory: pathlib.Path, card: Mapping[str, Any]) -> Iterator[Problem]:
  """What is wrong beside the records themselves."""
  expected = {name for split, lengths in card['shards'].items()
              for name in records.shard_names(split, len(lengths))}
  for path in sorted(directory.glob(f'{records.DATASET_NAME}-*')):
    if path.name not in expected:
      yield Problem(file=path.name, what='is not in the card; remove it')
  for name in _TFDS_FILES:
    if not (directory / name).is_file():
      yield Problem(file=name, what='is missing; tfds cannot read the records')
  counts = card['rows']
  rejected = sum(counts['rejected'].values())
  left_out = sum(counts.get('left_out', {}).values())  # format 1 left nothing out
  known = counts.get('records', 0) + counts.get('merged', 0) + rejected + left_out
  if counts.get('in') != known:
    yield Problem(
        file=records.CARD_NAME, what=f'{counts.get("in")} rows in, but {counts.get("records")} '
        f'records, {counts.get("merged")} joined, {rejected} rejected and {left_out} left out')
  try:
    lines = (directory / writer.REJECTS_NAME).read_bytes().count(b'\n')
    if lines != rejected:
      yield Problem(
          file=writer.REJECTS_NAME, what=f'{lines} lines where the card counts {rejected}')
    vocabulary = records.vocabulary_path(directory).read_bytes()
    if hashlib.sha256(vocabulary).hexdigest() != card['vocab_hash']:
      yield Problem(
          file=records.VOCABULARY_NAME, what='is not the vocabulary whose hash is in the card')
  except OSError as error:
    yield Problem(file=os.path.basename(error.filename), what=f'cannot be read: {error.strerror}')


class _Reader:
  """Goes through the shards in order and counts on the way."""

  def __init__(self, card: Mapping[str, Any], *, samples: int):
    self._card = card
    self.total = sum(sum(lengths) for lengths in card['shards'].values())
    self._chosen = set(np.random.default_rng(0).choice(
        self.total, min(samples, self.total), replace=False).tolist())
    self.drawn: list[records.Example] = []
    self.measures = {split: Measures() for split in card['shards']}
    self._tally = card_lib.Tally()
    self._ids: dict[str, tuple[str, int]] = {}  # id -> file, position
    self._patients: dict[str, str] = {}  # patient -> split
    self._classes = set(card['classes'])
    self._position = 0  # over all shards
    self._unread = self._unseen = 0

  def shard(
      self, path: pathlib.Path, *, split: str, length: int, bar: tqdm.tqdm) -> Iterator[Problem]:
    """Reads one file; `length` is what the card says."""
    try:
      source = records.open_shard(path)
    except records.RecordsError as error:
      yield Problem(file=path.name, what=str(error).removeprefix(f'{path.name} '))
      self._skip(length, bar)
      return
    if len(source) != length:
      yield Problem(file=path.name, what=f'{len(source)} records where the card counts {length}')
    for position in range(min(length, len(source))):
      try:
        record = source[position]
        example = records.decode(record)
      except Exception as error:  # The reader and protobuf raise types of their own.
        yield Problem(
            file=path.name, position=position, what=f'is damaged ({type(error).__name__})')
        self._skip(1, bar)
        continue
      for what in self._example(example, record, split=split, place=(path.name, position)):
        yield Problem(file=path.name, position=position, id=example.id, what=what)
      bar.update()
    self._skip(max(0, length - len(source)), bar)

  def _skip(self, count: int, bar: tqdm.tqdm):
    self._position += count
    self._unread += count
    bar.update(count)

  def _example(
      self, example: records.Example, record: bytes, *, split: str,
      place: tuple[str, int]) -> Iterator[str]:
    """Counts one record; what is wrong with it."""
    measures = self.measures[split]
    pixels = None
    try:
      pixels = augment.decode_image(example.image)
    except augment.ImageError as error:
      self._unseen += 1
      yield f'image: {error}'
    if pixels is not None:
      if (side := self._card.get('image_size')) and max(pixels.shape) > side:
        yield (f'image of {pixels.shape[1]} x {pixels.shape[0]} pixels where the card says '
               f'at most {side}')
      measures.widths.append(pixels.shape[1])
      measures.heights.append(pixels.shape[0])
      measures.greys.append(cv2.mean(pixels)[0])
      if self._position in self._chosen:
        self.drawn.append(example)
    self._position += 1
    yield from self._identity(example, split=split, place=place)
    yield from _phrases(example, pixels)
    for label in example.labels:
      if label not in self._classes:
        yield f'label {label!r} is not among the classes of the card'
    stored = pixels.shape[::-1] if pixels is not None else (0, 0)
    if example.split in records.SPLITS:
      self._tally.add(
          example, record=record, outcome=rows.Outcome(example=None, stored=stored))
    words = len(example.text.split())
    measures.words.append(words)
    measures.empty += not words
    measures.patients.add(example.patient)
    measures.classes.update(set(example.labels))
    measures.uncertain.update(set(example.uncertain))
    measures.labelled += bool(example.labels or example.negatives or example.uncertain)
    measures.annotated += example.is_annotated
    measures.categories.update({phrase.category for phrase in example.phrases})
    measures.phrases += len(example.phrases)
    for phrase in example.phrases:
      measures.boxes += len(phrase.boxes)
      measures.masks += bool(phrase.mask)
      measures.box_areas.extend(
          (phrase.boxes[:, 2] - phrase.boxes[:, 0]) * (phrase.boxes[:, 3] - phrase.boxes[:, 1]))

  def _identity(
      self, example: records.Example, *, split: str, place: tuple[str, int]) -> Iterator[str]:
    if example.split != split:
      yield f'says split {example.split!r} in a file of {split!r}'
    if not example.id:
      yield 'has no id'
    elif (other := self._ids.setdefault(example.id, place)) != place:
      yield f'has the same id as record {other[1]} of {other[0]}'
    if not example.patient:
      yield 'has no patient'
    elif (other := self._patients.setdefault(example.patient, split)) != split:
      yield f'its patient is in split {other!r} too'

  def compare(self) -> Iterator[Problem]:
    """The card's counts and hash against what was read."""
    name = records.CARD_NAME
    if self._unread:
      yield Problem(file=name, what='its counts and content hash were not compared: records that '
                    f'could not be read: {self._unread}')
      return
    found = json.loads(json.dumps(self._tally.card([], left_out={})))
    marked = _MARKED if self._card['format_version'] > 1 else ()
    for key in (*_COUNTED, *marked):
      if found[key] != self._card.get(key):
        yield Problem(file=name, what=_difference(self._card.get(key), found[key], key))
    stored = self._card['images'].get('stored')
    if not self._unseen and found['images']['stored'] != stored:
      yield Problem(
          file=name, what=_difference(stored, found['images']['stored'], 'images', 'stored'))
    if found['content_hash'] != self._card['content_hash']:
      yield Problem(file=name, what=f'content hash {self._card["content_hash"][:16]}, but the '
                    f'records give {found["content_hash"][:16]}: they are not those written')


def _phrases(example: records.Example, pixels: np.ndarray | None) -> Iterator[str]:
  for i, phrase in enumerate(example.phrases):
    name = f'phrase {i}'
    if not phrase.text or not phrase.category:
      yield f'{name} has no {"category" if phrase.text else "text"}'
    if not len(phrase.boxes) and not phrase.mask:
      yield f'{name} has neither box nor mask'
    for box in phrase.boxes:
      shown = '[' + ', '.join(f'{x:g}' for x in box) + ']'
      if not (np.isfinite(box).all() and box.min() >= 0 and box.max() <= 1):
        yield f'{name}: box {shown} is not within 0..1'
      elif box[0] >= box[2] or box[1] >= box[3]:
        yield f'{name}: box {shown} is empty'
    if phrase.mask and pixels is not None:
      try:
        mask = augment.decode_image(phrase.mask)
      except augment.ImageError as error:
        yield f'{name}: mask: {error}'
        continue
      if mask.shape != pixels.shape:
        yield (f'{name}: mask of {mask.shape[1]} x {mask.shape[0]} pixels on an image of '
               f'{pixels.shape[1]} x {pixels.shape[0]}')
      elif not mask.any():
        yield f'{name}: mask is empty'


def _difference(said: Any, found: Any, *path: str) -> str:
  """Where two parts of a card differ first."""
  if isinstance(said, dict) and isinstance(found, dict):
    for key in [*said, *found]:
      if said.get(key) != found.get(key):
        return _difference(said.get(key), found.get(key), *path, key)
  place = ' / '.join(path)
  if isinstance(said, list) and isinstance(found, list):
    names = sorted(set(map(str, said)) ^ set(map(str, found))) or ['their order']
    return f'{place}: the card and the records differ in {", ".join(names[:5])}'
  return f'{place}: the card says {said}, the records give {found}'
