r"""Trains and evaluates a grid of runs (arms x seeds) and compares them.

  python -m plan_jax.ablate --config=configs/ablation.py [--workdir=runs/ablation]
      [--records=DIR] [--split=test] [--arms=plan,gloria] [--seeds=0,1]

Run the same command again to continue: finished runs stay, the one that was stopped goes
on from its checkpoint. Writes `ablation.json`, `ablation.md` and `ablation.png`, anew
after each run, and prints the table.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any, Sequence

from plan_jax import ablation
from plan_jax import config as config_lib
from plan_jax import errors
from plan_jax import report
from plan_jax.data import records as records_lib


def load_grid(path: str) -> ablation.Grid:
  """The grid of a config file.

  Raises:
    AblationError: no such file, or one that gives no grid.
  """
  found = _call_get_config(path)
  if not isinstance(found, ablation.Grid):
    raise ablation.AblationError(
        f'{path}: its get_config() gives no ablation.Grid; see configs/ablation.py')
  return found


def resolve(grid: ablation.Grid, arm: str, *, seed: int, split: str) -> config_lib.Config:
  """The whole config of a run.

  Raises:
    ConfigError: a setting of the arm that does not exist or cannot be.
  """
  values = _call_get_config(grid.base)
  try:
    for key, value in {**grid.changes(arm, seed=seed), 'evaluation.split': split}.items():
      config_lib.require_key(key)
      try:
        values.update_from_flattened_dict({key: value})
      except TypeError as error:
        raise config_lib.ConfigError(f'config.{key} = {value!r}: {error}') from error
    return config_lib.resolve(values)
  except config_lib.ConfigError as error:
    raise config_lib.ConfigError(f'arm {arm!r}: {error}') from error


def run(args: argparse.Namespace) -> None:
  """Runs what is missing, then compares.

  Raises:
    UserError: grid, records or a run that cannot be used.
  """
  grid = load_grid(args.config)
  for arm in grid.arms:  # so that a slip costs no hours
    resolve(grid, arm, seed=0, split=args.split)
  arms, seeds = args.arms or list(grid.arms), args.seeds or list(grid.seeds)
  for arm in arms:
    if arm not in grid.arms:
      raise ablation.AblationError(f'--arms: {arm!r} is no arm; there are: {", ".join(grid.arms)}')
  for seed in seeds:
    if seed not in grid.seeds:
      raise ablation.AblationError(
          f'--seeds: {seed} is not in the grid ({", ".join(map(str, grid.seeds))}); add it to '
          f'{args.config}')
  workdir = pathlib.Path(args.workdir).absolute()
  errors.require_writable(workdir, option='--workdir')
  records = args.records or draw_phantoms(grid, workdir)
  content_hash = records_lib.read_card(records)['content_hash']
  # Seed by seed, so that a grid that is stopped early has whole comparisons.
  todo = []
  for seed, arm in itertools.product(seeds, arms):
    directory = ablation.run_directory(workdir, arm, seed=seed)
    if (directory / 'config.json').exists():
      ablation.require_same(
          directory, resolve(grid, arm, seed=seed, split=args.split), content_hash=content_hash)
    if not ablation.is_done(directory):
      todo.append((arm, seed))
  done, began = len(arms) * len(seeds) - len(todo), time.monotonic()
  print(f'{len(arms)} arms, {len(seeds)} seeds: {done} runs are done, {len(todo)} to do',
        flush=True)
  for number, (arm, seed) in enumerate(todo):
    train(grid, arm, seed=seed, workdir=workdir, records=records, split=args.split)
    mean = (time.monotonic() - began) / (number + 1)
    left = mean * (len(todo) - number - 1)
    write(grid, workdir)
    print(f'{arm}, seed {seed}: done ({number + 1} of {len(todo)}, {mean / 60:.1f} min a run, '
          f'ETA {int(left) // 3600}:{int(left) % 3600 // 60:02d} h)', flush=True)
  found = write(grid, workdir)
  if found:
    print(f'\n{ablation.table(found)}\nwritten: {workdir}/ablation.{{json,md,png}}')
  else:
    print(f'no table yet: the reference {grid.reference!r} has no finished run in {workdir}')


def draw_phantoms(grid: ablation.Grid, workdir: pathlib.Path) -> str:
  """The grid's corpus, drawn unless it is there.

  Raises:
    AblationError: the grid names none, or drawing failed.
  """
  if grid.phantoms is None:
    raise ablation.AblationError('the grid names no phantoms; give --records=DIR')
  out = workdir / 'records'
  _call(['-m', 'plan_jax.data.prepare', 'phantom', '--pairs', str(grid.phantoms.pairs),
         '--seed', str(grid.phantoms.seed), '--out', str(out)], what='drawing the phantoms')
  return str(out)


def train(
    grid: ablation.Grid, arm: str, *, seed: int, workdir: pathlib.Path, records: str, split: str,
) -> None:
  """One run in a process of its own, its output in `log.txt`; continues a stopped one.

  Raises:
    AblationError: the run failed; with the end of its output.
  """
  directory = ablation.run_directory(workdir, arm, seed=seed)
  directory.mkdir(parents=True, exist_ok=True)
  options = [f'--config.{key}={value}' for key, value in grid.changes(arm, seed=seed).items()]
  _call(['-m', 'plan_jax.train', f'--config={grid.base}', f'--workdir={directory}',
         f'--config.data.records={records}', f'--config.evaluation.split={split}', *options],
        what=f'arm {arm}, seed {seed}', log=directory / 'log.txt')
  if not ablation.is_done(directory):
    raise ablation.AblationError(
        f'{directory} has no figures after its run: the {split} split of {records} is empty')


def write(grid: ablation.Grid, workdir: pathlib.Path) -> ablation.Comparison | None:
  """Table, numbers and picture of what is finished."""
  found = ablation.compare(grid, workdir)
  if found:
    (workdir / 'ablation.json').write_text(json.dumps(found.as_json(), indent=2) + '\n', 'utf-8')
    (workdir / 'ablation.md').write_text(ablation.table(found), 'utf-8')
  if found and any(found.differences.values()):
    report.leads(found.differences, names=ablation.FIGURES, reference=grid.reference,
                 path=workdir / 'ablation.png')
  return found


def _call_get_config(path: str) -> Any:
  if not os.path.isfile(path) or not path.endswith('.py'):
    raise ablation.AblationError(f'{path}: no such Python file; see configs/ablation.py')
  try:
    spec = importlib.util.spec_from_file_location('grid', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()
  except errors.UserError:
    raise
  except Exception as error:  # a file of the user's: anything can come out of it
    raise ablation.AblationError(
        f'{path}: cannot be used ({type(error).__name__}: {error}); it needs get_config(), such '
        'as configs/ablation.py has') from error


def _call(arguments: Sequence[str], *, what: str, log: pathlib.Path | None = None) -> None:
  print(f'{what} ...', flush=True)
  with contextlib.ExitStack() as stack:
    out = stack.enter_context(log.open('a', encoding='utf-8')) if log else None
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=out, stderr=subprocess.STDOUT if log else None)
    # Training saves and stops when it is asked to; the signal of a terminal reaches it as well.
    before = {number: signal.signal(number, lambda *_: process.send_signal(signal.SIGTERM))
              for number in (signal.SIGINT, signal.SIGTERM)}
    try:
      status = process.wait()
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)
  if not status:
    return
  lines = log.read_text('utf-8').strip().splitlines() if log else []
  tail = lines[-1] if lines else ''
  if 'the same command continues' in tail:
    raise KeyboardInterrupt
  raise ablation.AblationError(
      f'{what} failed with status {status}{": " + tail if tail else ""}'
      f'{f" (all of it: {log})" if log else ""}; mend it and run the same command again')


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Command line."""
  parser = argparse.ArgumentParser(
      prog='python -m plan_jax.ablate', description=__doc__.split('\n\n')[0])
  parser.add_argument('--config', required=True, help='file with a grid: configs/ablation.py')
  parser.add_argument('--workdir', default='runs/ablation', help='one directory for all runs')
  parser.add_argument('--records', default='', help="default: the grid's phantoms, drawn if need be")
  parser.add_argument('--split', default='test', choices=('val', 'test'),
                      help='what the figures are of; tune on val')
  parser.add_argument('--arms', default='', type=lambda text: text.split(',') if text else [],
                      help='some of the arms, with commas')
  parser.add_argument('--seeds', default='', help='some of the seeds, with commas',
                      type=lambda text: [int(s) for s in text.split(',')] if text else [])
  return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
  """Runs the command; 0, 2 after an error that the user can mend, 130 after Ctrl-C."""
  return errors.exit_status(lambda: run(parse(argv)), again='the same command continues')


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
