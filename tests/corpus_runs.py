"""The command line on a small layout: records, their card with its counts checked."""

import pathlib

import corpus_layouts as layouts
from plan_jax.data import prepare
from plan_jax.data import records


def run(name: str, root: pathlib.Path, *options: str) -> int:
  """The exit status of `prepare`, which writes to `out` beside `root` unless options say else."""
  return prepare.main([name, '--root', str(root), '--out', str(root.parent / 'out'),
                       '--workers', '1', '--vocab-size', '300', *options])


def made(name: str, tmp_path: pathlib.Path, *options: str, **arguments) -> dict:
  """Makes the layout and its records; returns the card."""
  root = tmp_path / 'in'
  root.mkdir()
  getattr(layouts, name)(root, **arguments)
  assert run(name, root, *options) == 0
  return card(tmp_path)


def card(tmp_path: pathlib.Path) -> dict:
  """The card of `out`, its counts checked."""
  found = records.read_card(tmp_path / 'out')
  rows = found['rows']
  assert rows['in'] == rows['records'] + rows['merged'] + sum(rows['rejected'].values()) + sum(
      rows['left_out'].values())
  listed = layouts.lines(tmp_path / 'out' / 'rejects.jsonl')
  assert len(listed) == sum(rows['rejected'].values())
  return found


def examples(tmp_path: pathlib.Path) -> dict[str, records.Example]:
  """The records of `out` by id."""
  return {e.id: e for split in records.SPLITS for e in records.Records(tmp_path / 'out', split)}
