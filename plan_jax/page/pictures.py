"""Pictures as data URIs, small enough that a page with hundreds of maps stays light."""

import base64
import io
from typing import Sequence

import cv2
from jaxtyping import Bool, Float, UInt8
import numpy as np
from PIL import Image

_IMAGE_SIDE = 512  # pixels at most: what a phone can show
_IMAGE_QUALITY = 85
_HEAT_SIDE = 56  # pixels; maps are smooth, and browsers interpolate
_LEVELS = 96  # of colour and opacity
_SMOOTH = 0.6  # pixels of the frame that an outline may be off


def image_uri(image: UInt8[np.ndarray, 'h w'], *, side: int = _IMAGE_SIDE) -> str:
  """A JPEG; images larger than `side` pixels are reduced."""
  scale = side / max(image.shape)
  if scale < 1:
    size = [max(1, round(scale * length)) for length in image.shape[::-1]]
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
  ok, data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, _IMAGE_QUALITY])
  if not ok:
    raise ValueError(f'cannot encode an image {image.shape} of {image.dtype} as JPEG')
  return _uri('image/jpeg', data.tobytes())


def heat_uri(heat: Float[np.ndarray, 'h w']) -> str:
  """A PNG in inferno colours whose opacity grows with the value, from clear to opaque.

  The map is put on its own scale, lowest to highest; a constant map is clear
  throughout. Values that are not finite count as the lowest.
  """
  level = (_unit(heat) * (_LEVELS - 1)).round().astype(np.uint8)
  picture = Image.fromarray(level)
  # A palette instead of four channels: a third of the bytes.
  picture.putpalette(_palette().tobytes())
  out = io.BytesIO()
  opacity = np.linspace(0, 255, _LEVELS).round().astype(np.uint8)
  picture.save(out, 'PNG', optimize=True, transparency=opacity.tobytes())
  return _uri('image/png', out.getvalue())


def legend() -> list[str]:
  """Colours from the lowest to the highest value, for CSS."""
  stops = _palette()[np.linspace(0, _LEVELS - 1, 7).round().astype(int)]
  return [f'rgb({red} {green} {blue})' for red, green, blue in stops.tolist()]


def outline(truth: Bool[np.ndarray, 'h w']) -> str:
  """SVG path around each region, in pixels; '' for none, or for everything."""
  if not truth.any() or truth.all():
    return ''
  # Each pixel as a square of 2x2, so that the line runs between pixels, not through them.
  doubled = np.kron(truth.astype(np.uint8), np.ones((2, 2), np.uint8))
  contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
  parts = []
  for contour in contours:
    points = cv2.approxPolyDP(contour, 2 * _SMOOTH, closed=True)[:, 0]
    points = (points + 0.5) / 2
    parts.append('M' + 'L'.join(f'{x:g} {y:g}' for x, y in points.tolist()) + 'Z')
  return ''.join(parts)


def boxes_beside(
    boxes: Sequence[tuple[float, float, float, float]], truth: Bool[np.ndarray, 's s'],
) -> list[tuple[float, float, float, float]]:
  """Boxes as (x, y, width, height); none where the truth is just these boxes."""
  filled = np.zeros_like(truth)
  for x0, y0, x1, y1 in boxes:
    cut = np.clip([y0, y1, x0, x1], 0, len(truth)).round().astype(int)
    filled[cut[0]:cut[1], cut[2]:cut[3]] = True
  either = (filled | truth).sum()
  if not either or (filled & truth).sum() > 0.95 * either:
    return []
  return [(round(float(x0), 1), round(float(y0), 1), round(float(x1 - x0), 1),
           round(float(y1 - y0), 1)) for x0, y0, x1, y1 in boxes]


def _unit(heat: Float[np.ndarray, 'h w']) -> Float[np.ndarray, '56 56']:
  """0..1 at the size of the page; bilinear, half-pixel centres, as the protocol does it."""
  heat = np.asarray(heat, np.float32)
  finite = heat[np.isfinite(heat)]
  if not finite.size:
    return np.zeros((_HEAT_SIDE, _HEAT_SIDE), np.float32)
  heat = np.where(np.isfinite(heat), heat, finite.min()).astype(np.float32)
  shrinks = min(heat.shape) > _HEAT_SIDE
  heat = cv2.resize(
      heat, (_HEAT_SIDE, _HEAT_SIDE),
      interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
  low, high = float(heat.min()), float(heat.max())
  if high - low <= 1e-6 * max(abs(low), abs(high)):  # constant, but for rounding
    return np.zeros_like(heat)
  return (heat - low) / (high - low)


def _palette() -> UInt8[np.ndarray, 'k 3']:
  values = np.linspace(0, 255, _LEVELS).round().astype(np.uint8)
  colours = cv2.applyColorMap(values[:, None], cv2.COLORMAP_INFERNO)[:, 0]
  return np.ascontiguousarray(colours[:, ::-1])  # BGR to RGB


def _uri(kind: str, data: bytes) -> str:
  return f'data:{kind};base64,{base64.b64encode(data).decode("ascii")}'
