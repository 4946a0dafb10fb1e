"""Cases as the template shows them. What is patient text ends here unless it is wanted:

a view without texts holds no letter of a phrase, a word, a report or an id.
"""

import dataclasses
import math
import re
from typing import Sequence

from plan_jax.page import content
from plan_jax.page import pictures

_LONG = 180  # characters of a candidate that are shown at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class MapView:
  """A map to choose; `width` of the bar below it is its weight, 0..100."""

  name: str
  uri: str
  weight: str
  width: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroundingView:
  """`maps` starts with that of the whole phrase. `phrase` is '' where the words say it all."""

  number: int
  id: str
  category: str
  side: int
  image: str
  outline: str
  boxes: Sequence[tuple[float, float, float, float]]
  phrase: str
  maps: Sequence[MapView]
  cnr: str
  miou: str
  pointing: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class CandidateView:
  """`start` is the beginning of a long text, '' for a short one; `width` is of the bar."""

  rank: int
  similarity: str
  width: float
  is_hit: bool
  text: str
  start: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrievalView:
  """A retrieval case as the template takes it; `report` '' without texts."""

  number: int
  id: str
  side: int
  image: str
  report: str
  rank: int
  candidates: Sequence[CandidateView]


def grounding_views(
    cases: Sequence[content.GroundingCase], *, first: int, include_text: bool,
) -> list[GroundingView]:
  """Views numbered from `first`."""
  return [_grounding_view(case, number=number, include_text=include_text)
          for number, case in enumerate(cases, start=first)]


def retrieval_views(
    cases: Sequence[content.RetrievalCase], *, first: int, include_text: bool,
) -> list[RetrievalView]:
  """Views numbered from `first`; bars have one scale over all cases."""
  top = max((candidate.similarity for case in cases for candidate in case.candidates
             if math.isfinite(candidate.similarity)), default=0)
  views = []
  for number, case in enumerate(cases, start=first):
    candidates = [
        _candidate_view(candidate, top=top, include_text=include_text)
        for candidate in sorted(case.candidates, key=lambda candidate: candidate.rank)]
    views.append(RetrievalView(
        number=number, id=case.id if include_text else '', side=len(case.image),
        image=pictures.image_uri(case.image), report=case.report if include_text else '',
        rank=case.rank, candidates=candidates))
  return views


def by_cnr(
    cases: Sequence[content.GroundingCase], *, best_first: bool,
) -> list[content.GroundingCase]:
  """Falling or rising scores, NaN at the end."""
  sign = -1 if best_first else 1
  return sorted(cases, key=lambda case: (math.isnan(case.cnr), sign * case.cnr))


def _grounding_view(case, *, number: int, include_text: bool) -> GroundingView:
  names = [word.text if include_text else f'word {k}' for k, word in enumerate(case.words, 1)]
  heaviest = max((word.weight for word in case.words if word.weight > 0), default=1)
  maps = [MapView(name='whole phrase', uri=pictures.heat_uri(case.heat), weight='', width=0)]
  for name, word in zip(names, case.words, strict=True):
    share = min(1, max(0, word.weight / heaviest)) if math.isfinite(word.weight) else 0
    maps.append(MapView(
        name=name, uri=pictures.heat_uri(word.heat), weight=_number(word.weight),
        width=round(100 * share, 1)))
  says_more = _letters(case.phrase) != _letters(' '.join(names))
  return GroundingView(
      number=number, id=case.id if include_text else '', category=case.category,
      side=len(case.image), image=pictures.image_uri(case.image),
      outline=pictures.outline(case.truth),
      boxes=pictures.boxes_beside(case.boxes, case.truth),
      phrase=case.phrase if include_text and says_more else '', maps=maps,
      cnr=_number(case.cnr), miou=_number(case.miou),
      pointing='undefined' if math.isnan(case.pointing) else 'hit' if case.pointing else 'miss')


def _candidate_view(candidate, *, top: float, include_text: bool) -> CandidateView:
  text = ' '.join(candidate.text.split()) if include_text else ''
  start = text[:_LONG].rsplit(' ', 1)[0] + ' …' if len(text) > 1.2 * _LONG else ''
  share = min(1, max(0, candidate.similarity / top)) if top > 0 else 0
  return CandidateView(
      rank=candidate.rank, similarity=_number(candidate.similarity), is_hit=candidate.is_hit,
      width=round(100 * share, 1) if math.isfinite(share) else 0, text=text, start=start)


def _letters(text: str) -> str:
  return re.sub(r'\W', '', text.lower())


def _number(value: float) -> str:
  return f'{value:.2f}' if math.isfinite(value) else 'undefined'
