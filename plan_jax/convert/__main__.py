r"""Converts checkpoints to PyTorch, Hugging Face, StableHLO and ONNX, and towers to checkpoints.

  python -m plan_jax.convert export --checkpoint runs/demo --out exported
  python -m plan_jax.convert export --checkpoint runs/demo --out exported --format onnx
  python -m plan_jax.convert import --text DIR --image DIR --out runs/started
"""

import argparse
import sys
from typing import Sequence

import jax

from plan_jax import config as config_lib
from plan_jax import errors
from plan_jax.convert import agreement
from plan_jax.convert import export
from plan_jax.convert import files
from plan_jax.convert import take


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Command line."""
  parser = argparse.ArgumentParser(
      prog='python -m plan_jax.convert', description=__doc__.split('\n\n')[0])
  commands = parser.add_subparsers(dest='command', required=True)
  out = commands.add_parser(
      'export', help='a checkpoint as files for PyTorch and transformers, as StableHLO or as ONNX')
  out.add_argument('--checkpoint', required=True,
                   help='a workdir, its checkpoints/, or one step in it')
  out.add_argument('--out', required=True, help='directory for what is written')
  out.add_argument('--format', default='torch', choices=[str(f) for f in export.Format],
                   help='torch: PyTorch and transformers, safetensors (default); stablehlo: '
                   'programs of jax.export, for JAX without plan_jax; onnx: for onnxruntime '
                   "(needs the extra `onnx`: pip install -e '.[onnx]')")
  out.add_argument('--dtype', default='float32', choices=[str(d) for d in files.Dtype],
                   help='of the weights (default float32; others round)')
  out.add_argument('--force', action='store_true', help='write over an earlier export in --out')
  into = commands.add_parser('import', help='towers of transformers, torchvision or timm as a '
                             'checkpoint; heads start fresh, but for those of an export')
  into.add_argument('--text', required=True, help='directory of a BERT and its tokenizer')
  into.add_argument('--image', required=True,
                    help='directory of a ViT or ResNet, or a file of its weights')
  into.add_argument('--out', required=True, help='directory for the checkpoint; must be empty')
  into.add_argument('--normalisation', default='auto',
                    choices=[str(n) for n in config_lib.Normalisation],
                    help='of the image tower (default: as its preprocessor_config.json says)')
  into.add_argument('--set', action='append', default=[], metavar='GROUP.KEY=VALUE',
                    help='a setting of the model, e.g. model.joint_dim=64; may be repeated')
  return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
  """Converts as the arguments say.

  Raises:
    errors.UserError: something given cannot be used.
  """
  if args.command == 'import':
    where = take.take(args.text, args.image, args.out, changes=args.set,
                      normalisation=config_lib.Normalisation(args.normalisation))
    print(f'checkpoint  {where}')
    return
  print(f'reading {args.checkpoint}', flush=True)
  difference = export.export(
      args.checkpoint, args.out, form=export.Format(args.format), dtype=files.Dtype(args.dtype),
      force=args.force)
  if difference is not None:
    print(f'checked     the files were run beside the checkpoint: largest difference '
          f'{difference:.1e} of an output\'s largest value (allowed {agreement.TOLERANCE:g})')
  print(f'written to  {args.out}; see README.md there')


def main(argv: Sequence[str]) -> int:
  """Runs the command; 0, 2 after an error that the user can mend, 130 after Ctrl-C."""
  args = parse(argv)
  jax.config.update('jax_platforms', 'cpu')  # before any backend starts
  return errors.exit_status(lambda: run(args), again='run the same command again')


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
