"""Checkpoints by orbax: asynchronous, atomic, and able to explain themselves.

A step's directory `<workdir>/checkpoints/<step>/` holds three items:

  model/  parameters and batch statistics, all that inference needs
  train/  optimiser, EMA teacher, step, root key: what continuing needs
  about/  JSON: config, vocabulary, versions, stage, metrics, data card hash

orbax writes a step under a temporary name and renames it when it is whole, so a
kill during a save costs that save only.
"""

import dataclasses
import importlib.metadata
import json
from pathlib import Path
from typing import Any, Mapping, Sequence

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from plan_jax import config as config_lib
from plan_jax import errors
from plan_jax import step as step_lib

FORMAT = 1
BEST_METRIC = 'val_retrieval_r5'
# These may change between a run's start and its continuation.
_FREE_ON_RESUME = ('data.records', 'data.workers', 'data.threads', 'train.log_every',
                   'train.eval_every', 'train.eval_pairs', 'train.checkpoint_every', 'train.keep_newest', 'evaluation',
                   'init',  # of a start only
                   # How a step is computed, not what.
                   'train.sharding', 'model.remat', 'objective.algorithm', 'objective.block_mib')


class CheckpointError(errors.UserError):
  """A checkpoint that is missing, unreadable, or of another model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
  """A model read from disk. `variables` holds `params` and `batch_stats`."""

  config: config_lib.Config
  vocabulary: list[str]
  variables: dict[str, Any]
  about: dict[str, Any]


def describe(
    config: config_lib.Config, *, vocabulary: Sequence[str], stage: str, content_hash: str,
    examples_seen: int, metrics: Mapping[str, float],
) -> dict[str, Any]:
  """The `about` item of a checkpoint."""
  packages = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
  return {
      'format': FORMAT,
      'what': 'plan_jax checkpoint; load it with plan_jax.load(DIR)',
      'config': config_lib.to_dict(config),
      'stage': stage,
      'examples_seen': examples_seen,
      'metrics': dict(metrics),
      'data_content_hash': content_hash,
      'versions': {name: importlib.metadata.version(name) for name in ('plan_jax', *packages)},
      'vocabulary': list(vocabulary),
  }


class Checkpoints:
  """The checkpoints of one run.

  Kept: the last step of each stage for good, the newest few, and the best by
  validation (`BEST_METRIC`).
  """

  def __init__(self, directory: str | Path, *, stage_ends: Sequence[int], keep_newest: int):
    keep = checkpoint_managers.AnyPreservationPolicy([
        checkpoint_managers.LatestN(keep_newest),
        checkpoint_managers.CustomSteps(list(stage_ends)),
        checkpoint_managers.BestN(
            get_metric_fn=lambda metrics: metrics[BEST_METRIC], n=1,
            keep_checkpoints_without_metrics=False),
    ])
    self.directory = Path(directory).absolute()
    self._manager = ocp.CheckpointManager(
        self.directory,
        # Without best_fn orbax does not write the metrics that BestN reads after a restart.
        options=ocp.CheckpointManagerOptions(
            preservation_policy=keep, best_fn=lambda metrics: metrics[BEST_METRIC]),
        item_names=('model', 'train', 'about'),
    )

  def save(self, state: step_lib.TrainState, *, about: Mapping[str, Any]) -> None:
    """Starts saving `state`; returns once it is copied off the device.

    An error of the save before (a full disk, say) surfaces here.
    """
    model, train = _items(state)
    step = int(state.step)
    metrics = about['metrics'] if BEST_METRIC in about['metrics'] else None
    self._manager.save(
        step,
        args=ocp.args.Composite(
            model=ocp.args.StandardSave(model),
            train=ocp.args.StandardSave(train),
            about=ocp.args.JsonSave(dict(about)),
        ),
        metrics=metrics,
        force=True,
    )

  def latest_step(self) -> int | None:
    """The newest whole checkpoint, None in a new directory."""
    return self._manager.latest_step()

  def restore(
      self, state: Any, *, config: config_lib.Config, vocabulary: Sequence[str],
      content_hash: str, shardings: Any,
  ) -> step_lib.TrainState:
    """The newest state, every array of the shape that `state` has, placed as `shardings` says.

    `shardings` is a tree like `state`, or one sharding for all: a run continues on another
    number of devices, and split where it was replicated.

    Raises:
      CheckpointError: the checkpoint belongs to another config, vocabulary or corpus.
    """
    step = self.latest_step()
    where = self.directory / str(step)
    about = read_about(where)
    # Resolved, so that a setting that is newer than the checkpoint has its default.
    saved = config_lib.to_dict(config_lib.resolve(about['config']))
    _require_same(config_lib.to_dict(config), saved, where)
    if list(vocabulary) != about['vocabulary']:
      raise CheckpointError(
          f'{where}: was trained with another vocabulary ({len(about["vocabulary"])} word pieces, '
          f'the records have {len(vocabulary)}); use the same records or a new --workdir')
    if content_hash != about['data_content_hash']:
      raise CheckpointError(
          f'{where}: was trained on other records (content hash {about["data_content_hash"][:12]}, '
          f'now {content_hash[:12]}); use the same records or a new --workdir')
    if isinstance(shardings, jax.sharding.Sharding):
      shardings = jax.tree.map(lambda _: shardings, state)
    model, train = _items(jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state, shardings))
    try:
      restored = self._manager.restore(
          step,
          args=ocp.args.Composite(
              model=ocp.args.StandardRestore(model), train=ocp.args.StandardRestore(train)),
      )
    except (ValueError, KeyError, OSError) as error:
      raise CheckpointError(
          f'{where}: files are missing or damaged ({_first_line(error)}); remove that directory to '
          'continue from the checkpoint before it') from error
    return state.replace(**restored['model'], **restored['train'])

  def close(self) -> None:
    """Waits and releases the directory."""
    self._manager.close()


def load_model(path: str | Path) -> Restored:
  """Reads a model for inference, onto the default device.

  Args:
    path: a run's workdir, its `checkpoints` directory (the newest step is
      taken), or one step's directory.

  Raises:
    CheckpointError: no checkpoint there, or one that is damaged.
  """
  where = _step_directory(Path(path).absolute())
  about = read_about(where)
  config = config_lib.resolve(about['config'])
  model = step_lib.build_model(config, vocab_size=len(about['vocabulary']))
  blank = step_lib.empty_batch(config.data, size=1)
  key = jax.random.PRNGKey(0)
  expected = jax.eval_shape(
      lambda: model.init({'params': key, 'dropout': key}, blank, train=False))
  expected = {'params': expected['params'], 'batch_stats': expected.get('batch_stats', {})}
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), expected)
  try:
    with ocp.StandardCheckpointer() as reader:
      variables = reader.restore(where / 'model', target)
  except (ValueError, FileNotFoundError, KeyError, OSError) as error:
    raise CheckpointError(
        f'{where / "model"}: its arrays do not fit the model that its config describes, or files '
        f'are missing or damaged ({_first_line(error)}); copy the checkpoint again, whole') from error
  return Restored(config=config, vocabulary=about['vocabulary'], variables=variables, about=about)


def write_model(
    directory: str | Path, variables: dict[str, Any], *, about: Mapping[str, Any],
) -> None:
  """A step's directory for inference: `model/` and `about/`, and no `train/`.

  Args:
    directory: of the step; must not exist.
    variables: `params` and `batch_stats`.
    about: as from `describe`.
  """
  where = Path(directory).absolute()
  with ocp.StandardCheckpointer() as writer:
    writer.save(where / 'model', variables)
  (where / 'about').mkdir()
  (where / 'about' / 'metadata').write_text(json.dumps(dict(about)))


def read_about(step_directory: Path) -> dict[str, Any]:
  """The `about` item of one step's directory."""
  path = step_directory / 'about' / 'metadata'
  try:
    about = json.loads(path.read_text())
    if about['format'] != FORMAT:
      raise CheckpointError(
          f'{step_directory}: is of format {about["format"]}, this plan_jax reads {FORMAT}')
    about['config'], about['vocabulary']  # a KeyError here means another program's checkpoint
    return about
  except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
    raise CheckpointError(
        f'{step_directory}: is not a plan_jax checkpoint, or its about/ is damaged '
        f'({type(error).__name__}); give a workdir, its checkpoints/, or one step in it') from error


def _items(state: step_lib.TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
  model = {'params': state.params, 'batch_stats': state.batch_stats}
  train = {'step': state.step, 'ema': state.ema, 'opt_state': state.opt_state, 'key': state.key,
           'skipped': state.skipped}
  return model, train


def _step_directory(path: Path) -> Path:
  if not path.is_dir():
    raise CheckpointError(f'{path}: no such directory; give a workdir or a checkpoint in it')
  if (path / 'checkpoints').is_dir():
    path = path / 'checkpoints'
  if (path / 'about').is_dir():
    return path
  steps = [int(child.name) for child in path.iterdir() if child.name.isdigit()]
  if not steps:
    raise CheckpointError(f'{path}: holds no checkpoint; give a workdir or a checkpoint in it')
  return path / str(max(steps))


def _require_same(now: Mapping[str, Any], saved: Mapping[str, Any], where: Path) -> None:
  now, saved = _flat(now), _flat(saved)
  changed = [
      f'config.{key} = {now.get(key)!r} (checkpoint: {saved.get(key)!r})'
      for key in sorted(now.keys() | saved.keys())
      if now.get(key) != saved.get(key) and not key.startswith(_FREE_ON_RESUME)
  ]
  if changed:
    raise CheckpointError(
        f'{where}: was trained with another config: {"; ".join(changed)}. '
        'Continue with the same settings, or start a new --workdir')


def _flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= _flat(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


def _first_line(error: Exception) -> str:
  return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
