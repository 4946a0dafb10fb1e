"""Geometry of line plots; the template draws them as SVG."""

import dataclasses
import math
from typing import Sequence

from jaxtyping import Float
import numpy as np

from plan_jax.page import content

_WIDTH, _HEIGHT = 460, 300  # units of the drawing
_SQUARE = 380  # side of a drawing with a diagonal
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 20, 8, 42  # margins for labels
_POINTS = 240  # a line at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tick:
  """A mark on an axis: its place in the drawing's units, and its label."""

  place: float
  text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
  """`points` are those of an SVG polyline, '' where nothing is finite."""

  name: str
  points: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
  """A curve's drawing; the frame is (left, top, right, bottom)."""

  title: str
  x_label: str
  y_label: str
  width: int
  height: int
  frame: tuple[int, int, int, int]
  x_ticks: Sequence[Tick]
  y_ticks: Sequence[Tick]
  lines: Sequence[Line]
  diagonal: bool


def plot(curve: content.Curve) -> Plot:
  """Lays out a curve; the axes start and end at round numbers.

  Raises:
    ValueError: if x and y of a line differ in length.
  """
  series = {name: _finite(curve.title, name, *xy) for name, xy in curve.series.items()}
  width, height = (_SQUARE, _SQUARE) if curve.diagonal else (_WIDTH, _HEIGHT)
  frame = (_LEFT, _TOP, width - _RIGHT, height - _BOTTOM)
  axes = []
  for axis in range(2):
    values = np.concatenate([xy[axis] for xy in series.values()] or [np.zeros(0)])
    axes.append(_round_ticks(0, 1) if curve.diagonal else
                _round_ticks(values.min(), values.max()) if values.size else _round_ticks(0, 1))

  def across(x):
    return frame[0] + (x - axes[0][0]) / (axes[0][-1] - axes[0][0]) * (frame[2] - frame[0])

  def up(y):
    return frame[3] - (y - axes[1][0]) / (axes[1][-1] - axes[1][0]) * (frame[3] - frame[1])

  lines = []
  for name, (x, y) in series.items():
    kept = np.unique(np.linspace(0, max(len(x) - 1, 0), min(len(x), _POINTS)).round().astype(int))
    lines.append(Line(name=name, points=' '.join(
        f'{across(x[k]):.1f},{up(y[k]):.1f}' for k in kept)))
  return Plot(
      title=curve.title, x_label=curve.x_label, y_label=curve.y_label, width=width, height=height,
      frame=frame, lines=lines, diagonal=curve.diagonal,
      x_ticks=[Tick(place=round(across(x), 1), text=f'{x:.4g}') for x in axes[0]],
      y_ticks=[Tick(place=round(up(y), 1), text=f'{y:.4g}') for y in axes[1]])


def _finite(title: str, name: str, x, y) -> tuple[Float[np.ndarray, 'n'], Float[np.ndarray, 'n']]:
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  if x.shape != y.shape or x.ndim != 1:
    raise ValueError(f'curve {title!r}, line {name!r}: x {x.shape} and y {y.shape} disagree')
  kept = np.isfinite(x) & np.isfinite(y)
  return x[kept], y[kept]


def _round_ticks(low: float, high: float) -> list[float]:
  """Four to eight round numbers that enclose low..high."""
  if not high > low:
    low, high = low - 0.5, high + 0.5
  rough = (high - low) / 5
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  # Rounded, so that 3 * 0.1 is 0.3, and no -0 comes up.
  return [round(k * step, 12) + 0.0 for k in range(first, last + 1)]
