"""Image-report retrieval over all pairs of a split."""

from typing import Any

from jaxtyping import Float, Int
import numpy as np

from plan_jax import inference
from plan_jax.evals import retrieval
from plan_jax.tasks import examples as examples_lib
from plan_jax.tasks import grounding
from plan_jax.tasks import targets
from plan_jax.tasks import zero_shot

PER_CLASS = 200  # of the class-level form, as in CheXpert 5x200


def run(
    model: inference.Model,
    data: examples_lib.Encoded,
    *,
    seed: int,
    replicates: int,
    progress: bool,
) -> tuple[examples_lib.Outcome, Float[np.ndarray, 'n n']]:
  """Instance and class level by the vectors, and by vectors and words where words match.

  Also returns the last scores (images by reports), for pictures.

  Source: method (18).
  """
  scores, name = vector_scores(data), 'retrieval'
  parts, samples = _measure(data, scores, name=name, seed=seed, replicates=replicates)
  if model.matches_words and len(scores):
    scores = scores / model.temperature + zero_shot.MATCH_WEIGHT * model.match(
        grounding.take(data.images, list(data.reported)), data.reports,
        label='words of all pairs' if progress else '')
    name = 'retrieval_words'
    more = _measure(data, scores, name=name, seed=seed, replicates=replicates)
    parts, samples = parts | more[0], samples | more[1]
  curves = {f'recall/{way}': _recall_curve(samples[f'{name}/{way}'])
            for way in ('image_to_text', 'text_to_image')}
  return examples_lib.Outcome(parts=parts, samples=samples, curves=curves), scores


def vector_scores(data: examples_lib.Encoded) -> Float[np.ndarray, 'n n']:
  """Cosine of every image with every report, over the pairs that have a report."""
  return data.images.pooled[list(data.reported)] @ data.reports.pooled.T


def quick(data: examples_lib.Encoded) -> dict[int, float]:
  """R@K, mean of both directions, without intervals."""
  scores, ids = vector_scores(data), text_ids(data)
  both = [retrieval.ranks(scores, text_id=ids), retrieval.ranks(scores.T, text_id=ids)]
  return {k: float(np.mean([(found <= k).mean() for found in both]))
          for k in retrieval.CUTOFFS if len(scores)}


def _measure(data, scores, *, name, seed, replicates) -> tuple[dict[str, Any], dict[str, Any]]:
  """Parts of metrics.json and each query's rank."""
  rows = list(data.reported)
  groups, ids = [data.patients[k] for k in rows], text_ids(data)
  drawing = dict(seed=seed, replicates=replicates)
  suffix = '_words' if name.endswith('_words') else ''
  found = retrieval.retrieval(scores, groups=groups, text_id=ids, **drawing).as_json()
  parts = {name: {**found, 'protocol': found['protocol'] + suffix}}
  sample = retrieval.balanced_sample(
      [targets.certain_classes_of(data.examples[k]) for k in rows], per_class=PER_CLASS, seed=seed)
  if len(np.unique(sample.class_id)) > 1:
    drawn = [groups[k] for k in sample.rows]
    by_class = retrieval.class_retrieval(
        scores[np.ix_(sample.rows, sample.rows)], image_class=sample.class_id,
        text_class=sample.class_id, image_groups=drawn, text_groups=drawn, **drawing).as_json()
    parts[f'class_{name}'] = {**by_class, 'protocol': by_class['protocol'] + suffix}
  samples = {f'{name}/image_to_text': retrieval.ranks(scores, text_id=ids),
             f'{name}/text_to_image': retrieval.ranks(scores.T, text_id=ids)}
  return parts, samples


def text_ids(data: examples_lib.Encoded) -> Int[np.ndarray, 'n']:
  """A number for each report, the same for identical ones."""
  texts = [examples_lib.normal_text(data.examples[k].text) for k in data.reported]
  return np.unique(np.array(texts, np.str_), return_inverse=True)[1]


def _recall_curve(ranks: Int[np.ndarray, 'n']) -> tuple[np.ndarray, np.ndarray]:
  """Share of queries found within the first K candidates, for K up to 10 % of them."""
  cutoffs = np.arange(1, max(2, -(-len(ranks) // 10) + 1))
  return cutoffs, (ranks[:, None] <= cutoffs).mean(0) if len(ranks) else cutoffs * 0.0
