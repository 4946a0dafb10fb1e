"""Pictures of a run: curves, and a page of grounding overlays."""

import dataclasses
import math
import os
import textwrap
from typing import Any, Mapping, Sequence

from jaxtyping import Bool, Float, UInt8
from matplotlib import figure as figure_lib
from matplotlib import patches
from matplotlib.backends import backend_agg
import numpy as np

_STAGE_COLOURS = ('#dbe9f6', '#fdebd3', '#dff0df', '#f3dfee')
_COLUMNS = 3
_TITLE_WIDTH = 60  # characters a line
_PHRASE_LINES = 2
_LAST = ('step', 'stage', 'lr', 'grad_norm', 'pairs_per_s', 'mfu', 'skipped_steps')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overlay:
  """One phrase on one image, all in the frame that the model sees.

  `heat` is larger where the phrase is more likely; any scale. `phrase` '' shows none.
  """

  image: UInt8[np.ndarray, 'h w']
  heat: Float[np.ndarray, 'h w']
  truth: Bool[np.ndarray, 'h w']
  phrase: str
  category: str
  cnr: float


def curves(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
  """Draws the rows of a metrics.jsonl: one panel a quantity, stages as bands.

  Loss terms first, then diagnostics, validation, and the rest. Quantities come
  from the rows, so what is logged is drawn.
  """
  names = _ordered({name for row in rows for name, value in row.items()
                    if name not in ('step', 'stage') and _is_number(value)})
  lines = max(1, math.ceil(len(names) / _COLUMNS))
  figure = _figure(4.2 * _COLUMNS, 2.5 * lines + 0.6)
  bands = _stage_bands(rows)
  colours = {name: _STAGE_COLOURS[k % len(_STAGE_COLOURS)]
             for k, name in enumerate(dict.fromkeys(name for name, _, _ in bands))}
  for k, name in enumerate(names):
    axes = figure.add_subplot(lines, _COLUMNS, k + 1)
    for stage, start, end in bands:
      axes.axvspan(start, end, color=colours[stage], linewidth=0)
    points = [(row['step'], row[name]) for row in rows if _is_number(row.get(name))]
    marker = 'o' if len(points) < 30 else None
    axes.plot(*zip(*points), color='#1f4e79', linewidth=1.2, marker=marker, markersize=3)
    axes.set_title(name.replace('_', ' '), fontsize=9)
    axes.tick_params(labelsize=7)
    axes.margins(x=0)
    for side in ('top', 'right'):
      axes.spines[side].set_visible(False)
    if k >= len(names) - _COLUMNS:
      axes.set_xlabel('step', fontsize=8)
  if colours:
    figure.legend(
        handles=[patches.Patch(color=colour, label=name) for name, colour in colours.items()],
        fontsize=8, loc='upper center', ncols=len(colours), frameon=False)
  if not names:
    figure.text(0.5, 0.5, 'nothing was logged', ha='center')
  figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight()))
  _save(figure, path)


def leads(
    differences: Mapping[str, Mapping[str, Any]],
    *,
    names: Mapping[str, str],
    reference: str,
    path: str | os.PathLike[str],
) -> None:
  """Draws the reference's lead over each arm with its interval, one panel a figure.

  `differences[arm][name]` is a `paired.Difference`; `names` says which panels there are.
  """
  arms = [arm for arm in differences if differences[arm]]
  figure = _figure(3.0 * len(names) + 1.2, 0.34 * len(arms) + 1.4)
  first = None
  for k, (name, title) in enumerate(names.items()):
    axes = figure.add_subplot(1, len(names), k + 1, sharey=first)
    first = first or axes
    axes.axvline(0, color='#888888', linewidth=1)
    for row, arm in enumerate(arms):
      found = differences[arm].get(name)
      if found is None or math.isnan(found.figure.value):
        continue
      clear = found.figure.low > 0 or found.figure.high < 0
      axes.plot([found.figure.low, found.figure.high], [row, row], color='#1f4e79', linewidth=2)
      axes.plot(found.figure.value, row, 'o', color='#1f4e79', markersize=6,
                markerfacecolor='#1f4e79' if clear else 'white')
    axes.set_title(textwrap.fill(title, 24), fontsize=9)
    axes.set_yticks(range(len(arms)), arms, fontsize=8)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.tick_params(axis='x', labelsize=7)
    axes.tick_params(axis='y', length=0, labelleft=not k)
    for side in ('top', 'right', 'left'):
      axes.spines[side].set_visible(False)
  figure.text(
      0.5, 0.01, ha='center', fontsize=8, color='#444444',
      s=f'right of 0: {reference} is ahead; line: 95 % interval over samples and seeds; open '
        'circle: the interval holds 0')
  figure.tight_layout(rect=(0, 0.05, 1, 1))
  _save(figure, path)


def grounding_page(items: Sequence[Overlay], path: str | os.PathLike[str]) -> None:
  """Draws a page of pairs: the image with the truth's outline, and with the map.

  The title is the phrase with its finding and CNR; a long phrase is cut.
  """
  pairs = 3  # a line
  lines = max(1, math.ceil(len(items) / pairs))
  figure = _figure(4.8 * pairs, 3.2 * lines + 0.5)
  top = 1 - 0.4 / figure.get_figheight()
  outer = figure.add_gridspec(
      lines, pairs, left=0.01, right=0.99, top=top, bottom=0.005, wspace=0.04, hspace=0.02)
  for k, item in enumerate(items):
    cell = outer[k // pairs, k % pairs].subgridspec(
        2, 2, height_ratios=(0.28, 1), wspace=0.02, hspace=0.02)
    title = figure.add_subplot(cell[0, :])
    title.axis('off')
    title.text(0.5, 0.04, _title(item), ha='center', va='bottom', fontsize=8.5,
               transform=title.transAxes, linespacing=1.15)
    for side in range(2):
      axes = figure.add_subplot(cell[1, side])
      axes.imshow(item.image, cmap='gray', vmin=0, vmax=255, interpolation='bilinear')
      if side:
        axes.imshow(item.heat, cmap='inferno', alpha=_alpha(item.heat), interpolation='bilinear')
      if item.truth.any() and not item.truth.all():
        # Dark below bright, so that the line shows on any ground.
        axes.contour(item.truth, levels=[0.5], colors='black', linewidths=2.2)
        axes.contour(item.truth, levels=[0.5], colors='#4dffd2', linewidths=1.1)
      axes.set_xticks([])
      axes.set_yticks([])
  figure.text(
      0.5, 1 - 0.2 / figure.get_figheight(), ha='center', va='center', fontsize=9, color='#444444',
      s='left: image and true outline; right: the model\'s map (bright = likely) and true outline')
  _save(figure, path)


def _title(item: Overlay) -> str:
  cnr = 'undefined' if math.isnan(item.cnr) else f'{item.cnr:.2f}'
  if not item.phrase:
    return f'{item.category}, CNR {cnr}'
  # '$' would start a formula.
  phrase = item.phrase.replace('$', r'\$')
  lines = textwrap.wrap(phrase, _TITLE_WIDTH) or ['']
  if len(lines) > _PHRASE_LINES:
    lines = lines[:_PHRASE_LINES]
    lines[-1] = lines[-1][:_TITLE_WIDTH - 2] + ' …'
  return '\n'.join([f'“{lines[0]}', *lines[1:]]) + f'”\n{item.category}, CNR {cnr}'


def _alpha(heat: np.ndarray) -> np.ndarray:
  """Opacity 0..0.6, so that the image stays readable where the map is low."""
  low, high = float(heat.min()), float(heat.max())
  return 0.6 * (heat - low) / (high - low) if high > low else np.zeros_like(heat)


def _ordered(names: set[str]) -> list[str]:
  """Losses, diagnostics, validation, then what concerns the optimiser and speed."""
  def group(name):
    if name == 'loss':
      return 0
    if name.startswith('loss_'):
      return 1
    if name.startswith('val_'):
      return 3
    return 4 if name in _LAST else 2

  return sorted(names, key=lambda name: (group(name), name))


def _stage_bands(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
  """(stage, first step, last step) of each run of rows in one stage."""
  bands: list[list[Any]] = []
  for row in rows:
    stage, step = row.get('stage'), row['step']
    if stage is None:
      continue
    if bands and bands[-1][0] == stage:
      bands[-1][2] = step
    else:
      start = bands[-1][2] if bands else step
      bands.append([stage, start, step])
  return [tuple(band) for band in bands]


def _is_number(value: Any) -> bool:
  return (isinstance(value, (int, float)) and not isinstance(value, bool)
          and math.isfinite(value))


def _figure(width: float, height: float) -> figure_lib.Figure:
  # Not pyplot: that would keep every figure, and ask for a display.
  figure = figure_lib.Figure(figsize=(width, height), dpi=110, facecolor='white')
  backend_agg.FigureCanvasAgg(figure)
  return figure


def _save(figure: figure_lib.Figure, path: str | os.PathLike[str]) -> None:
  figure.savefig(path, format='png')
