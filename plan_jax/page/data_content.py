"""What a page about records shows: plain data, the same whether texts are to be shown or not."""

import dataclasses
from typing import Mapping, Sequence

from jaxtyping import Bool, Float, UInt8
import numpy as np

from plan_jax.page import content
from plan_jax.page import pictures

_SIDE = 320  # pixels of a sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """Text and numbers as they are to be shown; the first column names the row."""

  caption: str
  columns: Sequence[str]
  rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
  """A phrase with its place in the image; `text` is patient text, `category` is shown always."""

  category: str
  text: str
  boxes: Float[np.ndarray, 'n 4']  # x0, y0, x1, y1, shares of width and height
  mask: Bool[np.ndarray, 'h w'] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
  """A record drawn by lot; `id` and `text` are shown only with texts."""

  id: str
  split: str
  image: UInt8[np.ndarray, 'h w']
  labels: Sequence[str]
  text: str
  places: Sequence[Place]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataPage:
  """Everything that was found in a directory of records.

  Attributes:
    title: of the page.
    facts: from the card; shown as they are, so they must hold no patient text.
    is_phantom: whether images and reports are drawn.
    tables: counts.
    problems: one line each, without text and id of a record; () if all is well.
    problem_count: how many there are in all.
    curves: histograms.
    samples: in the order of the records.
  """

  title: str
  facts: Mapping[str, str]
  is_phantom: bool
  tables: Sequence[Table]
  problems: Sequence[str]
  problem_count: int
  curves: Sequence[content.Curve]
  samples: Sequence[Sample]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleView:
  """A sample as the template takes it; lengths in pixels of the stored image."""

  number: int
  id: str
  split: str
  width: int
  height: int
  image: str
  boxes: Sequence[tuple[float, float, float, float]]  # x, y, width, height
  outlines: Sequence[str]
  labels: Sequence[str]
  places: Sequence[str]  # phrases, or their categories
  words: int
  text: str


def sample_view(sample: Sample, *, number: int, include_text: bool) -> SampleView:
  """Without `include_text` the view holds no letter of phrases, reports and ids."""
  height, width = sample.image.shape
  scale = np.array([width, height, width, height])
  boxes = [box * scale for place in sample.places if place.mask is None for box in place.boxes]
  return SampleView(
      number=number, id=sample.id if include_text else '', split=sample.split,
      width=width, height=height, image=pictures.image_uri(sample.image, side=_SIDE),
      boxes=[(round(float(x0), 1), round(float(y0), 1), round(float(x1 - x0), 1),
              round(float(y1 - y0), 1)) for x0, y0, x1, y1 in boxes],
      outlines=[pictures.outline(place.mask) for place in sample.places
                if place.mask is not None],
      labels=sample.labels,
      places=list(dict.fromkeys(
          place.text if include_text else place.category for place in sample.places)),
      words=len(sample.text.split()), text=sample.text if include_text else '')
