r"""Draws class-balanced evaluation lists, such as MIMIC 5x200, from a corpus's tables.

  python -m plan_jax.data.draw mimic_cxr --root mimic --per-class 200 \
      --classes "atelectasis,cardiomegaly,consolidation,edema,pleural effusion" --out 5x200.txt
  python -m plan_jax.data.prepare mimic_cxr --root mimic --out records/train --exclude-ids 5x200.txt
  python -m plan_jax.data.prepare mimic_cxr --root mimic --out records/5x200 --only-ids 5x200.txt

An image counts for a class if that is its only label and nothing about it is uncertain. One image
a patient is drawn, the same ones in every run with the same seed and tables. No picture is opened.
"""

import argparse
import pathlib
import sys
from typing import Sequence

from plan_jax import errors
from plan_jax import prompts
from plan_jax.data import corpora
from plan_jax.data import items as items_lib
from plan_jax.data import options as options_lib
from plan_jax.data import rows as rows_lib
from plan_jax.data.corpora import base
from plan_jax.evals import retrieval
from plan_jax.tasks import targets


class DrawError(errors.UserError):
  """A list that cannot be drawn."""


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  options = _parse(arguments)
  return errors.exit_status(lambda: run(options), again='run the same command again')


def run(options: argparse.Namespace) -> None:
  """Writes the list that the options ask for.

  Raises:
    UserError: the corpus cannot be read, the list not be written, or a class has too few
      images.
  """
  if options.seed < 0:
    raise DrawError(f'--seed {options.seed}: must be 0 or more')
  if options.out.is_dir():
    raise DrawError(f'--out {options.out} is a directory; name a file')
  errors.require_writable(options.out.absolute().parent, option='--out')
  corpus = corpora.CORPORA[options.corpus]
  contents = base.contents(
      corpus, options_lib.request(options), allow_empty_text=True,
      selection=items_lib.Selection())
  classes = [prompts.normal_label(name) for name in options.classes.split(',')]
  chosen = draw(
      contents.items, classes=classes, per_class=options.per_class, split=options.split,
      seed=options.seed)
  lines = [f'# {corpus.name}, {len(classes)} x {options.per_class} of split {options.split}, '
           f'seed {options.seed}: {", ".join(classes)}']
  options.out.write_text('\n'.join([*lines, *chosen]) + '\n', 'utf-8')
  print(f'{len(chosen)} ids in {options.out}')


def draw(
    items: Sequence[rows_lib.Item], *, classes: Sequence[str], per_class: int, split: str,
    seed: int,
) -> list[str]:
  """Ids of `per_class` images of each class, one a patient, sorted.

  Args:
    items: of a corpus.
    classes: as `prompts.normal_label` writes them.
    per_class: images of each.
    split: that they are drawn from; 'all' for any.
    seed: of the draw.

  Raises:
    DrawError: a class has too few.

  Source: CheXpert 5x200 as GLoRIA's and MGCA's code draw it, but for one image a patient. An
    uncertain mark, of whichever class, rules an image out there.
  """
  first: dict[str, rows_lib.Item] = {}
  for item in sorted(items, key=lambda item: item.id):
    if split in ('all', item.split) and len(_classes(item)) == 1 and _classes(item) <= set(classes):
      first.setdefault(item.patient, item)
  pool = list(first.values())
  sample = retrieval.balanced_sample(
      [_classes(item) for item in pool], per_class=per_class, seed=seed, classes=classes)
  found = [int((sample.class_id == k).sum()) for k in range(len(classes))]
  if min(found) < per_class:
    counts = ', '.join(f'{name} {number}' for name, number in zip(classes, found))
    raise DrawError(
        f'--per-class {per_class}: too few patients with one of the classes as the only label '
        f'({counts}); take a smaller number, another --split, or check --classes')
  return sorted(pool[row].id for row in sample.rows)


def _classes(item: rows_lib.Item) -> frozenset[str]:
  return targets.certain_classes_of(rows_lib.marks(item.rows))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
      prog='python -m plan_jax.data.draw', description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  commands = parser.add_subparsers(required=True, metavar='CORPUS', dest='corpus')
  for corpus in corpora.CORPORA.values():
    command = commands.add_parser(corpus.name, help=corpus.title)
    options_lib.add_source(command, corpus)
    command.add_argument('--classes', required=True, metavar='NAME[,NAME]', help='of the list')
    command.add_argument(
        '--per-class', type=options_lib.positive, default=200, metavar='N',
        help='images of each (default: %(default)s)')
    command.add_argument(
        '--split', choices=('train', 'val', 'test', 'all'), default='train',
        help='where they are drawn (default: %(default)s)')
    command.add_argument('--seed', type=int, default=0, help='(default: %(default)s)')
    command.add_argument(
        '--out', required=True, type=pathlib.Path, metavar='FILE', help='the list, one id a line')
  return parser.parse_args(arguments)


if __name__ == '__main__':
  sys.exit(main())
