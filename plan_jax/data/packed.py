"""Tokens of reports in under a kilobyte each, made once for those that a byte budget holds."""

from collections.abc import Sequence
import hashlib

import numpy as np

from plan_jax.data import tokenize

KEPT_MIB = 512  # half a million reports of 128 pieces and 97 words; MIMIC-CXR has 228 thousand
_BESIDE = 170  # bytes: the digest, both objects and the dictionary's slot, as tracemalloc counts
_TYPES = {'pieces': np.int32, 'piece_word': np.int32, 'word_form': np.int32, 'is_negation': np.bool_}


class Packer:
  """One report to its tokens as bytes, and the bytes of several to arrays.

  The first reports that fit into the budget stay. Every epoch is a shuffle of its own, so
  what was read last is no likelier to come next: of m reports n that stay spare n / m of
  the work, while n that the newest ones push out spare about (n / m)**2 / 2.

  Threads may share one; a process that gets a copy goes on with its own.
  """

  def __init__(self, tokenizer: tokenize.Tokenizer, *, mib: float = KEPT_MIB):
    """Makes one; `mib` bounds what is kept, which takes memory only as it comes."""
    self._tokenizer = tokenizer
    pieces, words = tokenizer.max_pieces, tokenizer.max_words
    self._layout = np.dtype([  # aligned: a batch is unpacked four times as fast
        ('pieces', np.min_scalar_type(tokenizer.vocab_size - 1), pieces),
        ('piece_word', np.min_scalar_type(-words), pieces),  # signed: -1 is no word
        ('word_form', np.int32, words),
        ('is_negation', np.bool_, words)], align=True)
    self._limit = int(mib * 2**20) // (self._layout.itemsize + _BESIDE)
    self._kept = {}

  def __call__(self, text: str) -> bytes:
    """Packed tokens of one report."""
    key = hashlib.blake2b(text.encode(), digest_size=16).digest()
    packed = self._kept.get(key)
    if packed is None:
      tokens = self._tokenizer(text)
      row = np.zeros((), self._layout)
      for name in _TYPES:
        row[name] = getattr(tokens, name)
      packed = row.tobytes()
      if len(self._kept) < self._limit:  # threads may pass it by one each
        self._kept[key] = packed
    return packed

  def unpack(self, rows: Sequence[bytes]) -> dict[str, np.ndarray]:
    """Arrays [b ...] by the names that `tokenize.Tokens` and `shapes.Batch` give them."""
    table = np.frombuffer(b''.join(rows), self._layout)
    return {name: table[name].astype(kind) for name, kind in _TYPES.items()}
