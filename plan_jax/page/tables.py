"""metrics.json as tables: known parts get words, any other part is walked all the same.

A figure is a mapping with value, low, high and n; wherever one lies in the results, it
gets a row or a cell, named by its path.
"""

import dataclasses
import math
from typing import Any, Iterator, Mapping, Sequence

from plan_jax.page import wording

_FIGURE = ('value', 'low', 'high', 'n')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
  """Positions in percent of the width: the bar's two ends, the whisker's, and a reference.

  `mark` is what to compare with (guessing, a floor, zero); None draws none.
  """

  start: float
  end: float
  low: float
  high: float
  mark: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
  """A figure as text; `bar` is None where it is undefined, `interval` '' where it has none."""

  text: str
  interval: str
  n: str
  bar: Bar | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """`note` holds the words that come with a row, such as its protocol."""

  name: str
  note: str
  cells: Sequence[Cell]
  extras: Sequence[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """Rows of figures. A list has one figure a row, else there is a column for each metric.

  `shared_n` says that all figures of a row rest on the same n, which then has a column.
  """

  caption: str
  columns: Sequence[str]
  extras: Sequence[str]
  rows: Sequence[Row]
  shared_n: bool
  folded: bool

  @property
  def is_list(self) -> bool:
    return not self.columns


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
  """A section of the page: its tables, how to read them, and the plain facts beside them."""

  key: str
  title: str
  lead: str
  meanings: Mapping[str, str]
  tables: Sequence[Table]
  facts: Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
  """A headline figure with what to compare it with."""

  label: str
  cell: Cell
  beside: str


def parts(results: Mapping[str, Any]) -> list[Part]:
  """Every part that holds a figure, in order; all kinds of grounding make one part."""
  grounds = {key: node for key, node in results.items()
             if key.split('_')[0] == 'grounding' and isinstance(node, Mapping)}
  found = []
  for key, node in results.items():
    if key in grounds:
      if key == next(iter(grounds)):
        found.append(_part('grounding', list(_grounding(grounds)), list(grounds.values()), {}))
    elif isinstance(node, Mapping) and not _is_figure(node):
      found.append(_part(key, list(_walk((key,), node)), [node], _plain_facts(node)))
  single = {key: node for key, node in results.items() if _is_figure(node)}
  if single:
    found.append(_part('figures', [_list('Figures', single)], [single], {}))
  return [part for part in found if part.tables]


def tiles(results: Mapping[str, Any]) -> list[Tile]:
  """The headline figures that are there and defined."""
  found = []

  def add(path, label, beside, mark):
    node = _at(results, path)
    if _is_figure(node) and _number(node['value']) is not None:
      # The scale of the tables, so that a bar looks the same there.
      domain = _domain(path[-1], list(_named(path[-1], results)))
      beside = f'{beside}: {_text(path[-1], mark)}' if mark is not None else ''
      found.append(Tile(
          label=label, cell=_cell(path[-1], node, domain, mark=mark), beside=beside))

  def floor(metric):
    node = _at(results, ('grounding_centre', metric))
    return _number(node['value']) if _is_figure(node) else None

  fixed = 'the same spot in the middle for every phrase'
  best = 'retrieval_words' if results.get('retrieval_words') else 'retrieval'
  candidates = _number(_at(results, (best, 'candidates')))
  among = f' of {candidates:g}' if candidates else ''
  add(('zero_shot', 'macro_auroc'), 'Findings told apart without labels (AUROC)', 'guessing', 0.5)
  add(('grounding', 'cnr'), 'Map stands out where the phrase belongs (CNR)', fixed, floor('cnr'))
  add(('grounding', 'pointing'), 'Brightest point inside the outline', fixed, floor('pointing'))
  add((best, 'image_to_text', 'r@5'), f'Own report among the first 5{among}',
      'guessing, about', min(1, 5 / candidates) if candidates else None)
  return found


def plain_facts(results: Mapping[str, Any]) -> dict[str, str]:
  """The results' own facts, such as split and pairs."""
  return _plain_facts(results)


def _part(key, tables, nodes, facts) -> Part:
  title, lead = wording.part(key)
  keys = dict.fromkeys(key for node in nodes for key in _metric_keys(node))
  return Part(key=key, title=title, lead=lead, meanings=wording.explanations(keys), tables=tables,
              facts={wording.label(key): value for key, value in facts.items()})


def _grounding(nodes: Mapping[str, Mapping[str, Any]]) -> Iterator[Table]:
  """All kinds side by side, then the findings of each."""
  yield _matrix('All kinds of map', nodes, shared=nodes)
  for key, node in nodes.items():
    categories = node.get('categories')
    if isinstance(categories, Mapping) and any(map(_figures, categories.values())):
      yield _matrix(f'By finding: {wording.label(key)}', categories, shared=nodes,
                    folded=key != 'grounding')


def _walk(
    path: tuple[str, ...], node: Mapping[str, Any], *, mark: float | None = None,
) -> Iterator[Table]:
  """Tables of all figures at or below a node; siblings with the same metrics share one."""
  caption, folded = wording.caption(path[1:]), len(path) > 3
  figures, inner = _figures(node), dict(_children(node))
  if figures:
    yield _list(caption, figures, mark=mark, folded=folded)
  first = next((set(found) for child in inner.values() if (found := _figures(child))), set())
  alike = {key: child for key, child in inner.items() if first & set(_figures(child))}
  mark = 0.5 if 'macro_auroc' in figures else None  # what lies below are AUROCs as well
  if len(alike) > 1:
    yield _matrix(caption, alike, shared=alike, folded=folded)
  for key, child in inner.items():
    if len(alike) > 1 and key in alike:
      mark = 0.5 if 'macro_auroc' in _figures(child) else None
      for below, grandchild in _children(child):
        yield from _walk((*path, key, below), grandchild, mark=mark)
    else:
      yield from _walk((*path, key), child, mark=mark)


def _list(
    caption: str, figures: Mapping[str, Mapping[str, Any]], *, mark: float | None = None,
    folded: bool = False,
) -> Table:
  extras = list(dict.fromkeys(
      key for node in figures.values() for key in node
      if key not in _FIGURE and not isinstance(node[key], (Mapping, list))))
  in_unit = _domain('', list(figures.values()))
  rows = []
  for key, node in figures.items():
    domain = in_unit if in_unit == (0, 1) else _domain(key, [node])
    rows.append(Row(name=wording.label(key), cells=[_cell(key, node, domain, mark=mark)], note='',
                    extras=[_plain(node.get(extra)) for extra in extras]))
  return Table(caption=caption, columns=(), rows=rows, shared_n=True, folded=folded,
               extras=[wording.label(key) for key in extras])


def _matrix(
    caption: str, nodes: Mapping[str, Any], *, shared: Mapping[str, Any], folded: bool = False,
) -> Table:
  """A row for each node; bars of one metric have one scale over all of `shared`."""
  figures = {key: _figures(node) for key, node in nodes.items()}
  metrics = list(dict.fromkeys(key for found in figures.values() for key in found))
  domains = {metric: _domain(metric, list(_named(metric, shared))) for metric in metrics}
  extras = list(dict.fromkeys(
      key for node in nodes.values() for key in _plain_facts(node)
      if _number(node[key]) is not None))
  counts = [{node['n'] for node in found.values()} for found in figures.values()]
  rows = []
  for key, node in nodes.items():
    found, facts = figures[key], _plain_facts(node)
    note = ', '.join(facts[key] for key in facts if key not in extras and key != 'maps')
    rows.append(Row(
        name=wording.label(key), note=note, extras=[facts.get(extra, '') for extra in extras],
        cells=[_cell(metric, found.get(metric), domains[metric]) for metric in metrics]))
  return Table(
      caption=caption, columns=[wording.label(metric) for metric in metrics], rows=rows,
      shared_n=all(len(count) == 1 for count in counts), folded=folded,
      extras=[wording.label(key) for key in extras])


def _cell(
    key: str, node: Mapping[str, Any] | None, domain: tuple[float, float], *,
    mark: float | None = None,
) -> Cell:
  if node is None:
    return Cell(text='–', interval='', n='', bar=None)
  value, low, high = (_number(node[name]) for name in ('value', 'low', 'high'))
  n = f'{node["n"]:,}' if isinstance(node['n'], int) else _plain(node['n'])
  if value is None:
    return Cell(text='undefined', interval='', n=n, bar=None)
  has_interval = low is not None and high is not None

  def place(number):
    return round(100 * min(1, max(0, (number - domain[0]) / (domain[1] - domain[0]))), 2)

  if mark is None and 'auroc' in key:
    mark = 0.5
  elif mark is None and domain[0] < 0:
    mark = 0
  bar = Bar(start=min(place(value), place(0)), end=max(place(value), place(0)),
            low=place(low) if has_interval else place(value),
            high=place(high) if has_interval else place(value),
            mark=None if mark is None else place(mark))
  interval = f'[{_text(key, low)}, {_text(key, high)}]' if has_interval else ''
  return Cell(text=_text(key, value), interval=interval, n=n, bar=bar)


def _domain(key: str, figures: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
  """Scale of the bars: 0..1 for shares, else from 0 (or below) to the highest interval."""
  numbers = [number for node in figures for name in ('value', 'low', 'high')
             if (number := _number(node[name])) is not None]
  low, high = min(numbers, default=0), max(numbers, default=0)
  if low >= 0 and high <= 1 and 'cnr' not in key:
    return 0, 1
  low, high = min(0, low), max(0, high)
  return low, high if high > low else low + 1


def _named(key: str, node: Any) -> Iterator[Mapping[str, Any]]:
  """All figures of this name at any depth."""
  for name, child in _children(node) if not _is_figure(node) else ():
    yield from _named(key, child)
  for name, found in _figures(node).items():
    if name == key:
      yield found


def _children(node: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
  """Inner mappings that are no figures; those in a list are named by their place."""
  if not isinstance(node, Mapping):
    return
  for key, child in node.items():
    if isinstance(child, list):
      for place, item in enumerate(child, start=1):
        if isinstance(item, Mapping) and not _is_figure(item):
          yield f'{key} {place}', item
    elif isinstance(child, Mapping) and not _is_figure(child):
      yield str(key), child


def _figures(node: Any) -> dict[str, Mapping[str, Any]]:
  """The figures that lie directly in a node."""
  found = {}
  for key, child in node.items() if isinstance(node, Mapping) else ():
    if _is_figure(child):
      found[str(key)] = child
    elif isinstance(child, list):
      found |= {f'{key} {place}': item for place, item in enumerate(child, start=1)
                if _is_figure(item)}
  return found


def _is_figure(node: Any) -> bool:
  return isinstance(node, Mapping) and all(key in node for key in _FIGURE)


def _metric_keys(node: Any) -> Iterator[str]:
  """Keys of all figures, and of what holds them: 'ap' may hold one for each overlap."""
  yield from _figures(node)
  for key, child in _children(node):
    yield key
    yield from _metric_keys(child)


def _plain_facts(node: Any) -> dict[str, str]:
  """Numbers, words and lists of them; what is null or empty is left out."""
  facts = {}
  for key, value in node.items() if isinstance(node, Mapping) else ():
    is_list = isinstance(value, list) and not any(
        isinstance(item, (Mapping, list)) for item in value)
    if isinstance(value, (str, int, float)) or (is_list and value):
      facts[str(key)] = ', '.join(map(_plain, value)) if is_list else _plain(value)
  return facts


def _at(node: Any, path: Sequence[str]) -> Any:
  for key in path:
    if not isinstance(node, Mapping):
      return None
    node = node.get(key)
  return node


def _number(value: Any) -> float | None:
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
    return None
  return float(value)


def _text(key: str, value: float) -> str:
  if key.endswith('rank'):
    return f'{value:g}'
  return f'{value:.3f}' if abs(value) < 100 else f'{value:,.1f}'


def _plain(value: Any) -> str:
  if value is None:
    return ''
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, float):
    return f'{value:.3f}' if abs(value) < 100 else f'{value:,.1f}'
  return str(value)
