"""What small heads read off the frozen image tower: labels, boxes and masks.

Each head is fitted on the train split, its strength or step chosen on the validation
split, and measured on the encoded split (the test split, as a rule).
"""

import dataclasses
import os
from typing import Any, Sequence

import numpy as np

from plan_jax import inference
from plan_jax import prompts as prompts_lib
from plan_jax.data import records as records_lib
from plan_jax.evals import detection
from plan_jax.evals import linear_probe
from plan_jax.evals import segmentation
from plan_jax.probes import decoder
from plan_jax.probes import detector
from plan_jax.probes import features
from plan_jax.probes import fit as fit_lib
from plan_jax.probes import targets
from plan_jax.tasks import examples as examples_lib

TRAIN_PAIRS = 2000
_VAL_PAIRS = 500
_CONFIDENT = 0.5  # what MGCA's code calls a detection


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """Where heads learn: records, and how many of them."""

  directory: str | os.PathLike[str]
  train_pairs: int
  seed: int
  progress: bool

  def draw(self, split: str) -> list[records_lib.Example]:
    count = self.train_pairs if split == 'train' else _VAL_PAIRS
    return examples_lib.draw(self.directory, split=split, count=count, seed=self.seed)

  def label(self, text: str) -> str:
    return text if self.progress else ''


def probe(
    model: inference.Model, data: examples_lib.Encoded, source: Source, *, replicates: int,
) -> examples_lib.Outcome:
  """Linear layers on the pooled feature, for 1, 10 and 100 % of the labels.

  Raises:
    EvaluationError: no labels to learn from.
  """
  splits = {name: [e for e in source.draw(name) if e.labels] for name in ('train', 'val')}
  kept = [k for k, example in enumerate(data.examples) if example.labels]
  classes = sorted({prompts_lib.normal_label(label) for e in splits['train'] for label in e.labels})
  for name, found in (*splits.items(), ('evaluated', kept)):
    if not found:
      raise examples_lib.EvaluationError(
          f'linear_probe: no image of the {name} split has labels; leave the task out')

  def positives(examples: Sequence[records_lib.Example]) -> np.ndarray:
    rows = [{prompts_lib.normal_label(label) for label in e.labels} for e in examples]
    return np.array([[name in row for name in classes] for row in rows], bool)

  def split(name: str) -> linear_probe.Split:
    examples = splits[name]
    images = model.encode_images(
        (e.image for e in examples), count=len(examples), names=examples_lib.names(examples),
        label=source.label(f'{name} images'))
    return linear_probe.Split(features=images.backbone, is_positive=positives(examples))

  patients = data.patients
  train, val = split('train'), split('val')
  examples_lib.note(source.progress, 'linear probe: fitting')
  found = linear_probe.linear_probe(
      train=train, val=val, classes=classes, groups=[patients[k] for k in kept],
      test=linear_probe.Split(
          features=data.images.backbone[kept],
          is_positive=positives([data.examples[k] for k in kept])),
      seed=source.seed, replicates=replicates)
  return examples_lib.Outcome(parts={'linear_probe': found.as_json()})


def detect(
    model: inference.Model, data: examples_lib.Encoded, source: Source, *, replicates: int,
) -> examples_lib.Outcome:
  """A detection head on the frozen maps: honest mAP, and MGCA's variant by its name.

  Raises:
    EvaluationError: no boxes to learn from.
  """
  train, val = source.draw('train'), source.draw('val')
  classes = targets.categories(train)
  truths = {name: [targets.boxes(e, classes=classes) for e in examples]
            for name, examples in (('train', train), ('val', val), ('test', data.examples))}
  if not any(len(truth.boxes) for truth in truths['train']):
    raise examples_lib.EvaluationError(
        'detection: no training image has a box; leave the task out')
  head = detector.train(
      _maps(model, train, source.label('train maps')), truths['train'],
      val_maps=_maps(model, val, source.label('val maps')), val_truths=truths['val'],
      classes=len(classes), settings=fit_lib.Settings(seed=source.seed),
      label=source.label('detection head'))
  found = head.predict(_maps(model, data.examples, source.label('maps')))
  drawing = dict(classes=classes, groups=data.patients, seed=source.seed, replicates=replicates)
  honest = detection.detection(truths['test'], found, **drawing)
  published = detection.detection(
      truths['test'], [_confident(each) for each in found],
      variant=detection.Variant.SKIPS_EMPTY, **drawing)
  return examples_lib.Outcome(parts={
      'detection': honest.as_json(), 'detection_mgca_skips_empty': published.as_json()})


def segment(
    model: inference.Model, data: examples_lib.Encoded, source: Source, *, replicates: int,
) -> examples_lib.Outcome:
  """A light decoder on the frozen maps, Dice for 1, 10 and 100 % of the training images.

  Raises:
    EvaluationError: no masks to learn from.
  """
  train, val = source.draw('train'), source.draw('val')
  classes = tuple(sorted({p.category for e in train for p in e.phrases if p.mask}))
  if not classes:
    raise examples_lib.EvaluationError(
        'segmentation: no training image has a mask; leave the task out')
  maps, val_maps = (_maps(model, examples, source.label(f'{name} maps'))
                    for name, examples in (('train', train), ('val', val)))
  test_maps = _maps(model, data.examples, source.label('maps'))

  def masks(examples: Sequence[records_lib.Example]):
    return (targets.masks(e, classes=classes) for e in examples)

  shares: dict[str, Any] = {}
  for share in linear_probe.SHARES:
    rows, = linear_probe.subset_rows(len(train), share=share, subsets=1, seed=source.seed)
    head = decoder.train(
        maps.take(rows), masks([train[k] for k in rows]), val_maps=val_maps,
        val_masks=masks(val), classes=len(classes), settings=fit_lib.Settings(seed=source.seed),
        label=source.label(f'decoder, {share:.0%} of the images'))
    scores = segmentation.score_all(
        head.predict(test_maps), masks(data.examples), classes=len(classes))
    shares[f'{share:g}'] = {'labelled': len(rows), **segmentation.segmentation(
        scores, classes=classes, groups=data.patients, seed=source.seed,
        replicates=replicates).as_json()}
  return examples_lib.Outcome(
      parts={'segmentation': {'protocol': segmentation.PROTOCOL, 'shares': shares}})


def _maps(model: inference.Model, examples, label: str) -> features.Maps:
  maps = model.image_maps(
      (e.image for e in examples), count=len(examples), names=examples_lib.names(examples),
      label=label)
  return features.Maps(stages=maps.stages, is_cell=maps.is_cell)


def _confident(found: detection.Detections) -> detection.Detections:
  kept = found.scores >= _CONFIDENT
  return detection.Detections(
      boxes=found.boxes[kept], scores=found.scores[kept], classes=found.classes[kept])
