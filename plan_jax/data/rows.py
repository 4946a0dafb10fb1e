"""What passes between the manifest reader, the workers and the shard writer."""

import dataclasses
import enum
from typing import Iterable

from plan_jax.data import records


class Reason(enum.StrEnum):
  """Why a row did not become a record (docs/records.md explains each)."""

  INVALID_LINE = 'invalid_line'
  MISSING_COLUMN = 'missing_column'
  BAD_VALUE = 'bad_value'
  BAD_ANNOTATION = 'bad_annotation'
  BAD_BOX = 'bad_box'
  BAD_MASK = 'bad_mask'
  EMPTY_TEXT = 'empty_text'
  MISSING_FILE = 'missing_file'
  UNREADABLE_IMAGE = 'unreadable_image'
  OVERSIZED_IMAGE = 'oversized_image'
  DUPLICATE_PICTURE = 'duplicate_picture'
  DUPLICATE_ID = 'duplicate_id'
  CONFLICT = 'conflict'
  PATIENT_IN_TWO_SPLITS = 'patient_in_two_splits'
  NEAR_DUPLICATE = 'near_duplicate'
  UNREADABLE_REPORT = 'unreadable_report'
  UNKNOWN_IMAGE = 'unknown_image'


class Photometric(enum.StrEnum):
  """Which end of a picture file's values is white, in the words of DICOM."""

  MONOCHROME2 = 'MONOCHROME2'  # the highest, as in any JPEG or PNG
  MONOCHROME1 = 'MONOCHROME1'  # the lowest: inverted when it is read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reject:
  """A row that did not become a record. Never holds report text."""

  manifest: str
  line: int
  id: str
  reason: Reason
  detail: str
  image: str = ''  # path of the picture, to find other rows about it; never written


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runs:
  """A mask as run lengths down the columns, outside first: COCO's uncompressed form."""

  height: int
  width: int
  counts: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annotation:
  """A phrase with its place, in pixels of the image file."""

  phrase: str
  category: str
  boxes: tuple[tuple[float, float, float, float], ...]
  mask: str  # path of a mask picture, '' if there is none
  runs: Runs | None = None  # a mask as run lengths


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One checked line of a manifest; '' where a column is absent."""

  manifest: str
  line: int
  id: str
  image: str  # path with symbolic links resolved
  image_name: str  # as the manifest has it
  text: str
  report: str  # path of a file with the whole report, which the worker reads; '' = none
  patient: str
  split: str
  labels: tuple[str, ...]
  negatives: tuple[str, ...]
  uncertain: tuple[str, ...]
  annotations: tuple[Annotation, ...]
  is_annotated: bool  # the row has annotations, be it an empty list
  size: tuple[int, int] | None  # (width, height) that the boxes refer to, if given
  photometric: Photometric = Photometric.MONOCHROME2  # of JPEG and PNG; DICOM says it itself

  def reject(self, reason: Reason, detail: str) -> Reject:
    """This row, rejected."""
    return Reject(
        manifest=self.manifest, line=self.line, id=self.id or self.image_name,
        reason=reason, detail=detail)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marks:
  """Classes marked present, absent and uncertain; what is in no list was not mentioned."""

  labels: tuple[str, ...]
  negatives: tuple[str, ...]
  uncertain: tuple[str, ...]


def marks(rows: Iterable[Row]) -> Marks:
  """Those of several rows; where they differ, present goes before uncertain before absent."""
  rows, found = tuple(rows), {}
  for kind in ('labels', 'uncertain', 'negatives'):
    for row in rows:
      for name in getattr(row, kind):
        found.setdefault(name, kind)
  return Marks(**{kind: tuple(name for name, mark in found.items() if mark == kind)
                  for kind in ('labels', 'negatives', 'uncertain')})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
  """All rows about one image file, the row that gives the text first."""

  id: str
  image: str
  patient: str
  split: str
  rows: tuple[Row, ...]


def files(item: Item) -> list[str]:
  """All files that an item's record is made from, the picture first."""
  masks = [annotation.mask for row in item.rows for annotation in row.annotations]
  return [item.image, *filter(None, masks), *filter(None, (row.report for row in item.rows))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """What a worker made of an item: an example or rejects, or both."""

  example: records.Example | None
  id: str = ''
  split: str = ''
  pixels: str = ''  # hash of the decoded picture
  likeness: str = ''  # perceptual hash of the picture, hexadecimal; '' = not compared
  original: tuple[int, int] = (0, 0)  # (width, height) of the file
  stored: tuple[int, int] = (0, 0)  # (width, height) of the record
  sources: tuple[tuple[str, int], ...] = ()  # (manifest, line) of the rows in the example
  rejects: tuple[Reject, ...] = ()
