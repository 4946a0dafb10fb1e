"""The drawing board: body coordinates, soft polygons, strokes and smooth noise.

Body coordinates (u, v) are isotropic: u grows to the image's right, which is the
patient's left; v grows downwards; the thorax spans about -0.7..0.7 in both.
"""

import dataclasses

import cv2
import numpy as np

RIGHT = -1  # the patient's right is on the image's left
LEFT = 1
_SUBPIXEL = 4  # fractional bits of the polygon corners handed to OpenCV


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
  """An image and where body coordinates lie in it.

  Attributes:
    height, width: pixels.
    scale: pixels a body unit.
    matrix: [2 3], (u, v, 1) -> (x, y) pixels.
  """

  height: int
  width: int
  scale: float
  matrix: np.ndarray

  def to_pixels(self, points: np.ndarray) -> np.ndarray:
    """Body coordinates [... 2] -> pixels [... 2]."""
    return points @ self.matrix[:, :2].T + self.matrix[:, 2]

  def grid(self) -> tuple[np.ndarray, np.ndarray]:
    """Body coordinates (u, v) of every pixel centre, each [h w] float32."""
    inverse = cv2.invertAffineTransform(self.matrix).astype(np.float32)
    x = np.arange(self.width, dtype=np.float32)[None, :]
    y = np.arange(self.height, dtype=np.float32)[:, None]
    return tuple(row[0] * x + row[1] * y + row[2] for row in inverse)

  def polygon(self, points: np.ndarray, *, soft: float = 0.0) -> np.ndarray:
    """Filled polygon [n 2] in body units, 0..1; edges blurred by `soft` body units."""
    image = np.zeros((self.height, self.width), np.uint8)
    cv2.fillPoly(image, [self._corners(points)], 255, cv2.LINE_AA, _SUBPIXEL)
    return self.blur(image.astype(np.float32) / 255, soft)

  def strokes(self, lines, *, width: float, soft: float = 0.0) -> np.ndarray:
    """Polylines (each [n 2]) of `width` body units, 0..1. Thinner than a pixel fades."""
    image = np.zeros((self.height, self.width), np.uint8)
    pixels = width * self.scale
    thickness = max(1, round(pixels))
    value = round(255 * min(1.0, pixels / thickness))
    corners = [self._corners(line) for line in lines]
    cv2.polylines(image, corners, False, value, thickness, cv2.LINE_AA, _SUBPIXEL)
    return self.blur(image.astype(np.float32) / 255, soft)

  def blur(self, field: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur by `sigma` body units; wide ones on a quarter-size copy."""
    pixels = sigma * self.scale
    if pixels < 0.3:
      return field
    if pixels < 5:
      return cv2.GaussianBlur(field, (0, 0), pixels)
    small = cv2.resize(
        field, (self.width // 4, self.height // 4), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), pixels / 4)
    return cv2.resize(small, (self.width, self.height), interpolation=cv2.INTER_LINEAR)

  def noise(self, rng: np.random.Generator, *, cell: float) -> np.ndarray:
    """Smooth noise of unit variance whose grain is about `cell` body units."""
    rows = max(3, round(self.height / (cell * self.scale)))
    columns = max(3, round(self.width / (cell * self.scale)))
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    return cv2.resize(coarse, (self.width, self.height), interpolation=cv2.INTER_CUBIC)

  def _corners(self, points: np.ndarray) -> np.ndarray:
    return np.round(self.to_pixels(points) * 2**_SUBPIXEL).astype(np.int32)


def sample_frame(rng: np.random.Generator, *, size: int) -> Frame:
  """Image shape (long side `size`), and the patient's place, scale and tilt in it."""
  aspect = float(np.exp(rng.normal(0.0, 0.12)))  # width / height; both formats occur
  aspect = min(max(aspect, 0.74), 1.3)
  width = size if aspect >= 1 else round(size * aspect)
  height = size if aspect <= 1 else round(size / aspect)
  scale = min(width, height) / 1.62 * rng.uniform(0.92, 1.12)
  angle = np.radians(rng.normal(0.0, 2.5))
  rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
  slack = np.maximum(np.array([width, height]) / 2 - 0.72 * scale, 0.05 * scale)
  centre = np.array([width, height]) / 2 + rng.uniform(-1, 1, 2) * slack
  # The middle of the lungs (v about -0.08) goes to the centre.
  shift = centre - rotation @ np.array([0.0, -0.08])
  matrix = np.concatenate([rotation, shift[:, None]], axis=1).astype(np.float32)
  return Frame(height=height, width=width, scale=float(scale), matrix=matrix)


def curve(points, *, closed: bool = False, steps: int = 6) -> np.ndarray:
  """Catmull-Rom spline through `points` [n 2] -> [m 2]."""
  points = np.asarray(points, np.float32)
  if closed:
    padded = np.concatenate([points[-1:], points, points[:2]])
  else:
    padded = np.concatenate([points[:1], points, points[-1:]])
  t = np.arange(steps, dtype=np.float32)[:, None] / steps
  basis = 0.5 * np.concatenate(
      [-t**3 + 2 * t**2 - t, 3 * t**3 - 5 * t**2 + 2, -3 * t**3 + 4 * t**2 + t, t**3 - t**2],
      axis=1)
  spans = len(padded) - 3
  windows = np.stack([padded[k:k + spans] for k in range(4)], axis=1)  # [spans 4 2]
  smooth = (basis @ windows).reshape(-1, 2)
  return smooth if closed else np.concatenate([smooth, points[-1:]])


def ramp(field: np.ndarray, low: float, high: float) -> np.ndarray:
  """Smooth step: 0 below `low`, 1 above `high`."""
  t = np.clip((field - low) / (high - low), 0.0, 1.0)
  return t * t * (3 - 2 * t)
