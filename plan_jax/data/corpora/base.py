"""What a published corpus is: lines of its tables, in the columns of a manifest."""

import dataclasses
import enum
import os
import pathlib
from typing import Any, Callable, Iterable, Iterator, Mapping

from plan_jax import errors
from plan_jax.data import columns
from plan_jax.data import items
from plan_jax.data import records
from plan_jax.data import reports
from plan_jax.data import rows as rows_lib


class CorpusError(errors.UserError):
  """A corpus that cannot be read; the message names the file and what to do."""


class View(enum.StrEnum):
  """How the patient stood to the beam."""

  FRONTAL = 'frontal'
  LATERAL = 'lateral'
  OTHER = 'other'
  UNKNOWN = 'unknown'


class Views(enum.StrEnum):
  """Which views are taken."""

  FRONTAL = 'frontal'
  LATERAL = 'lateral'
  ALL = 'all'


class Texts(enum.StrEnum):
  """Where the reports are."""

  FILES = 'files'  # one file a report, in a folder of their own
  BESIDE = 'beside'  # a file beside each picture; there are no tables
  TABLES = 'tables'
  PLAIN = 'plain'  # in tables, as texts without sections
  NONE = 'none'  # an evaluation set


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """What is asked of a corpus.

  `tables` and `reports` are the folders of CSV files and of reports; `labeler` is the tool
  whose labels are taken where there are several.
  """

  root: pathlib.Path
  tables: pathlib.Path
  reports: pathlib.Path
  views: Views = Views.FRONTAL
  labeler: str = ''
  text: reports.Options = reports.Options()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
  """One line of a table. `values` has the columns of a manifest (docs/records.md)."""

  source: str  # name of the table
  line: int
  values: Mapping[str, Any]
  view: View = View.FRONTAL
  report: str = ''  # path of a file with the whole report
  photometric: rows_lib.Photometric = rows_lib.Photometric.MONOCHROME2
  left_out: str = ''  # why this line is not taken, by choice


# A note for the screen is a plain string.
Found = Line | rows_lib.Reject | str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
  """A published layout.

  Attributes:
    name: of the command.
    title: one line.
    layout: what must lie below --root, for --help.
    read: its lines, in order.
    texts: where the reports are.
    has_views: whether --views means anything.
    labelers: tools with labels of their own, the first is the default.
  """

  name: str
  title: str
  layout: str
  read: Callable[[Request], Iterator[Found]]
  texts: Texts
  has_views: bool = False
  labelers: tuple[str, ...] = ()


def contents(
    corpus: Corpus, request: Request, *, allow_empty_text: bool, selection: items.Selection,
) -> items.Contents:
  """The corpus as checked items.

  Raises:
    CorpusError: its folders or tables are not as published, or no line is left.
    items.SelectionError: `selection` takes none of the images.
  """
  if not request.root.is_dir():
    raise CorpusError(
        f'--root {request.root} is no directory; {corpus.name} needs:\n{corpus.layout}')
  good, rejects, notes, left_out, excluded, total = [], [], [], {}, {}, 0
  has_text = False
  for found in corpus.read(request):
    if isinstance(found, str):
      notes.append(found)
      continue
    total += 1
    if isinstance(found, rows_lib.Reject):
      rejects.append(found)
      continue
    # Before the views: another view of the same study has the same report.
    if found.values.get('id') in selection.exclude and found.values.get('patient'):
      excluded[found.values['id']] = found.values['patient']
    reason = found.left_out or (
        '' if _is_wanted(found.view, request.views) else f'view_{found.view}')
    if reason:
      left_out[reason] = left_out.get(reason, 0) + 1
      continue
    row = columns.parse(
        found.values, manifest=found.source, line=found.line, root=str(request.root),
        keys=columns.Keys(), report=found.report, photometric=found.photometric)
    (good if isinstance(row, rows_lib.Row) else rejects).append(row)
    has_text = has_text or bool(found.report or found.values.get('text'))
  if not total:
    raise CorpusError(
        f'--root {request.root} holds nothing that {corpus.name} reads; it needs:\n{corpus.layout}')
  if not good:
    raise CorpusError(
        f'{corpus.name}: none of {total} rows is left ({_counts(left_out, rejects)}); look at '
        f'{"--views and at " if corpus.has_views else ""}the first lines of the tables')
  if not (has_text or allow_empty_text):
    raise CorpusError(
        f'{corpus.name}: no image has a report; add them ({corpus.name} --help says where), or '
        'keep images without reports with --allow-empty-text')
  return items.assemble(
      good, rejects=rejects, rows=total, root=str(request.root), left_out=left_out,
      excluded=excluded, allow_empty_text=allow_empty_text, selection=selection, notes=notes)


def _is_wanted(view: View, views: Views) -> bool:
  return views is Views.ALL or view == views


def _counts(left_out: Mapping[str, int], rejects: Iterable[rows_lib.Reject]) -> str:
  counts = dict(left_out)
  for reject in rejects:
    counts[str(reject.reason)] = counts.get(str(reject.reason), 0) + 1
  return ', '.join(f'{name} {number}' for name, number in sorted(counts.items()))


def view_of(position: str) -> View:
  """The view that DICOM's ViewPosition says: 'PA', 'AP', 'LL', 'LATERAL', ..."""
  position = position.strip().upper()
  if position in ('AP', 'PA'):
    return View.FRONTAL
  if position in ('LATERAL', 'LL', 'RL'):
    return View.LATERAL
  return View.OTHER if position else View.UNKNOWN


def train_or_val(patient: str) -> str:
  """The split of a patient where only the test split is official: one in ten is 'val'."""
  return 'train' if items.split_of(patient) == 'train' else 'val'


def probe(root: pathlib.Path, candidates: Iterable[Iterable[str]]) -> int:
  """Which of several ways to write a path is that of the files that are there.

  Args:
    root: of the paths.
    candidates: for some images in turn, the path in each way.

  Returns:
    The number of the first way that finds a file; 0 if none does.
  """
  for ways in candidates:
    for number, path in enumerate(ways):
      if (root / path).is_file():
        return number
  return 0


_RECORDS = {records.CARD_NAME, records.VOCABULARY_NAME}
IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.dcm', '.dicom')


def files(root: pathlib.Path) -> Iterator[str]:
  """Path, seen from `root`, of each file below it, sorted.

  Folders that are symbolic links are entered, each once; those that may not be are named.
  Records lie in no corpus: a contact sheet would be a picture of it.
  """
  def name_it(error: OSError):
    print(f'note: {error.filename}: {error.strerror}; nothing in it is taken', flush=True)

  seen = {os.path.realpath(root)}
  for folder, folders, names in os.walk(root, followlinks=True, onerror=name_it):
    if _RECORDS.issubset(names):
      folders.clear()
      continue
    kept = []
    for name in sorted(folders):
      place = os.path.realpath(os.path.join(folder, name))
      if place not in seen:
        seen.add(place)
        kept.append(name)
    folders[:] = kept
    for name in sorted(names):
      yield os.path.relpath(os.path.join(folder, name), root)


def index(root: pathlib.Path) -> dict[str, str]:
  """Path of each image file below `root`, by its name without suffixes.

  A name that converters wrote, `x.dcm.png`, counts as `x`. Of several files with one name
  that whose suffix comes first in PNG, JPEG, DICOM.
  """
  print(f'Looking for image files below {root.name}/', flush=True)
  found: dict[str, tuple[int, str]] = {}
  for path in files(root):
    stem, suffix = os.path.splitext(os.path.basename(path))
    if suffix.lower() not in IMAGE_SUFFIXES:
      continue
    entry = (IMAGE_SUFFIXES.index(suffix.lower()), path)
    inner, suffix = os.path.splitext(stem)
    stem = inner if suffix.lower() in IMAGE_SUFFIXES else stem
    if stem not in found or entry < found[stem]:
      found[stem] = entry
  return {stem: path for stem, (_, path) in found.items()}


def box(x: str, y: str, width: str, height: str) -> list[float]:
  """[x0, y0, x1, y1] from a corner and a size; a cell that is no number gives NaN.

  A box with NaN is rejected where boxes are checked.
  """
  try:
    x, y, width, height = float(x), float(y), float(width), float(height)
  except ValueError:
    return [float('nan')] * 4
  return [x, y, x + width, y + height]
