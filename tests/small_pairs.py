"""A small manifest of pairs, the command line on it, and what it leaves."""

import io
import json
import pathlib

import numpy as np
from PIL import Image

from plan_jax.data import prepare


def picture(seed: int, *, width: int = 48, height: int = 32) -> np.ndarray:
  """Noise."""
  return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


def save(path: pathlib.Path, values: np.ndarray) -> pathlib.Path:
  """Writes a picture of the kind that the suffix says."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(values).save(path)
  return path


def manifest(folder: pathlib.Path, *rows: dict) -> pathlib.Path:
  """Writes rows as JSONL."""
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / 'rows.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def pairs(folder: pathlib.Path, count: int) -> pathlib.Path:
  """A manifest of `count` good pairs, of which each tenth is for testing."""
  for i in range(count):
    save(folder / f'{i}.png', picture(i))
  return manifest(folder, *(
      {'image': f'{i}.png', 'text': f'Report number {i} of lungs.', 'patient': f'p{i}',
       'split': 'test' if i % 10 == 9 else 'train', 'labels': ['odd'] if i % 2 else []}
      for i in range(count)))


def run(rows, out, *options: str, workers: int = 1) -> int:
  """The exit status of `prepare manifest`."""
  return prepare.main([
      'manifest', '--manifest', str(rows), '--out', str(out), '--workers', str(workers),
      '--vocab-size', '300', *options])


def rejects(out: pathlib.Path) -> list[dict]:
  """The rejected rows."""
  return [json.loads(line) for line in (out / 'rejects.jsonl').read_text().splitlines()]


def pixels(image: bytes) -> np.ndarray:
  """Grey values of an encoded picture."""
  return np.asarray(Image.open(io.BytesIO(image)))


def contents(out: pathlib.Path) -> dict[str, bytes]:
  """Bytes of each file by name."""
  return {path.name: path.read_bytes() for path in out.iterdir()}
