"""What small heads read off the frozen image tower: labels, boxes and masks.

Each head is fitted on the train split, its strength or step chosen on the validation
split, and measured on the encoded split (the test split, as a rule).
"""

import functools
import os
from typing import Any, Sequence

import numpy as np

from plan_jax import inference
from plan_jax.data import records as records_lib
from plan_jax.evals import detection
from plan_jax.evals import linear_probe
from plan_jax.evals import segmentation
from plan_jax.probes import decoder
from plan_jax.probes import detector
from plan_jax.probes import features
from plan_jax.probes import fit as fit_lib
from plan_jax.tasks import examples as examples_lib
from plan_jax.tasks import targets

TRAIN_PAIRS = 2000
VAL_PAIRS = 500
_CONFIDENT = 0.5  # what MGCA's code calls a detection


class Source:
  """Where heads learn: the train and val splits, read and encoded once for all heads.

  Args:
    directory: of the records.
    train_pairs: the most that are taken of the train split.
    seed: of draws and heads.
    progress: shows it.
  """

  def __init__(
      self, directory: str | os.PathLike[str], *, train_pairs: int, seed: int, progress: bool):
    self.seed, self.progress = seed, progress
    self._directory, self._train_pairs = directory, train_pairs
    self._maps: dict[str, features.Maps] = {}

  @functools.cached_property
  def train(self) -> list[records_lib.Example]:
    return self._draw('train', self._train_pairs)

  @functools.cached_property
  def val(self) -> list[records_lib.Example]:
    return self._draw('val', VAL_PAIRS)

  @functools.cached_property
  def train_places(self) -> list[records_lib.Example]:
    return [e for e in self.train if targets.is_annotated(e)]

  @functools.cached_property
  def val_places(self) -> list[records_lib.Example]:
    return [e for e in self.val if targets.is_annotated(e)]

  @functools.cached_property
  def masked(self) -> tuple[str, ...]:
    """Categories with a mask among the training images."""
    return tuple(sorted({p.category for e in self.train for p in e.phrases if p.mask}))

  def maps(
      self, model: inference.Model, name: str, examples: Sequence[records_lib.Example],
  ) -> features.Maps:
    """The frozen maps of a split."""
    if name not in self._maps:
      found = model.image_maps(
          (e.image for e in examples), count=len(examples), names=examples_lib.names(examples),
          label=self.label(f'{name} maps'))
      self._maps[name] = features.Maps(stages=found.stages, is_cell=found.is_cell)
    return self._maps[name]

  def label(self, text: str) -> str:
    return text if self.progress else ''

  def _draw(self, split: str, count: int) -> list[records_lib.Example]:
    if not len(records_lib.Records(self._directory, split)):
      raise examples_lib.EvaluationError(
          f'{self._directory} has no {split} split, from which linear_probe, detection and '
          'segmentation learn; leave them out, or prepare records with one')
    return examples_lib.draw(self._directory, split=split, count=count, seed=self.seed)


def require_probe(source: Source) -> None:
  """Checks that there are labels to learn from, before anything slow.

  Raises:
    EvaluationError: there are none.
  """
  for name, found in (('train', source.train), ('val', source.val)):
    if all(targets.classes_of(e) is None for e in found):
      raise examples_lib.EvaluationError(
          f'linear_probe: no image of the {name} split has labels; leave the task out')


def require_boxes(source: Source) -> None:
  """The same for boxes."""
  if not any(len(p.boxes) for e in source.train for p in e.phrases):
    raise examples_lib.EvaluationError(
        'detection: no training image has a box; leave the task out')
  _require_val_places(source, task='detection')


def require_masks(source: Source) -> None:
  """The same for masks."""
  if not source.masked:
    raise examples_lib.EvaluationError(
        'segmentation: no training image has a mask; leave the task out')
  _require_val_places(source, task='segmentation')


def _require_val_places(source: Source, *, task: str) -> None:
  if not source.val_places:
    raise examples_lib.EvaluationError(
        f'{task}: nobody looked for places in any image of the val split; leave the task out')


def probe(
    model: inference.Model, data: examples_lib.Encoded, source: Source, *, replicates: int,
) -> examples_lib.Outcome:
  """Linear layers on the pooled feature, for 1, 10 and 100 % of the labels.

  Images without any mark take no part; the result counts them.
  """
  train, val = ([e for e in found if targets.classes_of(e) is not None]
                for found in (source.train, source.val))
  kept = [k for k, example in enumerate(data.examples)
          if targets.classes_of(example) is not None]
  if not kept:
    raise examples_lib.EvaluationError(
        'linear_probe: no evaluated image has labels; leave the task out')
  classes = sorted(set().union(*map(targets.classes_of, train)))

  def positives(examples: Sequence[records_lib.Example]) -> np.ndarray:
    rows = [targets.classes_of(e) for e in examples]
    return np.array([[name in row for name in classes] for row in rows], bool)

  def split(name: str, examples: Sequence[records_lib.Example]) -> linear_probe.Split:
    images = model.encode_images(
        (e.image for e in examples), count=len(examples), names=examples_lib.names(examples),
        label=source.label(f'{name} images'))
    return linear_probe.Split(features=images.backbone, is_positive=positives(examples))

  patients = data.patients
  splits = dict(train=split('train', train), val=split('val', val))
  examples_lib.note(source.progress, 'linear probe: fitting')
  found = linear_probe.linear_probe(
      **splits, classes=classes, groups=[patients[k] for k in kept],
      test=linear_probe.Split(
          features=data.images.backbone[kept],
          is_positive=positives([data.examples[k] for k in kept])),
      seed=source.seed, replicates=replicates)
  unlabelled = len(data.examples) - len(kept)
  return examples_lib.Outcome(
      parts={'linear_probe': {**found.as_json(), 'unlabelled': unlabelled}})


def detect(
    model: inference.Model, data: examples_lib.Encoded, source: Source, *, replicates: int,
) -> examples_lib.Outcome:
  """A detection head on the frozen maps: honest mAP, and MGCA's variant by its name.

  An image without boxes counts as one without findings where somebody looked for places;
  the others take no part, and the result counts them.
  """
  classes = targets.categories(source.train)
  test, groups = _places(data)
  truths = {name: [targets.boxes(e, classes=classes) for e in examples]
            for name, examples in (('train', source.train_places), ('val', source.val_places),
                                   ('test', test))}
  head = detector.train(
      source.maps(model, 'train', source.train_places), truths['train'],
      val_maps=source.maps(model, 'val', source.val_places), val_truths=truths['val'],
      classes=len(classes), settings=fit_lib.Settings(seed=source.seed),
      label=source.label('detection head'))
  found = head.predict(source.maps(model, 'test', test))
  drawing = dict(classes=classes, groups=groups, seed=source.seed, replicates=replicates)
  honest = detection.detection(truths['test'], found, **drawing)
  published = detection.detection(
      truths['test'], [_confident(each) for each in found],
      variant=detection.Variant.SKIPS_EMPTY, **drawing)
  unannotated = len(data.examples) - len(test)
  return examples_lib.Outcome(parts={
      'detection': {**honest.as_json(), 'unannotated': unannotated},
      'detection_mgca_skips_empty': {**published.as_json(), 'unannotated': unannotated}})


def segment(
    model: inference.Model, data: examples_lib.Encoded, source: Source, *, replicates: int,
) -> examples_lib.Outcome:
  """A light decoder on the frozen maps, Dice for 1, 10 and 100 % of the training images.

  Images count as in `detect`.
  """
  classes = source.masked
  test, groups = _places(data)
  maps = source.maps(model, 'train', source.train_places)
  val_maps = source.maps(model, 'val', source.val_places)
  test_maps = source.maps(model, 'test', test)

  def masks(examples: Sequence[records_lib.Example]):
    return (targets.masks(e, classes=classes) for e in examples)

  shares: dict[str, Any] = {}
  for share in linear_probe.SHARES:
    rows, *_ = linear_probe.subset_rows(len(maps), share=share, subsets=1, seed=source.seed)
    head = decoder.train(
        maps.take(rows), masks([source.train_places[k] for k in rows]), val_maps=val_maps,
        val_masks=masks(source.val_places), classes=len(classes),
        settings=fit_lib.Settings(seed=source.seed),
        label=source.label(f'decoder, {share:.0%} of the images'))
    scores = segmentation.score_all(
        head.predict(test_maps), masks(test), classes=len(classes))
    shares[f'{share:g}'] = {'labelled': len(rows), **segmentation.segmentation(
        scores, classes=classes, groups=groups, seed=source.seed,
        replicates=replicates).as_json()}
  return examples_lib.Outcome(
      parts={'segmentation': {'protocol': segmentation.PROTOCOL, 'shares': shares,
                              'unannotated': len(data.examples) - len(test)}})


def _places(data: examples_lib.Encoded) -> tuple[list[records_lib.Example], list[str]]:
  """The evaluated images in which places were looked for, and their patients.

  Raises:
    EvaluationError: there are none.
  """
  kept = [(example, patient) for example, patient in zip(data.examples, data.patients, strict=True)
          if targets.is_annotated(example)]
  if not kept:
    raise examples_lib.EvaluationError(
        'detection, segmentation: nobody looked for places in any evaluated image; leave the '
        'tasks out')
  return [example for example, _ in kept], [patient for _, patient in kept]


def _confident(found: detection.Detections) -> detection.Detections:
  kept = found.scores >= _CONFIDENT
  return detection.Detections(
      boxes=found.boxes[kept], scores=found.scores[kept], classes=found.classes[kept])
