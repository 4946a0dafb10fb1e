"""A contact sheet of records: pictures, and below each the same with its places.

Captions are classes and findings, never a report: a sheet is for showing around.
"""

import os
import pathlib
from typing import Mapping, Sequence

import cv2
import numpy as np

from plan_jax import errors
from plan_jax.data import records

_Colour = tuple[int, int, int]  # BGR

NAME = 'sheet.jpg'  # in a directory of records
PICTURES = 24
_SUFFIXES = ('.png', '.jpg', '.jpeg')
_JPEG_QUALITY = 90
_COLOURS = (  # in turn over the findings of the sheet
    (80, 200, 255), (80, 80, 255), (80, 255, 160), (255, 200, 80), (255, 120, 255),
    (255, 255, 90), (60, 160, 255), (120, 255, 60), (200, 200, 200), (170, 170, 255),
    (255, 170, 170))
_WHITE = (255, 255, 255)
_ROW = 13  # pixels a line of caption
_LINES = 4
_GAP = 6
_SIDE = 160  # of a picture on the sheet


class SheetError(errors.UserError):
  """A sheet that cannot be written."""


def require_writable(path: pathlib.Path) -> None:
  """Looks whether a sheet can go there, before the long part.

  Raises:
    SheetError: neither PNG nor JPEG, or its folder does not exist.
  """
  if path.suffix.lower() not in _SUFFIXES:
    raise SheetError(f'--preview {path}: name a file that ends in .png or .jpg.')
  if not path.absolute().parent.is_dir():
    raise SheetError(
        f'--preview {path}: its folder does not exist; make it, or name another file.')


def of_records(path: pathlib.Path, directory: str | pathlib.Path) -> None:
  """Draws up to `PICTURES` records, taken evenly over all splits, to a PNG or JPEG.

  Raises:
    SheetError: the file cannot be written.
  """
  splits = [records.Records(directory, split) for split in records.SPLITS]
  places = [(split, i) for split in splits for i in range(len(split))]
  chosen = np.unique(np.linspace(0, len(places) - 1, min(PICTURES, len(places))).round())
  examples = [places[int(k)][0][places[int(k)][1]] for k in chosen]
  try:
    write(path, examples)
  except OSError as error:
    raise SheetError(
        f'contact sheet {path}: cannot be written ({error}); name another file with --preview.'
    ) from error


def write(
    path: pathlib.Path, examples: Sequence[records.Example], *, columns: int = 6) -> None:
  """Draws `examples` to a PNG or JPEG: plain above, with their places below.

  Raises:
    OSError: if the file cannot be written.
  """
  names = sorted({phrase.category for example in examples for phrase in example.phrases})
  colours = {name: _COLOURS[k % len(_COLOURS)] for k, name in enumerate(names)}
  tiles = [_tile(example, colours=colours) for example in examples]
  columns = max(1, min(columns, len(tiles)))
  blank = np.zeros((2 * _SIDE + _LINES * _ROW + 2 * _GAP, _SIDE + _GAP, 3), np.uint8)
  tiles += [blank] * (-len(tiles) % columns)
  rows = [np.hstack(tiles[k:k + columns]) for k in range(0, len(tiles), columns)]
  page = np.vstack(rows) if rows else blank
  options = [] if path.suffix.lower() == '.png' else [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
  encoded = cv2.imencode(path.suffix, page, options)[1]
  # A sheet that is there is not drawn again: there must be no half of one.
  temporary = path.with_name(f'{path.name}.tmp')
  try:
    temporary.write_bytes(encoded.tobytes())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def _tile(
    example: records.Example, *, colours: dict[str, _Colour]) -> np.ndarray:
  picture = cv2.imdecode(np.frombuffer(example.image, np.uint8), cv2.IMREAD_COLOR)
  scale = _SIDE / max(picture.shape[:2])
  width, height = (max(1, round(x * scale)) for x in picture.shape[1::-1])
  image = cv2.resize(
      picture, (width, height),
      interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
  marked = image.copy()
  shown: dict[str, _Colour] = {}
  for phrase in example.phrases:
    colour = shown[phrase.category] = colours[phrase.category]
    if phrase.mask:
      mask = cv2.imdecode(np.frombuffer(phrase.mask, np.uint8), cv2.IMREAD_GRAYSCALE)
      mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
      contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
      cv2.drawContours(marked, contours, -1, colour, 1)
    else:
      for box in np.rint(phrase.boxes * [width, height, width, height]).astype(int):
        cv2.rectangle(marked, box[:2].tolist(), box[2:].tolist(), colour, 1)
  tile = np.zeros((2 * _SIDE + _LINES * _ROW + 2 * _GAP, _SIDE + _GAP, 3), np.uint8)
  tile[:height, :width] = image
  tile[_SIDE + 2:_SIDE + 2 + height, :width] = marked
  captions = _captions(shown, example.labels)
  for line, (text, colour) in enumerate(captions):
    cv2.putText(tile, text, (1, 2 * _SIDE + _GAP + _ROW * line + 8), cv2.FONT_HERSHEY_SIMPLEX,
                0.29, colour, 1, cv2.LINE_AA)
  return tile


def _captions(
    shown: Mapping[str, _Colour], labels: Sequence[str]) -> list[tuple[str, _Colour]]:
  """Lines and their colours: findings with a place, then other classes; the last may be a count."""
  lines = [*shown.items(), *((label, _WHITE) for label in labels if label not in shown)]
  if len(lines) <= _LINES:
    return lines
  return [*lines[:_LINES - 1], (f'and {len(lines) - _LINES + 1} more', _WHITE)]
