"""Runs of items made into part files by worker processes, each written whole or not at all.

A part file is an ArrayRecord of the examples of up to `PART_ITEMS` items, with
one JSON record at its end that lists the outcomes. Its name is the hash of what
went in, so a later run finds and reuses it, and never takes one that is stale.
"""

from concurrent import futures
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import signal
import threading
from typing import Any, Callable, Iterator, Sequence

import cv2
import tqdm

from plan_jax import errors
from plan_jax.data import records
from plan_jax.data import rows as rows_lib

PART_ITEMS = 16  # small, so that the progress bar moves and an interruption costs little

_SHOWN_FROM = 20_000  # items: below it, looking at the files takes a second

Make = Callable[[Any], rows_lib.Outcome]


class WorkerError(errors.UserError):
  """A worker process died."""


@dataclasses.dataclass(frozen=True)
class Part:
  """A run of items, and the file that they become."""

  path: pathlib.Path
  items: tuple[Any, ...]


def plan(
    items: Sequence[Any], *, directory: pathlib.Path, key: str, item_key: Callable[[Any], str],
) -> list[Part]:
  """Cuts `items` into parts.

  Args:
    items: whatever `Make` takes; picklable.
    directory: of the part files.
    key: what the outcome depends on besides the item.
    item_key: what the outcome of an item depends on, its files included.
  """
  result = []
  starts = range(0, len(items), PART_ITEMS)
  for start in tqdm.tqdm(
      starts, desc='looking at the files', unit_scale=PART_ITEMS, unit='row',
      disable=len(items) < _SHOWN_FROM, mininterval=0.2 if os.isatty(2) else 10,
      dynamic_ncols=True):
    run = tuple(items[start:start + PART_ITEMS])
    digest = hashlib.sha256(key.encode())
    for item in run:
      digest.update(hashlib.sha256(item_key(item).encode()).digest())
    result.append(Part(directory / f'{digest.hexdigest()[:32]}.part', run))
  return result


def make(parts: Sequence[Part], *, function: Make, workers: int):
  """Writes all part files that are not there yet.

  Raises:
    WorkerError: if a worker process was killed.
  """
  todo = [part for part in parts if not part.path.exists()]
  total = sum(len(part.items) for part in parts)
  done = total - sum(len(part.items) for part in todo)
  # Without a terminal each refresh is a line of its own in some log: keep them few.
  with tqdm.tqdm(
      total=total, initial=done, unit='row', desc='images', smoothing=0.05,
      mininterval=0.2 if os.isatty(2) else 10, dynamic_ncols=True) as bar:
    if workers == 1 or len(todo) == 1:
      for part in todo:
        _make_part(part, function)
        bar.update(len(part.items))
    elif todo:
      _make_parallel(todo, function=function, workers=min(workers, len(todo)), bar=bar)


def _make_parallel(todo: Sequence[Part], *, function: Make, workers: int, bar: tqdm.tqdm):
  # spawn: the caller may run threads, which do not survive a fork.
  pool = futures.ProcessPoolExecutor(
      workers, mp_context=multiprocessing.get_context('spawn'), initializer=_start_worker)
  others = set(multiprocessing.active_children())
  try:
    with _interrupts_ignored():  # inherited, so what stops a run is the parent's business alone
      waiting = {pool.submit(_make_part, part, function): part for part in todo}
    for future in futures.as_completed(waiting):
      future.result()
      bar.update(len(waiting[future].items))
  except futures.process.BrokenProcessPool as error:
    raise WorkerError(
        'a worker process was killed, most likely for want of memory; run the same command '
        f'again with fewer workers (--workers {max(1, workers // 2)}): finished parts are '
        'kept.') from error
  except BaseException:  # Do not make the user wait for parts that are not wanted now.
    for process in set(multiprocessing.active_children()) - others:
      process.kill()
    raise
  finally:
    pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  previous = {number: signal.signal(number, signal.SIG_IGN)
              for number in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)


def _start_worker():
  cv2.setNumThreads(1)  # one process a core already

  def follow_parent():
    multiprocessing.parent_process().join()
    os._exit(1)  # A killed parent must not leave workers behind.

  threading.Thread(target=follow_parent, daemon=True).start()


def _make_part(part: Part, function: Make):
  temporary = part.path.with_suffix(f'.tmp{os.getpid()}')
  outcomes = []
  with records.shard_writer(temporary) as writer:
    for item in part.items:
      outcome = function(item)
      outcomes.append({
          **dataclasses.asdict(dataclasses.replace(outcome, example=None)),
          'example': outcome.example is not None})
      if outcome.example is not None:
        writer.write(records.encode(outcome.example))
    writer.write(json.dumps(outcomes).encode())
  os.replace(temporary, part.path)


def read_outcomes(part: Part) -> list[tuple[bool, rows_lib.Outcome]]:
  """(whether there is an example, the outcome without it) of each item."""
  listed = json.loads(records.read_shard(part.path)[-1])
  return [(entry['example'], rows_lib.Outcome(
      example=None, id=entry['id'], split=entry['split'], pixels=entry['pixels'],
      likeness=entry['likeness'],
      original=tuple(entry['original']), stored=tuple(entry['stored']),
      sources=tuple(map(tuple, entry['sources'])), rejects=tuple(
          rows_lib.Reject(**{**reject, 'reason': rows_lib.Reason(reject['reason'])})
          for reject in entry['rejects']))) for entry in listed]


def read_records(part: Part) -> list[bytes]:
  """The encoded examples of a part."""
  return records.read_shard(part.path)[:-1]
