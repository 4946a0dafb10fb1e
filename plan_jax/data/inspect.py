"""What is in records, and whether it is sound: `python -m plan_jax.data.inspect DIR`."""

import argparse
import dataclasses
import pathlib
import sys
from typing import Iterable, Iterator, Mapping, Sequence

import cv2
import numpy as np

from plan_jax import errors
from plan_jax import page
from plan_jax.data import augment
from plan_jax.data import check
from plan_jax.data import overlap
from plan_jax.data import records

_SAMPLES = 24
_SHOWN_PROBLEMS = 20
_PAGE_PROBLEMS = 500
_BINS = 30

_EXAMPLES = """\
Every record is read: its image and masks are decoded, boxes must lie within it, ids
be unique, patients be in one split, labels be known; counts and content hash must be
those of the card. With --against, records that lie in another directory as well are
problems too: almost the same picture, the same id or the same patient.

examples:
  python -m plan_jax.data.inspect records/real
  python -m plan_jax.data.inspect records/real --out records.html --include-text
  python -m plan_jax.data.inspect records/train --against records/evaluation

Exit status: 0 all is well; 1 problems were found; 2 nothing there that can be inspected;
130 interrupted.
"""


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  options = _parser().parse_args(arguments)
  problems: list[check.Problem] = []
  status = errors.exit_status(
      lambda: problems.extend(_run(options)), again='nothing was changed; run it again')
  return status or int(bool(problems))


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog='python -m plan_jax.data.inspect', description=__doc__, epilog=_EXAMPLES,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument(
      'directory', metavar='DIR', type=pathlib.Path,
      help='records, written by python -m plan_jax.data.prepare')
  parser.add_argument(
      '--out', default=None, metavar='FILE', type=pathlib.Path,
      help='also write a page (HTML): tables, histograms, samples')
  parser.add_argument(
      '--against', action='append', default=[], metavar='DIR', type=pathlib.Path,
      help='other records, such as an evaluation set: list what lies in both; may be given '
      'several times')
  parser.add_argument(
      '--include-text', action='store_true',
      help='show reports, phrases and ids on the page; they may be patient data')
  return parser


def _run(options: argparse.Namespace) -> Sequence[check.Problem]:
  if options.out is not None:
    if options.out.suffix not in ('.html', '.htm'):
      raise errors.UserError(f'--out={options.out}: name a file that ends in .html')
    if options.out.is_dir():
      raise errors.UserError(f'--out={options.out} is a directory; name a file')
    errors.require_writable(options.out.absolute().parent, option='--out')
  elif options.include_text:
    raise errors.UserError('--include-text needs --out: it is about the page')
  for path in options.against:
    records.read_card(path)  # raises before the long part
  print(f'Inspecting {options.directory}', flush=True)
  contents = check.check(options.directory, samples=_SAMPLES if options.out else 0)
  against = list({path.resolve(): path for path in options.against}.values())  # each once
  name, *names = _names([options.directory, *against])
  overlaps = {other: overlap.compare(options.directory, path)
              for other, path in zip(names, against)}
  contents = dataclasses.replace(contents, problems=(
      *contents.problems, *(problem for other, found in overlaps.items()
                            for problem in _overlap_problems(found, name=other))))
  tables = [*_tables(contents), *(
      _overlap_table(found, contents.measures, name=other) for other, found in overlaps.items())]
  for table in tables:
    print(f'\n{table.caption}')
    _print_table(table)
  for other, found in overlaps.items():
    _print_pairs(found, name=other)
  print()
  for problem in contents.problems[:_SHOWN_PROBLEMS]:
    print(problem)
  hidden = len(contents.problems) - _SHOWN_PROBLEMS
  if hidden > 0:
    print(f'and {hidden} more' + (f': see {options.out}' if options.out else ''))
  count = len(contents.problems)
  print(f'problems: {count}' if count else 'No problem found.')
  if options.out is not None:
    page.write_data(
        _page(contents, tables, name=name), options.out, include_text=options.include_text)
    print(f'Page in {options.out}')
  return contents.problems


def _names(directories: Sequence[pathlib.Path]) -> list[str]:
  """What each directory is called: as much of the end of its path as no other one has.

  Not whole paths: a page that is shown around should not describe a machine.
  """
  parts = [path.resolve().parts[1:] for path in directories]  # without the root
  names = []
  for i, mine in enumerate(parts):
    others = [other for k, other in enumerate(parts) if k != i and other != mine]
    length = next((n for n in range(1, len(mine))
                   if all(other[-n:] != mine[-n:] for other in others)), len(mine))
    names.append('/'.join(mine[-length:]))
  return names


def _print_table(table: page.Table):
  rows = [table.columns, *table.rows]
  widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
  for row in rows:
    print('  ' + '  '.join(
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths))))


def _tables(contents: check.Contents) -> Iterator[page.Table]:
  measures = contents.measures
  facts = {
      'records': lambda found: f'{len(found.words):,}',
      'patients': lambda found: f'{len(found.patients):,}',
      'without text': lambda found: _share(found.empty, found.words),
      'words of a report, median': lambda found: _median(found.words),
      'words of a report, most': lambda found: f'{max(found.words):,}' if found.words else '–',
      'width in pixels, median': lambda found: _median(found.widths),
      'height in pixels, median': lambda found: _median(found.heights),
      'with a mark for any class': lambda found: _share(found.labelled, found.words),
      'looked through for places': lambda found: _share(found.annotated, found.words),
      'phrases': lambda found: f'{found.phrases:,}',
      'boxes': lambda found: f'{found.boxes:,}',
      'masks': lambda found: f'{found.masks:,}',
  }
  yield page.Table(caption='Splits', columns=('', *measures), rows=[
      (name, *(value(found) for found in measures.values())) for name, value in facts.items()])
  for caption, counts in (
      ('Classes, by records', {split: found.classes for split, found in measures.items()}),
      ('Classes marked uncertain, by records',
       {split: found.uncertain for split, found in measures.items()}),
      ('Findings with a place, by records',
       {split: found.categories for split, found in measures.items()})):
    if names := sorted(set().union(*counts.values())):
      yield page.Table(caption=caption, columns=('', *measures), rows=[(
          name, *(f'{counts[split][name]:,} ({_share(counts[split][name], found.words)})'
                  for split, found in measures.items())) for name in names])
  counts = contents.card['rows']
  near = contents.card.get('near_duplicates', {})  # like what is left out: since format 2
  for caption, columns, found in (
      ('Rows rejected', ('reason', 'rows'), counts['rejected']),
      ('Rows left out', ('reason', 'rows'), counts.get('left_out', {})),
      ('Near-duplicates that prepare found', ('splits', 'pairs'), near.get('between', {}))):
    if found:
      yield page.Table(caption=caption, columns=columns,
                       rows=[(name, f'{count:,}') for name, count in found.items()])


def _overlap_table(
    found: overlap.Overlap, splits: Iterable[str], *, name: str) -> page.Table:
  return page.Table(
      caption=f'Also in {name}, by records', columns=('', *splits),
      rows=[(kind, *(f'{counts[split]:,}' for split in splits))
            for kind, counts in found.counts.items()])


def _overlap_problems(found: overlap.Overlap, *, name: str) -> Iterator[check.Problem]:
  for kind, counts in found.counts.items():
    for split, count in counts.items():
      if count:
        yield check.Problem(file=split, what=f'{count:,} records with {kind} as in {name}')


def _print_pairs(found: overlap.Overlap, *, name: str):
  if found.pairs:
    print(f'\nThe nearest pictures, here and in {name}')
  for pair in found.pairs[:_SHOWN_PROBLEMS]:
    (a, b), (split, other) = pair.ids, pair.splits
    print(f'  {a} ({split}) and {b} ({other}): {pair.distance} of 256 bits differ')


def _share(count: int, of: Sequence[int]) -> str:
  return f'{count / len(of):.1%}' if of else '–'


def _median(values: Sequence[float]) -> str:
  return f'{np.median(values):g}' if values else '–'


def _page(
    contents: check.Contents, tables: Sequence[page.Table], *, name: str) -> page.DataPage:
  card = contents.card
  return page.DataPage(
      title=f'Records: {name}', is_phantom=card.get('kind') == 'phantom', tables=tables,
      facts={
          'made by': str(card.get('created_by', '')),
          'kind': str(card.get('kind', '')),
          'rows in': f'{card["rows"].get("in", 0):,}',
          'records': f'{card["rows"].get("records", 0):,}',
          'rows joined with another': f'{card["rows"].get("merged", 0):,}',
          'image size': f'{card.get("image_size", "")} pixels',
          'vocabulary': f'{card.get("vocab_size", 0):,} tokens',
          'content hash': card['content_hash'][:16],
      },
      problems=[_without_id(problem) for problem in contents.problems[:_PAGE_PROBLEMS]],
      problem_count=len(contents.problems), curves=list(_histograms(contents.measures)),
      samples=[_sample(example) for example in contents.samples])


def _without_id(problem: check.Problem) -> str:
  if problem.position < 0:
    return str(problem)
  return f'{problem.file}, record {problem.position}: {problem.what}'


def _histograms(measures: Mapping[str, check.Measures]) -> Iterator[page.Curve]:
  columns = (
      ('Words of a report', 'words', lambda found: found.words),
      ('Width', 'pixels', lambda found: found.widths),
      ('Height', 'pixels', lambda found: found.heights),
      ('Mean grey value', '0 black, 255 white', lambda found: found.greys),
      ('Area of a box', 'share of the image', lambda found: found.box_areas))
  for title, label, column in columns:
    values = {split: np.asarray(column(found), np.float64) for split, found in measures.items()}
    values = {split: found[np.isfinite(found)] for split, found in values.items() if len(found)}
    if not any(found.any() for found in values.values()):
      continue  # no boxes, or no reports
    together = np.concatenate(list(values.values()))
    low, high = together.min(), together.max()
    # Where all are the same NumPy would go half a unit down: for shares below 0.
    room = 0 if low < high else 0.1 * abs(low)
    edges = np.histogram_bin_edges(together, bins=_BINS, range=(low - room, high + room))
    series = {}
    for split, found in values.items():
      shares = np.histogram(found, edges)[0] / max(1, len(found))
      series[split] = (np.repeat(edges, 2), np.concatenate([[0], np.repeat(shares, 2), [0]]))
    yield page.Curve(title=title, x_label=label, y_label='share', series=series)


def _sample(example: records.Example) -> page.Sample:
  return page.Sample(
      id=example.id, split=example.split, image=augment.decode_image(example.image),
      labels=example.labels, text=example.text, places=[
          page.Place(category=phrase.category, text=phrase.text, boxes=phrase.boxes,
                     mask=_mask(phrase.mask))
          for phrase in example.phrases])


def _mask(data: bytes) -> np.ndarray | None:
  """Bool [h w]; None without a mask, or with one that cannot be read."""
  pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if data else None
  return None if pixels is None else pixels > 0


if __name__ == '__main__':
  sys.exit(main())
