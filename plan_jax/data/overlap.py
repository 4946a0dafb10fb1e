"""What two directories of records have in common: pictures, ids, patients.

An evaluation says little about records that the model was trained on. Here finished records are
compared; `prepare --exclude-ids` keeps such records out in the first place.
"""

import collections
import dataclasses
import os
import pathlib
from typing import Iterator, Mapping, Sequence

import tqdm

from plan_jax import errors
from plan_jax.data import augment
from plan_jax.data import likeness
from plan_jax.data import records

PICTURE, ID, PATIENT = 'almost the same picture', 'the same id', 'the same patient'
KINDS = (PICTURE, ID, PATIENT)
_SHOWN_FROM = 10_000  # pictures: fewer take seconds


class OverlapError(errors.UserError):
  """Directories that cannot be compared."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
  """A record here and a record there with almost the same picture.

  `ids` and `splits` are here, there; `distance` counts bits of 256 that differ.
  """

  ids: tuple[str, str]
  splits: tuple[str, str]
  distance: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overlap:
  """What lies in both.

  Attributes:
    counts: kind -> split here -> its records of which there is such a one there.
    pairs: alike pictures, nearest first.
  """

  counts: Mapping[str, Mapping[str, int]]
  pairs: Sequence[Pair]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
  """What records are compared by; `hash` as `likeness.picture_hash` gives it."""

  id: str
  patient: str
  split: str
  hash: str


def compare(here: str | os.PathLike[str], there: str | os.PathLike[str]) -> Overlap:
  """Every record here with every one there; shows progress where it takes long.

  Names of patients and ids may be the same by chance where the directories come from different
  corpora; pictures are not (docs/data.md).

  Raises:
    OverlapError: both are the same directory, or a picture is damaged.
    records.RecordsError: no finished records in one of them.
  """
  if os.path.realpath(here) == os.path.realpath(there):
    raise OverlapError(f'--against {there}: that is the directory itself; name another one')
  mine, theirs = list(entries(here)), list(entries(there))
  found = likeness.across_splits(
      [entry.hash for entry in (*mine, *theirs)], ['here'] * len(mine) + ['there'] * len(theirs))
  pairs, alike = [], set()
  for pair in found:
    first, second = sorted((pair.first, pair.second))
    a, b = mine[first], theirs[second - len(mine)]
    alike.add(first)
    pairs.append(Pair(ids=(a.id, b.id), splits=(a.split, b.split), distance=pair.distance))
  ids, patients = {entry.id for entry in theirs}, {entry.patient for entry in theirs}
  counts = {kind: collections.Counter() for kind in KINDS}
  for k, entry in enumerate(mine):
    counts[PICTURE][entry.split] += k in alike
    counts[ID][entry.split] += entry.id in ids
    counts[PATIENT][entry.split] += entry.patient in patients
  return Overlap(counts=counts, pairs=pairs)


def entries(directory: str | os.PathLike[str]) -> Iterator[Entry]:
  """Those of all records in a directory.

  Raises:
    OverlapError: a picture is damaged.
    records.RecordsError: no finished records there.
  """
  sources = {split: records.Records(directory, split) for split in records.SPLITS}
  total = sum(map(len, sources.values()))
  with tqdm.tqdm(total=total, unit='picture', desc=f'pictures of {pathlib.Path(directory).name}',
                 disable=total < _SHOWN_FROM, dynamic_ncols=True,
                 mininterval=0.2 if os.isatty(2) else 10) as bar:
    for split, source in sources.items():
      for position, example in enumerate(source):
        try:
          pixels = augment.decode_image(example.image)
        except augment.ImageError as error:
          raise OverlapError(
              f'{directory}, record {position} of {split}: {error}; inspect that directory alone '
              'first') from error
        bar.update()
        yield Entry(id=example.id, patient=example.patient, split=split,
                     hash=likeness.picture_hash(pixels))
