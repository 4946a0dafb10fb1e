r"""Evaluates a checkpoint on records: figures, samples, and a page to look at.

  python -m plan_jax.evaluate --checkpoint runs/demo --records runs/demo/records \
      --tasks zero_shot,grounding,retrieval --prompts configs/prompts/phantom.toml \
      --out runs/demo/evaluation

Writes `metrics.json`, `samples.npz` and `report.html` into --out. Tasks: zero_shot,
grounding, retrieval; linear_probe, detection, segmentation train small heads on the
frozen image tower and take minutes longer.
"""

import argparse
import pathlib
import sys
import time
from typing import Sequence

import jax

from plan_jax import errors
from plan_jax import evaluation
from plan_jax import inference
from plan_jax.tasks import heads


def run(args: argparse.Namespace) -> None:
  """Evaluates as the arguments say.

  Raises:
    errors.UserError: something given cannot be used.
  """
  out = pathlib.Path(args.out)
  errors.require_writable(out, option='--out')
  print(f'loading {args.checkpoint}', flush=True)
  model = inference.load(args.checkpoint, platform=args.platform)
  began = time.monotonic()
  results = evaluation.evaluate(
      model, args.records, split=args.split, max_pairs=args.max_pairs, tasks=args.tasks,
      prompts=args.prompts or None, train_pairs=args.train_pairs, out=out,
      checkpoint=args.checkpoint, include_text=args.include_text, seed=args.seed)
  print(evaluation.table(results))
  print(f'\nfigures     {out / "metrics.json"}\npage        {out / "report.html"}'
        f'\n({time.monotonic() - began:.0f} s)')


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Command line."""
  parser = argparse.ArgumentParser(
      prog='python -m plan_jax.evaluate', description=__doc__.split('\n\n')[0])
  parser.add_argument(
      '--checkpoint', required=True, help='a workdir, its checkpoints/, or one step in it')
  parser.add_argument(
      '--records', required=True, help='directory written by plan_jax.data.prepare')
  parser.add_argument('--out', required=True, help='directory for what is written')
  parser.add_argument(
      '--tasks', type=_tasks, default=None, metavar='TASK,...',
      help=f'some of: {", ".join(evaluation.Task)}; default: zero_shot (with --prompts), '
      'grounding, retrieval')
  parser.add_argument('--prompts', default='', help='prompt file (TOML) for zero_shot')
  parser.add_argument('--split', default='test', choices=('train', 'val', 'test'))
  parser.add_argument('--max-pairs', type=int, default=1000, help='pairs used (default 1000)')
  parser.add_argument(
      '--train-pairs', type=int, default=heads.TRAIN_PAIRS,
      help=f'the most that heads learn from (default {heads.TRAIN_PAIRS})')
  parser.add_argument(
      '--include-text', action='store_true',
      help="show phrases and reports in report.html: patients' text; keep such a page safe")
  parser.add_argument('--platform', default='cpu', choices=('cpu', 'gpu', 'tpu'))
  parser.add_argument('--seed', type=int, default=0, help='of draws, heads and bootstrap')
  args = parser.parse_args(argv)
  if args.tasks is None:
    args.tasks = tuple(
        task for task in evaluation.DEFAULT_TASKS
        if task is not evaluation.Task.ZERO_SHOT or args.prompts)
  if (evaluation.Task.ZERO_SHOT in args.tasks) != bool(args.prompts):
    parser.error('zero_shot in --tasks and --prompts go together; a prompt file is, for example, '
                 'configs/prompts/phantom.toml')
  learned = [task for task in args.tasks if task in evaluation.HEADS]
  if learned and args.split != 'test':
    parser.error(f'{", ".join(learned)} learn from the train and val splits; use --split test')
  for name in ('max_pairs', 'train_pairs'):
    if getattr(args, name) < 1:
      parser.error(f'--{name.replace("_", "-")} must be at least 1')
  return args


def main(argv: Sequence[str]) -> int:
  """Runs the command; 0, 2 after an error that the user can mend, 130 after Ctrl-C."""
  args = parse(argv)
  if args.platform == 'cpu':  # before any backend starts
    jax.config.update('jax_platforms', 'cpu')
  return errors.exit_status(lambda: run(args), again='run the same command again')


def _tasks(text: str) -> tuple[evaluation.Task, ...]:
  try:
    return tuple(dict.fromkeys(evaluation.Task(name.strip()) for name in text.split(',')))
  except ValueError as error:
    raise argparse.ArgumentTypeError(
        f'{error}; choose from {", ".join(evaluation.Task)}') from error


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
