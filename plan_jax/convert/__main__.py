r"""Converts checkpoints to PyTorch and Hugging Face.

  python -m plan_jax.convert export --checkpoint runs/demo --out exported
"""

import argparse
import sys
from typing import Sequence

import jax

from plan_jax import errors
from plan_jax.convert import export
from plan_jax.convert import files


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Command line."""
  parser = argparse.ArgumentParser(
      prog='python -m plan_jax.convert', description=__doc__.split('\n\n')[0])
  commands = parser.add_subparsers(dest='command', required=True)
  out = commands.add_parser('export', help='a checkpoint as files for PyTorch and transformers')
  out.add_argument('--checkpoint', required=True,
                   help='a workdir, its checkpoints/, or one step in it')
  out.add_argument('--out', required=True, help='directory for what is written')
  out.add_argument('--dtype', default='float32', choices=[str(d) for d in files.Dtype],
                   help='of the weights (default float32; others round)')
  out.add_argument('--force', action='store_true', help='write over an earlier export in --out')
  return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
  """Converts as the arguments say.

  Raises:
    errors.UserError: something given cannot be used.
  """
  print(f'reading {args.checkpoint}', flush=True)
  export.export(args.checkpoint, args.out, dtype=files.Dtype(args.dtype), force=args.force)
  print(f'written to  {args.out}; see README.md there')


def main(argv: Sequence[str]) -> int:
  """Runs the command; 0, 2 after an error that the user can mend, 130 after Ctrl-C."""
  args = parse(argv)
  jax.config.update('jax_platforms', 'cpu')  # before any backend starts
  return errors.exit_status(lambda: run(args), again='run the same command again')


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
