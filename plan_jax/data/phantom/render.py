"""From a latent to an encoded radiograph and the truth of every finding."""

import dataclasses

import cv2
import numpy as np

from plan_jax.data.phantom import anatomy as anatomies
from plan_jax.data.phantom import devices
from plan_jax.data.phantom import findings as painters
from plan_jax.data.phantom import frame as frames
from plan_jax.data.phantom import latent

_VISIBLE_SHARE = 0.3  # of the layer's strongest contribution to the picture
_LEAST_CHANGE = 0.004  # of the full grey range; below it nothing is seen
_JPEG_QUALITY = 90


@dataclasses.dataclass(frozen=True, kw_only=True)
class Radiograph:
  """The picture [h w] uint8 and, for each finding in order, its mask [h w] bool."""

  image: np.ndarray
  masks: tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exposure:
  """How attenuation becomes grey; drawn independently of the findings."""

  centre: float
  slope: float
  gamma: float
  gain: float
  offset: float
  noise: float  # grey levels
  grain: float  # blur of the noise, pixels
  heel: tuple[float, float]  # linear gradient across the picture
  focus: float  # blur of the picture, pixels
  sharpen: float
  border: tuple[int, int, int, int]  # collimated rows and columns: top, bottom, left, right
  marker: str


def radiograph(
    findings: tuple[latent.Finding, ...],
    *,
    anatomy_rng: np.random.Generator,
    finding_rng: np.random.Generator,
    size: int,
) -> Radiograph:
  """Draws one patient; the anatomy's and the exposure's chance ignores the findings."""
  frame = frames.sample_frame(anatomy_rng, size=size)
  patient = anatomies.sample_anatomy(anatomy_rng)
  exposure = sample_exposure(anatomy_rng, frame=frame)
  patient = anatomies.deform(patient, findings)
  layers = anatomies.draw(patient, anatomy_rng, frame=frame)
  texture = 0.012 * frame.noise(anatomy_rng, cell=0.03) + 0.025 * frame.noise(
      anatomy_rng, cell=0.12)
  lungs = patient.lung_air * layers.air - layers.air * (layers.vessels + texture)
  chest = layers.body + layers.bones + layers.central - lungs
  room = 1.1 * lungs
  drawn = []
  for finding in findings:
    if finding.name in latent.DEVICES:
      layer = devices.draw(finding, finding_rng, anatomy=patient, frame=frame)
    elif finding.name == 'cardiomegaly':
      layer = None
    else:
      layer = painters.draw(
          finding, finding_rng, anatomy=patient, layers=layers, frame=frame)
      # Two processes in one place never get denser than lung without air.
      layer = np.minimum(layer, np.maximum(room, 0.0))
      room = room - np.maximum(layer, 0.0)
    drawn.append(layer)
  total = chest + sum((layer for layer in drawn if layer is not None), np.zeros_like(chest))
  masks = []
  shown = tone(total, exposure)
  for layer in drawn:
    if layer is None:
      mask = layers.heart > 0.5
    else:
      mask = _visible(layer, shown - tone(total - layer, exposure), frame=frame)
    masks.append(mask)
  image = finish(shown, exposure, anatomy_rng, frame=frame)
  return Radiograph(image=image, masks=tuple(masks))


def _visible(layer: np.ndarray, change: np.ndarray, *, frame: frames.Frame) -> np.ndarray:
  """Where `layer` changes the grey (0..1) of the picture by a good share of its most."""
  change = frame.blur(np.abs(change), 0.010)
  seen = change[change > _LEAST_CHANGE]
  if not seen.size:  # lost in the bright or the dark: where it was drawn
    return np.abs(layer) > 0.5 * np.abs(layer).max()
  return change > max(_VISIBLE_SHARE * float(np.quantile(seen, 0.95)), _LEAST_CHANGE)


def sample_exposure(rng: np.random.Generator, *, frame: frames.Frame) -> Exposure:
  """Exposure, display curve, noise, collimation and side marker."""
  border = (0, 0, 0, 0)
  if rng.random() < 0.3:
    border = tuple(int(n) for n in rng.integers(0, round(0.035 * frame.height), 4))
  return Exposure(
      centre=rng.uniform(0.55, 0.82), slope=rng.uniform(2.8, 4.2), gamma=rng.uniform(0.85, 1.2),
      gain=rng.uniform(0.78, 1.0), offset=rng.uniform(0.0, 0.10), noise=rng.uniform(0.8, 2.6),
      grain=rng.uniform(0.3, 0.9), heel=tuple(rng.normal(0, 0.06, 2)),
      focus=rng.uniform(0.35, 0.65), sharpen=rng.uniform(0.0, 0.8), border=border,
      marker=str(rng.choice(['', 'L', 'R'])))


def tone(attenuation: np.ndarray, exposure: Exposure) -> np.ndarray:
  """Attenuation -> grey 0..1, larger is brighter: an S-shaped display curve."""
  x = exposure.slope * (attenuation - exposure.centre)
  low = 1 / (1 + np.exp(exposure.slope * exposure.centre))
  bright = np.maximum(1 / (1 + np.exp(-x)) - low, 0.0) / (1 - low)
  return exposure.offset + (exposure.gain - exposure.offset) * bright**exposure.gamma


def finish(
    grey: np.ndarray, exposure: Exposure, rng: np.random.Generator, *, frame: frames.Frame,
) -> np.ndarray:
  """Sharpening, heel effect, noise, collimation, marker -> uint8."""
  height, width = grey.shape
  if exposure.sharpen > 0.1:
    grey = grey + exposure.sharpen * (grey - frame.blur(grey, 0.02))
  down = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * exposure.heel[0]
  across = np.linspace(-1, 1, width, dtype=np.float32)[None, :] * exposure.heel[1]
  grey = cv2.GaussianBlur(grey * (1 + down + across), (0, 0), exposure.focus)
  noise = rng.standard_normal((height, width), dtype=np.float32)
  noise = cv2.GaussianBlur(noise, (0, 0), exposure.grain) * (1 + 2 * exposure.grain)
  pixels = np.clip(255 * grey + exposure.noise * noise, 0, 255).astype(np.uint8)
  if exposure.marker:
    row = round(height * rng.uniform(0.05, 0.12))
    column = round(width * rng.uniform(0.03, 0.07))
    if exposure.marker == 'L':
      column = width - column - round(0.05 * width)
    cv2.putText(pixels, exposure.marker, (column, row), cv2.FONT_HERSHEY_SIMPLEX,
                height / 400, 245, max(1, height // 160), cv2.LINE_AA)
  top, bottom, left, right = exposure.border
  pixels[:top] = 0
  pixels[height - bottom:] = 0
  pixels[:, :left] = 0
  pixels[:, width - right:] = 0
  return pixels


def encode_image(image: np.ndarray) -> bytes:
  """uint8 [h w] -> JPEG."""
  return cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()


def encode_mask(mask: np.ndarray) -> bytes:
  """bool [h w] -> 1-bit PNG."""
  flags = [cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_COMPRESSION, 4]
  return cv2.imencode('.png', mask.astype(np.uint8) * 255, flags)[1].tobytes()


def boxes(mask: np.ndarray, *, smallest: float = 0.06) -> np.ndarray:
  """Boxes [n 4] (x0 y0 x1 y1, shares) of connected parts, largest first.

  Parts below the share `smallest` of the largest are left out.
  """
  height, width = mask.shape
  _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
  stats = stats[1:][np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind='stable')]
  if not len(stats):
    return np.zeros((0, 4), np.float32)
  stats = stats[stats[:, cv2.CC_STAT_AREA] >= smallest * stats[0, cv2.CC_STAT_AREA]]
  corners = np.stack([stats[:, 0], stats[:, 1], stats[:, 0] + stats[:, 2],
                      stats[:, 1] + stats[:, 3]], axis=1)
  return (corners / [width, height, width, height]).astype(np.float32)
