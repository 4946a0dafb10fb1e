"""The contact sheet: pictures with the contours of their masks and what they show."""

from collections.abc import Sequence
import pathlib

import cv2
import numpy as np

from plan_jax.data import records
from plan_jax.data.phantom import latent

_COLOURS = (  # BGR, one a finding or device
    (80, 200, 255), (80, 80, 255), (80, 255, 160), (255, 200, 80), (255, 120, 255),
    (255, 255, 90), (60, 160, 255), (120, 255, 60), (200, 200, 200), (170, 170, 255),
    (255, 170, 170))
_ROW = 13  # pixels a line of caption
_LINES = 4
_GAP = 6


def write(
    path: str | pathlib.Path, examples: Sequence[records.Example], *, size: int, columns: int = 6,
) -> None:
  """Draws `examples` (long side `size` pixels) to a PNG: plain above, contours below.

  Raises:
    OSError: if the file cannot be written.
  """
  tiles = [_tile(example, size=size) for example in examples]
  columns = max(1, min(columns, len(tiles)))
  blank = np.zeros((2 * size + _LINES * _ROW + 2 * _GAP, size + _GAP, 3), np.uint8)
  tiles += [blank] * (-len(tiles) % columns)
  rows = [np.hstack(tiles[k:k + columns]) for k in range(0, len(tiles), columns)]
  page = np.vstack(rows) if rows else blank
  pathlib.Path(path).write_bytes(cv2.imencode('.png', page)[1].tobytes())


def _tile(example: records.Example, *, size: int) -> np.ndarray:
  image = cv2.imdecode(np.frombuffer(example.image, np.uint8), cv2.IMREAD_COLOR)
  marked = image.copy()
  tile = np.zeros((2 * size + _LINES * _ROW + 2 * _GAP, size + _GAP, 3), np.uint8)
  names = latent.FINDINGS + latent.DEVICES
  shown: dict[str, str] = {}
  for phrase in example.phrases:
    if phrase.category not in shown:
      shown[phrase.category] = phrase.text
      colour = _COLOURS[names.index(phrase.category)]
      mask = cv2.imdecode(np.frombuffer(phrase.mask, np.uint8), cv2.IMREAD_GRAYSCALE)
      contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
      cv2.drawContours(marked, contours, -1, colour, 1)
  height, width = image.shape[:2]
  tile[:height, :width] = image
  tile[size + 2:size + 2 + height, :width] = marked
  captions = [(text, _COLOURS[names.index(name)]) for name, text in shown.items()]
  for line, (text, colour) in enumerate(captions[:_LINES] or [(latent.NO_FINDING, (255,) * 3)]):
    cv2.putText(tile, text, (1, 2 * size + _GAP + _ROW * line + 8), cv2.FONT_HERSHEY_SIMPLEX,
                0.29, colour, 1, cv2.LINE_AA)
  return tile
