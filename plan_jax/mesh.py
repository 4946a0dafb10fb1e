"""The device mesh: one axis, `data`, over which batches and, if wanted, parameters are split."""

import re
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from plan_jax import config

_SMALL = 2**14  # parameters below it are not worth a gather
# How a parameter is split, by the first pattern that its path matches: on its largest axis,
# but for the axis of stacked blocks, which a scan walks along; or not at all.
_RULES = (
    (r'^(key|step|skipped)$|^batch_stats/|(^|/)count$', False),
    (r'(^|/)(scale|bias|cls|relation|log_temperature)$', False),
    (r'', True),
)
_STACKED = re.compile(r'(^|/)blocks/')


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
  """A data-parallel mesh over `devices` (default: all devices of all processes).

  In the order of their processes, whose batches in that order are the global batch; slices
  come one after the other, also where nothing numbers their processes (compile_check).
  """
  devices = jax.devices() if devices is None else devices
  ordered = sorted(devices, key=lambda device: (
      getattr(device, 'slice_index', None) or 0, device.process_index, device.id))
  return Mesh(np.array(ordered), ('data',), axis_types=(AxisType.Auto,))


def split(mesh: Mesh) -> NamedSharding:
  """Sharding of a batch: its leading axis over `data`."""
  return NamedSharding(mesh, PartitionSpec('data'))


def replicated(mesh: Mesh) -> NamedSharding:
  """Sharding of metrics and of replicated parameters: a full copy on each device."""
  return NamedSharding(mesh, PartitionSpec())


def keep_split(x: jax.Array) -> jax.Array:
  """`x`, its leading axis split over `data` if a mesh is in force (`use_abstract_mesh`), else as it is.

  Where parameters are split as well (`fsdp`), XLA might leave them where they are and send the
  activations of the whole batch around instead, which grow with it.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec('data'))


def local_copy(tree: Any, *, mesh: Mesh) -> Any:
  """Whole arrays on one device of this process, gathered where they are split.

  All processes must call it.
  """
  whole = jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)
  return jax.tree.map(lambda x: x.addressable_data(0), whole)


def of_state(state: Any, *, mesh: Mesh, how: config.Sharding) -> Any:
  """The sharding of each array of a train state (arrays or their shapes).

  With `fsdp` parameters, their moments and the EMA teacher are split over `data` where an
  axis divides evenly; the step gathers what it needs, block by block.

  Source: FSDP as in arXiv 2304.11277; ordered path rules as in big_vision.
  """
  if how is config.Sharding.REPLICATED:
    return jax.tree.map(lambda _: replicated(mesh), state)
  return jax.tree_util.tree_map_with_path(
      lambda path, leaf: NamedSharding(mesh, _spec(_name(path), leaf.shape, mesh.size)), state)


def _name(path) -> str:
  return '/'.join(str(getattr(part, 'name', getattr(part, 'key', getattr(part, 'idx', part))))
                  for part in path)


def _spec(name: str, shape: tuple[int, ...], devices: int) -> PartitionSpec:
  is_split = next(wanted for pattern, wanted in _RULES if re.search(pattern, name))
  size = 1
  for length in shape:
    size *= length
  first = 1 if _STACKED.search(name) else 0
  axes = [k for k in range(first, len(shape)) if shape[k] % devices == 0]
  if not is_split or size < _SMALL or not axes:
    return PartitionSpec()
  largest = max(axes, key=lambda k: shape[k])
  return PartitionSpec(*(['data' if k == largest else None for k in range(len(shape))]))
