r"""Pairs a second from records to batches: ours, and a PyTorch DataLoader on the same files.

  python benchmarks/reading.py

Both read, decode, augment, tokenise and batch the same ArrayRecord files with the same
functions, tokens kept by both; what differs is who shuffles, runs ahead and hands over: grain,
with two threads of this process or with one worker process a core, or the DataLoader, in this
process or with as many workers. Workers keep tokens of their own and pass arrays (tensors) on in
shared memory.
  cached  each has been read four times when the clock starts: nearly all tokens are kept;
  fresh   no report comes twice, as in a first epoch: one more word, a number, is in each.
Records: phantoms of 256 and of 512 pixels, made on the way, read as if they were 300,000: grain's
shuffle takes 4 us a pair then, and 23 us for the 1600 that there are.
"""

import dataclasses
import functools
import itertools
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

import measure

_BATCH, _PAIRS = 64, 300_000
_BY = ('ours', 'ours with workers', 'loader', 'loader with workers')


def cases(quick: bool) -> list[measure.Case]:
  pairs, seconds = (160, 0.5) if quick else (1600, 8)
  sources = ((64, 'cached'), (64, 'fresh')) if quick else (
      (256, 'cached'), (512, 'cached'), (256, 'fresh'))
  return [{'side': side, 'pairs': pairs, 'seconds': seconds, 'tokens': tokens, 'by': by}
          for side, tokens in sources for by in _BY]


def _records(side: int, pairs: int) -> str:
  """Phantoms for all runs; made once and left in the temporary directory."""
  directory = pathlib.Path(tempfile.gettempdir()) / f'plan_jax_reading_{side}_{pairs}'
  if not (directory / 'dataset.json').exists():
    subprocess.run(
        [sys.executable, '-m', 'plan_jax.data.prepare', 'phantom', '--pairs', str(pairs),
         '--size', str(side), '--out', str(directory)], check=True, stdout=subprocess.DEVNULL)
  return str(directory)


class _Corpus:
  """Records over and over, as one corpus; with reports that are new at every reading, or not."""

  def __init__(self, records, *, tokens: str):
    self._records, self._is_fresh = records, tokens == 'fresh'
    self._count = itertools.count()

  def __len__(self):
    return _PAIRS

  def __getitem__(self, index):
    example = self._records[index % len(self._records)]
    if not self._is_fresh:
      return example
    return dataclasses.replace(example, text=f'{example.text} {next(self._count)}')


def run(case: measure.Case) -> measure.Result:
  from plan_jax import config as config_lib
  from plan_jax.data import records as records_lib
  from plan_jax.data import tokenize

  settings = config_lib.Data()
  directory = _records(case['side'], case['pairs'])
  tokenizer = tokenize.Tokenizer(
      tokenize.read_vocabulary(records_lib.vocabulary_path(directory)),
      max_pieces=settings.max_pieces, max_words=settings.max_words)
  records = records_lib.Records(directory, 'train')
  words = np.mean([len(records[k].text.split()) for k in range(64)])
  corpus = _Corpus(records, tokens=case['tokens'])
  batches = _BATCHES[case['by']](corpus, tokenizer, settings)
  for _ in range(4 * len(records) // _BATCH):
    next(batches)
  count, began = 0, time.perf_counter()
  while (took := time.perf_counter() - began) < case['seconds']:
    count += len(next(batches).pieces)
  return {'rate': count / took, 'words': float(words)}


def _ours(records, tokenizer, settings, *, workers: int = 0):
  from plan_jax.data import pipeline

  settings = dataclasses.replace(settings, workers=workers, threads=1 if workers else 2)

  return pipeline.batches(
      records, tokenizer=tokenizer, settings=settings, batch_size=_BATCH, seed=0, start_step=0)


def _loader(records, tokenizer, settings, *, workers: int = 0):
  import torch

  from plan_jax import shapes
  from plan_jax.data import augment
  from plan_jax.data import packed

  packer = packed.Packer(tokenizer)

  class Pairs(torch.utils.data.Dataset):
    """Frames, extents and packed tokens by index."""

    def __len__(self):
      return len(records)

    def __getitem__(self, index):
      example = records[index]
      rng = np.random.default_rng(torch.randint(2**31, ()).item())
      frame = augment.train_frame(
          augment.decode_image(example.image), rng, size=settings.image_size,
          settings=settings.augment)
      return *frame, packer(example.text)

  def collate(rows):
    images, extents, tokens = zip(*rows, strict=True)
    arrays = {'image': np.stack(images), 'extent': np.stack(extents), **packer.unpack(tokens)}
    return shapes.Batch(**{name: torch.from_numpy(x) for name, x in arrays.items()})

  loader = torch.utils.data.DataLoader(
      Pairs(), batch_size=_BATCH, shuffle=True, drop_last=True, num_workers=workers,
      collate_fn=collate, persistent_workers=workers > 0)
  while True:
    yield from loader


def _with_workers(function):
  return functools.partial(function, workers=len(os.sched_getaffinity(0)))


_BATCHES = dict(zip(
    _BY, (_ours, _with_workers(_ours), _loader, _with_workers(_loader)), strict=True))


def show(found) -> str:
  lines = ['| images | tokens | words a report | ours, threads, pairs/s | ours, workers | '
           'DataLoader, in process | DataLoader, workers | ours / DataLoader, workers |',
           '|' + '---|' * 8]
  for of_source in zip(*(found[k::4] for k in range(4)), strict=True):
    case, (threads, workers, alone, theirs) = of_source[0][0], [results for _, results in of_source]
    lines.append('| ' + ' | '.join([
        f'{case["side"]} px', case['tokens'], f'{measure.median(threads, "words"):.0f}',
        *(measure.spread(results, 'rate') for results in (threads, workers, alone, theirs)),
        measure.ratio(workers, theirs, 'rate')]) + ' |')
  return '\n'.join(lines)


def draw(found, path: pathlib.Path) -> None:
  from matplotlib import pyplot

  figure, axis = pyplot.subplots(figsize=(7, 3.4), layout='constrained')
  labels = ('plan_jax, threads', 'plan_jax, workers', 'DataLoader, in process',
            'DataLoader, workers')
  for k, label in enumerate(labels):
    of = [results for _, results in found[k::4]]
    middle = np.array([measure.median(results, 'rate') for results in of])
    ends = np.array([[f(result['rate'] for result in results) for results in of] for f in (min, max)])
    axis.bar(np.arange(len(of)) + 0.2 * (k - 1.5), middle, 0.19, label=label,
             yerr=np.abs(ends - middle), capsize=2)
  sources = [f'{case["side"]} px\n{case["tokens"]} tokens' for case, _ in found[::4]]
  axis.set(xticks=range(len(sources)), xticklabels=sources, ylabel='pairs/s')
  axis.legend(frameon=False, loc='upper left', bbox_to_anchor=(1, 1))
  figure.savefig(path, dpi=120)


if __name__ == '__main__':
  measure.main(__file__, __doc__, cases=cases, measure=run, show=show, draw=draw,
               needs=('torch',))
