"""Reads a user's picture, a JPEG, PNG or DICOM of any depth, as 8-bit grey values.

`prepare` and inference read through here, so that a model sees the same picture
whichever way it came. Records hold 8-bit grey pictures that need none of this:
training decodes those with `augment.decode_image`.
"""

import contextlib
import io
import os
from typing import Iterator
import warnings

import cv2
from jaxtyping import UInt8, UInt16
import numpy as np
from PIL import Image
from PIL import ImageOps

from plan_jax.data import dicom
from plan_jax.data import rows

MAX_PIXELS = 100_000_000
_TOO_LARGE = f'more than {MAX_PIXELS // 10**6} megapixels'


class DecodeError(ValueError):
  """A picture that cannot be used; `reason` as `prepare` lists it."""

  def __init__(self, reason: rows.Reason, message: str):
    super().__init__(message)
    self.reason = reason


@contextlib.contextmanager
def opened(source: str | bytes, *, name: str) -> Iterator[Image.Image]:
  """A JPEG or PNG whose header is read and whose pixels are not, for use inside `with`.

  Errors of decoding inside the block become errors of this module too.

  Args:
    source: path, or the encoded bytes.
    name: what an error calls it.

  Raises:
    DecodeError: missing, neither JPEG nor PNG, damaged, or of more than MAX_PIXELS.
  """
  with _errors(source, name=name):
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', Image.DecompressionBombWarning)
      picture = Image.open(
          source if isinstance(source, str) else io.BytesIO(source), formats=('JPEG', 'PNG'))
    with picture:
      _check_size(*picture.size, name=name)
      yield picture


def read_grey(source: str | bytes, *, name: str) -> UInt8[np.ndarray, 'h w']:
  """Grey values, upright (EXIF); deeper pictures are scaled from their range to 0..255.

  What the file holds decides how it is read, not its name. DICOM: see `dicom.read_grey`.

  Args:
    source: path, or the encoded bytes.
    name: what an error calls it.

  Raises:
    DecodeError: missing, no JPEG, PNG or DICOM, damaged, or of more than MAX_PIXELS.
  """
  with _errors(source, name=name):
    if dicom.is_dicom(source):
      header = dicom.read_header(source)
      _check_size(header.width, header.height, name=name)
      return dicom.read_grey(source)
  with opened(source, name=name) as picture:
    if _is_deep_colour(picture):
      return _to_eight_bits(_read_deep(source))
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith(('I', 'F')):
      return _to_eight_bits(np.asarray(picture))
    return np.asarray(picture if picture.mode == 'L' else picture.convert('L'))


@contextlib.contextmanager
def _errors(source: str | bytes, *, name: str) -> Iterator[None]:
  if isinstance(source, str) and not os.path.isfile(source):
    raise DecodeError(rows.Reason.MISSING_FILE, f'no file {name}')
  try:
    yield
  except DecodeError:
    raise
  except Image.DecompressionBombError as error:  # PIL's own limit, above ours
    raise DecodeError(rows.Reason.OVERSIZED_IMAGE, f'{name}: {_TOO_LARGE}') from error
  except Image.UnidentifiedImageError as error:
    raise DecodeError(
        rows.Reason.UNREADABLE_IMAGE, f'{name} is not a JPEG, PNG or DICOM') from error
  # A damaged file makes the decoders raise nearly anything, so not only OSError.
  except Exception as error:
    raise DecodeError(rows.Reason.UNREADABLE_IMAGE, f'{name}: {_message(error, source)}') from error


def _check_size(width: int, height: int, *, name: str) -> None:
  if width * height > MAX_PIXELS:
    raise DecodeError(
        rows.Reason.OVERSIZED_IMAGE, f'{name}: {width} x {height} pixels, {_TOO_LARGE}')


def _is_deep_colour(picture: Image.Image) -> bool:
  """A PNG of 16 bits a channel, of which Pillow would keep the upper 8: often all black."""
  return picture.format == 'PNG' and picture.mode in ('RGB', 'RGBA', 'LA') and (
      str(picture.tile[0].args).endswith(';16B'))


def _read_deep(source: str | bytes) -> UInt16[np.ndarray, 'h w']:
  data = np.fromfile(source, np.uint8) if isinstance(source, str) else np.frombuffer(
      source, np.uint8)
  pixels = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
  if pixels is None:
    raise ValueError('damaged')
  return pixels


def _to_eight_bits(pixels: np.ndarray) -> UInt8[np.ndarray, 'h w']:
  low, high = int(pixels.min()), int(pixels.max())
  if low >= 0 and high <= 255:
    return pixels.astype(np.uint8)
  scale = 255.0 / max(high - low, 1)
  return np.rint((pixels.astype(np.float32) - low) * scale).astype(np.uint8)


def _message(error: Exception, source: str | bytes) -> str:
  """The message without the folders of this machine."""
  message = str(error)
  if isinstance(source, str):
    message = message.replace(source, os.path.basename(source))
  return message[:200] or type(error).__name__
