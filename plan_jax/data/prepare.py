"""Makes records: `python -m plan_jax.data.prepare manifest|phantom|CORPUS --help`."""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import signal
import sys
import threading
from typing import Any, Iterator, Sequence

from PIL import Image

from plan_jax import errors
from plan_jax.data import columns
from plan_jax.data import corpora
from plan_jax.data import duplicates
from plan_jax.data import images
from plan_jax.data import items as items_lib
from plan_jax.data import likeness
from plan_jax.data import manifest as manifest_lib
from plan_jax.data import options as options_lib
from plan_jax.data import phantom
from plan_jax.data import reports
from plan_jax.data import rows
from plan_jax.data import sheet
from plan_jax.data import summary
from plan_jax.data import tokenize
from plan_jax.data import writer
from plan_jax.data.corpora import base

_PHANTOM_MIN_SIZE = 64  # below it ribs and vessels are lost


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit status."""
  options = options_lib.parse(arguments)
  run = {'manifest': _run_manifest, 'phantom': _run_phantom}.get(options.command, _run_corpus)
  try:
    with _sigterm_interrupts():
      return run(options)
  except errors.UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except writer.RejectedError as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  except OSError as error:
    if not (line := errors.forbidden(error)):
      raise
    print(f'error: {line}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(f'\nInterrupted. Run the same command again to continue: what is finished is kept in '
          f'{options.out}.', file=sys.stderr)
    return 130


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
  """SIGTERM, which clusters send before they kill, ends a run as Ctrl-C does."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, previous)


def _run_manifest(options: argparse.Namespace) -> int:
  keys = columns.Keys(
      image=options.image_key, text=options.text_key or options.report_key,
      reading=options_lib.manifest_reading(options), labels=tuple(options.label_key))
  names = [manifest_lib.short_name(path) for path in options.manifest]
  write_options, selection = _write_options(options), _selection(options)
  print(f'Reading {", ".join(names)}', flush=True)
  contents = manifest_lib.read_manifests(
      options.manifest, keys=keys, image_root=options.image_root,
      allow_empty_text=options.allow_empty_text, selection=selection)
  return _write(contents, options, write_options=write_options, pictures=selection.pictures,
                allow_empty_text=options.allow_empty_text, about={
      'kind': 'manifest',
      'image_size': options.size,
      'source': {
          'manifests': names,
          'keys': dataclasses.asdict(keys),
          'allow_empty_text': options.allow_empty_text,
          'selection': selection.as_json(),
      },
  })


def _run_corpus(options: argparse.Namespace) -> int:
  corpus = corpora.CORPORA[options.command]
  request = options_lib.request(options)
  allow_empty_text = corpus.texts is base.Texts.NONE or options.allow_empty_text
  write_options, selection = _write_options(options), _selection(options)
  contents = base.contents(
      corpus, request, allow_empty_text=allow_empty_text, selection=selection)
  return _write(contents, options, write_options=write_options, text=request.text,
                pictures=selection.pictures, allow_empty_text=allow_empty_text, about={
      'kind': corpus.name,
      'image_size': options.size,
      'source': {
          'views': str(request.views),
          'labeler': request.labeler,
          'text': dataclasses.asdict(request.text),
          'allow_empty_text': allow_empty_text,
          'selection': selection.as_json(),
      },
  })


def _selection(options: argparse.Namespace) -> items_lib.Selection:
  return items_lib.Selection(
      only=items_lib.read_ids(options.only_ids) if options.only_ids else None,
      exclude=frozenset().union(*map(items_lib.read_ids, options.exclude_ids)),
      pictures=items_lib.read_pictures(filter(os.path.isdir, options.exclude_ids)),
      limit=options.limit)


def _write(
    contents: items_lib.Contents, options: argparse.Namespace, *, write_options: writer.Options,
    about: dict[str, Any], allow_empty_text: bool, pictures: tuple[likeness.Picture, ...],
    text: reports.Options = reports.Options(),
) -> int:
  """Items -> records, or with --dry-run their counts."""
  for note in contents.notes:
    print(f'note: {note}')
  print(f'Rows: {contents.rows}, images to read: {len(contents.items)}', flush=True)
  if options.dry_run:
    problems = summary.print_dry_run(contents)
    return int(options.strict and bool(problems))
  card = writer.write(
      writer.Source(
          items=contents.items, rejects=contents.rejects, rows=contents.rows,
          left_out=contents.left_out, about=about, item_key=_item_key,
          make=functools.partial(
              images.make, size=options.size, text=text, allow_empty_text=allow_empty_text)),
      options=dataclasses.replace(write_options, others=pictures))
  _finish(card, options)
  return 0


def _item_key(item: rows.Item) -> str:
  """All that an item's record depends on, the state of its files included."""
  states = []
  for path in rows.files(item):
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
  _finish(card, options)
  return 0


def _make_phantom(index: int, *, seed: int, size: int) -> rows.Outcome:
  example = phantom.example(index, seed=seed, size=size)
  with Image.open(io.BytesIO(example.image)) as picture:
    shape = picture.size
  return rows.Outcome(
      example=example, id=example.id, split=example.split, original=shape, stored=shape,
      pixels=hashlib.sha256(example.image).hexdigest(), sources=(('phantom', index),))


def _write_options(options: argparse.Namespace) -> writer.Options:
  """Looked at first: the tables of a large corpus take a minute."""
  if not getattr(options, 'dry_run', False):
    writer.require_usable(options.out)
  if options.preview:
    sheet.require_writable(options.preview)
  vocabulary = tuple(tokenize.read_vocabulary(options.vocab)) if options.vocab else ()
  return writer.Options(
      directory=options.out, shard_rows=options.shard_rows, vocabulary=vocabulary,
      vocab_size=options.vocab_size, workers=options.workers, strict=options.strict,
      near=(duplicates.Near.DROP if getattr(options, 'drop_near_duplicates', False)
            else duplicates.Near.REPORT))


def _finish(card: dict[str, Any], options: argparse.Namespace):
  summary.print_card(card, options.out)
  path = options.preview or options.out / sheet.NAME
  if options.preview or not path.exists():  # finished records are left as they are
    sheet.of_records(path, options.out)
  print(f'Contact sheet in {path}')


if __name__ == '__main__':
  sys.exit(main())
