"""What the phantom classes are worth without a model: ridge on 32x32 pixels, and on statistics.

  python benchmarks/phantom_floor.py --pairs 2600

Trains on all pairs but the last 600 and prints the AUROC of every class on those.
"statistics" are mean, standard deviation, height, width and encoded bytes of the
picture: what could leak without any anatomy.
"""

import argparse
import pathlib
import sys

import cv2
import numpy as np
from sklearn import metrics

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from plan_jax.data import phantom  # pylint: disable=wrong-import-position

_PENALTIES = (300.0, 1e3, 3e3, 1e4, 3e4)


def features(pairs: int, *, seed: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Pixels [n 1024], statistics [n 5] and labels [n k] of the first `pairs` phantoms."""
  pixels, statistics, labels = [], [], []
  for index in range(pairs):
    pair = phantom.example(index, seed=seed, size=size)
    image = cv2.imdecode(np.frombuffer(pair.image, np.uint8), cv2.IMREAD_GRAYSCALE)
    height, width = image.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = cv2.copyMakeBorder(
        image, top, side - height - top, left, side - width - left, cv2.BORDER_CONSTANT, value=0)
    pixels.append(cv2.resize(square, (32, 32), interpolation=cv2.INTER_AREA).ravel())
    statistics.append([image.mean(), image.std(), height, width, len(pair.image)])
    labels.append([name in pair.labels for name in phantom.CLASSES])
  return np.array(pixels, np.float64), np.array(statistics, np.float64), np.array(labels)


def ridge_auroc(x: np.ndarray, y: np.ndarray, *, train: int, penalty: float) -> np.ndarray:
  """AUROC [k] on the rows after the first `train`, of a ridge fitted on those."""
  scale = x[:train].std(axis=0) + 1e-6
  x = (x - x[:train].mean(axis=0)) / scale
  target = y[:train] - y[:train].mean(axis=0)
  weights = np.linalg.solve(
      x[:train].T @ x[:train] + penalty * np.eye(x.shape[1]), x[:train].T @ target)
  scores = x[train:] @ weights
  return np.array([
      metrics.roc_auc_score(truth, score) for truth, score in zip(y[train:].T, scores.T)])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--pairs', type=int, default=2600, help='phantoms drawn')
  parser.add_argument('--test', type=int, default=600, help='of which the last are for testing')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--size', type=int, default=160, help='long side, pixels')
  options = parser.parse_args()
  if not 0 < options.test < options.pairs:
    parser.error(f'--test must lie between 0 and --pairs, got {options.test}')
  print(f'drawing {options.pairs} phantoms ...', flush=True)
  pixels, statistics, labels = features(options.pairs, seed=options.seed, size=options.size)
  train = options.pairs - options.test
  # The penalty that does best on the test pairs: a floor should not look low by accident.
  by_pixels = max(
      (ridge_auroc(pixels, labels, train=train, penalty=penalty) for penalty in _PENALTIES),
      key=np.mean)
  by_statistics = ridge_auroc(statistics, labels, train=train, penalty=1.0)
  print(f'{"class":22s} {"share":>6s} {"pixels":>7s} {"statistics":>11s}')
  for k, name in enumerate(phantom.CLASSES):
    print(f'{name:22s} {labels[:, k].mean():6.3f} {by_pixels[k]:7.3f} {by_statistics[k]:11.3f}')
  print(f'{"macro":22s} {"":6s} {by_pixels.mean():7.3f} {by_statistics.mean():11.3f}')


if __name__ == '__main__':
  main()
