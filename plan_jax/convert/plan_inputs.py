"""Pictures and texts as an exported plan_jax model reads them; needs NumPy alone.

Lies beside the model in an export of any format; its README.md says how to use it. Reading a
JPEG, PNG or DICOM into grey values is yours: PIL's `convert('L')`, say.
"""

import json
import os
import pathlib
import unicodedata

import numpy as np


def load(directory=None) -> 'Inputs':
  """Of an export, by default that of the directory of this file."""
  directory = pathlib.Path(directory or os.path.dirname(os.path.abspath(__file__)))
  settings = json.loads((directory / 'plan.json').read_text(encoding='utf-8'))['settings']
  vocabulary = (directory / 'text' / 'vocab.txt').read_text(encoding='utf-8').split('\n')[:-1]
  return Inputs(settings, vocabulary)


class Inputs:
  """Frames of pictures, and word pieces of texts."""

  def __init__(self, settings, vocabulary):
    self.settings = settings
    self.vocabulary = {token: i for i, token in enumerate(vocabulary)}

  def frame(self, grey):
    """The square that the model sees of a picture, and its extent.

    The long side becomes size * 256 / 224 pixels, the short one is padded, the centre is cut
    out. Where it shrinks, means over areas; a grey value may differ by 1 from plan_jax's.

    Args:
      grey: uint8 [h w]; bright is dense, as in radiographs that are shown.

    Returns:
      The frame, uint8 [size size], and where in it the picture is, int32 (y0, x0, y1, x1),
      ends exclusive.
    """
    size = self.settings['image_size']
    height, width = grey.shape
    long_side = round(size * 256 / 224)
    scale = long_side / max(height, width)
    new = max(1, round(height * scale)), max(1, round(width * scale))
    x = np.asarray(grey, np.float64)
    if new != (height, width):
      weigh = _area_weights if new[0] * new[1] < height * width else _linear_weights
      x = weigh(height, new[0]) @ x @ weigh(width, new[1]).T
    x = np.floor(x + 0.5).clip(0, 255).astype(np.uint8)
    cut = (long_side - size) // 2
    top, left = ((long_side - n) // 2 - cut for n in new)
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + new[0], size), min(left + new[1], size)
    frame = np.zeros((size, size), np.uint8)
    frame[y0:y1, x0:x1] = x[y0 - top:y1 - top, x0 - left:x1 - left]
    return frame, np.array([y0, x0, y1, x1], np.int32)

  def tokenize(self, text: str):
    """Pieces [s] and the word of each piece [s] (-1: none), both int32, and the words as read.

    WordPiece as BERT does it. Words hold a letter or a digit; `XXXX` is no word.
    """
    length, most = self.settings['max_pieces'], self.settings['max_words']
    ids, word_of, words = [self.vocabulary['[CLS]']], [-1], []
    is_full = False
    for word in _split(text, lower=self.settings['lower']):
      found = self._pieces(word)
      fits = len(ids) + len(found) < length
      is_full = is_full or not fits or len(words) == most
      is_word = (not is_full and word.lower() != 'xxxx' and any(map(str.isalnum, word)))
      ids += found
      word_of += [len(words) if is_word else -1] * len(found)
      words += [word] * is_word
    ids, word_of = ids[:length - 1] + [self.vocabulary['[SEP]']], word_of[:length - 1] + [-1]
    rest = length - len(ids)
    return (np.array(ids + [0] * rest, np.int32), np.array(word_of + [-1] * rest, np.int32),
            words)

  def _pieces(self, word):
    """The longest pieces from the left; [UNK] where they do not spell the word."""
    found, start = [], 0
    while start < len(word):
      for end in range(len(word), start, -1):
        piece = ('##' if start else '') + word[start:end]
        if piece in self.vocabulary:
          break
      else:
        return [self.vocabulary['[UNK]']]
      found.append(self.vocabulary[piece])
      start = end
    return found if len(word) <= 100 else [self.vocabulary['[UNK]']]


def _area_weights(before: int, after: int):
  """[after before]: the share of each old pixel in each new one."""
  edges, old = np.arange(after + 1) * (before / after), np.arange(before)
  overlap = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
  return overlap.clip(0) * (after / before)


def _linear_weights(before: int, after: int):
  """[after before]: linear between centres, the edge repeated."""
  place = ((np.arange(after) + 0.5) * (before / after) - 0.5).clip(0, before - 1)
  return (1 - np.abs(place[:, None] - np.arange(before))).clip(0)


def _split(text: str, *, lower: bool):
  """BERT's pre-tokens: split at white space, around punctuation and Chinese characters."""
  if lower:
    text = unicodedata.normalize('NFD', text.lower())
  words, is_open = [], False
  for c in text:
    kind, code = unicodedata.category(c), ord(c)
    if c.isspace():
      is_open = False
    elif code in (0, 0xfffd) or kind.startswith('C') or (lower and kind == 'Mn'):
      continue
    elif kind.startswith('P') or (code < 128 and not c.isalnum()) or _is_chinese(code):
      words.append(c)
      is_open = False
    else:
      words, is_open = (words[:-1] + [words[-1] + c] if is_open else words + [c]), True
  return words


def _is_chinese(code: int) -> bool:
  ranges = ((0x4e00, 0x9fff), (0x3400, 0x4dbf), (0x20000, 0x2a6df), (0x2a700, 0x2b73f),
            (0x2b740, 0x2b81f), (0x2b820, 0x2ceaf), (0xf900, 0xfaff), (0x2f800, 0x2fa1f))
  return any(first <= code <= last for first, last in ranges)
