"""Reads JSONL and CSV manifests into checked items, one an image file.

Everything here happens before the first picture is opened, so that a wrong
column name costs a second and not an hour. Rows that cannot be used become
`rows.Reject`; only faults of a whole manifest raise.
"""

import csv
import dataclasses
import hashlib
import io
import json
import os
import pathlib
from typing import Any, Iterable, Iterator, Mapping, Sequence

from plan_jax import errors
from plan_jax.data import columns
from plan_jax.data import rows as rows_lib

_Reason = rows_lib.Reason
_TRAIN_SHARE, _VAL_SHARE = 0.90, 0.05  # of the patients, where no split is given


class ManifestError(errors.UserError):
  """A manifest that cannot be used as a whole."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
  """What a set of manifests holds."""

  items: tuple[rows_lib.Item, ...]
  rejects: tuple[rows_lib.Reject, ...]
  rows: int
  notes: tuple[str, ...]


def read_manifests(
    paths: Sequence[str],
    *,
    keys: columns.Keys = columns.Keys(),
    image_root: str = '',
    allow_empty_text: bool = False,
) -> Contents:
  """Reads, checks and joins manifests; rows about the same image file become one item.

  Args:
    paths: `.jsonl` or `.csv` files.
    keys: column names.
    image_root: folder of the image and mask paths; '' = each manifest's own.
    allow_empty_text: keep images without a report (evaluation sets).

  Raises:
    ManifestError: if a manifest cannot be read, has no rows, or lacks a column.
  """
  good, rejects, notes, total, with_text = [], [], [], 0, set()
  for path in paths:
    name = short_name(path)
    if sum(short_name(other) == name for other in paths) > 1:
      raise ManifestError(
          f'two manifests are called {name}; give each once, or rename a folder so that '
          'rejects.jsonl can tell them apart.')
    parsed = list(_lines(path))
    objects = [row for _, row in parsed if isinstance(row, dict)]
    total += len(parsed)
    if not parsed:
      raise ManifestError(f'{path} has no rows.')
    if objects:
      notes += _check_columns(objects, path=path, keys=keys)
    if any(_has_text_column(row, keys) for row in objects):
      with_text.add(name)
    root = image_root or os.path.dirname(os.path.abspath(path))
    for line, row in parsed:
      result = row if isinstance(row, str) else columns.parse(
          row, manifest=name, line=line, root=root, keys=keys)
      if isinstance(result, str):
        result = rows_lib.Reject(
            manifest=name, line=line, id='', reason=_Reason.INVALID_LINE, detail=result)
      (good if isinstance(result, rows_lib.Row) else rejects).append(result)
  _check_labels(good, keys=keys, allow_none=not good)
  if not allow_empty_text:
    _check_text_manifests(good, with_text=with_text, paths=paths, keys=keys)
  groups, conflicts = _group(good)
  items, dropped = _items(groups, root=_common_root(paths), allow_empty_text=allow_empty_text)
  return Contents(
      items=tuple(items), rejects=(*rejects, *conflicts, *dropped), rows=total,
      notes=tuple(notes))


def split_of(patient: str) -> str:
  """'train', 'val' or 'test' from a hash of the patient: 90, 5 and 5 %."""
  share = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], 'big') / 2**64
  if share < _TRAIN_SHARE:
    return 'train'
  return 'val' if share < _TRAIN_SHARE + _VAL_SHARE else 'test'


def short_name(path: str) -> str:
  """Folder and file name: tells manifests apart, and names no machine."""
  return '/'.join(pathlib.Path(os.path.abspath(path)).parts[-2:])


def _common_root(paths: Sequence[str]) -> str:
  return os.path.commonpath([os.path.dirname(os.path.realpath(path)) for path in paths])


def _lines(path: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
  """(line number, row) for each row; what is wrong, in words, in place of a bad row."""
  suffix = pathlib.Path(path).suffix.lower()
  if suffix not in ('.jsonl', '.csv'):
    raise ManifestError(
        f'{path}: unknown kind of manifest {suffix!r}; give .jsonl (one JSON object a line) '
        'or .csv (first line names the columns).')
  try:
    with open(path, 'rb') as file:
      content = file.read()
  except OSError as error:
    raise ManifestError(
        f'cannot read manifest {path}: {error.strerror}; check the path.') from error
  yield from _jsonl(content, path) if suffix == '.jsonl' else _csv(content, path)


def _jsonl(content: bytes, path: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
  if content.lstrip()[:1] == b'[':
    raise ManifestError(f'{path} is one JSON array; write one JSON object a line instead.')
  for number, line in enumerate(content.removeprefix(b'\xef\xbb\xbf').split(b'\n'), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line.decode('utf-8'))
    except UnicodeDecodeError as error:
      yield number, f'not UTF-8 at byte {error.start}'
    except json.JSONDecodeError as error:
      yield number, f'not JSON: {error.msg}, column {error.colno}'
    except RecursionError:
      yield number, 'not JSON: nested too deeply'
    else:
      yield number, row if isinstance(row, dict) else f'not a JSON object: {type(row).__name__}'


def _csv(content: bytes, path: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
  try:
    text = content.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    line = content[:error.start].count(b'\n') + 1
    raise ManifestError(f'{path} is not UTF-8 (line {line}); convert it first.') from error
  csv.field_size_limit(2**24)  # Reports and annotations outgrow the default of 128 KiB.
  reader = csv.DictReader(io.StringIO(text, newline=''), strict=True)
  start = 2
  while True:
    try:
      row = next(reader)
    except StopIteration:
      return
    except csv.Error as error:
      # After a broken quote the rest of the file cannot be told apart.
      raise ManifestError(f'{path}, line {start}: not CSV ({error}).') from error
    number, start = start, reader.line_num + 1
    if None in row:
      yield number, f'{len(row[None])} more fields than the header has'
    else:
      yield number, row


def _check_columns(
    objects: Sequence[dict[str, Any]], *, path: str, keys: columns.Keys) -> list[str]:
  """Raises where a column is absent throughout; returns notes for the screen."""
  names = sorted({key for row in objects for key in row if key})
  found = f'columns found: {", ".join(names)}'
  if all(columns.get(row, keys.image) is None for row in objects):
    raise ManifestError(
        f'{path} has no image column {keys.image!r}; {found}. Rename the column that holds the '
        'image path, or name it with --image-key.')
  if keys.text and not any(_has_text_column(row, keys) for row in objects):
    raise ManifestError(f'{path} has no text column {keys.text!r}; {found}. Correct --text-key.')
  mixed = next((row['labels'] for row in objects if isinstance(row.get('labels'), dict)
                and not columns.is_indicator(row['labels'])), None)
  if mixed is not None and not keys.labels:
    options = ', '.join(f'labels.{key}' for key in sorted(mixed))
    return [f'{short_name(path)}: `labels` is a mapping; no classes taken. Choose with '
            f'--label-key ({options}).']
  return []


def _check_labels(good: Sequence[rows_lib.Row], *, keys: columns.Keys, allow_none: bool):
  if keys.labels and not allow_none and not any(_marks(row) for row in good):
    raise ManifestError(
        f'--label-key {" ".join(keys.labels)}: no row has a label there; check the name '
        '(a.b means key b of the mapping in column a).')


def _has_text_column(row: Mapping[str, Any], keys: columns.Keys) -> bool:
  return any(key in row or columns.get(row, key) is not None for key in keys.texts)


def _check_text_manifests(good, *, with_text: set[str], paths: Sequence[str], keys: columns.Keys):
  """A manifest may lack the text column only if another one has text for its images."""
  told = {row.image for row in good if row.manifest in with_text}
  for path in paths:
    name = short_name(path)
    if name in with_text:
      continue
    if not any(row.image in told for row in good if row.manifest == name):
      names = sorted({key for _, row in _lines(path) if isinstance(row, dict) for key in row})
      raise ManifestError(
          f'{path} has no text column (text, or findings and impression), and no other manifest '
          f'has text for its images; columns found: {", ".join(names)}. Rename the column, '
          'name it with --text-key, or keep images without text with --allow-empty-text.')


def _group(good: Iterable[rows_lib.Row]):
  """Rows by image file; rows that repeat or contradict an earlier one are rejected."""
  groups: dict[str, list[rows_lib.Row]] = {}
  rejects = []
  for row in good:
    group = groups.setdefault(row.image, [])
    reject = _contradiction(row, group) if group else None
    if reject is None:
      group.append(row)
    else:
      rejects.append(reject)
  return list(groups.values()), rejects


def _contradiction(
    row: rows_lib.Row, group: Sequence[rows_lib.Row]) -> rows_lib.Reject | None:
  where = f'line {group[0].line} of {group[0].manifest}'
  for name in ('patient', 'split'):
    new, old = getattr(row, name), next(filter(None, (getattr(r, name) for r in group)), '')
    if new and old and new != old:
      reason = _Reason.PATIENT_IN_TWO_SPLITS if name == 'split' else _Reason.CONFLICT
      return row.reject(reason, f'{where} gives the same image another {name}')
  text = next(filter(None, (r.text for r in group)), '')
  if row.text and text and row.text != text:
    return row.reject(
        _Reason.DUPLICATE_PICTURE, f'{where} has the same image file with another text')
  known = {mark for r in group for mark in _marks(r)}
  adds = row.annotations or (row.text and not text) or _marks(row) - known
  repeats = (row.text and text) or any(r.manifest == row.manifest for r in group)
  if repeats and not adds:
    return row.reject(_Reason.DUPLICATE_PICTURE, f'{where} has the same image file')
  return None


def _marks(row: rows_lib.Row) -> set[tuple[str, str]]:
  return {(kind, name) for kind in ('labels', 'negatives', 'uncertain')
          for name in getattr(row, kind)}


def _items(groups: Iterable[Sequence[rows_lib.Row]], *, root: str, allow_empty_text: bool):
  """One item a group, with id, patient and split decided; or its rows as rejects."""
  rejects, kept, ids = [], [], {}
  for group in groups:
    main = next((row for row in group if row.text), group[0])
    ordered = (main, *(row for row in group if row is not main))
    identity = _first(ordered, 'id') or os.path.relpath(main.image, root)
    if not main.text and not allow_empty_text:
      rejects += [row.reject(_Reason.EMPTY_TEXT, 'no text for this image') for row in ordered]
    elif identity in ids:
      rejects += [row.reject(_Reason.DUPLICATE_ID, f'{ids[identity]} has the same id for '
                             'another image') for row in ordered]
    else:
      ids[identity] = f'line {main.line} of {main.manifest}'
      kept.append((identity, ordered))
  given: dict[str, str] = {}
  for identity, ordered in kept:
    split = _first(ordered, 'split')
    if split:
      given.setdefault(_first(ordered, 'patient') or identity, split)
  items = []
  for identity, ordered in kept:
    patient = _first(ordered, 'patient') or identity
    settled = given.get(patient) or split_of(patient)
    if _first(ordered, 'split') not in ('', settled):
      rejects += [row.reject(_Reason.PATIENT_IN_TWO_SPLITS,
                             f'an earlier row puts this patient into {settled!r}')
                  for row in ordered]
      continue
    items.append(rows_lib.Item(
        id=identity, image=ordered[0].image, patient=patient, split=settled, rows=ordered))
  return items, rejects


def _first(rows: Iterable[rows_lib.Row], name: str) -> str:
  return next(filter(None, (getattr(row, name) for row in rows)), '')
