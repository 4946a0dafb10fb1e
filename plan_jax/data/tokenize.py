"""WordPiece tokens, and the words that they spell.

The text tower reads word pieces; the local branch contrasts words. A word is what
BERT's pre-tokeniser yields (whitespace and punctuation split) with at least one
letter or digit. Punctuation and de-identification marks (`___`, `XXXX`) stay in
the text as pieces but are no words: there is nothing in an image to see of them.
"""

import collections
from collections.abc import Iterable, Sequence
import dataclasses
import json
import os
import pathlib
import string
import zlib

from jaxtyping import Bool, Int
import numpy as np
import tokenizers
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors
from tokenizers import trainers

from plan_jax import errors

SPECIAL_TOKENS = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
# Cues that turn what stands next to them into its opposite. "Free" is one only in
# "free of" and "free from" ("free air" is a finding). "Resolved" is none: it says
# that something was there.
NEGATION_CUES = frozenset(
    ('no', 'not', 'without', 'free', 'absent', 'negative', 'nor', 'neither'))
_FREE_OF = ('of', 'from')
_HIDDEN_WORD = 'xxxx'  # de-identification mark of the Indiana University reports
_MAX_ALPHABET = 1000  # characters, as in BERT's own vocabularies


class TokenizerError(errors.UserError):
  """A vocabulary that cannot be used; the message names it and the fix."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens:
  """One report: s word pieces and t words, padded; see `shapes.Batch`.

  `words` holds the surface forms of the words that fit, without padding.
  """

  pieces: Int[np.ndarray, 's']
  piece_word: Int[np.ndarray, 's']
  word_form: Int[np.ndarray, 't']
  is_negation: Bool[np.ndarray, 't']
  words: tuple[str, ...]


class Tokenizer:
  """Text to `Tokens` of fixed size. Cased or uncased as the vocabulary is."""

  def __init__(self, vocabulary: Sequence[str], *, max_pieces: int, max_words: int):
    """Makes a tokenizer.

    Args:
      vocabulary: tokens in id order, [PAD] first.
      max_pieces: s, with [CLS] and [SEP].
      max_words: t.

    Raises:
      TokenizerError: if the vocabulary lacks what WordPiece needs, or a size is
        too small.
    """
    _check_vocabulary(vocabulary, name='vocabulary')
    if max_pieces < 3:
      raise TokenizerError(
          f'max_pieces={max_pieces}: at least 3 are needed ([CLS], one piece, [SEP])')
    if max_words < 1:
      raise TokenizerError(f'max_words={max_words}: at least 1 is needed')
    ids = {token: i for i, token in enumerate(vocabulary)}
    self._cls, self._sep = ids['[CLS]'], ids['[SEP]']
    self.max_pieces, self.max_words = max_pieces, max_words
    self._size = len(ids)
    # No token is registered as special: "[MASK]" in a report is five characters.
    self._backend = tokenizers.Tokenizer(models.WordPiece(ids, unk_token='[UNK]'))
    self._backend.normalizer = normalizers.BertNormalizer(lowercase=not is_cased(vocabulary))
    self._backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

  @property
  def vocab_size(self) -> int:
    return self._size

  def __call__(self, text: str) -> Tokens:
    """Tokenises one report; what does not fit is cut at the end.

    A word that the cut goes through is no word: half a word means something else.
    """
    encoding = self._backend.encode(text)
    room = self.max_pieces - 2
    ids = encoding.ids[:room]
    pieces = np.zeros(self.max_pieces, np.int32)
    pieces[0] = self._cls
    pieces[1:len(ids) + 1] = ids
    pieces[len(ids) + 1] = self._sep

    # Lists are filled faster than arrays, one number at a time.
    piece_word = [-1] * self.max_pieces
    word_form = [-1] * self.max_words
    is_negation = [False] * self.max_words
    words = []
    for first, end, surface in _pre_tokens(encoding, text):
      if end > room or len(words) == self.max_words:
        break
      form = surface.lower()
      if form == _HIDDEN_WORD or not (form.isalnum() or any(map(str.isalnum, form))):
        continue
      piece_word[first + 1:end + 1] = [len(words)] * (end - first)
      word_form[len(words)] = zlib.crc32(form.encode()) & 0x7fffffff
      is_negation[len(words)] = form in NEGATION_CUES and form != 'free'
      if form in _FREE_OF and words and words[-1].lower() == 'free':
        is_negation[len(words) - 1] = True
      words.append(surface)
    return Tokens(
        pieces=pieces, piece_word=np.array(piece_word, np.int32),
        word_form=np.array(word_form, np.int32), is_negation=np.array(is_negation, np.bool_),
        words=tuple(words))


def train_vocabulary(
    texts: Iterable[str], *, size: int, min_frequency: int = 2) -> list[str]:
  """Trains an uncased WordPiece vocabulary of at most `size` tokens.

  The same texts give the same list, in any order and in any process. Characters and
  pairs seen fewer than `min_frequency` times are left out, but for printable ASCII, so
  that new words spell out rather than become [UNK].

  Raises:
    TokenizerError: if there is no text, or `size` does not hold the alphabet.

  Source: WordPiece as in BERT (arXiv 1810.04805), trained by `tokenizers`.
  """
  texts = list(texts)
  backend = tokenizers.Tokenizer(models.WordPiece(unk_token='[UNK]'))
  backend.normalizer = normalizers.BertNormalizer(lowercase=True)
  backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  counts = collections.Counter()
  for text in texts:
    normal = backend.normalizer.normalize_str(text)
    counts.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal))
  if not counts:
    raise TokenizerError(
        f'no text to train a vocabulary from ({len(texts)} empty texts); give texts, or a '
        'vocabulary (--vocab)')
  fixed = [*SPECIAL_TOKENS, *_alphabet(counts, min_frequency=min_frequency)]
  if size < len(fixed):
    raise TokenizerError(
        f'size={size}: special tokens and the alphabet alone are {len(fixed)} tokens; '
        f'ask for at least {len(fixed)}')
  # The trainer numbers its alphabet in hash order, which differs from run to run and
  # then breaks ties of pairs differently. So it gets the alphabet as fixed tokens.
  trainer = trainers.WordPieceTrainer(
      vocab_size=size, min_frequency=min_frequency, special_tokens=fixed, limit_alphabet=0,
      show_progress=False)
  backend.train_from_iterator(texts, trainer)
  ids = backend.get_vocab()
  return sorted(ids, key=ids.get)


def read_vocabulary(path: str | os.PathLike[str]) -> list[str]:
  """Reads a `vocab.txt`, or the `vocab.txt` / `tokenizer.json` of a tokenizer directory.

  Raises:
    TokenizerError: if there is none, or it is not a WordPiece vocabulary with
      [PAD] first.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    found = [path / name for name in ('vocab.txt', 'tokenizer.json') if (path / name).is_file()]
    if not found:
      raise TokenizerError(
          f'{path}: neither vocab.txt nor tokenizer.json in it; give a vocab.txt or the '
          'directory of a BERT tokenizer')
    path = found[0]
  try:
    content = path.read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise TokenizerError(
        f'{path}: cannot be read as UTF-8 text ({error.__class__.__name__}); give a '
        'vocab.txt with one token a line') from error
  if path.suffix == '.json':
    vocabulary = _from_tokenizer_json(content, path=path)
  else:
    # Not splitlines: vocabularies hold separators such as U+2028 as tokens.
    vocabulary = [line.rstrip('\r') for line in content.removeprefix('\ufeff').split('\n')]
    while vocabulary and not vocabulary[-1]:
      vocabulary.pop()
  _check_vocabulary(vocabulary, name=str(path))
  return vocabulary


def to_json(vocabulary: Sequence[str], *, max_pieces: int) -> str:
  """The `tokenizer.json` of a BERT tokenizer that gives the pieces of `Tokenizer`."""
  ids = {token: i for i, token in enumerate(vocabulary)}
  backend = tokenizers.Tokenizer(models.WordPiece(ids, unk_token='[UNK]'))
  backend.normalizer = normalizers.BertNormalizer(lowercase=not is_cased(vocabulary))
  backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  backend.post_processor = processors.BertProcessing(
      ('[SEP]', ids['[SEP]']), ('[CLS]', ids['[CLS]']))
  backend.add_special_tokens(list(SPECIAL_TOKENS))
  backend.enable_truncation(max_pieces)
  return backend.to_str(pretty=True)


def _pre_tokens(
    encoding: tokenizers.Encoding, text: str) -> Iterable[tuple[int, int, str]]:
  """Yields (first piece, end piece, surface form) of each pre-token in order."""
  owners, offsets = encoding.word_ids, encoding.offsets
  first = 0
  for i in range(1, len(owners) + 1):
    if i == len(owners) or owners[i] != owners[first]:
      yield first, i, text[offsets[first][0]:offsets[i - 1][1]]
      first = i


def _alphabet(counts: collections.Counter[str], *, min_frequency: int) -> list[str]:
  """Characters in code order, then their forms inside a word ("##x")."""
  characters = collections.Counter()
  inside = set(string.ascii_lowercase + string.digits)
  for word, count in counts.items():
    for character in word:
      characters[character] += count
    inside.update(word[1:])
  frequent = sorted(
      (c for c, count in characters.items() if count >= min_frequency),
      key=lambda c: (-characters[c], c))[:_MAX_ALPHABET]
  ascii_set = set(string.ascii_lowercase + string.digits + string.punctuation)
  kept = ascii_set.union(frequent)
  return sorted(kept) + [f'##{c}' for c in sorted(inside & kept)]


def _from_tokenizer_json(content: str, *, path: pathlib.Path) -> list[str]:
  """Tokens in id order from the text of a `tokenizer.json`."""
  try:
    tree = json.loads(content)
    model = tree['model']
    ids = dict(model['vocab']) if model.get('type', 'WordPiece') == 'WordPiece' else None
    added = {entry['content']: entry['id'] for entry in tree.get('added_tokens') or ()}
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise TokenizerError(
        f'{path}: not a tokenizer.json with a vocabulary; give a vocab.txt') from error
  if ids is None:
    raise TokenizerError(
        f"{path}: a {model['type']} model; this project needs a WordPiece (BERT) vocabulary")
  ids.update(added)
  if sorted(ids.values()) != list(range(len(ids))):
    raise TokenizerError(
        f'{path}: {len(ids)} tokens whose ids are not 0..{len(ids) - 1}; give a vocab.txt '
        'with one token a line in id order')
  return sorted(ids, key=ids.get)


def _check_vocabulary(vocabulary: Sequence[str], *, name: str):
  """Raises TokenizerError where `vocabulary` is no WordPiece list with [PAD] first."""
  if not vocabulary:
    raise TokenizerError(f'{name}: empty; give a vocab.txt with one token a line')
  missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
  if missing:
    raise TokenizerError(
        f"{name}: lacks {', '.join(missing)}; give a BERT vocabulary, or add them as lines")
  if vocabulary[0] != '[PAD]':
    raise TokenizerError(
        f"{name}: [PAD] has id {list(vocabulary).index('[PAD]')}, must be 0; give a "
        'vocabulary in the layout of BERT, with [PAD] in its first line')
  seen = {}
  for i, token in enumerate(vocabulary):
    if not token:
      raise TokenizerError(f'{name}: line {i + 1} is empty; remove it')
    if token in seen:
      raise TokenizerError(
          f'{name}: line {i + 1} repeats the token of line {seen[token] + 1}; remove one')
    seen[token] = i


def is_cased(vocabulary: Sequence[str]) -> bool:
  """Whether a token other than [CLS], [unused1] ... holds an upper-case letter."""
  return any(
      token != token.lower() for token in vocabulary
      if not (token.startswith('[') and token.endswith(']')))
