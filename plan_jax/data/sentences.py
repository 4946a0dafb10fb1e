"""Sentences of report text: where they end, and what in them is no word.

Reports number their points ("1. ", "2) "), shorten words ("Dr.", "approx."), give
sizes ("1.5 cm") and hold marks where names and dates were removed ("___", "XXXX",
"[**...**]"). None of these ends a sentence.
"""

import re
from typing import Iterator

_PARAGRAPH = re.compile(r'\n[ \t]*(?:\n[ \t]*)+|\n[ \t]*[-*\u2022][ \t]+')  # or a bullet
_ITEM = re.compile(r'(?<![\w.,/:-])(\d{1,2})[.)],?(?=\s+\S|[A-Za-z_(])')
_STOP = re.compile(
    r'[.?!]+["\')\]]*(?=\s|$)'
    r'|(?<=[a-z)X_])\.(?=[A-Z][a-z])')  # the blank was forgotten
_LAST_WORD = re.compile(r'[A-Za-z][A-Za-z.]*$')
_NAMED = re.compile(r'\b(?:dr|mr|mrs|ms|prof)\.?\s+(?:[a-z]\.\s*)*[a-z]$', re.IGNORECASE)
_NEVER_LAST = frozenset(
    ['dr', 'drs', 'mr', 'mrs', 'ms', 'prof', 'st', 'vs', 'approx', 'e.g', 'i.e', 'cf', 'resp'])
_RARELY_LAST = frozenset(  # not where the text goes on in small letters
    ['a.m', 'p.m', 'm.d', 'etc', 'cm', 'mm', 'ml', 'fr', 'jr', 'sr', 'inc'])
_BEFORE_NUMBER = frozenset(['no', 'nos', 'fig', 'se', 'im'])

# A mark with all that is joined to it: "x-XXXX", "___-year-old".
_MARK = re.compile(
    r"(?:\[\*\*.*?\*\*\]|(?<![\w'’-])[\w'’-]*(?:X{3,}|__)[\w'’-]*)+")
_EMPTY = re.compile(r'\(\s*\)|\[\s*\]')
_LOOSE = re.compile(r'\s+([.,;:?!)])')
_WORD = re.compile(r'[^\W_]+')


def split(text: str) -> list[str]:
  """Sentences in order, each on one line; the numbers of a list are left out."""
  found = []
  for paragraph in _PARAGRAPH.split(text):
    for item in _items(paragraph):
      found += [' '.join(part.split()) for part in _cut(item) if _WORD.search(part)]
  return found


def without_marks(text: str) -> str:
  """The text without de-identification marks, what is joined to them included."""
  text = _EMPTY.sub(' ', _MARK.sub(' ', text))
  return ' '.join(_LOOSE.sub(r'\1', text).split())


def count_words(text: str) -> int:
  """Runs of letters and digits, as the protocol counts tokens."""
  return len(_WORD.findall(text))


def _items(text: str) -> Iterator[str]:
  """Points of numbered lists, and what stands before and between them."""
  numbers = [(int(match[1]), match) for match in _ITEM.finditer(text)]
  start, expected = 0, 1
  for position, (number, match) in enumerate(numbers):
    before = text[start:match.start()].rstrip(' \t')
    begins = not before.strip() or before[-1] in '.?!:;\n'
    # Without a stop before it, a number is a point only where the count goes on.
    goes_on = number == expected and text[match.end():].lstrip()[:1].isupper() and (
        number > 1 or any(other == 2 for other, _ in numbers[position + 1:]))
    if begins or goes_on:
      yield text[start:match.start()]
      start, expected = match.end(), number + 1
  yield text[start:]


def _cut(text: str) -> Iterator[str]:
  start = 0
  for match in _STOP.finditer(text):
    if _ends(text[start:match.start()], stop=match[0], after=text[match.end():].lstrip()[:1]):
      yield text[start:match.end()]
      start = match.end()
  yield text[start:]


def _ends(before: str, *, stop: str, after: str) -> bool:
  """Whether a stop between `before` and the character `after` ends the sentence."""
  if stop[0] != '.' or not after:
    return True
  last = _LAST_WORD.search(before)
  word = last[0].lower() if last else ''
  if word in _NEVER_LAST or (len(word) == 1 and _NAMED.search(before)):
    return False
  if word in _BEFORE_NUMBER and after.isdigit():
    return False
  return word not in _RARELY_LAST or after.isupper()
