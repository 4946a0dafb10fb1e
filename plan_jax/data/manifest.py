"""Reads JSONL and CSV manifests into checked items, one an image file.

Everything here happens before the first picture is opened, so that a wrong
column name costs a second and not an hour. Rows that cannot be used become
`rows.Reject`; only faults of a whole manifest raise.
"""

import csv
import io
import json
import os
import pathlib
from typing import Any, Iterator, Mapping, Sequence

from plan_jax import errors
from plan_jax.data import columns
from plan_jax.data import items as items_lib
from plan_jax.data import rows as rows_lib

_Reason = rows_lib.Reason


class ManifestError(errors.UserError):
  """A manifest that cannot be used as a whole."""


def read_manifests(
    paths: Sequence[str],
    *,
    keys: columns.Keys = columns.Keys(),
    image_root: str = '',
    allow_empty_text: bool = False,
    selection: items_lib.Selection = items_lib.Selection(),
) -> items_lib.Contents:
  """Reads, checks and joins manifests; rows about the same image file become one item.

  Args:
    paths: `.jsonl` or `.csv` files.
    keys: column names.
    image_root: folder of the image and mask paths; '' = each manifest's own.
    allow_empty_text: keep images without a report (evaluation sets).
    selection: which images are taken.

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
  return items_lib.assemble(
      good, rejects=rejects, rows=total, notes=notes, root=_common_root(paths),
      allow_empty_text=allow_empty_text, selection=selection)


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
  try:
    names = reader.fieldnames or []
  except csv.Error as error:
    raise ManifestError(f'{path}, line 1: not CSV ({error}).') from error
  if twice := sorted({name for name in names if name and names.count(name) > 1}):
    raise ManifestError(
        f'{path} has the column {", ".join(twice)} more than once; rename all but one.')
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
    raise ManifestError(
        f'{path} has no text column {keys.text!r}; {found}. Correct --text-key or --report-key.')
  mixed = next((row['labels'] for row in objects if isinstance(row.get('labels'), dict)
                and not columns.is_indicator(row['labels'])), None)
  if mixed is not None and not keys.labels:
    options = ', '.join(f'labels.{key}' for key in sorted(mixed))
    return [f'{short_name(path)}: `labels` is a mapping; no classes taken. Choose with '
            f'--label-key ({options}).']
  return []


def _check_labels(good: Sequence[rows_lib.Row], *, keys: columns.Keys, allow_none: bool):
  if keys.labels and not allow_none and not any(items_lib.marks_of(row) for row in good):
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
    mine = [row for row in good if row.manifest == name]
    if mine and not any(row.image in told for row in mine):  # without any, the rejects tell why
      names = sorted({key for _, row in _lines(path) if isinstance(row, dict) for key in row})
      raise ManifestError(
          f'{path} has no text column (text, or findings and impression), and no other manifest '
          f'has text for its images; columns found: {", ".join(names)}. Rename the column, '
          'name it with --text-key, or keep images without text with --allow-empty-text.')
