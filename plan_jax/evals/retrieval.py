"""Image-report retrieval over a whole candidate set: the pair's own report, or its class."""

import dataclasses
from typing import Any, Iterable, Mapping, Sequence

from jaxtyping import Bool, Float, Int
import numpy as np

from plan_jax.evals import bootstrap

PROTOCOL = 'retrieval/instance_identical_reports_are_hits'
CUTOFFS = (1, 5, 10)
CLASS_PROTOCOL = 'retrieval/class_precision'
CLASS_CUTOFFS = (1, 2, 5, 10, 100)


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassDirection:
  """One direction: P@K, and what a random order of the candidates would give."""

  precision: Mapping[int, bootstrap.Figure]
  chance: float

  def as_json(self) -> dict[str, Any]:
    chance = None if np.isnan(self.chance) else round(self.chance, 6)
    return {**{f'p@{k}': figure.as_json() for k, figure in self.precision.items()},
            'chance': chance}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassRetrieval:
  """Class-level retrieval in both directions, over all candidates."""

  image_to_text: ClassDirection
  text_to_image: ClassDirection
  images: int
  texts: int
  classes: int

  def as_json(self) -> dict[str, Any]:
    return {
        'protocol': CLASS_PROTOCOL,
        'image_to_text': self.image_to_text.as_json(),
        'text_to_image': self.text_to_image.as_json(),
        'images': self.images,
        'texts': self.texts,
        'classes': self.classes,
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class BalancedSample:
  """Examples of one class each: their positions (ascending) and class ids."""

  rows: Int[np.ndarray, 'n']
  class_id: Int[np.ndarray, 'n']
  classes: tuple[str, ...]  # by id


def ranks(
    similarity: Float[np.ndarray, 'i j'], *, text_id: Int[np.ndarray, 'j'],
) -> Int[np.ndarray, 'i']:
  """Rank (from 1) of the best hit of each query i among the candidates j.

  Candidate j is a hit of query i when their reports are the same (`text_id`;
  all different = only the query's own partner). A tie with a wrong candidate
  counts against the query, so that a constant model gets no credit.
  """
  if np.isnan(similarity).any():
    raise ValueError('similarities are not numbers: the model has diverged')
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


def class_retrieval(
    similarity: Float[np.ndarray, 'i j'],
    *,
    image_class: Sequence[Any],
    text_class: Sequence[Any],
    image_groups: Sequence[Any],
    text_groups: Sequence[Any],
    cutoffs: Sequence[int] = CLASS_CUTOFFS,
    seed: int = 0,
    replicates: int = bootstrap.REPLICATES,
) -> ClassRetrieval:
  """P@K of i images and j texts: the mean over queries of the share of hits in the top K.

  A hit has the query's class. A tie of a hit with a miss counts against the query. A
  cutoff larger than the candidate set is left out. Queries are resampled by their
  groups (patients) against the whole, fixed candidate set.

  Source: ConVIRT (Zhang et al., MLHC 2022), GLoRIA (Huang et al., ICCV 2021).
  """
  images, texts = similarity.shape
  if (len(image_class), len(image_groups)) != (images, images) or (
      len(text_class), len(text_groups)) != (texts, texts):
    raise ValueError(
        f'similarity {similarity.shape}, {len(image_class)} image classes with '
        f'{len(image_groups)} groups and {len(text_class)} text classes with '
        f'{len(text_groups)} groups disagree: one row an image, one column a text')
  named, ids = np.unique([*image_class, *text_class], return_inverse=True)
  image_id, text_id = ids[:images], ids[images:]

  def direction(scores, query, candidate, groups):
    return _class_direction(
        scores, query[:, None] == candidate[None, :], cutoffs=cutoffs,
        times=bootstrap.resample(groups, replicates=replicates, seed=seed))

  return ClassRetrieval(
      image_to_text=direction(similarity, image_id, text_id, image_groups),
      text_to_image=direction(similarity.T, text_id, image_id, text_groups),
      images=images, texts=texts, classes=len(named))


def balanced_sample(
    classes_of: Sequence[Iterable[str]],
    *,
    per_class: int,
    seed: int,
    classes: Sequence[str] | None = None,
) -> BalancedSample:
  """Up to `per_class` examples of each class that have this label and no other.

  `classes` are all labels, sorted, unless given. A label outside `classes` still
  excludes its example.

  Source: CheXpert 5x200 as GLoRIA's code draws it (Huang et al., ICCV 2021).
  """
  labels = [frozenset(row) for row in classes_of]
  if classes is None:
    classes = sorted(frozenset().union(*labels))
  rng = np.random.default_rng(seed)
  rows, ids = [], []
  for k, name in enumerate(classes):
    found = [i for i, row in enumerate(labels) if row == {name}]
    drawn = rng.choice(found, min(per_class, len(found)), replace=False) if found else []
    rows += [int(i) for i in drawn]
    ids += [k] * len(drawn)
  order = np.argsort(np.array(rows, int), kind='stable')
  return BalancedSample(
      rows=np.array(rows, int)[order], class_id=np.array(ids, int)[order],
      classes=tuple(classes))


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


def _class_direction(
    scores: Float[np.ndarray, 'q c'],
    is_hit: Bool[np.ndarray, 'q c'],
    *,
    cutoffs: Sequence[int],
    times: Float[np.ndarray, 'r q'],
) -> ClassDirection:
  # Best first; of equals the misses come first.
  order = np.lexsort((is_hit, -np.asarray(scores, np.float64)), axis=1)
  hits = np.cumsum(np.take_along_axis(is_hit, order, axis=1), axis=1)
  precision = {
      k: bootstrap.mean_figure(hits[:, k - 1] / k, times)
      for k in cutoffs if k <= is_hit.shape[1]}
  return ClassDirection(
      precision=precision, chance=float(is_hit.mean()) if is_hit.size else float('nan'))
