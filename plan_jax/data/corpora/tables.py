"""Published tables: found by name, plain or gzipped, read line by line, their columns checked."""

import csv
import gzip
import io
import itertools
import os
import pathlib
from typing import BinaryIO, Collection, Iterable, Iterator, Sequence, TextIO
import zlib

import tqdm

from plan_jax.data.corpora import base

CHEXPERT = (  # the labeler's fourteen
    'Atelectasis', 'Cardiomegaly', 'Consolidation', 'Edema', 'Enlarged Cardiomediastinum',
    'Fracture', 'Lung Lesion', 'Lung Opacity', 'No Finding', 'Pleural Effusion', 'Pleural Other',
    'Pneumonia', 'Pneumothorax', 'Support Devices')
_FIELD_LIMIT = 2**24  # characters, over several lines
_LINE_LIMIT = 2**20  # characters; reports have thousands
_LIST_LIMIT = 2**26  # characters: more than three million names of pictures
# Gzipped tables unpack to some 10 times their size, what is made to fill the memory to 1000 times.
_RATIO_FROM, _MAX_RATIO = 2**24, 200
_SHOWN_FROM = 2**22  # bytes: smaller tables take a second


def find(folder: pathlib.Path, *names: str, needed_for: str) -> pathlib.Path:
  """The one file of these names (patterns) in `folder`, plain or .gz.

  Raises:
    base.CorpusError: there is none, or several.
  """
  path = find_optional(folder, *names)
  if path is None:
    raise base.CorpusError(
        f'{folder} holds no {" or ".join(names)} (nor .gz), which gives {needed_for}; put it '
        'there, or name its folder with --tables')
  return path


def find_optional(folder: pathlib.Path, *names: str) -> pathlib.Path | None:
  """The same, None if there is none.

  Raises:
    base.CorpusError: there are several.
  """
  for name in names:
    for pattern in (name, f'{name}.gz'):
      found = sorted(folder.glob(pattern))
      if len(found) > 1:
        raise base.CorpusError(
            f'{folder} holds several {pattern}: {", ".join(path.name for path in found)}; leave '
            'the one that counts, or name its folder with --tables')
      if found:
        return found[0]
  return None


def read(path: pathlib.Path, *, needs: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
  """(line number, column -> value) of each line; blanks around names are dropped.

  Args:
    path: .csv or .csv.gz, UTF-8.
    needs: columns that must be there.

  Raises:
    base.CorpusError: it cannot be read as such a table, or lacks a column.
  """
  print(f'Reading {path.name}', flush=True)
  csv.field_size_limit(_FIELD_LIMIT)
  line = 1
  try:
    with open(path, 'rb') as stored, _bar(path) as bar:
      file = gzip.GzipFile(fileobj=stored) if path.suffix == '.gz' else stored
      reader = csv.reader(_bounded(
          io.TextIOWrapper(file, 'utf-8-sig', newline=''), stored, path), strict=True)
      names = [name.strip() for name in next(reader, [])]
      missing = [name for name in needs if name not in names]
      if missing:
        raise base.CorpusError(
            f'{path} lacks the column {", ".join(missing)}; it has: {", ".join(names)}. Download '
            'the table again, or give it the published column names')
      if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise base.CorpusError(
            f'{path} has the column {", ".join(twice)} more than once; leave the one that counts')
      line = reader.line_num + 1
      for values in reader:
        if any(values[len(names):]):
          raise base.CorpusError(
              f'{path}, line {line}: more fields than the header has; download it again')
        if values:
          yield line, dict(itertools.zip_longest(names, values[:len(names)], fillvalue=''))
        line = reader.line_num + 1
        bar.update(stored.tell() - bar.n)
  except UnicodeDecodeError as error:
    raise base.CorpusError(f'{path} is not UTF-8 near line {line}; download it again') from error
  except csv.Error as error:
    raise base.CorpusError(f'{path}, line {line}: not CSV ({error}); download it again') from error
  except (OSError, EOFError, zlib.error) as error:
    raise base.CorpusError(
        f'{path} cannot be read ({error}); check its permissions, or download it again') from error


def read_words(path: pathlib.Path) -> list[str]:
  """The words of a list, plain or .gz: names of pictures, one a line.

  Raises:
    base.CorpusError: it cannot be read as text.
  """
  try:
    with (gzip.open if path.suffix == '.gz' else open)(path, 'rt', encoding='utf-8-sig') as file:
      return file.read(_LIST_LIMIT).split()
  except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
    raise base.CorpusError(
        f'{path} is no list that can be read ({type(error).__name__}); check its permissions, or '
        'download it again') from error


def _bounded(
    lines: TextIO, stored: BinaryIO, path: pathlib.Path) -> Iterator[str]:
  """The lines of a table that may be gzipped, none of which takes much memory.

  Raises:
    base.CorpusError: a line is too long, or all together unpack to far more than any table does.
  """
  size = 0
  while line := lines.readline(_LINE_LIMIT):
    size += len(line)
    if len(line) == _LINE_LIMIT:
      raise base.CorpusError(f'{path} has a line of more than {_LINE_LIMIT >> 20} million '
                             'characters: no table; download it again')
    if size > _RATIO_FROM and size > _MAX_RATIO * stored.tell():
      raise base.CorpusError(
          f'{path} unpacks to more than {_MAX_RATIO} times its size: no table; download it again')
    yield line


def _bar(path: pathlib.Path) -> tqdm.tqdm:
  """Progress over the stored bytes, shown for large tables."""
  size = path.stat().st_size
  return tqdm.tqdm(
      total=size, unit='B', unit_scale=True, desc=path.name, disable=size < _SHOWN_FROM,
      mininterval=0.2 if os.isatty(2) else 10, dynamic_ncols=True)


def classes(
    path: pathlib.Path, columns: Iterable[str], *, others: Collection[str],
) -> tuple[tuple[str, ...], list[str]]:
  """Which of CheXpert's classes a table has, and notes that name what is odd about it.

  A column that is no class is not taken: an index that pandas wrote would become a finding.

  Args:
    path: of the table.
    columns: of the table.
    others: columns that are known to be no classes.

  Raises:
    base.CorpusError: it has none.
  """
  columns = [name for name in columns if name and name not in others]
  found = tuple(name for name in columns if name in CHEXPERT)
  if not found:
    raise base.CorpusError(
        f'{path} has no column of a class; it has: {", ".join(columns) or "nothing"}. Classes are '
        f'{", ".join(CHEXPERT)}: give the columns these names')
  notes = []
  if unknown := [name for name in columns if name not in CHEXPERT]:
    notes.append(f'{path.name}: columns not taken, for they are no classes: {", ".join(unknown)}')
  if absent := [name for name in CHEXPERT if name not in found]:
    notes.append(f'{path.name} lacks classes, which count as not mentioned: {", ".join(absent)}')
  return found, notes


def marks(values: dict[str, str], *, classes: Sequence[str]) -> dict[str, float | None]:
  """CheXpert's cells -> marks: '1.0', '0.0', '-1.0', '' (not mentioned).

  Raises:
    ValueError: naming a cell that is none of these.
  """
  found = {}
  for name in classes:
    cell = values.get(name, '').strip()
    try:
      found[name] = float(cell) if cell else None
    except ValueError:
      raise ValueError(f'{name} is {cell[:20]!r}; a mark is 1, 0, -1 or empty') from None
  return found
