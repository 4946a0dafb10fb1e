"""Boxes, masks and labels of a record's phrases, as heads and protocols take them.

Places are in the evaluation's frame (`grounding.FRAME` pixels a side); their classes are
the phrases' categories.
"""

from typing import Protocol, Sequence

from jaxtyping import Bool
import numpy as np

from plan_jax import prompts
from plan_jax.data import augment
from plan_jax.data import records
from plan_jax.evals import detection
from plan_jax.evals import grounding
from plan_jax.tasks import examples as examples_lib

# Uncertain marks that count as present; all others count as absent. Source: MGCA's
# code, for CheXpert's five classes.
UNCERTAIN_IS_PRESENT = frozenset({
    'atelectasis', 'edema', 'effusion', 'pleural effusion'})


class Marked(Protocol):
  """Classes by mark; `records.Example` is one."""

  labels: Sequence[str]
  negatives: Sequence[str]
  uncertain: Sequence[str]


def classes_of(marked: Marked) -> frozenset[str] | None:
  """The classes that count as present; None for an image without any mark: unlabelled.

  A class that a marked image does not mention counts as absent.
  """
  if not (marked.labels or marked.negatives or marked.uncertain):
    return None
  uncertain = {prompts.normal_label(name) for name in marked.uncertain}
  return frozenset(map(prompts.normal_label, marked.labels)) | (uncertain & UNCERTAIN_IS_PRESENT)


def certain_classes_of(marked: Marked) -> frozenset[str]:
  """The classes that are present; none where any mark, of whichever class, is uncertain.

  Source: CheXpert 5x200 as GLoRIA's and MGCA's code draw it.
  """
  return frozenset() if marked.uncertain else classes_of(marked) or frozenset()


def is_annotated(example: records.Example) -> bool:
  """Whether places were looked for, so that an image without any is an empty one."""
  return example.is_annotated or bool(example.phrases)


def categories(examples: Sequence[records.Example]) -> tuple[str, ...]:
  """All categories of the phrases that have a place, sorted: the class ids."""
  return tuple(sorted({
      phrase.category for example in examples for phrase in example.phrases
      if phrase.mask or len(phrase.boxes)}))


def boxes(example: records.Example, *, classes: Sequence[str]) -> detection.Truth:
  """The boxes of an example in the frame.

  A box that two phrases of a category share counts once; one of which the frame shows
  less than a pixel is left out, as are categories that `classes` lacks.
  """
  found: dict[tuple[float, ...], None] = {}  # keeps order
  if example.phrases:
    height, width = augment.decode_image(example.image).shape
    for phrase in example.phrases:
      if phrase.category not in classes:
        continue
      k = classes.index(phrase.category)
      framed = augment.eval_frame_boxes(
          phrase.boxes, height=height, width=width, size=grounding.FRAME)
      for box in framed[(framed[:, 2:] - framed[:, :2]).min(axis=1, initial=np.inf) >= 1]:
        found[(*box.tolist(), k)] = None
  rows = np.array(list(found), np.float32).reshape(-1, 5)
  return detection.Truth(boxes=rows[:, :4], classes=rows[:, 4].astype(int))


def masks(
    example: records.Example, *, classes: Sequence[str],
) -> Bool[np.ndarray, 'side side k']:
  """The union of each category's masks in the frame; phrases without a mask count nothing."""
  out = np.zeros((grounding.FRAME, grounding.FRAME, len(classes)), bool)
  for phrase in example.phrases:
    if phrase.mask and phrase.category in classes:
      out[:, :, classes.index(phrase.category)] |= examples_lib.mask_truth(phrase)
  return out
