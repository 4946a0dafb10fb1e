"""Which tensor of another program is which of our parameters: one table, both directions.

A `Row` names our array, theirs, and the transform between the two. What a table cannot
say is said beside it in `layouts.py` (token types, the stem's channels).
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
from typing import Any

import jax
import numpy as np

Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """How one array becomes the other: `out` gives theirs; `back` ours, of a known shape.

  `back` raises ValueError where the sizes cannot be the same array.
  """

  out: Callable[[np.ndarray], np.ndarray]
  back: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def _same(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  if x.shape != shape:
    raise ValueError(f'{list(x.shape)}, not {list(shape)}')
  return x


def _leading(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Without leading axes of length 1."""
  while x.ndim > len(shape) and x.shape[0] == 1:
    x = x[0]
  return _same(x, shape)


def _dense(x: np.ndarray, shape: tuple[int, ...], inputs: int) -> np.ndarray:
  count_in, count_out = int(np.prod(shape[:inputs])), int(np.prod(shape[inputs:]))
  return _same(x, (count_out, count_in)).T.reshape(shape)


def _vector(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  return _same(x, (int(np.prod(shape)),)).reshape(shape)


def _conv(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  return _same(x, tuple(shape[i] for i in (3, 2, 0, 1))).transpose(2, 3, 1, 0)


SAME = Transform(out=lambda x: x, back=_same)
CLS = Transform(out=lambda x: x[None, None], back=_leading)  # [c] and [1 1 c]
POSITIONS = Transform(out=lambda x: x[None], back=_leading)  # [s c] and [1 s c]
VECTOR = Transform(out=lambda x: x.reshape(-1), back=_vector)  # a bias of heads
# Kernels [in ... out ...] and weights [out in]; our attention has axes for heads.
DENSE = Transform(
    out=lambda x: x.reshape(x.shape[0], -1).T, back=lambda x, shape: _dense(x, shape, 1))
MERGE = Transform(
    out=lambda x: x.reshape(-1, x.shape[-1]).T, back=lambda x, shape: _dense(x, shape, 2))
CONV = Transform(out=lambda x: x.transpose(3, 2, 0, 1), back=_conv)  # HWIO and OIHW


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One parameter.

  Attributes:
    ours: path in the variables, 'params/text_tower/norm/scale'.
    theirs: name of the tensor.
    transform: between the two.
    block: of a stacked array of transformer blocks, which one.
    part: of a tensor that joins query, key and value along its first axis, which third.
  """

  ours: str
  theirs: str
  transform: Transform
  block: int | None = None
  part: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
  """What came of reading tensors by a table.

  `arrays` are ours by path; the lists name what did not fit, and why.
  """

  arrays: Tensors
  unmatched: tuple[str, ...]
  missing: tuple[str, ...]
  misshapen: tuple[str, ...]


def paths(tree: Any) -> list[tuple[str, Any]]:
  """Leaves and their paths, 'params/text_tower/norm/scale', in the order of the tree."""
  return [(jax.tree_util.keystr(path, simple=True, separator='/'), leaf)
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def write(rows: Iterable[Row], ours: Mapping[str, np.ndarray]) -> Tensors:
  """Their tensors from our arrays (by path), in the order of the table."""
  parts: dict[str, list[np.ndarray]] = {}
  for row in rows:
    array = ours[row.ours]
    array = array if row.block is None else array[row.block]
    parts.setdefault(row.theirs, []).append(row.transform.out(array))
  return {name: np.asarray(np.concatenate(x) if len(x) > 1 else x[0], order='C')
          for name, x in parts.items()}


def read(
    rows: Iterable[Row], theirs: Mapping[str, np.ndarray], *,
    shapes: Mapping[str, tuple[int, ...]],
) -> Fitted:
  """Our arrays (fp32) from their tensors.

  Args:
    rows: the table.
    theirs: tensors by name.
    shapes: of our arrays, by path; all that the rows name.
  """
  found: dict[str, Any] = {}
  used, missing, misshapen = set(), {}, []
  for row in rows:
    if row.theirs not in theirs:
      missing[row.theirs] = None
      continue
    used.add(row.theirs)
    tensor, shape = theirs[row.theirs], tuple(shapes[row.ours])
    if row.part is not None and tensor.ndim and len(tensor) % 3 == 0:
      third = len(tensor) // 3
      tensor = tensor[row.part * third:(row.part + 1) * third]
    if row.block is not None:
      shape = shape[1:]
    try:
      array = row.transform.back(tensor, shape).astype(np.float32)
    except ValueError as error:
      misshapen.append(f'{row.theirs} for {row.ours}: {error}')
      continue
    if row.block is None:
      found[row.ours] = array
    else:
      found.setdefault(row.ours, {})[row.block] = array
  arrays = {}
  for path, array in found.items():
    if not isinstance(array, dict):
      arrays[path] = np.asarray(array, order='C')
    elif len(array) == shapes[path][0]:  # else a block is among the missing
      arrays[path] = np.stack([array[i] for i in range(len(array))])
  return Fitted(
      arrays=arrays, unmatched=tuple(name for name in theirs if name not in used),
      missing=tuple(missing), misshapen=tuple(misshapen))


def dense(ours: str, theirs: str, *, block: int | None = None, weight: Transform = DENSE,
          bias: Transform = SAME, part: int | None = None, joined: bool = False) -> list[Row]:
  """Weight and bias of a linear layer; `joined` for names such as `in_proj_weight`."""
  mark = '_' if joined else '.'
  return [
      Row(ours=f'{ours}/kernel', theirs=f'{theirs}{mark}weight', transform=weight, block=block,
          part=part),
      Row(ours=f'{ours}/bias', theirs=f'{theirs}{mark}bias', transform=bias, block=block,
          part=part)]


def norm(ours: str, theirs: str, *, block: int | None = None) -> list[Row]:
  """Scale and bias of a LayerNorm."""
  return [Row(ours=f'{ours}/scale', theirs=f'{theirs}.weight', transform=SAME, block=block),
          Row(ours=f'{ours}/bias', theirs=f'{theirs}.bias', transform=SAME, block=block)]


def batch_norm(ours: str, theirs: str) -> list[Row]:
  """The four arrays of a BatchNorm; `ours` is the path below the collection."""
  return [
      Row(ours=f'{collection}/{ours}/{mine}', theirs=f'{theirs}.{name}', transform=SAME)
      for name, collection, mine in (
          ('weight', 'params', 'scale'), ('bias', 'params', 'bias'),
          ('running_mean', 'batch_stats', 'mean'), ('running_var', 'batch_stats', 'var'))]
