"""Pictures that come twice: the same pixels again, or almost the same in another split."""

import collections
import dataclasses
import enum
from typing import Any, Iterable, Mapping, Sequence

from plan_jax.data import likeness
from plan_jax.data import records
from plan_jax.data import rows as rows_lib

_OTHERS = 'excluded'  # what pictures elsewhere are called beside the splits
_RANKS = (*records.SPLITS, _OTHERS)  # of two near-duplicates the later one stays


class Near(enum.StrEnum):
  """What becomes of a picture that has a near-duplicate in another split, or elsewhere."""

  REPORT = 'report'  # counted in the card and listed
  DROP = 'drop'  # rejected: train before val before test before what lies elsewhere


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
  """What is kept.

  Attributes:
    kept: outcomes, part by part; None = not kept.
    counts: records of each split.
    rejects: all of them, in order of their rows.
    near: near-duplicates as they are listed, nearest first, those that were dropped included.
  """

  kept: Sequence[Sequence[rows_lib.Outcome | None]]
  counts: Mapping[str, int]
  rejects: Sequence[rows_lib.Reject]
  near: Sequence[Mapping[str, Any]]


def choose(
    made: Iterable[Sequence[tuple[bool, rows_lib.Outcome]]], early: Sequence[rows_lib.Reject], *,
    near: Near, others: Sequence[likeness.Picture],
) -> Choice:
  """Drops pictures that are there already.

  Args:
    made: (whether there is an example, the outcome), part by part.
    early: rejects of rows that did not become outcomes.
    near: what becomes of near-duplicates across splits.
    others: pictures that lie elsewhere; they count as a split after 'test'.
  """
  seen: dict[str, str] = {}
  kept, rejects = [], list(early)
  for outcomes in made:
    kept.append([])
    for has_example, outcome in outcomes:
      rejects += outcome.rejects
      if not has_example:
        continue
      if outcome.pixels in seen:
        rejects += _reject(outcome, rows_lib.Reason.DUPLICATE_PICTURE,
                           f'the same picture as {seen[outcome.pixels]}')
        kept[-1].append(None)
        continue
      seen[outcome.pixels] = outcome.id
      kept[-1].append(outcome)
  places = [(p, k) for p, outcomes in enumerate(kept)
            for k, outcome in enumerate(outcomes) if outcome is not None]
  found = [kept[p][k] for p, k in places]
  pairs = _near_pairs(found, others)
  if near is Near.DROP:
    gone: set[int] = set()
    # Later splits first: what goes itself must not take another one along.
    for pair in sorted(pairs, key=lambda pair: -_RANKS.index(found[pair.goes].split)):
      if pair.goes in gone or pair.stays in gone:
        continue
      gone.add(pair.goes)
      p, k = places[pair.goes]
      kept[p][k] = None
      rejects += _reject(
          found[pair.goes], rows_lib.Reason.NEAR_DUPLICATE, 'almost the same picture as '
          f'{pair.ids[1]} in {pair.splits[1]} ({pair.distance} of 256 bits differ)')
  counts = collections.Counter(
      outcome.split for outcomes in kept for outcome in outcomes if outcome is not None)
  listed = [{'ids': pair.ids, 'splits': pair.splits, 'distance': pair.distance} for pair in pairs]
  return Choice(
      kept=kept, counts=counts, near=listed,
      rejects=sorted(rejects, key=lambda reject: (reject.manifest, reject.line)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _NearPair:
  """Two near-duplicates: the one that is nearer to training, and the one that would stay.

  `goes` and `stays` are places in the list that was searched, of others after its end.
  """

  goes: int
  stays: int
  ids: tuple[str, str]
  splits: tuple[str, str]
  distance: int


def _near_pairs(
    found: Sequence[rows_lib.Outcome], others: Sequence[likeness.Picture]) -> list[_NearPair]:
  """Nearest first."""
  ids = [*(outcome.id for outcome in found), *(picture.id for picture in others)]
  splits = [*(outcome.split for outcome in found), *(_OTHERS for _ in others)]
  pairs = []
  for pair in likeness.across_splits(
      [*(outcome.likeness for outcome in found), *(picture.hash for picture in others)], splits):
    # Evaluation pictures are fewer, and those elsewhere are written already.
    goes, stays = sorted((pair.first, pair.second), key=lambda i: _RANKS.index(splits[i]))
    pairs.append(_NearPair(
        goes=goes, stays=stays, ids=(ids[goes], ids[stays]), splits=(splits[goes], splits[stays]),
        distance=pair.distance))
  return pairs


def _reject(
    outcome: rows_lib.Outcome, reason: rows_lib.Reason, detail: str) -> list[rows_lib.Reject]:
  """The rows of an example that is not kept."""
  return [rows_lib.Reject(manifest=manifest, line=line, id=outcome.id, reason=reason,
                          detail=detail) for manifest, line in outcome.sources]


def summary(near: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """What the card says about near-duplicates."""
  between = collections.Counter('-'.join(pair['splits']) for pair in near)
  return {'max_distance': likeness.MAX_DISTANCE, 'pairs': len(near),
          'between': dict(sorted(between.items()))}
