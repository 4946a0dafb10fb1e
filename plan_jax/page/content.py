"""What a page shows: plain data, the same whether texts are to be shown or not."""

import dataclasses
from typing import Any, Mapping, Sequence

from jaxtyping import Bool, Float, UInt8
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordMap:
  """One word of a phrase: its weight omega in the phrase's map (0..1) and its own map.

  `heat` covers the frame, on the model's grid or finer; any scale, larger is likelier.
  """

  text: str
  weight: float
  heat: Float[np.ndarray, 'h w']


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroundingCase:
  """One phrase on one image, all in the square frame that the model sees.

  Attributes:
    id: of the record; shown only with texts.
    image: grey values.
    phrase: patient text.
    category: the finding; shown always.
    heat: map of the whole phrase, on the model's grid or finer; any scale.
    words: the phrase's words in order, each with its own map.
    truth: the region that the phrase names.
    boxes: (x0, y0, x1, y1) in pixels of the frame; drawn unless they are the truth's outline.
    cnr: contrast-to-noise ratio, which orders best and worst cases; NaN where undefined,
      like the next two.
    miou: mean intersection over union.
    pointing: 1 hit, 0 miss.

  Raises:
    ValueError: if image and truth are not one square frame.
  """

  id: str
  image: UInt8[np.ndarray, 's s']
  phrase: str
  category: str
  heat: Float[np.ndarray, 'h w']
  words: Sequence[WordMap]
  truth: Bool[np.ndarray, 's s']
  boxes: Sequence[tuple[float, float, float, float]] = ()
  cnr: float
  miou: float
  pointing: float

  def __post_init__(self):
    side = len(self.image)
    if self.image.shape != (side, side) or self.truth.shape != (side, side):
      raise ValueError(
          f'image {self.image.shape} and truth {self.truth.shape} must be the same square frame')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
  """A report that the model offers for an image; `rank` counts from 1."""

  text: str
  similarity: float
  is_hit: bool
  rank: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrievalCase:
  """An image, its report, the rank of that report (from 1), and the top candidates."""

  id: str
  image: UInt8[np.ndarray, 's s']
  report: str
  rank: int
  candidates: Sequence[Candidate]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
  """Lines in one plot, each (x, y) by name; points that are not finite are left out.

  With `diagonal` both axes run from 0 to 1 and the line of guessing is drawn (ROC).
  """

  title: str
  x_label: str
  y_label: str
  series: Mapping[str, tuple[Float[np.ndarray, 'n'], Float[np.ndarray, 'n']]]
  diagonal: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
  """Everything that an evaluation found.

  Attributes:
    title: of the page.
    facts: what was evaluated (checkpoint, step, data, split, pairs, versions, date);
      shown as they are, so they must hold no patient text.
    results: metrics.json as a whole; every part in it becomes a section.
    is_phantom: whether images and reports are drawn; said at the top.
    curves: plots, in order.
    typical: cases drawn by lot, in order.
    best: cases with the highest CNR.
    worst: cases with the lowest CNR, the failures.
    retrieval: images with the reports found for them, drawn by lot.
    missed: images whose own report came late, the failures.
  """

  title: str
  facts: Mapping[str, str]
  results: Mapping[str, Any]
  is_phantom: bool
  curves: Sequence[Curve] = ()
  typical: Sequence[GroundingCase] = ()
  best: Sequence[GroundingCase] = ()
  worst: Sequence[GroundingCase] = ()
  retrieval: Sequence[RetrievalCase] = ()
  missed: Sequence[RetrievalCase] = ()
