"""Images into the frame that the model sees, and masks and boxes along with them.

A frame is a square of `size` pixels, grey, with the image somewhere in it and
zeros around it; the extent says where. Coordinates are continuous: pixel i covers
i to i + 1. Evaluation has one fixed geometry: the long side becomes
round(size * 256 / 224) pixels, the short side is padded to a square, the centre is
cut out. Training takes one affine map and a change of grey values. No flips:
reports say left and right.
"""

from collections.abc import Sequence
import dataclasses
import math
import struct

import cv2
from jaxtyping import Bool, Float, Int, Shaped, UInt8
import numpy as np

from plan_jax import config
from plan_jax import errors
from plan_jax.data import jpeg

# One reader thread uses one core; the pipeline has several of them.
cv2.setNumThreads(0)

_MAX_PIXELS = 64_000_000  # a full-size radiograph has 8 to 20 million
_PNG_START = b'\x89PNG\r\n\x1a\n'
_JPEG_START = b'\xff\xd8'


class ImageError(errors.UserError):
  """An encoded image that cannot be used; the message names what and the fix."""


def decode_image(data: bytes) -> UInt8[np.ndarray, 'h w']:
  """Decodes a JPEG or PNG to grey values, pixels as stored (no EXIF rotation).

  The size in the header is checked before any pixel is decoded.

  Raises:
    ImageError: if it is neither, damaged, or larger than 64 megapixels.
  """
  width, height = _header_size(data)
  if width * height > _MAX_PIXELS:
    raise ImageError(
        f'image of {width} x {height} pixels: the limit is {_MAX_PIXELS // 10**6} megapixels; '
        'make it smaller')
  image = cv2.imdecode(
      np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
  if image is None:
    raise ImageError(f'image of {len(data)} bytes is damaged; replace it')
  return image


def train_frame(
    image: UInt8[np.ndarray, 'h w'],
    rng: np.random.Generator,
    *,
    size: int,
    settings: config.Augment,
    out: UInt8[np.ndarray, '{size} {size}'] | None = None,
) -> tuple[UInt8[np.ndarray, '{size} {size}'], Int[np.ndarray, '4']]:
  """A random view of `image`: grey values, crop, shift and rotation.

  The crop is a square of `settings.min_area` to 1 of the padded square's area, its
  centre inside the image. The extent is the box around the (rotated) image, and
  zeros fill its corners. Draws six numbers from `rng`, whatever the image.

  `out`, contiguous, gets the frame, which else is a new array.
  """
  draws = rng.uniform(-1.0, 1.0, size=6).tolist()
  height, width = image.shape
  side = max(height, width)
  area = settings.min_area + (1 - settings.min_area) * (draws[0] + 1) / 2
  crop = side * math.sqrt(area)
  centre_x = width / 2 + draws[1] * min((side - crop) / 2, width / 2)
  centre_y = height / 2 + draws[2] * min((side - crop) / 2, height / 2)
  angle = math.radians(settings.rotate_degrees * draws[3])

  # The affine map takes single pixels, so strong reduction needs averages first.
  reduction = int(crop / size)
  if reduction > 1:
    image = _resize(image, max(1, height // reduction), max(1, width // reduction))
  image = _change_grey(
      image, contrast=1 + settings.contrast * draws[4], shift=255 * settings.brightness * draws[5])

  # (x, y) goes to (cos x - sin y + to_x, sin x + cos y + to_y). Plain numbers: numpy takes five
  # times as long for so few, and keeps other threads waiting.
  zoom = size / crop
  cos, sin = math.cos(angle) * zoom, math.sin(angle) * zoom
  to_x = size / 2 - (cos * centre_x - sin * centre_y)
  to_y = size / 2 - (sin * centre_x + cos * centre_y)
  corners = ((0, 0), (width, 0), (0, height), (width, height))
  x0, x1 = _between([cos * x - sin * y + to_x for x, y in corners], size=size)
  y0, y1 = _between([sin * x + cos * y + to_y for x, y in corners], size=size)

  # From (reduced) pixel centres to pixel centres.
  by_x, by_y = width / image.shape[1], height / image.shape[0]
  warp = np.array([
      [cos * by_x, -sin * by_y, to_x + (cos * by_x - sin * by_y) / 2 - 0.5],
      [sin * by_x, cos * by_y, to_y + (sin * by_x + cos * by_y) / 2 - 0.5]])
  frame = cv2.warpAffine(image, warp, (size, size), dst=out, flags=cv2.INTER_LINEAR)
  extent = np.array([y0, x0, y1, x1], np.int32)
  _clear_outside(frame, extent)
  return frame, extent


def eval_frame(
    image: UInt8[np.ndarray, 'h w'], *, size: int,
) -> tuple[UInt8[np.ndarray, '{size} {size}'], Int[np.ndarray, '4']]:
  """The evaluation view of `image`, and its extent."""
  place = _eval_place(*image.shape, size=size)
  return _paste(_resize(image, place.height, place.width), place, size=size), place.extent(size)


def eval_frame_mask(
    mask: Bool[np.ndarray, 'h w'], *, size: int) -> Bool[np.ndarray, '{size} {size}']:
  """A mask of the image, in the evaluation view: True where most of a pixel is inside."""
  place = _eval_place(*mask.shape, size=size)
  share = _resize(mask.astype(np.float32), place.height, place.width)
  return _paste(share, place, size=size) >= 0.5


def eval_frame_boxes(
    boxes: Float[np.ndarray, 'n 4'], *, height: int, width: int, size: int,
) -> Float[np.ndarray, 'n 4']:
  """Boxes of a `height` x `width` image, in pixels of the evaluation view.

  Args:
    boxes: (x0, y0, x1, y1), shares of the image's width and height.

  Returns:
    float32, same order, clipped to the frame (so a box outside the crop has no area).
  """
  place = _eval_place(height, width, size=size)
  scale = (place.width, place.height) * 2
  boxes = np.reshape(boxes, (-1, 4)).astype(np.float64) * scale + (place.left, place.top) * 2
  return np.clip(boxes, 0, size).astype(np.float32)


def from_eval_frame(
    values: Float[np.ndarray, 's s'], *, height: int, width: int,
) -> Float[np.ndarray, '{height} {width}']:
  """A map over the evaluation view, over the whole `height` x `width` image.

  What the crop left out gets the smallest value of the map. float32.
  """
  size = values.shape[0]
  place = _eval_place(height, width, size=size)
  y0, x0, y1, x1 = place.extent(size)
  whole = np.full((place.height, place.width), values.min(), np.float32)
  whole[y0 - place.top:y1 - place.top, x0 - place.left:x1 - place.left] = values[y0:y1, x0:x1]
  return _resize(whole, height, width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Place:
  """Where the resized image lies in the frame, pixels; it may stick out."""

  top: int
  left: int
  height: int
  width: int

  def extent(self, size: int) -> Int[np.ndarray, '4']:
    return np.array([
        max(self.top, 0), max(self.left, 0),
        min(self.top + self.height, size), min(self.left + self.width, size)], np.int32)


def _eval_place(height: int, width: int, *, size: int) -> _Place:
  long_side = round(size * 256 / 224)
  scale = long_side / max(height, width)
  new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
  cut = (long_side - size) // 2
  return _Place(
      top=(long_side - new_height) // 2 - cut, left=(long_side - new_width) // 2 - cut,
      height=new_height, width=new_width)


def _paste(
    image: Shaped[np.ndarray, 'h w'], place: _Place, *, size: int) -> Shaped[np.ndarray, 's s']:
  frame = np.zeros((size, size), image.dtype)
  y0, x0, y1, x1 = place.extent(size)
  frame[y0:y1, x0:x1] = image[
      y0 - place.top:y1 - place.top, x0 - place.left:x1 - place.left]
  return frame


def _resize(
    image: Shaped[np.ndarray, 'h w'], height: int, width: int) -> Shaped[np.ndarray, 'h2 w2']:
  """Area means where it shrinks, else linear."""
  if image.shape == (height, width):
    return image
  shrinks = height * width < image.size
  return cv2.resize(
      image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _change_grey(
    image: UInt8[np.ndarray, 'h w'], *, contrast: float, shift: float,
) -> UInt8[np.ndarray, 'h w']:
  """Contrast about the image's mean, then a shift; clipped to 0..255."""
  mean = cv2.mean(image)[0]
  table = (np.arange(256) - mean) * contrast + mean + shift
  return cv2.LUT(image, np.rint(table.clip(0, 255)).astype(np.uint8))


def _between(values: Sequence[float], *, size: int) -> tuple[int, int]:
  """First and end of the pixels whose centres lie between the least and the largest value."""
  first = min(max(math.ceil(min(values) - 0.5), 0), size - 1)
  return first, min(max(math.floor(max(values) + 0.5), first + 1), size)


def _clear_outside(frame: UInt8[np.ndarray, 'h w'], extent: Int[np.ndarray, '4']):
  """Zeroes, in place, what interpolation smeared over the edge."""
  y0, x0, y1, x1 = extent
  frame[:y0] = 0
  frame[y1:] = 0
  frame[:, :x0] = 0
  frame[:, x1:] = 0


def _header_size(data: bytes) -> tuple[int, int]:
  """(width, height) that a PNG's or JPEG's header states."""
  try:
    if data.startswith(_PNG_START) and data[12:16] == b'IHDR':
      width, height = struct.unpack_from('>II', data, 16)
    elif data.startswith(_JPEG_START):
      height, width = jpeg.frame_size(data)
    else:
      raise ImageError(f'{len(data)} bytes that are neither JPEG nor PNG; convert the image')
  except jpeg.HeaderError as error:
    raise ImageError(f'image of {len(data)} bytes: {error}; replace it') from error
  except struct.error as error:
    raise ImageError(f'image of {len(data)} bytes ends in its header; replace it') from error
  if not width or not height:
    raise ImageError(f'image of {width} x {height} pixels; replace it')
  return width, height
