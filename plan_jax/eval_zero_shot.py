r"""Zero-shot classification with a trained checkpoint, on the CPU.

  python -m plan_jax.eval_zero_shot --checkpoint runs/demo --records runs/demo/records \
      --prompts configs/prompts/phantom.toml [--split test] [--out DIR]
  python -m plan_jax.eval_zero_shot --checkpoint DIR --manifest FILE --label-key kind,label \
      --prompts FILE

Prints AUROC per class and macro with 95 % bootstrap intervals, and writes
`zero_shot.json`. The prompt file is described in plan_jax/prompts.py.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import time
from typing import Any, Mapping, Sequence

import jax

from plan_jax import errors
from plan_jax import evaluation
from plan_jax import inference
from plan_jax import prompts as prompts_lib
from plan_jax.data import columns
from plan_jax.data import manifest as manifest_lib
from plan_jax.data import records as records_lib
from plan_jax.data import rows as rows_lib
from plan_jax.tasks import targets
from plan_jax.tasks import zero_shot

RESULT_NAME = 'zero_shot.json'


class EvalError(errors.UserError):
  """Arguments or data that cannot be used."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled:
  """An image with its classes (`targets.classes_of`); `image` is a path or encoded bytes."""

  name: str
  image: str | bytes
  patient: str
  labels: frozenset[str] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """The images of one split, and every label that the whole data set has."""

  name: str
  split: str
  images: Sequence[Labelled]
  known: frozenset[str]
  notes: Sequence[str] = ()


class _RecordImages(Sequence):
  """Examples as `Labelled`, read when asked for."""

  def __init__(self, records: records_lib.Records):
    self._records = records

  def __len__(self):
    return len(self._records)

  def __getitem__(self, index):
    example = self._records[index]
    return Labelled(
        name=f'image of record {example.id!r}', image=example.image,
        patient=example.patient or example.id, labels=targets.classes_of(example))


def from_records(directory: str, *, split: str) -> Source:
  """The labelled images of a records directory."""
  card = records_lib.read_card(directory)
  return Source(
      name=directory, split=split, known=frozenset(card['classes']),
      images=_RecordImages(records_lib.Records(directory, split)))


def from_manifest(path: str, *, label_keys: Sequence[str], split: str) -> Source:
  """The labelled images of a manifest; labels of several columns are joined.

  `split` '' means 'test' where the manifest has splits, else all rows.

  Raises:
    EvalError: an image file that is not there.
  """
  contents = manifest_lib.read_manifests(
      [path], keys=columns.Keys(labels=tuple(label_keys)), allow_empty_text=True)
  notes = list(contents.notes)
  if contents.rejects:
    first = contents.rejects[0]
    notes.append(
        f'{len(contents.rejects)} of {contents.rows} rows are left out; first: line {first.line}, '
        f'{first.reason}: {first.detail}')
  has_splits = any(row.split for item in contents.items for row in item.rows)
  if not has_splits and split not in ('', 'all'):
    raise EvalError(
        f'--split {split}: {path} has no column `split`; leave --split out to use all rows')
  split = split or ('test' if has_splits else 'all')
  images, known = [], set()
  for item in contents.items:
    labels = targets.classes_of(rows_lib.marks(item.rows))
    known.update(labels or ())
    if split not in ('all', item.split):
      continue
    if not os.path.isfile(item.image):
      row = item.rows[0]
      raise EvalError(
          f'{path}, line {row.line}: image {row.image_name} is not there (looked for '
          f'{item.image}); paths are relative to the manifest')
    images.append(Labelled(
        name=f'line {item.rows[0].line}', image=item.image, patient=item.patient, labels=labels))
  return Source(
      name=path, split=split, images=images, known=frozenset(known), notes=tuple(notes))


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Evaluates as the arguments say; returns what is written.

  Raises:
    errors.UserError: something given cannot be used.
  """
  classes = prompts_lib.read(args.prompts)
  print('reading labels', flush=True)
  if args.records:
    source = from_records(args.records, split=args.split or 'test')
  else:
    source = from_manifest(args.manifest, label_keys=args.label_key, split=args.split)
  for note in source.notes:
    print(f'note: {note}')
  if not source.images:
    raise EvalError(f'split {source.split!r} of {source.name} has no images; name another --split')
  prompts_lib.require_known(classes, known=source.known, where=source.name)
  out = pathlib.Path(args.out or '.')
  errors.require_writable(out, option='--out')

  print(f'loading {args.checkpoint}', flush=True)
  model = inference.load(args.checkpoint, platform='cpu')
  print(f'{len(source.images)} images of split {source.split!r}, {len(classes)} classes, '
        f'{sum(len(c.positive) + len(c.negative) for c in classes)} prompts', flush=True)
  began = time.monotonic()
  labels, patients, names = [], [], []

  def images():  # one by one, for a split may not fit into memory
    for entry in source.images:
      labels.append(entry.labels)
      patients.append(entry.patient)
      names.append(entry.name)
      yield entry.image

  features = model.image_batches(
      images(), count=len(source.images), names=names, label='images')
  scores = zero_shot.class_scores(model, features, classes=classes)
  found = zero_shot.figures(
      scores, classes=classes, labels=labels, patients=patients,
      with_words=model.matches_words, seed=args.seed)
  result = {
      **found, 'checkpoint': str(args.checkpoint), 'data': str(source.name),
      'split': source.split, 'prompts': str(args.prompts), 'seed': args.seed,
      'seconds': round(time.monotonic() - began, 1)}
  (out / RESULT_NAME).write_text(json.dumps(result, indent=2) + '\n', 'utf-8')
  print(table(result))
  print(f'\nwritten: {out / RESULT_NAME} ({result["seconds"]:.0f} s)')
  return result


def table(result: Mapping[str, Any]) -> str:
  """Classes with n, positives and AUROC; the macro mean; what was left out."""
  width = max([len('macro mean'), *(len(name) for name in result['classes'])])
  lines = [f'\n{"class":<{width}}  {"n":>6}  {"positive":>8}  AUROC [95 % interval]']
  for name, found in result['classes'].items():
    lines.append(f'{name:<{width}}  {found["n"]:>6}  {found["positives"]:>8}  '
                 f'{evaluation.figure_text(found)}')
  macro = result['macro_auroc']
  lines.append(f'{"macro mean":<{width}}  {macro["n"]:>6}  {"":>8}  '
               f'{evaluation.figure_text(macro)}')
  if result['undefined']:
    lines.append('undefined, since all images or none are positive, and not in the mean: '
                 + ', '.join(result['undefined']))
  if result['unlabelled']:
    lines.append(f'left out: {result["unlabelled"]} images without any label')
  if result['labels_without_prompts']:
    lines.append('labels without prompts: ' + ', '.join(result['labels_without_prompts']))
  return '\n'.join(lines)


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Command line."""
  parser = argparse.ArgumentParser(
      prog='python -m plan_jax.eval_zero_shot', description=__doc__.split('\n\n')[0])
  parser.add_argument(
      '--checkpoint', required=True, help='a workdir, its checkpoints/, or one step in it')
  data = parser.add_mutually_exclusive_group(required=True)
  data.add_argument('--records', help='directory written by plan_jax.data.prepare')
  data.add_argument('--manifest', help='JSONL or CSV with image paths and labels')
  parser.add_argument(
      '--label-key', action='append', default=[], metavar='KEY[,KEY]',
      help="column of the labels in the manifest, 'a.b' for key b of a mapping in column a; "
      'several are joined')
  parser.add_argument('--split', default='', choices=('train', 'val', 'test', 'all'),
                      help="default: test; 'all' for manifests only")
  parser.add_argument('--prompts', required=True, help='prompt file (TOML)')
  parser.add_argument('--out', default='', help=f'directory for {RESULT_NAME}; default: this one')
  parser.add_argument('--seed', type=int, default=0, help='of the bootstrap')
  args = parser.parse_args(argv)
  args.label_key = [
      key.strip() for keys in args.label_key for key in keys.split(',') if key.strip()]
  if args.manifest and not args.label_key:
    parser.error('--manifest needs --label-key, the column that holds the labels')
  if args.records and args.label_key:
    parser.error('--label-key belongs to --manifest; records have their labels')
  if args.records and args.split == 'all':
    parser.error("--split all belongs to --manifest; records have 'train', 'val' and 'test'")
  return args


def main(argv: Sequence[str]) -> int:
  """Runs the command; 0, 2 after an error that the user can mend, 130 after Ctrl-C."""
  # Before any backend starts: no accelerator is touched, whatever the environment says.
  jax.config.update('jax_platforms', 'cpu')
  return errors.exit_status(lambda: run(parse(argv)), again='run the same command again')


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
