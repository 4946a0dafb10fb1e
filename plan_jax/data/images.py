"""Pictures, masks and boxes of one item -> a stored example (worker side)."""

import hashlib
import io
import os
import warnings

import cv2
import numpy as np
from PIL import Image
from PIL import ImageOps

from plan_jax.data import records
from plan_jax.data import rows as rows_lib

MAX_PIXELS = 100_000_000
JPEG_QUALITY = 95
_TOO_LARGE = f'more than {MAX_PIXELS // 10**6} megapixels'
_SLACK = 1.5  # pixels by which a box may stick out of the picture, then clipped

_Reason = rows_lib.Reason


class _Unusable(Exception):

  def __init__(self, reason: rows_lib.Reason, detail: str):
    super().__init__(detail)
    self.reason, self.detail = reason, detail


def make(item: rows_lib.Item, *, size: int) -> rows_lib.Outcome:
  """Decodes, resizes to `size` pixels on the long side (never up) and stores an item.

  A row with a bad box or mask is rejected alone where another row has the text;
  a bad picture rejects all rows of the item.
  """
  try:
    pixels = _read_grey(item.image)
  except _Unusable as error:
    return _rejected(item, error)
  height, width = pixels.shape
  stored = _resize(pixels, size)
  phrases, labels, sources, rejects = [], [], [], []
  for row in item.rows:
    try:
      phrases += _phrases(row, width=width, height=height, stored=stored.shape)
    except _Unusable as error:
      if row is item.rows[0]:
        return _rejected(item, error)
      rejects.append(row.reject(error.reason, error.detail))
      continue
    labels += row.labels
    sources.append((row.manifest, row.line))
  _, encoded = cv2.imencode('.jpg', stored, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
  example = records.Example(
      id=item.id, image=encoded.tobytes(), text=item.rows[0].text, patient=item.patient,
      split=item.split, labels=tuple(dict.fromkeys(labels)), phrases=tuple(phrases))
  digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
  return rows_lib.Outcome(
      example=example, id=item.id, split=item.split, pixels=digest,
      original=(width, height), stored=stored.shape[::-1],
      sources=tuple(sources), rejects=tuple(rejects))


def _rejected(item: rows_lib.Item, error: _Unusable) -> rows_lib.Outcome:
  return rows_lib.Outcome(
      example=None, rejects=tuple(row.reject(error.reason, error.detail) for row in item.rows))


def _open(path: str) -> Image.Image:
  """Reads the header only; refuses what is too large to decode."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', Image.DecompressionBombWarning)
    try:
      picture = Image.open(path, formats=('JPEG', 'PNG'))
    except Image.DecompressionBombError as error:  # PIL's own limit, above ours
      raise Image.DecompressionBombError(_TOO_LARGE) from error
  width, height = picture.size
  if width * height > MAX_PIXELS:
    picture.close()
    raise Image.DecompressionBombError(f'{width} x {height} pixels, {_TOO_LARGE}')
  return picture


def _read_grey(path: str) -> np.ndarray:
  """Decodes a JPEG or PNG to uint8 [h w]; 16-bit pictures from their range to 0..255."""
  name = os.path.basename(path)
  if not os.path.isfile(path):
    raise _Unusable(_Reason.MISSING_FILE, f'no file {name}')
  try:
    with _open(path) as picture:
      upright = ImageOps.exif_transpose(picture)
      if upright.mode.startswith(('I', 'F')):
        return _to_eight_bits(np.asarray(upright))
      return np.asarray(upright.convert('L'))
  except Image.DecompressionBombError as error:
    raise _Unusable(_Reason.OVERSIZED_IMAGE, f'{name}: {error}') from error
  except Image.UnidentifiedImageError as error:
    raise _Unusable(_Reason.UNREADABLE_IMAGE, f'{name} is not a JPEG or PNG') from error
  # A damaged file makes the decoders raise nearly anything, so not only OSError.
  except Exception as error:
    raise _Unusable(_Reason.UNREADABLE_IMAGE, f'{name}: {_message(error, path)}') from error


def _message(error: Exception, path: str) -> str:
  """The message without the folders of this machine."""
  return str(error).replace(path, os.path.basename(path))[:200] or type(error).__name__


def _to_eight_bits(pixels: np.ndarray) -> np.ndarray:
  low, high = int(pixels.min()), int(pixels.max())
  if low >= 0 and high <= 255:
    return pixels.astype(np.uint8)
  scale = 255.0 / max(high - low, 1)
  return np.rint((pixels.astype(np.float32) - low) * scale).astype(np.uint8)


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
    if annotation.mask:
      is_inside = _read_mask(annotation.mask, width=width, height=height)
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
    with _open(path) as picture:
      if picture.size != (width, height):
        raise _Unusable(
            _Reason.BAD_MASK, f'{name} has {picture.size[0]} x {picture.size[1]} pixels, '
            f'the picture {width} x {height}')
      is_inside = np.asarray(picture.convert('L')) > 0
  except _Unusable:
    raise
  except FileNotFoundError as error:
    raise _Unusable(_Reason.BAD_MASK, f'no file {name}') from error
  except Exception as error:
    raise _Unusable(_Reason.BAD_MASK, f'{name}: {_message(error, path)}') from error
  if not is_inside.any():
    raise _Unusable(_Reason.BAD_MASK, f'{name} is empty')
  return is_inside


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
