"""Checked rows -> items, one an image file, with id, patient and split decided."""

import dataclasses
import hashlib
import os
from typing import Any, Iterable, Mapping, Sequence

from plan_jax import errors
from plan_jax.data import likeness
from plan_jax.data import overlap
from plan_jax.data import records
from plan_jax.data import rows as rows_lib

_Reason = rows_lib.Reason
_BAD_PLACES = {_Reason.BAD_ANNOTATION, _Reason.BAD_BOX, _Reason.BAD_MASK}
_TRAIN_SHARE, _VAL_SHARE = 0.90, 0.05  # of the patients, where no split is given


class SelectionError(errors.UserError):
  """A list of ids that cannot be used."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
  """Which images are taken. The others are counted as left out, not rejected.

  Attributes:
    only: ids; an evaluation set, all of it split 'test'. None = no such list.
    exclude: ids; all images of their patients go, for another view of the same study has
      the same report. A patient's name counts too.
    limit: the most that are taken, drawn by a hash of the id. None = all.
    pictures: excluded ones, of directories of records: near-duplicates are looked for.
  """

  only: frozenset[str] | None = None
  exclude: frozenset[str] = frozenset()
  limit: int | None = None
  pictures: tuple[likeness.Picture, ...] = ()

  def as_json(self) -> dict[str, Any]:
    """For the card: how many ids and pictures, and which by their hash."""
    return {'only_ids': _digest(self.only or ()), 'exclude_ids': _digest(self.exclude),
            'exclude_pictures': _digest(picture.hash for picture in self.pictures),
            'limit': self.limit}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
  """What a set of manifests, or a corpus, holds."""

  items: tuple[rows_lib.Item, ...]
  rejects: tuple[rows_lib.Reject, ...]
  rows: int
  notes: tuple[str, ...] = ()
  left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)  # rows by choice


def _digest(ids: Iterable[str]) -> dict[str, Any] | None:
  listed = sorted(ids)
  digest = hashlib.sha256('\n'.join(listed).encode()).hexdigest()
  return {'count': len(listed), 'sha256': digest} if listed else None


def read_ids(path: str) -> frozenset[str]:
  """The ids in a text file, one a line, or of all records in a directory.

  Lines that begin with # do not count.

  Raises:
    SelectionError: the file cannot be read, or holds none.
    records.RecordsError: the directory holds no records.
  """
  if os.path.isdir(path):
    return frozenset(example.id for split in records.SPLITS
                     for example in records.Records(path, split))
  try:
    with open(path, encoding='utf-8-sig') as file:
      lines = [line.strip() for line in file]
  except (OSError, UnicodeDecodeError) as error:
    raise SelectionError(
        f'list of ids {path} cannot be read ({type(error).__name__}); give a text file with one '
        'id a line, or a directory of records') from error
  found = frozenset(line for line in lines if line and not line.startswith('#'))
  if not found:
    raise SelectionError(f'list of ids {path} is empty; give a text file with one id a line')
  return found


def read_pictures(directories: Iterable[str]) -> tuple[likeness.Picture, ...]:
  """Those of all records in some directories.

  Raises:
    records.RecordsError: one holds no records.
    overlap.OverlapError: a picture is damaged.
  """
  found = []
  for path in directories:
    print(f'Looking at the pictures of --exclude-ids {path}', flush=True)
    found += [likeness.Picture(id=entry.id, hash=entry.hash) for entry in overlap.entries(path)]
  return tuple(found)


def assemble(
    good: Iterable[rows_lib.Row],
    *,
    rejects: Sequence[rows_lib.Reject],
    rows: int,
    root: str,
    allow_empty_text: bool,
    selection: Selection = Selection(),
    notes: Sequence[str] = (),
    left_out: Mapping[str, int] = {},
    excluded: Mapping[str, str] = {},
) -> Contents:
  """Joins rows about the same image file.

  Args:
    good: checked rows.
    rejects: of rows that are not.
    rows: how many there were of all kinds.
    root: folder that ids count from where a row has none.
    allow_empty_text: keep images without a report.
    selection: which are taken.
    notes: for the screen.
    left_out: rows left out before.
    excluded: id -> patient, of images in `selection.exclude` that are not among `good`.

  Raises:
    SelectionError: `selection` takes none of the images.
  """
  good = list(good)
  # An image that becomes no item still says which patient to leave out.
  excluded = {**excluded, **{
      row.id: row.patient for row in good if row.patient and row.id in selection.exclude}}
  groups, conflicts = _group(good)
  items, dropped = _items(groups, root=root, allow_empty_text=allow_empty_text)
  bad = [reject for reject in rejects if reject.reason in _BAD_PLACES]
  # By the picture, for rows need no id; by the id where a corpus rejects before it knows the file.
  lost = {reject.image or reject.id for reject in bad}
  items = [_unlooked(item) if lost & {item.id, item.image} else item for item in items]
  items, more, unknown = _select(items, selection, excluded=excluded)
  return Contents(
      items=tuple(items), rejects=(*rejects, *conflicts, *dropped), rows=rows,
      notes=(*notes, *unknown), left_out={**left_out, **more})


def _unlooked(item: rows_lib.Item) -> rows_lib.Item:
  """An image that lost a place must not pass for one in which there is nothing."""
  return dataclasses.replace(item, rows=tuple(
      dataclasses.replace(row, is_annotated=False) for row in item.rows))


def _select(
    items: Sequence[rows_lib.Item], selection: Selection, *, excluded: Mapping[str, str]):
  """(items taken, rows left out by reason, notes)."""
  left_out, notes, given = {}, [], len(items)

  def keep(kept: list[rows_lib.Item], reason: str):
    nonlocal items
    taken = {item.id for item in kept}
    count = sum(len(item.rows) for item in items if item.id not in taken)
    if count:
      left_out[reason] = count
    items = kept

  images = {item.id for item in items}
  known = images | {item.patient for item in items} | set(excluded)
  for option, ids, found in (('--exclude-ids', selection.exclude, known),
                             ('--only-ids', selection.only or (), images)):
    # Not which: a line may be a patient's name.
    if unknown := set(ids) - found:
      notes.append(f'{option}: {len(unknown)} of {len(ids)} ids name no image here')
  if selection.exclude:
    patients = {item.patient for item in items
                if item.id in selection.exclude or item.patient in selection.exclude}
    patients.update(excluded.values())
    keep([item for item in items if item.patient not in patients], 'excluded_id')
  if selection.only is not None:
    keep([dataclasses.replace(item, split='test') for item in items
          if item.id in selection.only], 'not_in_only_ids')
  if selection.limit is not None:
    order = sorted(items, key=lambda item: hashlib.sha256(item.id.encode()).digest())
    chosen = {item.id for item in order[:selection.limit]}
    keep([item for item in items if item.id in chosen], 'limit')
  if given and not items:
    counts = ', '.join(f'{reason} {count}' for reason, count in left_out.items())
    raise SelectionError(
        f'none of {given} images is left (rows left out: {counts}); check that --only-ids and '
        '--exclude-ids list ids of this corpus, one a line')
  return items, left_out, notes


def split_of(patient: str) -> str:
  """'train', 'val' or 'test' from a hash of the patient: 90, 5 and 5 %."""
  share = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], 'big') / 2**64
  if share < _TRAIN_SHARE:
    return 'train'
  return 'val' if share < _TRAIN_SHARE + _VAL_SHARE else 'test'


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
  known = {mark for r in group for mark in marks_of(r)}
  adds = row.annotations or (row.text and not text) or marks_of(row) - known
  repeats = (row.text and text) or any(r.manifest == row.manifest for r in group)
  if repeats and not adds:
    return row.reject(_Reason.DUPLICATE_PICTURE, f'{where} has the same image file')
  return None


def marks_of(row: rows_lib.Row) -> set[tuple[str, str]]:
  """(kind, class) for each mark of a row."""
  return {(kind, name) for kind in ('labels', 'negatives', 'uncertain')
          for name in getattr(row, kind)}


def _items(groups: Iterable[Sequence[rows_lib.Row]], *, root: str, allow_empty_text: bool):
  """One item a group, with id, patient and split decided; or its rows as rejects."""
  rejects, kept, ids = [], [], {}
  for group in groups:
    main = next((row for row in group if row.text or row.report), group[0])
    ordered = (main, *(row for row in group if row is not main))
    identity = _first(ordered, 'id') or os.path.relpath(main.image, root)
    if not (main.text or main.report or allow_empty_text):
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
