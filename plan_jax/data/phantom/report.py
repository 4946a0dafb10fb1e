"""From a latent to report text and the phrases that name what was drawn."""

import dataclasses
import re

import numpy as np

from plan_jax.data.phantom import latent
from plan_jax.data.phantom import words

_MOST_WORDS = 62


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """Report text; `phrases` are (index of the finding, words as they stand in the text)."""

  text: str
  phrases: tuple[tuple[int, str], ...]


def write(findings: tuple[latent.Finding, ...], rng: np.random.Generator) -> Report:
  """Findings and impression; true statements only, at most about 65 words."""
  phrases: list[tuple[int, str]] = []
  body, impression = [], []
  for index, finding in enumerate(findings):
    is_device = finding.name in latent.DEVICES
    phrase = phrase_for(finding, rng)
    phrases.append((index, phrase[1:] if phrase[0] in '+~' else phrase))
    body.append(_sentence(phrase, rng, is_device=is_device))
    if not is_device:
      if rng.random() < 0.5:
        phrase = phrase_for(finding, rng)
        phrases.append((index, phrase[1:] if phrase[0] in '+~' else phrase))
      impression.append(_capital(phrase.lstrip('+~')) + '.')
  if not impression:
    # "Normal radiograph" is for a chest without devices.
    impression.append(_pick(rng, words.NORMAL_IMPRESSIONS[bool(findings):]))
  order = rng.permutation(len(impression))
  impression = [impression[k] for k in order]
  if len(impression) > 1 and rng.random() < 0.5:
    impression = [f'{number}. {line}' for number, line in enumerate(impression, 1)]

  indication = f'INDICATION: {_pick(rng, words.INDICATION)}' if rng.random() < 0.15 else ''
  optional = _optional(findings, rng)
  fixed = _count(' '.join(body + impression + [indication])) + 2
  for sentence in optional:
    if fixed + _count(sentence) <= _MOST_WORDS:
      body.append(sentence)
      fixed += _count(sentence)
  body = [body[k] for k in rng.permutation(len(body))]
  for table, chance in ((words.COMPARISON, 0.2), (words.TECHNIQUE, 0.3)):
    sentence = _pick(rng, table)
    if rng.random() < chance and fixed + _count(sentence) <= _MOST_WORDS:
      body.insert(0 if rng.random() < 0.7 else len(body), sentence)
      fixed += _count(sentence)
  text = f'{indication} FINDINGS: {" ".join(body)} IMPRESSION: {" ".join(impression)}'
  text = ' '.join(text.split())  # findings may be empty, as in real reports
  return Report(text=text, phrases=tuple(dict.fromkeys(phrases)))


def phrase_for(finding: latent.Finding, rng: np.random.Generator) -> str:
  """One way to name the finding; a leading '+' marks a plural, '~' an uncountable."""
  both = (finding.name, 'both')
  keys = [(finding.name, finding.kind), (finding.name, None)]
  if finding.side == 'both' and both in words.POSITIVE:
    keys = [both]
  table = next(words.POSITIVE[key] for key in keys if key in words.POSITIVE)
  levels = {name: _pick(rng, table[finding.level]) for name, table in words.LEVELS.items()}
  places = words.PLACES.get((finding.side, finding.zone), ('',))
  return _pick(rng, table).format(
      s=levels['size'], m=levels['severity'], x=levels['extent'], p=_pick(rng, places),
      side=finding.side)


def _sentence(phrase: str, rng: np.random.Generator, *, is_device: bool) -> str:
  number = {'+': 'plural', '~': 'mass'}.get(phrase[0], 'count')
  noun = phrase.lstrip('+~')
  article = 'an' if noun[0].lower() in 'aei' else 'a'
  table = words.DEVICE_SENTENCES if is_device else words.SENTENCES[number]
  sentence = _pick(rng, table).format(n=noun, a=article, A=article.capitalize())
  return _capital(sentence)


def _optional(findings: tuple[latent.Finding, ...], rng: np.random.Generator) -> list[str]:
  """Negations and normal statements that are true of these findings, in random order."""
  present = {finding.name for finding in findings}
  weights, allowed = [], []
  for nouns, weight, absent in words.NEGATED:
    if not present & set(absent):
      allowed.append(nouns)
      weights.append(weight)
  sentences = []
  wanted = min(int(rng.integers(0, 3)), len(allowed))
  share = np.array(weights) / sum(weights)
  chosen = [_pick(rng, allowed[k])
            for k in rng.choice(len(allowed), size=wanted, replace=False, p=share)]
  while chosen:
    group, chosen = chosen[:3], chosen[3:]
    if len(group) == 2 and rng.random() < 0.4:
      chosen, group = group[1:], group[:1]
    nouns = ' or '.join([', '.join(group[:-1]), group[-1]] if len(group) > 1 else group)
    sentences.append(_pick(rng, words.NEGATIONS).format(n=nouns))
  normals = [text for text, absent in words.NORMALS if not present & set(absent)]
  for side in ('right', 'left'):
    here = {f.name for f in findings if side in f.sides}
    elsewhere = present - here
    normals += [text.format(side=side) for text, absent in words.SIDE_NORMALS
                if not here & set(absent) and elsewhere & set(absent)]
  count = min(int(rng.integers(0, 3)), len(normals))
  sentences += [normals[k] for k in rng.choice(len(normals), size=count, replace=False)]
  return [sentences[k] for k in rng.permutation(len(sentences))]


def _pick(rng: np.random.Generator, table) -> str:
  return table[int(rng.integers(len(table)))]


def _capital(text: str) -> str:
  return text[0].upper() + text[1:]


def _count(text: str) -> int:
  return len(re.findall(r'\w+', text))
