"""Perceptual hashes and the search for near-duplicates across splits."""

import os
import pathlib

import cv2
import numpy as np
import pytest

from plan_jax.data import likeness
from plan_jax.data import phantom


def _distance(a: str, b: str) -> int:
  return (int(a, 16) ^ int(b, 16)).bit_count()


def _picture(seed: int) -> np.ndarray:
  data = phantom.example(seed, seed=5, size=160).image
  return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)


def _copy(pixels: np.ndarray) -> np.ndarray:
  """Half the size, brighter, with more contrast, JPEG of quality 60."""
  small = cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
  small = np.clip(small * 1.15 + 8, 0, 255).astype(np.uint8)
  return cv2.imdecode(cv2.imencode('.jpg', small, [1, 60])[1], cv2.IMREAD_GRAYSCALE)


def test_copies_are_near_and_others_far():
  hashes = [likeness.picture_hash(_picture(k)) for k in range(12)]
  assert all(len(h) == 64 for h in hashes)
  copies = [likeness.picture_hash(_copy(_picture(k))) for k in range(12)]
  assert max(map(_distance, hashes, copies)) <= likeness.MAX_DISTANCE
  others = [_distance(hashes[i], hashes[j]) for i in range(12) for j in range(i)]
  assert min(others) > likeness.MAX_DISTANCE


def test_pairs_are_those_of_a_plain_loop():
  rng = np.random.default_rng(0)
  near = rng.integers(0, 256, 32, np.uint8)
  bits = [near ^ (np.uint8(1) << np.uint8(k % 8)) * (np.arange(32) < k) for k in range(40)]
  bits += list(rng.integers(0, 256, (60, 32), np.uint8))
  hashes = [row.astype(np.uint8).tobytes().hex() for row in bits] + ['']
  splits = [('train', 'val', 'test')[k] for k in rng.integers(0, 3, len(hashes))]
  want = {(frozenset((i, j)), _distance(hashes[i], hashes[j]))
          for i in range(100) for j in range(i)
          if splits[i] != splits[j] and _distance(hashes[i], hashes[j]) <= 20}
  found = likeness.across_splits(hashes, splits, max_distance=20)
  assert len(found) == len(want) > 50
  assert {(frozenset((p.first, p.second)), p.distance) for p in found} == want
  assert [p.distance for p in found] == sorted(p.distance for p in found)


def test_nothing_to_compare():
  assert likeness.across_splits([], []) == []
  assert likeness.across_splits(['0' * 64, '0' * 64], ['train', 'train']) == []


def test_unrelated_radiographs_are_far_apart():
  root = os.environ.get('PLAN_JAX_DATA')
  if not root or not (pathlib.Path(root) / 'nih_cxr14').is_dir():
    pytest.skip('PLAN_JAX_DATA with nih_cxr14 is not set')
  paths = sorted((pathlib.Path(root) / 'nih_cxr14/images').glob('*.jpg'))[:300]
  pictures = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths]
  hashes = [likeness.picture_hash(p) for p in pictures]
  copies = [likeness.picture_hash(_copy(p)) for p in pictures]
  assert max(map(_distance, hashes, copies)) <= likeness.MAX_DISTANCE
  others = [_distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
  assert min(others) > likeness.MAX_DISTANCE
