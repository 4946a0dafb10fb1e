"""Writes a checkpoint as files for PyTorch and Hugging Face, for JAX alone, or as ONNX.

What lies in the directory: docs/convert.md.
"""

from collections.abc import Mapping
import dataclasses
import enum
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plan_jax import checkpoint
from plan_jax import config as config_lib
from plan_jax import errors
from plan_jax import inference
from plan_jax.convert import agreement
from plan_jax.convert import card
from plan_jax.convert import files
from plan_jax.convert import tables
from plan_jax.convert import to_onnx
from plan_jax.convert import to_stablehlo
from plan_jax.convert import to_torch
from plan_jax.data import records
from plan_jax.data import tokenize

FORMAT = 2
WHAT = 'plan_jax export, '  # and for whom, in plan.json


class Format(enum.StrEnum):
  """For whom an export is."""

  TORCH = 'torch'
  STABLEHLO = 'stablehlo'
  ONNX = 'onnx'


class ExportError(errors.UserError):
  """An export that cannot be written; the message names what and the fix."""


def export(
    path: str | pathlib.Path, out: str | pathlib.Path, *, form: Format = Format.TORCH,
    dtype: files.Dtype = files.Dtype.FLOAT32, force: bool = False,
) -> float | None:
  """Writes the model of checkpoint `path` into the directory `out`.

  Args:
    path: a run's workdir, its `checkpoints`, or one step in it.
    out: new, or empty, or an earlier export with `force`.
    form: which files.
    dtype: of the weights; anything but fp32 rounds them.
    force: files of an earlier export of the same format are written again; no other file is
      touched.

  Returns:
    Of programs (StableHLO, ONNX) their largest difference from the checkpoint, weights
    rounded alike, as `agreement.check` finds it after reading them back.

  Raises:
    UserError: no checkpoint there, `out` holds something, a package is missing, or a
      program that was written computes something else.
  """
  if form is Format.ONNX:
    if dtype is not files.Dtype.FLOAT32:
      raise ExportError(
          f'--dtype={dtype}: ONNX is written in float32; leave --dtype out, and make the files '
          'smaller with the tools of onnxruntime (onnxruntime.quantization)')
    to_onnx.require_packages()
  out = pathlib.Path(out)
  _require_room(out, form, force=force)
  restored = checkpoint.load_model(path)
  # Programs compute in fp32, whatever the training did.
  config = dataclasses.replace(restored.config, train=dataclasses.replace(
      restored.config.train, precision=config_lib.Precision.FLOAT32))
  ours = flatten(jax.device_get(restored.variables))
  errors.require_writable(out, option='--out')
  for name in ('text', 'image') if form is Format.TORCH else ('text',):
    (out / name).mkdir(exist_ok=True)
  settings = to_torch.settings(config, restored.vocabulary)
  _write_common(out, restored, settings, form=form, dtype=dtype)
  match form:
    case Format.TORCH:
      to_torch.write(out, restored, ours, dtype=dtype)
      return None
    case Format.STABLEHLO:
      to_stablehlo.write(
          out, config, vocab_size=len(restored.vocabulary), ours=ours, dtype=dtype)
      programs = to_stablehlo.read(out)
    case Format.ONNX:
      to_onnx.write(out, settings, to_torch.tensors(config, ours))
      programs = to_onnx.read(out)
  rounded = jax.tree.map(
      lambda x: x.astype(jnp.dtype(str(dtype))).astype(jnp.float32), restored.variables)
  model = inference.Model(config, restored.vocabulary, rounded, batch_size=agreement.COUNT)
  return agreement.check(programs, model, what=f'--out={out}, {form}')


def flatten(variables: Mapping[str, Any]) -> tables.Tensors:
  """Arrays by path: 'params/text_tower/norm/scale'."""
  return {path: np.asarray(leaf) for path, leaf in tables.paths(variables)}


def _write_common(out: pathlib.Path, restored: checkpoint.Restored, settings, *, form, dtype) -> None:
  """What every format has: how inputs are made, settings, the card."""
  vocabulary, about = restored.vocabulary, restored.about
  files.write_json(out / 'plan.json', {  # first: what comes next is known as ours
      'format': FORMAT, 'what': f'{WHAT}{form}', 'settings': settings,
      'about': {key: value for key, value in about.items() if key != 'vocabulary'}})
  files.write_text(out / 'text' / 'vocab.txt', ''.join(f'{token}\n' for token in vocabulary))
  files.write_text(out / 'text' / 'tokenizer.json', tokenize.to_json(
      vocabulary, max_pieces=restored.config.data.max_pieces))
  files.write_text(out / 'README.md', card.model_card(
      restored.config, about=about, data=_data_card(restored), dtype=str(dtype), form=str(form)))
  shutil.copyfile(pathlib.Path(__file__).with_name('plan_inputs.py'), out / 'plan_inputs.py')


def _data_card(restored: checkpoint.Restored) -> Mapping[str, Any] | None:
  """Of the records that the run read, where they are still what they were."""
  try:
    found = records.read_card(restored.config.data.records)
  except errors.UserError:
    return None
  return found if found['content_hash'] == restored.about['data_content_hash'] else None


def _require_room(out: pathlib.Path, form: Format, *, force: bool) -> None:
  """Nothing that is there may be lost, but for an earlier export of this format with `force`."""
  if out.exists() and not out.is_dir():
    raise ExportError(f'--out={out}: is a file; give a directory')
  if not out.is_dir() or not any(out.iterdir()):
    return
  if not force:
    raise ExportError(f'--out={out}: is not empty; choose another, or add --force')
  _require_inside(out)
  try:
    what = str(files.read_json(out / 'plan.json').get('what'))
  except files.FileError:
    what = ''
  if not what.startswith(WHAT):
    raise ExportError(f'--out={out}: --force writes over an earlier export, and this directory holds '
                      'something else; choose another')
  if what != f'{WHAT}{form}':
    raise ExportError(  # its other files would stay, and belong to another checkpoint
        f'--out={out}: holds a {what}; choose another, or remove it')


def _require_inside(out: pathlib.Path) -> None:
  """Nothing that is written may be reached through a link out of `out`."""
  for path in (out / 'text', out / 'image'):
    if path.is_symlink() or (path.exists() and not path.is_dir()):
      raise ExportError(f'{path}: is a link or a file; remove it, or choose another --out')
  for path in [*out.glob('*'), *out.glob('*/*')]:
    if path.is_symlink():
      raise ExportError(f'{path}: is a link; remove it, or choose another --out')
