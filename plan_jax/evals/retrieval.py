"""Image-report retrieval over a whole candidate set, duplicate-aware."""

import dataclasses
from typing import Any, Mapping, Sequence

from jaxtyping import Float, Int
import numpy as np

from plan_jax.evals import bootstrap

PROTOCOL = 'retrieval/instance_identical_reports_are_hits'
CUTOFFS = (1, 5, 10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Direction:
  """One direction: R@K (share of queries with a hit in the top K), median rank."""

  recall: Mapping[int, bootstrap.Figure]
  median_rank: bootstrap.Figure

  def as_json(self) -> dict[str, Any]:
    recall = {f'r@{k}': figure.as_json() for k, figure in self.recall.items()}
    return {**recall, 'median_rank': self.median_rank.as_json()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval:
  """Both directions. `distinct_texts` of `candidates` reports are different."""

  image_to_text: Direction
  text_to_image: Direction
  candidates: int
  distinct_texts: int

  def as_json(self) -> dict[str, Any]:
    return {
        'protocol': PROTOCOL,
        'image_to_text': self.image_to_text.as_json(),
        'text_to_image': self.text_to_image.as_json(),
        'candidates': self.candidates,
        'distinct_texts': self.distinct_texts,
    }


def ranks(
    similarity: Float[np.ndarray, 'i j'], *, text_id: Int[np.ndarray, 'j'],
) -> Int[np.ndarray, 'i']:
  """Rank (from 1) of the best hit of each query i among the candidates j.

  Candidate j is a hit of query i when their reports are the same (`text_id`;
  all different = only the query's own partner). A tie with a wrong candidate
  counts against the query, so that a constant model gets no credit.
  """
  is_hit = text_id[:, None] == text_id[None, :]
  best = np.max(
      similarity, axis=1, keepdims=True, where=is_hit, initial=-np.inf)
  return 1 + (~is_hit & (similarity >= best)).sum(axis=1)


def retrieval(
    similarity: Float[np.ndarray, 'i j'],
    *,
    text_id: Sequence[Any],
    groups: Sequence[Any],
    seed: int = 0,
    replicates: int = bootstrap.REPLICATES,
) -> Retrieval:
  """Retrieval figures of n pairs; `similarity[i, j]` of image i and report j.

  `text_id` is equal for identical reports. Queries are resampled by `groups`
  (patients) against the whole, fixed candidate set.
  """
  n = len(similarity)
  if similarity.shape != (n, n) or len(text_id) != n or len(groups) != n:
    raise ValueError(
        f'similarity {similarity.shape}, {len(text_id)} text ids and {len(groups)} groups '
        'disagree: retrieval is over n pairs')
  _, ids = np.unique(np.asarray(text_id), return_inverse=True)
  times = bootstrap.resample(groups, replicates=replicates, seed=seed)
  return Retrieval(
      image_to_text=_direction(ranks(similarity, text_id=ids), times),
      text_to_image=_direction(ranks(similarity.T, text_id=ids), times),
      candidates=n,
      distinct_texts=len(np.unique(ids)),
  )


def _direction(found: Int[np.ndarray, 'n'], times: Float[np.ndarray, 'r n']) -> Direction:
  recall = {
      k: bootstrap.mean_figure((found <= k).astype(np.float64), times) for k in CUTOFFS}
  if not len(found):
    median, spread = np.nan, np.array([])
  else:
    median = float(np.median(found))
    # Weighted (lower) median: the first rank that at least half the draws reach.
    order = np.argsort(found, kind='stable')
    reached = np.cumsum(times[:, order], axis=1)
    middle = (reached < reached[:, -1:] / 2).sum(axis=1)
    spread = found[order][middle].astype(np.float64)
  return Direction(
      recall=recall, median_rank=bootstrap.figure(median, spread, n=len(found)))
