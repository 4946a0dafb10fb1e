"""Files of tensors: safetensors, and PyTorch's own read as nothing but tensors."""

import enum
import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from plan_jax import errors
from plan_jax.convert import tables


class FileError(errors.UserError):
  """A file of tensors that cannot be used; the message names it and the fix."""


class Dtype(enum.StrEnum):
  """Of weights in a file."""

  FLOAT32 = 'float32'
  BFLOAT16 = 'bfloat16'
  FLOAT16 = 'float16'


def write(path: pathlib.Path, tensors: tables.Tensors, *, dtype: Dtype) -> None:
  """Writes one safetensors file, marked as PyTorch's; integers stay what they are.

  Raises:
    FileError: a value is too large for `dtype`.
  """
  written = {}
  for name, x in tensors.items():
    with np.errstate(over='ignore'):
      kind = x.dtype if x.dtype == np.int64 else jnp.dtype(str(dtype))
      written[name] = np.asarray(x, kind, order='C')
    if dtype is Dtype.FLOAT16 and not np.array_equal(np.isfinite(x), np.isfinite(written[name])):
      raise FileError(f'--dtype={dtype}: {name} has values of {np.nanmax(np.abs(x)):.3g}, too large '
                      'for it; choose bfloat16 or float32')
  path.unlink(missing_ok=True)
  path.touch()
  mode = path.stat().st_mode  # as other files have it; safetensors lets the owner alone read
  safetensors_numpy.save_file(written, path, metadata={'format': 'pt'})
  path.chmod(mode)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text file, equal on all systems."""
  path.write_text(text, encoding='utf-8', newline='\n')


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
  """Writes a JSON file that people can read."""
  write_text(path, json.dumps(content, indent=2) + '\n')


def read(path: str | pathlib.Path) -> tables.Tensors:
  """The tensors of a file, or of a model's directory, as fp32.

  Of a directory `model.safetensors` (or its parts by index) counts before
  `pytorch_model.bin`. Files of PyTorch are loaded as weights only: no code in them runs.

  Raises:
    FileError: there is none, or it is damaged or holds more than tensors.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    index = path / 'model.safetensors.index.json'
    if index.is_file():
      parts = sorted(set(read_json(index)['weight_map'].values()))
      if any(pathlib.Path(part).name != part for part in parts):
        raise FileError(f'{index}: names files outside its directory; copy the model again')
      return {name: x for part in parts for name, x in read(path / part).items()}
    found = [path / name for name in ('model.safetensors', 'pytorch_model.bin')
             if (path / name).is_file()]
    if not found:
      raise FileError(f'{path}: neither model.safetensors nor pytorch_model.bin in it; give the '
                      'directory of a model, or a .safetensors, .bin, .pt or .pth file')
    path = found[0]
  if not path.is_file():
    raise FileError(f'{path}: no such file; give a model\'s directory, or a file of tensors')
  if path.suffix == '.safetensors':
    return _read_safetensors(path)
  return _read_torch(path)


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object of a model's directory.

  Raises:
    FileError: missing, or no JSON object.
  """
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise FileError(
        f'{path}: cannot be read as JSON ({type(error).__name__}); copy the model again, '
        'whole') from error
  if not isinstance(content, dict):
    raise FileError(f'{path}: is no JSON object; copy the model again, whole')
  return content


def _read_safetensors(path: pathlib.Path) -> tables.Tensors:
  try:
    found = safetensors_numpy.load_file(path)
  except (safetensors.SafetensorError, OSError, TypeError, KeyError) as error:
    raise FileError(f'{path}: is damaged ({type(error).__name__}); copy it again') from error
  return {name: x.astype(np.float32) for name, x in found.items()}


def _read_torch(path: pathlib.Path) -> tables.Tensors:
  try:
    import torch  # pylint: disable=g-import-not-at-top
  except ImportError as error:
    raise FileError(f'{path}: reading it needs PyTorch (pip install torch); or give a '
                    '.safetensors file') from error
  try:
    content = torch.load(path, map_location='cpu', weights_only=True)
  except Exception as error:  # torch raises what its unpickler happens to
    raise FileError(
        f'{path}: is damaged, or holds more than tensors ({type(error).__name__}); only weights '
        'are loaded, since such a file can run code: convert it to .safetensors where you trust '
        'it') from error
  for key in ('state_dict', 'model'):
    if isinstance(content, dict) and isinstance(content.get(key), dict):
      content = content[key]
  if not isinstance(content, dict):
    raise FileError(f'{path}: holds no state dict; save model.state_dict()')
  return {name: x.float().numpy() for name, x in content.items() if isinstance(x, torch.Tensor)}
