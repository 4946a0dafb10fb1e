"""The command line of `prepare`."""

import argparse
import os
import pathlib
from typing import Sequence

from plan_jax.data import corpora
from plan_jax.data import reports
from plan_jax.data import sheet
from plan_jax.data.corpora import base

_MANIFEST_HELP = """\
Turns rows of JSONL or CSV manifests into records.

A row names an image file (`image`, relative to the manifest) and has its report
(`text`, or `findings` and `impression`). Optional: id, patient, split, labels,
annotations (phrases with boxes and masks). docs/records.md describes each column.
Rows of several manifests that name the same image file are joined.
"""

_MANIFEST_EXAMPLES = """\
examples:
  # Two collections of pairs, joined into one pre-training set:
  python -m plan_jax.data.prepare manifest \\
      --manifest cxr/image_text.jsonl --manifest roco/image_text.jsonl --out records/real

  # Pairs, and in another file boxes and masks for some of the same images:
  python -m plan_jax.data.prepare manifest \\
      --manifest cxr/image_text.jsonl --manifest cxr/localisation.jsonl --out records/cxr

  # An evaluation set without reports; classes from two columns:
  python -m plan_jax.data.prepare manifest --manifest kermany/labels.jsonl \\
      --label-key label --label-key kind --allow-empty-text --out records/kermany

  # Whole reports, headings included, in column `report`; the sections are found:
  python -m plan_jax.data.prepare manifest --manifest studies.csv \\
      --report-key report --out records/studies
"""

_PHANTOM_HELP = """\
Draws synthetic chest radiographs with reports and exact masks, and stores them as
records. Pair i of a seed is always the same, whatever --pairs is; of 16 pairs 13
are for training, 1 for validation, 2 for testing.
"""

_PHANTOM_EXAMPLES = """\
examples:
  python -m plan_jax.data.prepare phantom --pairs 4800 --seed 0 --out records/phantom
  python -m plan_jax.data.prepare phantom --pairs 64 --seed 1 --out records/few \\
      --preview sheet.png
"""

_CORPUS_EXAMPLES = """\
examples:
  python -m plan_jax.data.prepare {name} --root {name} --out records/{name} --dry-run
  python -m plan_jax.data.prepare {name} --root {name} --out records/{name}

docs/data.md says what to download and what to expect.
"""

_STATUS = """
Exit status: 0 done; 1 rows were rejected and that is an error (--strict, or no row
is left); 2 wrong input or options; 130 interrupted (run it again to continue).
"""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  """The options; `command` is the command's name."""
  parser = argparse.ArgumentParser(
      prog='python -m plan_jax.data.prepare', description='Makes records.')
  commands = parser.add_subparsers(required=True, metavar='COMMAND', dest='command')
  _add_manifest(commands)
  _add_phantom(commands)
  for corpus in corpora.CORPORA.values():
    _add_corpus(commands, corpus)
  return parser.parse_args(arguments)


def request(options: argparse.Namespace) -> base.Request:
  """What the options ask of a corpus."""
  root = options.root.absolute()
  return base.Request(
      root=root,
      tables=(getattr(options, 'tables', None) or root).absolute(),
      reports=(getattr(options, 'reports', None) or root).absolute(),
      views=base.Views(getattr(options, 'views', 'all')),
      labeler=getattr(options, 'labeler', ''),
      text=_reading(getattr(options, 'report_sections', '')))


def manifest_reading(options: argparse.Namespace) -> reports.Options | None:
  """How a manifest's whole reports are read; None if it has none.

  Raises:
    reports.ReportError: sections without reports, or unknown ones.
  """
  if options.report_sections and not options.report_key:
    raise reports.ReportError('--report-sections needs --report-key: the column of the reports.')
  return _reading(options.report_sections) if options.report_key else None


def _reading(given: str) -> reports.Options:
  if not given:
    return reports.Options()
  names = [name.strip().lower() for name in given.split(',')]
  unknown = [name for name in names if name not in list(reports.Section)]
  if unknown:
    raise reports.ReportError(
        f'--report-sections {given}: no section {unknown[0]!r}; there are '
        f'{", ".join(reports.Section)}.')
  return reports.Options(sections=tuple(map(reports.Section, names)))


def _command(commands, name: str, *, title: str, description: str, examples: str):
  return commands.add_parser(
      name, help=title, formatter_class=argparse.RawDescriptionHelpFormatter,
      description=description, epilog=examples + _STATUS)


def _add_manifest(commands):
  parser = _command(commands, 'manifest', title='records from your images and reports',
                    description=_MANIFEST_HELP, examples=_MANIFEST_EXAMPLES)
  parser.add_argument(
      '--manifest', action='append', required=True, metavar='FILE',
      help='.jsonl or .csv; may be given several times')
  _add_shared(parser, size=256, size_help=_SIZE_HELP)
  parser.add_argument(
      '--image-root', default='', metavar='DIR',
      help="folder of the image and mask paths (default: each manifest's own)")
  parser.add_argument(
      '--image-key', default='image', metavar='KEY',
      help='column of the image path (default: %(default)s)')
  texts = parser.add_mutually_exclusive_group()
  texts.add_argument(
      '--text-key', default='', metavar='KEY',
      help='column of the text, stored as it is (default: text, or findings and impression)')
  texts.add_argument(
      '--report-key', default='', metavar='KEY',
      help='column of a whole report with headings; sections are taken from it and cleaned '
      '(docs/data-reports.md)')
  parser.add_argument(
      '--report-sections', default='', metavar='NAMES',
      help='with --report-key: which, in this order, separated by commas (default: '
      f'{",".join(reports.Options().sections)})')
  parser.add_argument(
      '--label-key', action='append', default=[], metavar='KEY',
      help="column of the classes; 'a.b' for key b of a mapping in column a; several are "
      'joined (default: labels, or label)')
  _add_allow_empty_text(parser)
  _add_choice(parser)


def _add_phantom(commands):
  parser = _command(commands, 'phantom', title='records of synthetic chest radiographs',
                    description=_PHANTOM_HELP, examples=_PHANTOM_EXAMPLES)
  parser.add_argument(
      '--pairs', type=positive, required=True, metavar='N', help='number of pairs')
  parser.add_argument('--seed', type=int, default=0, metavar='S', help='(default: %(default)s)')
  _add_shared(parser, size=160, size_help='side of the images in pixels (default: %(default)s)')


def _add_corpus(commands, corpus: base.Corpus):
  parser = _command(
      commands, corpus.name, title=corpus.title, examples=_CORPUS_EXAMPLES.format(name=corpus.name),
      description=f'Records of {corpus.title}.\n\nBelow --root:\n{corpus.layout}')
  add_source(parser, corpus)
  _add_shared(parser, size=256, size_help=_SIZE_HELP)
  if corpus.texts is not base.Texts.NONE:
    _add_allow_empty_text(parser)
  _add_choice(parser)


def add_source(parser: argparse.ArgumentParser, corpus: base.Corpus) -> None:
  """The options that say where a corpus is and what is taken of it."""
  parser.add_argument(
      '--root', required=True, type=pathlib.Path, metavar='DIR', help='folder of the corpus')
  if corpus.texts is not base.Texts.BESIDE:
    parser.add_argument(
        '--tables', type=pathlib.Path, metavar='DIR',
        help='folder of the CSV files (default: --root)')
  if corpus.texts is base.Texts.FILES:
    parser.add_argument(
        '--reports', type=pathlib.Path, metavar='DIR',
        help='folder of the reports (default: --root)')
  if corpus.has_views:
    parser.add_argument(
        '--views', choices=list(map(str, base.Views)), default='frontal',
        help='which views are taken (default: %(default)s)')
  if corpus.labelers:
    parser.add_argument(
        '--labeler', choices=corpus.labelers, default=corpus.labelers[0],
        help='whose labels are taken (default: %(default)s)')
  if corpus.texts not in (base.Texts.NONE, base.Texts.PLAIN):
    parser.add_argument(
        '--report-sections', default='', metavar='NAMES',
        help='which sections, in this order, separated by commas (default: '
        f'{",".join(reports.Options().sections)}; docs/data-reports.md)')


_SIZE_HELP = ('long side of the stored images in pixels; smaller images stay as they are '
              '(default: %(default)s)')


def _add_shared(parser: argparse.ArgumentParser, *, size: int, size_help: str):
  parser.add_argument(
      '--out', required=True, metavar='DIR', type=pathlib.Path,
      help='new or empty directory, or that of an interrupted run')
  parser.add_argument('--size', type=positive, default=size, metavar='PX', help=size_help)
  parser.add_argument(
      '--vocab', default='', metavar='PATH',
      help='a vocab.txt or tokenizer directory (default: train one)')
  parser.add_argument(
      '--vocab-size', type=positive, default=4096, metavar='N',
      help='most tokens of a trained vocabulary (default: %(default)s)')
  parser.add_argument(
      '--shard-rows', type=positive, default=8192, metavar='N',
      help='most records in one file (default: %(default)s)')
  parser.add_argument(
      '--workers', type=positive, default=_cores(), metavar='N',
      help='processes (default: one for each core, here %(default)s)')
  parser.add_argument(
      '--strict', action='store_true', help='any rejected row is an error')
  parser.add_argument(
      '--preview', type=pathlib.Path, metavar='FILE',
      help=f'where the contact sheet goes, a .png or .jpg (default: DIR/{sheet.NAME})')


def _add_allow_empty_text(parser: argparse.ArgumentParser):
  parser.add_argument(
      '--allow-empty-text', action='store_true',
      help='keep images without a report (evaluation sets)')


def _add_choice(parser: argparse.ArgumentParser):
  parser.add_argument(
      '--dry-run', action='store_true', help='count and look for the files; write nothing')
  parser.add_argument(
      '--limit', type=positive, metavar='N', help='take at most N images, by a hash of their ids')
  parser.add_argument(
      '--exclude-ids', action='append', default=[], metavar='PATH',
      help='ids, one a line, or a directory of records: leave out all images of these patients '
      '(evaluation sets), and list near-duplicates of the pictures in the directory; may be given '
      'several times')
  parser.add_argument(
      '--only-ids', default='', metavar='PATH',
      help='ids, one a line, or a directory of records: take these alone, all as split test')
  parser.add_argument(
      '--drop-near-duplicates', action='store_true',
      help='reject images that come back almost unchanged in another split, or in a directory '
      'that --exclude-ids names')


def positive(text: str) -> int:
  """A whole number above 0."""
  try:
    value = int(text)
  except ValueError:
    value = 0
  if value < 1:
    raise argparse.ArgumentTypeError(f'{text!r} is not a whole number above 0')
  return value


def _cores() -> int:
  if hasattr(os, 'sched_getaffinity'):  # Linux: what this process may use
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
