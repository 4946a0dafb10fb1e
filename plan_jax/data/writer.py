"""Items -> a records directory: part files, then shards, then the card, which ends it.

An interrupted run is continued by running it again: parts made from the same
input with the same options are reused. The bytes written depend neither on
interruptions nor on the number of workers.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any, Callable, Iterator, Mapping, Sequence

from plan_jax import errors
from plan_jax.data import card as card_lib
from plan_jax.data import duplicates
from plan_jax.data import likeness
from plan_jax.data import parts as parts_lib
from plan_jax.data import records
from plan_jax.data import rows as rows_lib
from plan_jax.data import tokenize

CREATED_BY = 'plan_jax 0.1.0'
REJECTS_NAME = 'rejects.jsonl'
NEAR_NAME = 'near_duplicates.jsonl'
_PARTS_NAME = '.parts'
_LOCK_NAME = 'lock'
_SHOWN_REJECTS = 5
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, what the user may have of it, a file


class WriteError(errors.UserError):
  """An option or output directory that cannot be used; the message says why."""


class RejectedError(Exception):
  """Rows were rejected and that is an error (`strict`, or none is left)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """How records are written."""

  directory: pathlib.Path
  shard_rows: int = 8192
  vocabulary: tuple[str, ...] = ()  # () = trained from the texts of the train split
  vocab_size: int = 4096  # of a trained one
  workers: int = 1
  strict: bool = False
  near: duplicates.Near = duplicates.Near.REPORT
  others: tuple[likeness.Picture, ...] = ()  # elsewhere; they must not come back in these records


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """What is written, and the function that makes it."""

  items: Sequence[Any]
  make: parts_lib.Make
  item_key: Callable[[Any], str]  # what the outcome of an item depends on
  about: Mapping[str, Any]  # goes into the card; the outcome depends on it
  rows: int  # input rows, rejected ones included
  rejects: Sequence[rows_lib.Reject] = ()  # rows that did not become items
  left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)  # rows by choice


def write(source: Source, *, options: Options) -> dict[str, Any]:
  """Writes a records directory and returns its card.

  Raises:
    WriteError: if the directory holds something else, cannot be written, or another run
      writes to it.
    RejectedError: if no row is left, or any was rejected with `strict`.
    parts.WorkerError: if a worker process died.
  """
  settings = _settings(options)
  parts, fingerprint = _plan(source, options, version=records.FORMAT_VERSION)
  with _disk_errors(options.directory):
    finished = _open_directory(options.directory, source, options, fingerprint=fingerprint)
    if finished is not None:
      print(f'{options.directory} holds exactly these records already', flush=True)
    else:
      try:
        with _locked(options.directory):
          parts_lib.make(parts, function=source.make, workers=options.workers)
          finished = _finish(parts, source, options, {
              'format_version': records.FORMAT_VERSION,
              'name': records.DATASET_NAME,
              'created_by': CREATED_BY,
              'fingerprint': fingerprint,
              **source.about,
              'options': settings,
          })
      finally:
        # After the lock: a network file system keeps what is open, and its folder with it.
        if (options.directory / records.CARD_NAME).exists():
          _remove_parts(options.directory)
    rejected = sum(finished['rows']['rejected'].values())
    if options.strict and rejected:  # also where an earlier run without --strict finished
      _fail(_read_rejects(options.directory), options.directory, 'with --strict that is an error')
  return finished


def require_usable(directory: pathlib.Path) -> None:
  """Looks whether records may go there, before the long part.

  Raises:
    WriteError: it is a file, or holds something else.
    errors.UserError: it is in a bucket.
  """
  errors.require_local(directory, option='--out')
  if directory.exists() and not directory.is_dir():
    raise WriteError(f'--out {directory} is a file; give a directory.')
  # Listed once: another run may end, or begin, between two looks.
  names = {path.name for path in directory.iterdir()} if directory.exists() else set()
  if names and names.isdisjoint({_PARTS_NAME, records.CARD_NAME}):
    raise WriteError(
        f'--out {directory} is not empty and holds no records; give a new or empty directory.')


def _settings(options: Options) -> dict[str, Any]:
  return {
      'shard_rows': options.shard_rows,
      'vocab': 'given' if options.vocabulary else 'trained',
      'vocab_size': len(options.vocabulary) or options.vocab_size,
      'near_duplicates': str(options.near),
  }


def _plan(
    source: Source, options: Options, *, version: int) -> tuple[list[parts_lib.Part], str]:
  """The parts, and the hash of all that the records depend on, as a format has it."""
  key = json.dumps([CREATED_BY, version, source.about], sort_keys=True)
  parts = parts_lib.plan(
      source.items, directory=options.directory / _PARTS_NAME, key=key, item_key=source.item_key)
  settings, left_out = _settings(options), [dict(source.left_out)]
  if version == 1:  # which knew neither
    del settings['near_duplicates']
    left_out = []
  rejects = [json.dumps(_plain(reject), sort_keys=True) for reject in source.rejects]
  whole = [key, settings, options.vocabulary, rejects, *left_out,
           [part.path.name for part in parts]]
  return parts, hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _open_directory(
    directory: pathlib.Path, source: Source, options: Options, *, fingerprint: str,
) -> dict[str, Any] | None:
  """Makes the directory usable; returns the card if these very records are finished.

  Phantoms of format 1 are the same phantoms: a run on them goes on.
  """
  require_usable(directory)
  if (directory / records.CARD_NAME).exists():
    card = records.read_card(directory)
    version = card['format_version']
    if version != records.FORMAT_VERSION:
      fingerprint = _plan(source, options, version=version)[1]
    if card['fingerprint'] == fingerprint:
      _remove_parts(directory)
      return card
    if version != records.FORMAT_VERSION:
      raise WriteError(
          f'--out {directory} holds finished records of format {version}, written by an earlier '
          'release. They can still be read; to make them anew, give another directory, or '
          'remove that one.')
    raise WriteError(
        f'--out {directory} holds finished records of other input or options; give another '
        'directory, or remove that one.')
  (directory / _PARTS_NAME).mkdir(parents=True, exist_ok=True)
  return None


@contextlib.contextmanager
def _locked(directory: pathlib.Path) -> Iterator[None]:
  """Keeps other runs out; the lock falls with the process, however that ends.

  Raises:
    WriteError: another run has it, or finished a moment ago.
  """
  path = directory / _PARTS_NAME / _LOCK_NAME
  just_finished = WriteError(
      f'--out {directory}: another run has just finished there; run the same command again.')
  try:
    file = open(path, 'wb')
  except FileNotFoundError as error:  # its folder went with that run
    raise just_finished from error
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise WriteError(
          f'--out {directory}: another run is writing there; wait for its end, or give another '
          'directory.') from error
    except OSError:  # some network file systems have none
      print(f'note: {directory} has no locks; start no second run there before this one ends',
            flush=True)
    if (directory / records.CARD_NAME).exists() or not path.exists():
      raise just_finished
    yield


def _remove_parts(directory: pathlib.Path) -> None:
  """Of finished records. A run that starts just now may do the same, or put its lock there."""
  shutil.rmtree(directory / _PARTS_NAME, ignore_errors=True)


def _finish(
    parts: Sequence[parts_lib.Part], source: Source, options: Options, head: dict[str, Any],
) -> dict[str, Any]:
  """Part files -> shards, vocabulary, rejects and, last, the card."""
  directory = options.directory
  choice = duplicates.choose(
      map(parts_lib.read_outcomes, parts), source.rejects, near=options.near,
      others=options.others)
  counts, rejects = choice.counts, choice.rejects
  with _replacing(directory / REJECTS_NAME) as path:
    path.write_text(''.join(
        json.dumps(_plain(reject), ensure_ascii=False) + '\n' for reject in rejects), 'utf-8')
  with _replacing(directory / NEAR_NAME) as path:
    path.write_text(''.join(
        json.dumps(pair, ensure_ascii=False) + '\n' for pair in choice.near), 'utf-8')
  if not sum(counts.values()):
    _fail(rejects, directory, 'no row is left')
  if options.strict and rejects:
    _fail(rejects, directory, 'with --strict that is an error')
  print(f'Writing records: {sum(counts.values())}', flush=True)
  shards = {split: _cut(counts[split], options.shard_rows) for split in records.SPLITS}
  tally, texts = _write_shards(parts, choice.kept, directory=directory, shards=shards)
  card = {**head, **tally.card(rejects, left_out=source.left_out), 'shards': shards,
          'near_duplicates': duplicates.summary(choice.near)}
  if card['rows']['in'] != source.rows:
    raise AssertionError(f'{source.rows} rows in, but {card["rows"]} accounted for')
  vocabulary = options.vocabulary
  if not vocabulary and texts:
    print(f'Training a vocabulary, reports: {len(texts)}', flush=True)
    vocabulary = tokenize.train_vocabulary(texts, size=options.vocab_size)
  content = ''.join(f'{token}\n' for token in vocabulary).encode()
  with _replacing(records.vocabulary_path(directory)) as path:
    path.write_bytes(content)
  card['vocab_size'] = len(vocabulary)
  card['vocab_hash'] = hashlib.sha256(content).hexdigest()
  records.write_tfds_files(directory, shards=shards, sizes=tally.sizes)
  with _replacing(directory / records.CARD_NAME) as path:
    path.write_text(json.dumps(card, indent=2, ensure_ascii=False) + '\n', 'utf-8')
  return card


def _cut(count: int, shard_rows: int) -> list[int]:
  """Rows of each shard, as even as can be."""
  shards = -(-count // shard_rows)
  return [count // shards + (i < count % shards) for i in range(shards)]


def _write_shards(
    parts: Sequence[parts_lib.Part], kept: Sequence[Sequence[rows_lib.Outcome | None]], *,
    directory: pathlib.Path, shards: Mapping[str, Sequence[int]],
) -> tuple[card_lib.Tally, list[str]]:
  """Writes the shards in item order; returns the counts and the texts of the train split."""
  for stale in directory.glob(f'{records.DATASET_NAME}-*'):  # of an interrupted run
    stale.unlink()
  tally, texts = card_lib.Tally(), []
  with contextlib.ExitStack() as stack:
    sinks = {split: stack.enter_context(_Sink(directory, split, lengths))
             for split, lengths in shards.items()}
    for part, outcomes in zip(parts, kept):
      for record, outcome in zip(parts_lib.read_records(part), outcomes, strict=True):
        if outcome is None:
          continue
        example = records.decode(record)
        tally.add(example, record=record, outcome=outcome)
        sinks[example.split].write(record)
        if example.split == 'train' and example.text:
          texts.append(example.text)
  return tally, texts


class _Sink:
  """Writes the records of a split into shards of known lengths."""

  def __init__(self, directory: pathlib.Path, split: str, lengths: Sequence[int]):
    names = records.shard_names(split, len(lengths))
    self._todo = [(directory / name, length) for name, length in zip(names, lengths)]
    self._stack = contextlib.ExitStack()
    self._writer, self._room = None, 0

  def write(self, record: bytes):
    if not self._room:
      path, self._room = self._todo.pop(0)
      temporary = self._stack.enter_context(_replacing(path))
      self._writer = self._stack.enter_context(records.shard_writer(temporary))
    self._writer.write(record)
    self._room -= 1
    if not self._room:
      self._stack.close()

  def __enter__(self) -> '_Sink':
    return self

  def __exit__(self, *error) -> bool | None:
    return self._stack.__exit__(*error)


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A path to write to that takes the place of `path` when all went well."""
  temporary = path.with_name(f'{path.name}.tmp')
  yield temporary
  os.replace(temporary, path)


@contextlib.contextmanager
def _disk_errors(directory: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise WriteError(
        f'cannot write to --out {directory}: {error.strerror or error}; check permissions and '
        'free space, or give another directory.') from error
  except RuntimeError as error:  # so ArrayRecord says it
    reason = next((text for text in map(os.strerror, _FULL) if text in str(error)), None)
    if reason is None:
      raise
    raise WriteError(
        f'cannot write to --out {directory}: {reason}; make room and run the same command again, '
        'what is finished is kept.') from error


def _plain(reject: rows_lib.Reject) -> dict[str, Any]:
  plain = {**dataclasses.asdict(reject), 'reason': str(reject.reason)}
  del plain['image']  # a path of this machine
  return plain


def _read_rejects(directory: pathlib.Path) -> list[rows_lib.Reject]:
  lines = (directory / REJECTS_NAME).read_text('utf-8').split('\n')
  return [rows_lib.Reject(**json.loads(line)) for line in lines if line]


def _fail(rejects: Sequence[rows_lib.Reject], directory: pathlib.Path, why: str):
  shown = '\n'.join(
      f'  {reject.manifest}, line {reject.line} ({reject.id or "no id"}): {reject.reason}: '
      f'{reject.detail}' for reject in rejects[:_SHOWN_REJECTS])
  reasons, hint = {reject.reason for reject in rejects}, ''
  if rows_lib.Reason.MISSING_FILE in reasons:
    hint = ("\nPaths count from a manifest's folder or from --image-root; where the files of a "
            'corpus must lie, its --help says; --dry-run shows the whole paths.')
  if rows_lib.Reason.EMPTY_TEXT in reasons:
    hint += ('\nWhich parts of a report are taken: docs/data-reports.md; --allow-empty-text keeps '
             'images without any.')
  raise RejectedError(
      f'rejected rows: {len(rejects)}; {why}. The first of '
      f'{directory / REJECTS_NAME}:\n{shown}{hint}')
