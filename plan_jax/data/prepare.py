"""Makes records: `python -m plan_jax.data.prepare manifest|phantom --help`."""

import argparse
import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import sys
from typing import Any, Sequence

from PIL import Image

from plan_jax import errors
from plan_jax.data import columns
from plan_jax.data import images
from plan_jax.data import manifest as manifest_lib
from plan_jax.data import phantom
from plan_jax.data import reports
from plan_jax.data import rows
from plan_jax.data import tokenize
from plan_jax.data import writer

_PREVIEW_PAIRS = 24
_PHANTOM_MIN_SIZE = 64  # below it ribs and vessels are lost

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

Exit status: 0 done; 1 rows were rejected and that is an error (--strict, or no row
is left); 2 wrong input or options; 130 interrupted (run it again to continue).
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


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  options = _parser().parse_args(arguments)
  try:
    return options.run(options)
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except writer.RejectedError as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print(f'\nInterrupted. Run the same command again to continue: what is finished is kept in '
          f'{options.out}.', file=sys.stderr)
    return 130


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog='python -m plan_jax.data.prepare', description=__doc__)
  commands = parser.add_subparsers(required=True, metavar='{manifest,phantom}')
  shape = argparse.RawDescriptionHelpFormatter
  rows_parser = commands.add_parser(
      'manifest', help='records from your images and reports', formatter_class=shape,
      description=_MANIFEST_HELP, epilog=_MANIFEST_EXAMPLES)
  rows_parser.set_defaults(run=_run_manifest)
  rows_parser.add_argument(
      '--manifest', action='append', required=True, metavar='FILE',
      help='.jsonl or .csv; may be given several times')
  _add_shared(rows_parser, size=256, size_help='long side of the stored images in pixels; '
              'smaller images stay as they are (default: %(default)s)')
  rows_parser.add_argument(
      '--image-root', default='', metavar='DIR',
      help="folder of the image and mask paths (default: each manifest's own)")
  rows_parser.add_argument(
      '--image-key', default='image', metavar='KEY',
      help='column of the image path (default: %(default)s)')
  texts = rows_parser.add_mutually_exclusive_group()
  texts.add_argument(
      '--text-key', default='', metavar='KEY',
      help='column of the text, stored as it is (default: text, or findings and impression)')
  texts.add_argument(
      '--report-key', default='', metavar='KEY',
      help='column of a whole report with headings; sections are taken from it and cleaned '
      '(docs/data-reports.md)')
  rows_parser.add_argument(
      '--report-sections', default='', metavar='NAMES',
      help='with --report-key: which, in this order, separated by commas (default: '
      f'{",".join(reports.Options().sections)})')
  rows_parser.add_argument(
      '--label-key', action='append', default=[], metavar='KEY',
      help="column of the classes; 'a.b' for key b of a mapping in column a; several are "
      'joined (default: labels, or label)')
  rows_parser.add_argument(
      '--allow-empty-text', action='store_true',
      help='keep images without a report (evaluation sets)')
  phantom_parser = commands.add_parser(
      'phantom', help='records of synthetic chest radiographs', formatter_class=shape,
      description=_PHANTOM_HELP, epilog=_PHANTOM_EXAMPLES)
  phantom_parser.set_defaults(run=_run_phantom)
  phantom_parser.add_argument(
      '--pairs', type=_positive, required=True, metavar='N', help='number of pairs')
  phantom_parser.add_argument(
      '--seed', type=int, default=0, metavar='S', help='(default: %(default)s)')
  _add_shared(phantom_parser, size=160, size_help='side of the images in pixels '
              '(default: %(default)s)')
  phantom_parser.add_argument(
      '--preview', default='', metavar='FILE', help='also draw a contact sheet (PNG)')
  return parser


def _add_shared(parser: argparse.ArgumentParser, *, size: int, size_help: str):
  parser.add_argument(
      '--out', required=True, metavar='DIR', type=pathlib.Path,
      help='new or empty directory, or that of an interrupted run')
  parser.add_argument('--size', type=_positive, default=size, metavar='PX', help=size_help)
  parser.add_argument(
      '--vocab', default='', metavar='PATH',
      help='a vocab.txt or tokenizer directory (default: train one)')
  parser.add_argument(
      '--vocab-size', type=_positive, default=4096, metavar='N',
      help='most tokens of a trained vocabulary (default: %(default)s)')
  parser.add_argument(
      '--shard-rows', type=_positive, default=8192, metavar='N',
      help='most records in one file (default: %(default)s)')
  parser.add_argument(
      '--workers', type=_positive, default=_cores(), metavar='N',
      help='processes (default: one for each core, here %(default)s)')
  parser.add_argument(
      '--strict', action='store_true', help='any rejected row is an error')


def _positive(text: str) -> int:
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


def _run_manifest(options: argparse.Namespace) -> int:
  write_options = _write_options(options)
  keys = columns.Keys(
      image=options.image_key, text=options.text_key or options.report_key,
      reading=_report_options(options), labels=tuple(options.label_key))
  names = [manifest_lib.short_name(path) for path in options.manifest]
  print(f'Reading {", ".join(names)}', flush=True)
  contents = manifest_lib.read_manifests(
      options.manifest, keys=keys, image_root=options.image_root,
      allow_empty_text=options.allow_empty_text)
  for note in contents.notes:
    print(f'note: {note}')
  print(f'Rows: {contents.rows}, images to read: {len(contents.items)}', flush=True)
  card = writer.write(
      writer.Source(
          items=contents.items, rejects=contents.rejects, rows=contents.rows,
          make=functools.partial(images.make, size=options.size), item_key=_item_key,
          about={
              'kind': 'manifest',
              'image_size': options.size,
              'source': {
                  'manifests': names,
                  'keys': dataclasses.asdict(keys),
                  'allow_empty_text': options.allow_empty_text,
              },
          }),
      options=write_options)
  _print_card(card, options.out)
  return 0


def _report_options(options: argparse.Namespace) -> reports.Options | None:
  if options.report_sections and not options.report_key:
    raise writer.WriteError('--report-sections needs --report-key: the column of the reports.')
  if not options.report_key:
    return None
  if not options.report_sections:
    return reports.Options()
  names = [name.strip().lower() for name in options.report_sections.split(',')]
  unknown = [name for name in names if name not in list(reports.Section)]
  if unknown:
    raise writer.WriteError(
        f'--report-sections {options.report_sections}: no section {unknown[0]!r}; there are '
        f'{", ".join(reports.Section)}.')
  return reports.Options(sections=tuple(map(reports.Section, names)))


def _item_key(item: rows.Item) -> str:
  """All that an item's record depends on, the state of its files included."""
  masks = [annotation.mask for row in item.rows for annotation in row.annotations]
  states = []
  for path in (item.image, *filter(None, masks)):
    try:
      status = os.stat(path)
      states.append((status.st_size, status.st_mtime_ns))
    except OSError:
      states.append(None)
  return json.dumps([dataclasses.asdict(item), states], sort_keys=True)


def _run_phantom(options: argparse.Namespace) -> int:
  write_options = _write_options(options)
  if options.seed < 0:
    raise writer.WriteError(f'--seed {options.seed}: must be 0 or more.')
  if options.size < _PHANTOM_MIN_SIZE:
    raise writer.WriteError(
        f'--size {options.size}: phantoms need at least {_PHANTOM_MIN_SIZE} pixels.')
  if options.preview and not pathlib.Path(options.preview).absolute().parent.is_dir():
    raise writer.WriteError(
        f'--preview {options.preview}: its folder does not exist; make it, or name another file.')
  print(f'Drawing {options.pairs} phantoms of seed {options.seed}', flush=True)
  card = writer.write(
      writer.Source(
          items=range(options.pairs), rows=options.pairs, item_key=str,
          make=functools.partial(_make_phantom, seed=options.seed, size=options.size),
          about={
              'kind': 'phantom',
              'image_size': options.size,
              'source': {'pairs': options.pairs, 'seed': options.seed,
                         'drawing': phantom.VERSION},
          }),
      options=write_options)
  _print_card(card, options.out)
  if options.preview:
    count = min(options.pairs, _PREVIEW_PAIRS)
    try:
      phantom.preview(options.preview, seed=options.seed, count=count, size=options.size)
    except (OSError, ValueError) as error:
      raise writer.WriteError(
          f'--preview {options.preview}: cannot be written ({error}); name a .png file in a '
          'folder that exists.') from error
    print(f'Contact sheet in {options.preview}')
  return 0


def _make_phantom(index: int, *, seed: int, size: int) -> rows.Outcome:
  example = phantom.example(index, seed=seed, size=size)
  with Image.open(io.BytesIO(example.image)) as picture:
    shape = picture.size
  return rows.Outcome(
      example=example, id=example.id, split=example.split, original=shape, stored=shape,
      pixels=hashlib.sha256(example.image).hexdigest(), sources=(('phantom', index),))


def _write_options(options: argparse.Namespace) -> writer.Options:
  vocabulary = tuple(tokenize.read_vocabulary(options.vocab)) if options.vocab else ()
  return writer.Options(
      directory=options.out, shard_rows=options.shard_rows, vocabulary=vocabulary,
      vocab_size=options.vocab_size, workers=options.workers, strict=options.strict)


def _print_card(card: dict[str, Any], directory: pathlib.Path):
  counts = card['rows']
  splits = ', '.join(f'{name} {number}' for name, number in card['splits'].items())
  words = card['text']['words']
  vocabulary = f'{card["vocab_size"]} tokens, {card["options"]["vocab"]}'
  if not card['vocab_size']:
    vocabulary = 'none: no reports in the train split, and no --vocab'
  print(f'''
rows in       {counts["in"]}
records       {counts["records"]} ({splits})
joined        {counts["merged"]} rows with another row of the same image
rejected      {sum(counts["rejected"].values())}''')
  for reason, number in counts['rejected'].items():
    print(f'  {reason:<22} {number}')
  if counts['rejected']:
    print(f'  listed in {directory / writer.REJECTS_NAME}')
  print(f'''\
report words  median {words["median"]:g}, 95 % up to {words["p95"]:g}, most {words["max"]}, \
without text {card["text"]["empty_share"]:.1%}
classes       {len(card["classes"])}
phrases       {card["phrases"]["phrases"]} ({card["phrases"]["boxes"]} boxes, \
{card["phrases"]["masks"]} masks)
vocabulary    {vocabulary}
content hash  {card["content_hash"][:16]}

Records are in {directory}''')


if __name__ == '__main__':
  sys.exit(main())
