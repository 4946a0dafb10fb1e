"""Phrase grounding, the MS-CXR metric as the published evaluation codes compute it.

A map is one value for each cell of the model's grid. It is smoothed on the grid,
brought to the frame (the square that the model sees), and compared with the truth
there: CNR, IoU at five thresholds, and the pointing game.

Source: Boecking et al. (BioViL, ECCV 2022); details as in the code of AFLoc.
"""

import dataclasses
import math
from typing import Any, Mapping, Sequence

import cv2
from jaxtyping import Bool, Float
import numpy as np
from scipy import ndimage

from plan_jax.evals import bootstrap

PROTOCOL = 'grounding/ms_cxr'
FRAME = 224  # side of the frame that the protocol compares in, pixels
SMOOTHING = 1.5  # Gaussian sigma on the grid, cells
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
MARGIN = 448 / 512  # central share of the side that the margin variant counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
  """One row for each phrase; NaN where the protocol leaves a value undefined."""

  cnr: Float[np.ndarray, 'n']
  iou: Float[np.ndarray, 'n 5']
  pointing: Float[np.ndarray, 'n']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Category:
  """The figures of one finding."""

  cnr: bootstrap.Figure
  abs_cnr: bootstrap.Figure
  miou: bootstrap.Figure
  pointing: bootstrap.Figure

  def as_json(self) -> dict[str, Any]:
    return {field.name: getattr(self, field.name).as_json()
            for field in dataclasses.fields(Category)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grounding(Category):
  """Means over phrases, then categories (then thresholds): the headline figures.

  `undefined` phrases (nothing of the truth inside the frame, or a constant map)
  have no CNR and no IoU and count in no mean.
  """

  categories: Mapping[str, Category]
  undefined: int
  margin: bool

  def as_json(self) -> dict[str, Any]:
    return {
        'protocol': PROTOCOL + ('_margin' if self.margin else ''),
        **super().as_json(),
        'categories': {name: part.as_json() for name, part in self.categories.items()},
        'undefined': self.undefined,
    }


def to_frame(
    maps: Float[np.ndarray, 'n h w'], *, side: int = FRAME, smoothing: float = SMOOTHING,
) -> Float[np.ndarray, 'n side side']:
  """Grid maps in the frame: Gaussian on the grid, then bilinear, half-pixel centres."""
  maps = np.asarray(maps, np.float32)
  if smoothing:
    maps = ndimage.gaussian_filter(maps, sigma=(0, smoothing, smoothing))
  out = np.empty((len(maps), side, side), np.float32)
  for i, grid in enumerate(maps):
    out[i] = cv2.resize(grid, (side, side), interpolation=cv2.INTER_LINEAR)
  return out


def score(
    frame_map: Float[np.ndarray, 'h w'], truth: Bool[np.ndarray, 'h w'], *, margin: bool,
) -> tuple[float, Float[np.ndarray, '5'], float]:
  """(CNR, IoU at each threshold, pointing hit) of one map in the frame.

  The map is rescaled to [-1, 1] over what counts (everything, or the central
  448/512 with `margin`); a prediction is map > threshold. An empty truth leaves
  all undefined (NaN), a constant map CNR and IoU.
  """
  if margin:
    cut = tuple(slice(round(s * (1 - MARGIN) / 2), s - round(s * (1 - MARGIN) / 2))
                for s in truth.shape)
    frame_map, truth = frame_map[cut], truth[cut]
  iou = np.full(len(THRESHOLDS), math.nan)
  inside, outside = frame_map[truth], frame_map[~truth]
  if not inside.size:
    return math.nan, iou, math.nan
  pointing = float(truth.flat[np.argmax(frame_map)])
  low, high = frame_map.min(), frame_map.max()
  if not high > low:
    return math.nan, iou, pointing
  cnr = math.nan
  if outside.size:
    spread = math.sqrt(inside.var(dtype=np.float64) + outside.var(dtype=np.float64))
    if spread > 0:
      difference = inside.mean(dtype=np.float64) - outside.mean(dtype=np.float64)
      cnr = float(difference / spread)
  scaled_inside = (inside - low) / (high - low) * 2 - 1
  scaled_outside = (outside - low) / (high - low) * 2 - 1
  for k, threshold in enumerate(THRESHOLDS):
    hit = int((scaled_inside > threshold).sum())
    false = int((scaled_outside > threshold).sum())
    if hit + false:
      iou[k] = hit / (inside.size + false)
  return cnr, iou, pointing


def score_all(
    maps: Float[np.ndarray, 'n h w'],
    truths: Sequence[Bool[np.ndarray, 'side side']],
    *,
    margin: bool = False,
    block: int = 64,
) -> Scores:
  """`score` of n grid maps; `block` maps at a time are held in the frame."""
  rows = []
  for start in range(0, len(maps), block):
    part = slice(start, start + block)
    side = truths[start].shape[0]
    for frame_map, truth in zip(to_frame(maps[part], side=side), truths[part], strict=True):
      rows.append(score(frame_map, truth, margin=margin))
  return Scores(
      cnr=np.array([row[0] for row in rows], np.float64),
      iou=np.array([row[1] for row in rows], np.float64).reshape(-1, len(THRESHOLDS)),
      pointing=np.array([row[2] for row in rows], np.float64),
  )


def grounding(
    scores: Scores,
    *,
    categories: Sequence[str],
    groups: Sequence[Any],
    margin: bool = False,
    seed: int = 0,
    replicates: int = bootstrap.REPLICATES,
) -> Grounding:
  """The protocol's means, per category and over categories, with intervals.

  `categories` names the finding of each phrase, `groups` its image: phrases of
  one image are resampled together.
  """
  n = len(scores.cnr)
  if len(categories) != n or len(groups) != n:
    raise ValueError(
        f'{n} scores, {len(categories)} categories and {len(groups)} groups disagree')
  times = bootstrap.resample(groups, replicates=replicates, seed=seed)
  names = sorted(set(categories))
  member = {name: np.array([c == name for c in categories]) for name in names}
  overall, parts = {}, {name: {} for name in names}
  for metric, values in _columns(scores).items():
    points, draws = _by_category(values, [member[name] for name in names], times)
    for c, name in enumerate(names):
      parts[name][metric] = bootstrap.figure(
          float(bootstrap.nan_mean(points[c])), bootstrap.nan_mean(draws[c].T),
          n=_defined(values[member[name]]))
    overall[metric] = bootstrap.figure(*_over_categories(points, draws), n=_defined(values))
  return Grounding(
      **overall,
      categories={name: Category(**figures) for name, figures in parts.items()},
      undefined=int(np.isnan(scores.cnr).sum()),
      margin=margin,
  )


def draws(
    scores: Scores, *, categories: Sequence[str], times: Float[np.ndarray, 'r n'],
) -> dict[str, tuple[float, Float[np.ndarray, 'r']]]:
  """Each headline figure's value and bootstrap replicates, to compare models pair by pair.

  `times` are those of `bootstrap.resample`.
  """
  members = [np.array([c == name for c in categories]) for name in sorted(set(categories))]
  return {metric: _over_categories(*_by_category(values, members, times))
          for metric, values in _columns(scores).items()}


def centre_map(grid: tuple[int, int], *, sigma: float = 0.25) -> Float[np.ndarray, 'h w']:
  """The floor: a Gaussian at the frame's centre, sigma as a share of its side."""
  y, x = ((np.arange(size) + 0.5) / size - 0.5 for size in grid)
  return np.exp(-(y[:, None] ** 2 + x[None, :] ** 2) / (2 * sigma**2)).astype(np.float32)


def on_grid(
    truths: Sequence[Bool[np.ndarray, 'side side']], *, grid: tuple[int, int],
) -> Float[np.ndarray, 'n h w']:
  """The ceiling: each cell's share of truth, what a perfect model of this grid would say."""
  shares = [cv2.resize(np.asarray(truth, np.float32), grid[::-1], interpolation=cv2.INTER_AREA)
            for truth in truths]
  return np.array(shares, np.float32).reshape(-1, *grid)


def _columns(scores: Scores) -> dict[str, Float[np.ndarray, 'n k']]:
  return {'cnr': scores.cnr[:, None], 'abs_cnr': np.abs(scores.cnr)[:, None],
          'miou': scores.iou, 'pointing': scores.pointing[:, None]}


def _by_category(values, members, times):
  """Point values [category, threshold] and replicates [category, threshold, replicate]."""
  points = np.full((len(members), values.shape[1]), math.nan)
  replicates = np.full((len(members), values.shape[1], len(times)), math.nan)
  for c, member in enumerate(members):
    for k, column in enumerate(values.T):
      kept = np.where(member, column, math.nan)
      points[c, k] = bootstrap.nan_mean(kept)
      replicates[c, k] = bootstrap.weighted_means(kept, times)
  return points, replicates


def _over_categories(points, replicates) -> tuple[float, Float[np.ndarray, 'r']]:
  """Mean over categories, then over thresholds."""
  by_threshold = bootstrap.nan_mean(np.moveaxis(replicates, 0, -1))  # [threshold, replicate]
  return (float(bootstrap.nan_mean(bootstrap.nan_mean(points.T))),
          bootstrap.nan_mean(by_threshold.T))


def _defined(values: Float[np.ndarray, 'n k']) -> int:
  return int(np.isfinite(values).any(axis=1).sum())
