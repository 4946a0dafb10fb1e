"""Zero-shot classification with a prompt file."""

import math
import os
from typing import AbstractSet, Any, Iterable, Sequence

from jaxtyping import Bool, Float
import numpy as np
from scipy import special

from plan_jax import inference
from plan_jax import prompts as prompts_lib
from plan_jax import shapes
from plan_jax.data import records as records_lib
from plan_jax.evals import bootstrap
from plan_jax.evals import decisions
from plan_jax.evals import zero_shot
from plan_jax.tasks import examples as examples_lib
from plan_jax.tasks import targets

# Weight of the word matches beside the vectors in a score, both as the logits that were
# trained. Chosen on phantoms of a seed of its own; .2 to .5 do equally well.
MATCH_WEIGHT = 0.3


def run(
    model: inference.Model,
    data: examples_lib.Encoded,
    *,
    classes: Sequence[prompts_lib.ClassPrompts],
    thresholds: Float[np.ndarray, 'k'] | None,
    seed: int,
    replicates: int,
) -> examples_lib.Outcome:
  """AUROC of each class and, with thresholds, accuracy and F1.

  Images without any mark are left out.
  """
  scores = class_scores(model, [data.images], classes=classes)
  labels = [targets.classes_of(example) for example in data.examples]
  is_positive, labelled = truths(labels, classes=classes)
  curves = {
      f'zero_shot/{entry.name}': zero_shot.roc(scores[labelled, k], is_positive[labelled, k])
      for k, entry in enumerate(classes)
      if 0 < is_positive[labelled, k].sum() < labelled.sum()}
  parts = {'zero_shot': figures(
      scores, classes=classes, labels=labels, patients=data.patients,
      with_words=model.matches_words, seed=seed, replicates=replicates)}
  if thresholds is not None:
    parts['zero_shot_decisions'] = decisions.decide(
        scores[labelled], is_positive[labelled], thresholds=thresholds,
        classes=[entry.name for entry in classes], groups=_taken(data.patients, labelled),
        seed=seed, replicates=replicates).as_json()
  return examples_lib.Outcome(
      parts=parts,
      samples={'zero_shot_scores': scores, 'zero_shot_positive': is_positive,
               'zero_shot_labelled': labelled},
      curves=curves)


def thresholds(
    model: inference.Model,
    directory: str | os.PathLike[str],
    *,
    classes: Sequence[prompts_lib.ClassPrompts],
    max_pairs: int,
    seed: int,
    progress: bool,
) -> Float[np.ndarray, 'k'] | None:
  """The thresholds of best F1 on up to `max_pairs` pairs of the validation split.

  NaN for a class that it does not define; None if the records have no validation split.
  """
  if not len(records_lib.Records(directory, 'val')):
    return None
  examples = examples_lib.draw(directory, split='val', count=max_pairs, seed=seed)
  scores = class_scores(
      model, model.image_batches(
          (example.image for example in examples), count=len(examples),
          names=examples_lib.names(examples),
          label='images of validation' if progress else ''), classes=classes)
  is_positive, labelled = truths(
      [targets.classes_of(example) for example in examples], classes=classes)
  return decisions.best_thresholds(scores[labelled], is_positive[labelled])


def class_scores(
    model: inference.Model,
    images: Iterable[shapes.ImageFeatures],
    *,
    classes: Sequence[prompts_lib.ClassPrompts],
) -> Float[np.ndarray, 'n k']:
  """Zero-shot score of each class on each image, larger is likelier.

  Cosine with the positive prompts' ensemble, minus that with the negative prompts'
  where there are any, over the temperature. Where the model was trained with (9), plus
  how well the words of the positive prompts find their regions: log-mean-exp over the
  prompts, since one fitting wording is enough. Negative prompts count by their vectors
  alone: they mostly name what is absent, and such words have no region to find.

  Args:
    model: the towers.
    images: features, in as many parts as memory asks for.
    classes: prompts of each class.

  Source: method (18).
  """
  texts = [text for entry in classes for text in entry.positive]
  positive = model.encode_texts(texts, name='prompt')
  counts = np.array([len(entry.positive) for entry in classes])
  starts = np.cumsum(counts) - counts
  directions = np.stack([
      zero_shot.ensemble(positive.pooled[start:start + count])
      for start, count in zip(starts, counts, strict=True)])
  for k, entry in enumerate(classes):
    if entry.negative:
      directions[k] -= zero_shot.ensemble(
          model.encode_texts(entry.negative, name='prompt').pooled)
  parts = []
  for part in images:
    scores = part.pooled @ directions.T / model.temperature
    if model.matches_words:
      matches = model.match(part, positive)
      scores += MATCH_WEIGHT * np.stack([
          special.logsumexp(matches[:, start:start + count], axis=1) - math.log(count)
          for start, count in zip(starts, counts, strict=True)], axis=1)
    parts.append(scores)
  return np.concatenate(parts)


def truths(
    labels: Sequence[AbstractSet[str] | None], *, classes: Sequence[prompts_lib.ClassPrompts]):
  """(is_positive [n k], labelled [n]): which images are of a class, and which are labelled.

  `labels` are those of `targets.classes_of`.
  """
  is_positive = np.array(
      [[not (row or frozenset()).isdisjoint(entry.labels) for entry in classes]
       for row in labels], bool).reshape(len(labels), len(classes))
  return is_positive, np.array([row is not None for row in labels], bool)


def figures(
    scores: Float[np.ndarray, 'n k'],
    *,
    classes: Sequence[prompts_lib.ClassPrompts],
    labels: Sequence[AbstractSet[str] | None],
    patients: Sequence[str],
    with_words: bool,
    seed: int = 0,
    replicates: int = bootstrap.REPLICATES,
) -> dict[str, Any]:
  """Zero-shot figures of labelled images; the others are left out.

  `scores` are those of `class_scores`, `labels` those of `targets.classes_of`;
  `with_words`: the model's words are part of the scores (a protocol of its own). The
  result also says how many images were left out, and which labels no class stands for.
  """
  is_positive, labelled = truths(labels, classes=classes)
  found = zero_shot.zero_shot(
      scores[labelled], is_positive[labelled], classes=[entry.name for entry in classes],
      groups=_taken(patients, labelled),
      seed=seed, replicates=replicates)
  covered = {label for entry in classes for label in entry.labels}
  seen = {label for row in labels for label in row or ()}
  return {
      **found.as_json(),
      'protocol': zero_shot.PROTOCOL + ('_words' if with_words else ''),
      'unlabelled': int((~labelled).sum()),
      'labels_without_prompts': sorted(seen - covered),
  }


def _taken(patients: Sequence[str], is_taken: Bool[np.ndarray, 'n']) -> list[str]:
  return [patient for patient, taken in zip(patients, is_taken, strict=True) if taken]
