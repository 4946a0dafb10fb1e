"""A split's examples with their features, computed once for all tasks."""

import dataclasses
import os
from typing import Any, Iterator, Mapping, Sequence

import cv2
from jaxtyping import Bool, Float
import numpy as np

from plan_jax import errors
from plan_jax import inference
from plan_jax import shapes
from plan_jax.data import augment
from plan_jax.data import records as records_lib
from plan_jax.evals import grounding


class EvaluationError(errors.UserError):
  """Records that cannot be evaluated on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """What a task found.

  `parts` go into metrics.json; `samples` are the values behind the figures, one for each
  image, phrase or query, for paired comparisons; `curves` are (x, y) points by name.
  """

  parts: Mapping[str, Any]
  samples: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  curves: Mapping[str, tuple[Float[np.ndarray, 'n'], Float[np.ndarray, 'n']]] = (
      dataclasses.field(default_factory=dict))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
  """`reports` are those of the rows `reported`: an example may have no report."""

  examples: Sequence[records_lib.Example]
  images: shapes.ImageFeatures
  reports: shapes.TextFeatures
  reported: Sequence[int]

  @property
  def patients(self) -> list[str]:
    return [example.patient or example.id for example in self.examples]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
  """A phrase of one image (its `row` among the examples) and its truth in the frame."""

  row: int
  text: str
  category: str
  truth: Bool[np.ndarray, 'h w']


def encode(
    model: inference.Model,
    directory: str | os.PathLike[str],
    *,
    split: str,
    max_pairs: int,
    seed: int,
    progress: bool,
) -> Encoded:
  """Examples of a split, drawn with `seed` where it has more than `max_pairs`.

  Raises:
    EvaluationError: no pairs in that split.
  """
  examples = draw(directory, split=split, count=max_pairs, seed=seed)
  reported = [k for k, example in enumerate(examples) if example.text.strip()]
  if len(reported) < len(examples):
    note(progress, f'{len(examples) - len(reported)} of {len(examples)} pairs have no report: '
         'they do not count in retrieval')
  images = model.encode_images(
      (example.image for example in examples), count=len(examples), names=names(examples),
      label='images' if progress else '')
  reports = model.encode_texts(
      [examples[k].text for k in reported], name='report', label='reports' if progress else '')
  return Encoded(examples=examples, images=images, reports=reports, reported=reported)


def draw(
    directory: str | os.PathLike[str], *, split: str, count: int, seed: int,
) -> list[records_lib.Example]:
  """Up to `count` examples of a split, in its order.

  Raises:
    EvaluationError: no pairs in that split.
  """
  records = records_lib.Records(directory, split)
  if not len(records):
    raise EvaluationError(
        f'split {split!r} of {directory} has no pairs; evaluate another split, or prepare more')
  chosen = np.arange(len(records))
  if len(records) > count:
    chosen = np.sort(np.random.default_rng(seed).choice(len(records), count, replace=False))
  return [records[int(i)] for i in chosen]


def names(examples: Sequence[records_lib.Example]) -> list[str]:
  """What an error calls the images."""
  return [f'image of record {example.id!r}' for example in examples]


def phrase_targets(example: records_lib.Example, *, row: int) -> Iterator[Target]:
  """The phrases of an example with their truth in the frame of the protocol.

  Boxes and masks that share a lower-cased phrase are one truth, their union; a
  phrase's mask counts where it has one, else its boxes, to whole pixels.
  """
  if not example.phrases:
    return
  height, width = augment.decode_image(example.image).shape
  merged: dict[str, Target] = {}
  for phrase in example.phrases:
    truth = phrase_truth(phrase, height=height, width=width)
    key = normal_text(phrase.text)
    if key in merged:
      truth |= merged[key].truth
    merged[key] = Target(row=row, text=phrase.text, category=phrase.category, truth=truth)
  yield from merged.values()


def phrase_truth(
    phrase: records_lib.Phrase, *, height: int, width: int
) -> Bool[np.ndarray, 'h w']:
  """Mask, or else boxes, of a phrase in the frame; the image has `height` x `width` pixels."""
  if phrase.mask:
    return mask_truth(phrase)
  truth = np.zeros((grounding.FRAME, grounding.FRAME), bool)
  boxes = augment.eval_frame_boxes(
      phrase.boxes, height=height, width=width, size=grounding.FRAME)
  boxes = np.clip(np.floor(boxes), 0, grounding.FRAME).astype(int)
  for x0, y0, x1, y1 in boxes:
    truth[y0:y1, x0:x1] = True
  return truth


def mask_truth(phrase: records_lib.Phrase) -> Bool[np.ndarray, 'h w']:
  """The mask of a phrase that has one, in the frame."""
  mask = cv2.imdecode(np.frombuffer(phrase.mask, np.uint8), cv2.IMREAD_GRAYSCALE)
  return augment.eval_frame_mask(mask > 0, size=grounding.FRAME)


def normal_text(text: str) -> str:
  """Lower case, single spaces."""
  return ' '.join(text.lower().split())


def note(progress: bool, text: str) -> None:
  """Says what comes, where progress is shown."""
  if progress:
    print(text, flush=True)
