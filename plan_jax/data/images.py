"""Pictures, masks and boxes of one item -> a stored example (worker side)."""

import dataclasses
import hashlib
import io
import os

import cv2
import numpy as np
from PIL import Image

from plan_jax.data import decode
from plan_jax.data import likeness
from plan_jax.data import records
from plan_jax.data import reports
from plan_jax.data import rows as rows_lib

JPEG_QUALITY = 95
_SLACK = 1.5  # pixels by which a box may stick out of the picture, then clipped

_Reason = rows_lib.Reason


class _Unusable(Exception):

  def __init__(self, reason: rows_lib.Reason, detail: str):
    super().__init__(detail)
    self.reason, self.detail = reason, detail


def make(
    item: rows_lib.Item, *, size: int, text: reports.Options = reports.Options(),
    allow_empty_text: bool = False,
) -> rows_lib.Outcome:
  """Decodes, resizes to `size` pixels on the long side (never up) and stores an item.

  A row with a bad box or mask is rejected alone, but for the row that has the text;
  a bad picture rejects all rows of the item, and so does a report, in a file of its own,
  that cannot be read or of which `text` leaves nothing.
  """
  try:
    written = item.rows[0].text or _read_report(item.rows[0], text)
  except _Unusable as error:
    return _rejected(item, error.reason, error.detail)
  if not written and not allow_empty_text:
    return _rejected(item, _Reason.EMPTY_TEXT, 'nothing to train on in the report')
  try:
    pixels = decode.read_grey(item.image, name=os.path.basename(item.image))
  except decode.DecodeError as error:
    return _rejected(item, error.reason, str(error))
  if item.rows[0].photometric is rows_lib.Photometric.MONOCHROME1:
    pixels = 255 - pixels
  height, width = pixels.shape
  stored = _resize(pixels, size)
  phrases, used, rejects = [], [], []
  for row in item.rows:
    try:
      phrases += _phrases(row, width=width, height=height, stored=stored.shape)
    except _Unusable as error:
      if row is item.rows[0] and written:
        return _rejected(item, error.reason, error.detail)
      rejects.append(row.reject(error.reason, error.detail))
      continue
    used.append(row)
  if not used:
    return rows_lib.Outcome(example=None, rejects=tuple(rejects))
  _, encoded = cv2.imencode('.jpg', stored, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
  example = records.Example(
      id=item.id, image=encoded.tobytes(), text=written, patient=item.patient,
      split=item.split, phrases=tuple(phrases),
      # Where a place was lost, no other one does not mean that there is nothing.
      is_annotated=not rejects and any(row.is_annotated for row in used),
      **dataclasses.asdict(rows_lib.marks(used)))
  digest = hashlib.sha256(repr(pixels.shape).encode())
  digest.update(np.ascontiguousarray(pixels))
  return rows_lib.Outcome(
      example=example, id=item.id, split=item.split, pixels=digest.hexdigest(),
      likeness=likeness.picture_hash(stored),
      original=(width, height), stored=stored.shape[::-1],
      sources=tuple((row.manifest, row.line) for row in used), rejects=tuple(rejects))


def _read_report(row: rows_lib.Row, options: reports.Options) -> str:
  """The training text of a report in a file of its own; '' where the row names none."""
  if not row.report:
    return ''
  try:
    with open(row.report, encoding='utf-8-sig') as file:  # editors on Windows write a mark first
      return reports.report_text(file.read(), options=options)
  except FileNotFoundError as error:
    raise _Unusable(
        _Reason.MISSING_FILE, f'no file {os.path.basename(row.report)} (the report)') from error
  except UnicodeDecodeError as error:
    raise _Unusable(
        _Reason.UNREADABLE_REPORT, f'{os.path.basename(row.report)} is not UTF-8 text') from error
  except OSError as error:
    raise _Unusable(
        _Reason.UNREADABLE_REPORT,
        f'{os.path.basename(row.report)}: {type(error).__name__}') from error


def _rejected(item: rows_lib.Item, reason: rows_lib.Reason, detail: str) -> rows_lib.Outcome:
  return rows_lib.Outcome(
      example=None, rejects=tuple(row.reject(reason, detail) for row in item.rows))


def _resize(pixels: np.ndarray, size: int) -> np.ndarray:
  height, width = pixels.shape
  scale = size / max(height, width)
  if scale >= 1:
    return pixels
  shape = (max(1, round(width * scale)), max(1, round(height * scale)))
  return cv2.resize(pixels, shape, interpolation=cv2.INTER_AREA)


def _phrases(
    row: rows_lib.Row, *, width: int, height: int, stored: tuple[int, int],
) -> list[records.Phrase]:
  if row.size not in (None, (width, height)):
    raise _Unusable(
        _Reason.BAD_BOX, f'the row says {row.size[0]} x {row.size[1]} pixels, the picture has '
        f'{width} x {height}: boxes must be in pixels of the file')
  found = []
  for annotation in row.annotations:
    mask, boxes = b'', list(annotation.boxes)
    if annotation.mask or annotation.runs:
      is_inside = (_read_mask(annotation.mask, width=width, height=height) if annotation.mask
                   else _fill_runs(annotation.runs, width=width, height=height))
      boxes = boxes or [_bounding_box(is_inside)]
      mask = _encode_mask(_resize_mask(is_inside, stored))
    found.append(records.Phrase(
        text=annotation.phrase, category=annotation.category, mask=mask,
        boxes=_shares(boxes, width=width, height=height)))
  return found


def _shares(boxes: list[tuple[float, ...]], *, width: int, height: int) -> np.ndarray:
  for x0, y0, x1, y1 in boxes:
    if min(x0, y0) < -_SLACK or x1 > width + _SLACK or y1 > height + _SLACK:
      raise _Unusable(
          _Reason.BAD_BOX, f'box [{x0:g}, {y0:g}, {x1:g}, {y1:g}] leaves the picture of '
          f'{width} x {height} pixels')
  return np.clip(np.array(boxes) / [width, height, width, height], 0, 1).astype(np.float32)


def _read_mask(path: str, *, width: int, height: int) -> np.ndarray:
  """Bool [h w], True inside."""
  name = os.path.basename(path)
  try:
    with decode.opened(path, name=name) as picture:
      if picture.size != (width, height):
        raise _Unusable(
            _Reason.BAD_MASK, f'{name} has {picture.size[0]} x {picture.size[1]} pixels, '
            f'the picture {width} x {height}')
      is_inside = np.asarray(picture.convert('L')) > 0
  except decode.DecodeError as error:
    raise _Unusable(_Reason.BAD_MASK, str(error)) from error
  if not is_inside.any():
    raise _Unusable(_Reason.BAD_MASK, f'{name} is empty')
  return is_inside


def _fill_runs(runs: rows_lib.Runs, *, width: int, height: int) -> np.ndarray:
  """Bool [h w], True inside."""
  if (runs.width, runs.height) != (width, height):
    raise _Unusable(
        _Reason.BAD_MASK, f'the mask has {runs.width} x {runs.height} pixels, the picture '
        f'{width} x {height}')
  flat = np.zeros(width * height, bool)
  ends = np.cumsum(runs.counts)
  for start, end in zip(ends[0::2], ends[1::2]):
    flat[start:end] = True
  if not flat.any():
    raise _Unusable(_Reason.BAD_MASK, 'the mask is empty')
  return flat.reshape(width, height).T


def _bounding_box(is_inside: np.ndarray) -> tuple[float, float, float, float]:
  columns, rows = np.flatnonzero(is_inside.any(0)), np.flatnonzero(is_inside.any(1))
  return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def _resize_mask(is_inside: np.ndarray, stored: tuple[int, int]) -> np.ndarray:
  if is_inside.shape == stored:
    return is_inside
  share = cv2.resize(is_inside.astype(np.float32), stored[::-1], interpolation=cv2.INTER_AREA)
  # A tube narrower than half a stored pixel would vanish: keep what it touches.
  return share > 0.5 if (share > 0.5).any() else share > 0


def _encode_mask(is_inside: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(is_inside).save(buffer, 'PNG')
  return buffer.getvalue()
