"""Small pictures for tests of the data commands."""

import pathlib

import numpy as np
from PIL import Image


def grey(seed: int, *, width: int = 48, height: int = 32) -> np.ndarray:
  """uint8 [height width] noise, the same for a seed."""
  return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


def save(path: pathlib.Path, pixels: np.ndarray) -> pathlib.Path:
  """Writes in the format that the name says, folders included."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)
  return path
