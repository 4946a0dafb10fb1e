"""Records to batches: shuffled, augmented, tokenised, shared out over hosts.

Every example has a global position: step * batch_size + row. Position alone, with
the seed, decides which record it is and how it is augmented. So the sequence of
global batches is the same for any number of hosts, processes and threads, and a run that
starts at step k sees what an uninterrupted run sees from step k on.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import os
import queue
import signal
import threading
import time
from typing import Protocol

from absl import flags
import grain
import jax
from jax.sharding import Sharding
from jaxtyping import UInt8
import numpy as np

from plan_jax import config
from plan_jax import errors
from plan_jax import shapes
from plan_jax.data import augment
from plan_jax.data import packed
from plan_jax.data import records as records_lib
from plan_jax.data import tokenize


class DataError(errors.UserError):
  """Records that cannot make batches; the message names what and the fix."""


class Source(Protocol):
  """Examples by position; `records.Records` is one, a list is another."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> records_lib.Example: ...


def batches(
    records: Source,
    *,
    tokenizer: tokenize.Tokenizer,
    settings: config.Data,
    batch_size: int,
    seed: int,
    start_step: int,
    host: int = 0,
    hosts: int = 1,
) -> Iterator[shapes.Batch]:
  """Training batches without end, of numpy arrays, from step `start_step` on.

  Each epoch has an order of its own; a batch may span the end of one and the start
  of the next. `batch_size` counts pairs over all hosts: host h gets rows
  h * batch_size / hosts and following, so the hosts' batches in order are the
  global batch.

  Raises:
    DataError: if hosts do not divide the batch, or the records are fewer than a
      batch; while iterating, if a record's image cannot be decoded.

  With `settings.workers` close the iterator at the end, which ends the processes.
  """
  if batch_size % hosts:
    raise DataError(
        f'batch_size={batch_size} over hosts={hosts}: take a multiple of {hosts}')
  if len(records) < batch_size:
    # A batch with the same report twice would hold it against itself as a negative.
    raise DataError(
        f'{len(records)} records for batch_size={batch_size}: take a batch_size of at most '
        'that, or prepare more pairs')
  # Seeds of neighbouring runs must not give neighbouring sequences: grain adds the
  # epoch to the seed of a shuffle.
  shuffle_seed, augment_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
  make = _Batcher(packer=packed.Packer(tokenizer), seed=augment_seed, settings=settings)
  # Nothing is read before a thread asks for a batch, so slicing batches costs nothing.
  blocks = (
      grain.MapDataset.source(records)
      .shuffle(seed=shuffle_seed)
      .repeat()
      .batch(batch_size // hosts, drop_remainder=True, batch_fn=list)
      .map_with_index(make))
  own = blocks.slice(slice(start_step * hosts + host, None, hosts)).to_iter_dataset(
      grain.ReadOptions(num_threads=settings.threads, prefetch_buffer_size=settings.threads))
  if settings.workers:
    if not flags.FLAGS.is_parsed():  # grain asks for flags of its own; main() of a library has none
      flags.FLAGS.mark_as_parsed()
    own = own.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=settings.workers, per_worker_buffer_size=2),
        worker_init_fn=_begin_worker)
  return iter(own)


def _begin_worker(index: int, count: int):
  """Ends with its parent, and not before: a signal to all processes is for that to handle."""
  del index, count
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_leave_after, args=(os.getppid(),), daemon=True).start()


def _leave_after(parent: int):
  while os.getppid() == parent:
    time.sleep(1)
  os._exit(1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Batcher:
  """Examples to a batch of numpy arrays, frames written where they belong."""

  packer: packed.Packer
  seed: int
  settings: config.Data

  def __call__(self, block: int, examples: Sequence[records_lib.Example]) -> shapes.Batch:
    """`block` batches of as many rows come before this one."""
    count, size = len(examples), self.settings.image_size
    images, extents = np.empty((count, size, size), np.uint8), np.empty((count, 4), np.int32)
    generators = _generators(self.seed, start=block * count, count=count)
    for k, (example, rng) in enumerate(zip(examples, generators, strict=True)):
      _, extents[k] = augment.train_frame(
          _decoded(example), rng, size=size, settings=self.settings.augment, out=images[k])
    tokens = self.packer.unpack([self.packer(example.text) for example in examples])
    return shapes.Batch(image=images, extent=extents, **tokens)


def _generators(seed: int, *, start: int, count: int) -> Iterator[np.random.Generator]:
  """One after the other, those of `count` positions; each is used up before the next.

  The streams of grain's `random_map`: a counter of the position, which costs half of a new
  generator.
  """
  bits = np.random.Philox(seed)
  generator, state = np.random.Generator(bits), bits.state
  for position in range(start, start + count):
    state['state']['counter'][:] = 0, 0, 0, position
    bits.state = state
    yield generator


def to_device(
    iterator: Iterator[shapes.Batch], sharding: Sharding, *, depth: int = 2,
) -> Iterator[shapes.Batch]:
  """Global device arrays of this process's batches, up to `depth` batches ahead.

  A thread reads `iterator`, which is its own from then on; it stops, and `iterator`
  is closed, when the result is closed or runs out. What `iterator` raises comes out
  here, after the batches before it.
  """
  if depth < 1:
    raise ValueError(f'depth={depth}: at least 1 batch is read ahead')
  return _prefetched(iterator, sharding, depth=depth)


def _prefetched(
    iterator: Iterator[shapes.Batch], sharding: Sharding, *, depth: int) -> Iterator[shapes.Batch]:
  ready = queue.Queue(maxsize=depth)
  is_stopped = threading.Event()

  def put(item) -> bool:
    while not is_stopped.is_set():
      try:
        ready.put(item, timeout=0.1)
        return True
      except queue.Full:
        pass
    return False

  def read():
    error = None
    try:
      for batch in iterator:
        placed = jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
        if not put((placed, None)):
          break
    except Exception as caught:  # raised again by the reader of the queue
      error = caught
    finally:
      if hasattr(iterator, 'close'):
        iterator.close()
    put((None, error))

  thread = threading.Thread(target=read, name='to_device', daemon=True)
  thread.start()
  try:
    while True:
      batch, error = ready.get()
      if error is not None:
        raise error
      if batch is None:
        return
      yield batch
  finally:
    is_stopped.set()
    thread.join()


def _decoded(example: records_lib.Example) -> UInt8[np.ndarray, 'h w']:
  try:
    return augment.decode_image(example.image)
  except augment.ImageError as error:
    raise DataError(
        f'record {example.id} of split {example.split}: {error}; then prepare the records '
        'again, or leave the row out') from error
