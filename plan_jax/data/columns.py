"""The values of one manifest row, checked: image, report, labels, annotations."""

import dataclasses
import json
import math
import os
from typing import Any, Mapping

from plan_jax.data import reports
from plan_jax.data import rows as rows_lib

_Reason = rows_lib.Reason
UNNAMED = 'unnamed finding'  # category of an annotation without label
_SECTIONS = ('findings', 'impression')
_MARKS = {1: 'labels', 0: 'negatives', -1: 'uncertain'}
_SPLIT_NAMES = {
    'train': 'train', 'training': 'train', 'val': 'val', 'valid': 'val', 'validation': 'val',
    'dev': 'val', 'test': 'test', 'testing': 'test',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keys:
  """Column names; 'a.b' means key b of the mapping in column a."""

  image: str = 'image'
  text: str = ''  # '' = `text`, else `findings` and `impression`
  reading: reports.Options | None = None  # how to read `text` as a report with headings
  labels: tuple[str, ...] = ()  # () = `labels`, else `label`

  @property
  def texts(self) -> tuple[str, ...]:
    """Columns that may hold the report."""
    return (self.text,) if self.text else ('text', *_SECTIONS)


def parse(
    row: Mapping[str, Any], *, manifest: str, line: int, root: str, keys: Keys,
    report: str = '', photometric: rows_lib.Photometric = rows_lib.Photometric.MONOCHROME2,
) -> rows_lib.Row | rows_lib.Reject:
  """A checked row, or the reject that it is.

  Args:
    row: column -> value.
    manifest: name for messages.
    line: line number in the manifest, from 1.
    root: folder of the image and mask paths.
    keys: column names.
    report: path of a file with the whole report, seen from `root`.
    photometric: of the picture file.
  """
  image = get(row, keys.image)
  identity, path = _clean(row.get('id')), ''

  def reject(reason: rows_lib.Reason, detail: str) -> rows_lib.Reject:
    name = identity or (image if isinstance(image, str) else '')
    return rows_lib.Reject(
        manifest=manifest, line=line, id=name, reason=reason, detail=detail, image=path)

  if image is None or image == '':
    return reject(_Reason.MISSING_COLUMN, f'{keys.image} is absent or empty')
  if not isinstance(image, str) or '\0' in image:
    return reject(_Reason.BAD_VALUE, f'{keys.image} is not a path')
  path = os.path.realpath(os.path.join(root, image))
  split = _clean(row.get('split')).lower()
  if split and split not in _SPLIT_NAMES:
    return reject(_Reason.BAD_VALUE, f'split is {split[:20]!r}; use train, val or test')
  try:
    text = _text(row, keys)
    marks = _marks(row, keys)
  except ValueError as error:
    return reject(_Reason.BAD_VALUE, str(error))
  try:
    annotations = _annotations(row.get('annotations'), root=root)
  except _BoxError as error:
    return reject(_Reason.BAD_BOX, str(error))
  except ValueError as error:
    return reject(_Reason.BAD_ANNOTATION, str(error))
  size = None
  if annotations and row.get('width') and row.get('height'):
    try:
      size = (int(row['width']), int(row['height']))
    except (ValueError, TypeError):
      return reject(_Reason.BAD_BOX, 'width or height is not a number')
  return rows_lib.Row(
      manifest=manifest, line=line, id=identity, text=text, size=size, photometric=photometric,
      **marks,
      report=report and os.path.join(root, report),
      image=path, image_name=_clean(image),
      patient=_clean(row.get('patient')), split=_SPLIT_NAMES.get(split, ''),
      annotations=annotations, is_annotated=not _is_missing(row.get('annotations')))


def get(row: Mapping[str, Any], key: str) -> Any:
  """row[key], or row['a']['b'] for key 'a.b'; None where there is none."""
  if key in row:
    return row[key]
  value = row
  for part in key.split('.'):
    if not isinstance(value, Mapping) or part not in value:
      return None
    value = value[part]
  return value


def _is_missing(value: Any) -> bool:
  return value is None or value == '' or (isinstance(value, float) and math.isnan(value))


def _clean(value: Any) -> str:
  """One line of valid UTF-8; '' for an absent value, NaN included."""
  if _is_missing(value):
    return ''
  return ' '.join(str(value).encode('utf-8', 'replace').decode('utf-8').replace('\0', '').split())


def _text(row: Mapping[str, Any], keys: Keys) -> str:
  """The report; '' if it holds no letter."""
  names = [keys.text or 'text']
  if not keys.text and _is_missing(row.get('text')):
    names = _SECTIONS
  values = [(name, get(row, name)) for name in names]
  for name, value in values:
    if not _is_missing(value) and not isinstance(value, str):
      raise ValueError(f'{name} is {type(value).__name__}, not a string')
  texts = [value for _, value in values if isinstance(value, str)]
  if keys.reading:
    texts = [reports.report_text(text, options=keys.reading) for text in texts]
  text = ' '.join(filter(None, map(_clean, texts)))
  return text if any(character.isalpha() for character in text) else ''


def is_indicator(labels: Mapping[str, Any]) -> bool:
  """{'edema': 1, 'effusion': 0, 'mass': -1, 'fracture': None}: a mark for each class."""
  return all(value is None or isinstance(value, (bool, int, float)) for value in labels.values())


def _marks(row: Mapping[str, Any], keys: Keys) -> dict[str, tuple[str, ...]]:
  """Classes marked present, absent and uncertain: lower case, in order, each once."""
  if keys.labels:
    values = [get(row, key) for key in keys.labels]
  else:
    values = [row['labels'] if not _is_missing(row.get('labels')) else row.get('label')]
  found: dict[str, list[str]] = {name: [] for name in _MARKS.values()}
  for value in values:
    if _is_missing(value):
      continue
    if isinstance(value, Mapping):
      if not is_indicator(value):
        if keys.labels:
          raise ValueError('--label-key names a mapping; name one of its keys (labels.finding)')
        continue
      for name, mark in value.items():
        if _is_missing(mark):
          continue
        if mark not in _MARKS:
          raise ValueError(f'labels: {mark:g} is no mark; use 1 present, 0 absent, -1 uncertain')
        found[_MARKS[mark]].append(name)
    elif isinstance(value, str):
      found['labels'] += value.split('|')
    elif isinstance(value, list) and all(isinstance(label, str) for label in value):
      found['labels'] += value
    else:
      raise ValueError('labels must be a string, a list of strings or a mapping to 0 / 1')
  return {kind: tuple(dict.fromkeys(filter(None, (_clean(name).lower() for name in names))))
          for kind, names in found.items()}


class _BoxError(ValueError):
  pass


def _annotations(value: Any, *, root: str) -> tuple[rows_lib.Annotation, ...]:
  if _is_missing(value):
    return ()
  if isinstance(value, str):
    try:
      value = json.loads(value)
    except json.JSONDecodeError as error:
      raise ValueError(f'annotations: not JSON: {error.msg}') from error
  if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
    raise ValueError('annotations must be a list of objects')
  return tuple(_annotation(entry, place=f'annotations[{i}]', root=root)
               for i, entry in enumerate(value))


def _annotation(entry: dict[str, Any], *, place: str, root: str) -> rows_lib.Annotation:
  label, phrase = _clean(entry.get('label')), _clean(entry.get('phrase'))
  if not label and not phrase:
    raise ValueError(f'{place} has neither phrase nor label')
  boxes = entry.get('component_boxes') or entry.get('boxes') or (
      [entry['box']] if entry.get('box') else [])
  if not isinstance(boxes, list):
    raise _BoxError(f'{place}: boxes must be a list of [x0, y0, x1, y1]')
  mask = entry.get('mask') or ''
  runs = _runs(mask, place=place) if isinstance(mask, dict) else None
  if runs is None and (not isinstance(mask, str) or '\0' in mask):
    raise ValueError(f'{place}: mask must be a path, or run lengths')
  if not boxes and not mask:
    raise ValueError(f'{place} has neither box nor mask')
  return rows_lib.Annotation(
      # Not the phrase: categories are shown where patients' text must not be.
      phrase=phrase or label, category=label.lower() if label else UNNAMED,
      boxes=tuple(_box(box, place=place) for box in boxes),
      mask='' if runs or not mask else os.path.realpath(os.path.join(root, mask)), runs=runs)


def _runs(mask: dict[str, Any], *, place: str) -> rows_lib.Runs:
  size, counts = mask.get('size'), mask.get('counts')
  numbers = all(isinstance(part, list) and all(
      isinstance(x, int) and x >= 0 for x in part) for part in (size, counts))
  if not numbers or len(size) != 2 or sum(counts) > size[0] * size[1]:
    raise ValueError(
        f"{place}: mask as run lengths is {{'size': [height, width], 'counts': [...]}}, "
        'whole numbers that fit the size')
  return rows_lib.Runs(height=size[0], width=size[1], counts=tuple(counts))


def _box(box: Any, *, place: str) -> tuple[float, float, float, float]:
  numbers = isinstance(box, list) and len(box) == 4 and all(
      isinstance(x, (int, float)) and math.isfinite(x) for x in box)
  if not numbers:
    raise _BoxError(f'{place}: a box is four finite numbers [x0, y0, x1, y1], in pixels')
  if box[0] >= box[2] or box[1] >= box[3]:
    raise _BoxError(f'{place}: box {box} is empty; the order is [x0, y0, x1, y1]')
  return tuple(float(x) for x in box)
