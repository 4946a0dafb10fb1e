"""Whether what was written computes what the checkpoint computes: both run on the same inputs.

Here too are the names of what programs of an export take and give; shapes are in docs/convert.md.
"""

from collections.abc import Callable, Mapping
import dataclasses
import re

from jaxtyping import Int, UInt8
import numpy as np

from plan_jax import errors
from plan_jax import inference
from plan_jax.data import augment
from plan_jax.data import tokenize
from plan_jax.objectives import matching

IMAGES = ('pooled', 'pixels', 'pixel_norm', 'is_pixel', 'backbone')
TEXTS = ('pooled', 'words', 'word_norm', 'is_word', 'attention', 'backbone')
MAPS = {f'map_{kind}': kind for kind in matching.MapKind}
TOLERANCE = 1e-4
COUNT = 3  # pictures and texts; the first runs alone as well

Arrays = Mapping[str, np.ndarray]


class DisagreementError(errors.UserError):
  """What was written computes something else than the checkpoint; the message says what."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Programs:
  """Three programs of an export, read back from its files, on NumPy arrays.

  Attributes:
    images: frames and extents to the features `IMAGES`.
    texts: pieces and the word of each piece to the features `TEXTS`.
    ground: features of b images and of b texts to the maps `MAPS`.
  """

  images: Callable[[UInt8[np.ndarray, 'b h w'], Int[np.ndarray, 'b 4']], Arrays]
  texts: Callable[[Int[np.ndarray, 'b s'], Int[np.ndarray, 'b s']], Arrays]
  ground: Callable[[Arrays, Arrays], Arrays]


def check(programs: Programs, model: inference.Model, *, what: str) -> float:
  """The largest difference of an output's value, as a share of that output's largest one.

  Runs three pictures of noise (square, tall, wide) and three texts, then the first of each
  alone, the text without padding. Of a map
  one cell in a hundred may differ more: where a similarity lies on the threshold of its
  word's region, the last bit decides.

  Args:
    programs: what was written.
    model: the checkpoint's, in fp32.
    what: how an error calls the programs.

  Raises:
    DisagreementError: a difference above `TOLERANCE`, or other masks.
  """
  pictures, texts = _pictures(model.image_size), _texts(model.vocabulary)
  frames = _columns(augment.eval_frame(picture, size=model.image_size) for picture in pictures)
  tokenizer = tokenize.Tokenizer(
      model.vocabulary, max_pieces=model.config.data.max_pieces,
      max_words=model.config.data.max_words)
  pieces = _columns((t.pieces, t.piece_word) for t in map(tokenizer, texts))
  seen, read = model.encode_images(pictures, count=COUNT), model.encode_texts(texts)
  expected = [
      (programs.images, frames, {name: getattr(seen, name) for name in IMAGES}),
      (programs.texts, pieces, {name: getattr(read, name) for name in TEXTS})]
  expected.append((programs.ground, tuple(features for _, _, features in expected), {
      name: model.ground_pairs(seen, read, kind=kind) for name, kind in MAPS.items()}))
  largest = 0.0
  for count in (COUNT, 1):
    for program, arguments, ours in expected:
      if count == 1 and program is programs.texts:  # without padding
        arguments = [x[:, :np.count_nonzero(pieces[0][0])] for x in pieces]
      theirs = program(*(_first(x, count) for x in arguments))
      for name, values in ours.items():
        difference = _difference(np.asarray(theirs[name]), values[:count], is_map=name in MAPS)
        if not difference <= TOLERANCE:  # NaN neither
          raise DisagreementError(
              f'{what}: {name} of {count} differs from the checkpoint\'s by {difference:.1e} of its '
              f'largest value (allowed {TOLERANCE:g}); do not use these files, and report it as a '
              'fault of plan_jax, with the versions of what is installed')
        largest = max(largest, difference)
  return largest


def _difference(theirs: np.ndarray, ours: np.ndarray, *, is_map: bool) -> float:
  if theirs.shape != ours.shape:
    return np.inf
  if ours.dtype == bool:
    return 0.0 if np.array_equal(theirs, ours) else np.inf
  off = np.abs(theirs.astype(np.float64) - ours) / max(float(np.abs(ours).max()), 1e-6)
  dropped = off.size // 100 if is_map else 0
  return float(np.sort(off, axis=None)[off.size - 1 - dropped])


def _pictures(size: int) -> list[UInt8[np.ndarray, 'h w']]:
  rng = np.random.default_rng(0)
  return [rng.integers(0, 256, shape, np.uint8)
          for shape in ((size, size), (size, size // 2), (size // 2, size))]


def _texts(vocabulary) -> list[str]:
  """Texts of 12, 6 and 3 whole words of the vocabulary; of 'a' where there are none."""
  words = [token for token in vocabulary if re.fullmatch(r'\w+', token)] or ['a']
  drawn = np.random.default_rng(0).choice(words, 12)
  return [' '.join(drawn[:12 >> k]) for k in range(COUNT)]


def _columns(rows) -> tuple[np.ndarray, ...]:
  return tuple(np.stack(column) for column in zip(*rows, strict=True))


def _first(x, count: int):
  if isinstance(x, Mapping):
    return {name: values[:count] for name, values in x.items()}
  return x[:count]
