"""Near-duplicate pictures in different splits, found by a perceptual hash.

A picture that comes back in another split, encoded, scaled or lit anew, makes test
figures look better than they are.
"""

import dataclasses
from typing import Iterator, Sequence

import cv2
from jaxtyping import UInt8, UInt64
import numpy as np
import tqdm

_SIDE, _KEPT = 64, 16  # pixels that the cosines are taken of; lowest frequencies a side
MAX_DISTANCE = 32  # of 256 bits: docs/data.md says what was measured
_BLOCK_BYTES = 2**26


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
  """A picture by its id and its hash."""

  id: str
  hash: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
  """Two pictures (positions) whose hashes differ in `distance` of 256 bits."""

  first: int
  second: int
  distance: int


def picture_hash(pixels: UInt8[np.ndarray, 'h w']) -> str:
  """256 bits, hexadecimal: which of the lowest 16 x 16 cosines lie above their median.

  It hardly depends on the size, on brightness or contrast, or on lossy encoding.

  Source: pHash (Zauner, 2010), with 16 x 16 in place of 8 x 8 cosines: chest radiographs
    resemble each other too much for 64 bits.
  """
  small = cv2.resize(pixels, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
  low = cv2.dct(small.astype(np.float32))[:_KEPT, :_KEPT].ravel()
  low[0] = 0  # the mean grey value
  return np.packbits(low > np.median(low)).tobytes().hex()


def across_splits(
    hashes: Sequence[str], splits: Sequence[str], *, max_distance: int = MAX_DISTANCE,
) -> list[Pair]:
  """Pairs from different splits that are at most `max_distance` bits apart, nearest first.

  Every picture of the smaller splits is compared with every one of the larger; '' is
  compared with nothing.
  """
  words = np.array([np.frombuffer(bytes.fromhex(h), np.uint64) if h else np.zeros(4, np.uint64)
                    for h in hashes]).reshape(-1, 4)
  members = {name: np.array([i for i, split in enumerate(splits) if split == name and hashes[i]],
                            int) for name in set(splits)}
  order = sorted(members, key=lambda name: len(members[name]))
  total = sum(len(members[a]) * len(members[b])
              for k, a in enumerate(order) for b in order[k + 1:])
  pairs = []
  with tqdm.tqdm(total=total, unit='pair', unit_scale=True, desc='near-duplicates',
                 disable=total < 10**8, mininterval=1) as bar:
    for k, small in enumerate(order):
      for large in order[k + 1:]:
        pairs += _near(words, members[small], members[large], max_distance, bar)
  return sorted(pairs, key=lambda pair: (pair.distance, pair.first, pair.second))


def _near(
    words: UInt64[np.ndarray, 'n 4'], small: np.ndarray, large: np.ndarray, max_distance: int,
    bar: tqdm.tqdm,
) -> Iterator[Pair]:
  if not len(small) or not len(large):
    return
  others = words[large]
  rows = max(1, _BLOCK_BYTES // (8 * len(large)))
  for start in range(0, len(small), rows):
    mine = small[start:start + rows]
    distance = np.zeros((len(mine), len(large)), np.uint16)
    for k in range(words.shape[1]):  # one word at a time: less memory, and it stays in cache
      distance += np.bitwise_count(words[mine, k, None] ^ others[None, :, k])
    for i, j in zip(*np.nonzero(distance <= max_distance)):
      yield Pair(first=int(mine[i]), second=int(large[j]), distance=int(distance[i, j]))
    bar.update(distance.size)
