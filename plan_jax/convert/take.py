"""A checkpoint from towers of other programs, or from an export."""

from collections.abc import Sequence
import json
import pathlib
from typing import Any

import jax

from plan_jax import checkpoint
from plan_jax import config as config_lib
from plan_jax import errors
from plan_jax import step as step_lib
from plan_jax.convert import files
from plan_jax.convert import layouts
from plan_jax.convert import load
from plan_jax.convert import tables
from plan_jax.convert import to_torch
from plan_jax.data import tokenize
from plan_jax.models import vit


def take(
    text: str, image: str, out: str, *, normalisation: config_lib.Normalisation,
    changes: Sequence[str] = (),
) -> pathlib.Path:
  """Writes `out/checkpoints/0`, which `plan_jax.load` reads; returns that directory.

  The settings follow from the weights. Where both towers are of one export, its config
  and heads come along, and all is as it was exported; else heads are fresh.

  Args:
    text: directory of a BERT and its tokenizer.
    image: directory or file of a ViT or ResNet.
    out: new or empty.
    normalisation: of the image tower's training.
    changes: of settings, 'group.key=value'.

  Raises:
    UserError: weights that cannot be read or do not fit, or `out` holds something.
  """
  where = pathlib.Path(out)
  if where.exists() and (not where.is_dir() or any(where.iterdir())):
    raise load.LoadError(f'--out={out}: is not an empty directory; choose another')
  whole = _export_of(text, image)
  values = whole['about']['config'] if whole else _settings(text, image)
  values['init'] = {'normalisation': str(normalisation)}
  for change in changes:
    key, _, value = change.partition('=')
    config_lib.require_key(key)
    group, _, name = key.partition('.')
    values.setdefault(group, {})[name] = _plain(value)
  values['init'] |= {'text': text, 'image': image}
  settings = config_lib.resolve(values)
  vocabulary = tokenize.read_vocabulary(text)
  model = step_lib.build_model(settings, vocab_size=len(vocabulary))
  key = jax.random.PRNGKey(settings.train.seed)
  blank = step_lib.empty_batch(settings.data, size=1)

  def init():
    found = model.init({'params': key, 'dropout': key}, blank, train=False)
    return {'params': found['params'], 'batch_stats': found.get('batch_stats', {})}

  expected = jax.eval_shape(init)
  shapes = load.shapes_of(expected)
  try:
    found = load.arrays(settings, shapes=shapes, vocabulary=vocabulary)
  except load.LoadError as error:
    raise load.LoadError(_for_import(str(error))) from error
  if whole:
    heads = pathlib.Path(text).parent / 'heads.safetensors'
    fitted = tables.read(to_torch.joint_rows(shapes), files.read(heads), shapes=shapes)
    found |= load.checked(fitted, 'the heads', str(heads), settings)
  # Only what is fresh is computed: drawing a whole tower compiles for a minute.
  fresh = jax.jit(lambda: {path: x for path, x in tables.paths(init()) if path not in found})()
  variables = jax.tree.unflatten(
      jax.tree.structure(expected), [{**found, **fresh}[path] for path in shapes])
  about = checkpoint.describe(
      settings, vocabulary=vocabulary, stage=whole['about']['stage'] if whole else 'imported',
      content_hash=whole['about']['data_content_hash'] if whole else '', metrics={},
      examples_seen=whole['about']['examples_seen'] if whole else 0)
  errors.require_writable(where, option='--out')
  step = where.absolute() / 'checkpoints' / '0'
  checkpoint.write_model(step, variables, about=about)
  return step


def _export_of(text: str, image: str) -> dict[str, Any] | None:
  """The plan.json of the export that both directories are of."""
  root = pathlib.Path(text).resolve().parent
  if root != pathlib.Path(image).resolve().parent or not (root / 'plan.json').is_file():
    return None
  return files.read_json(root / 'plan.json')


def _settings(text: str, image: str) -> dict[str, Any]:
  """Settings of the model that has these tensors, by the sizes of the towers."""
  tensors = load.named(files.read(text))
  text_tower = load.text_variant(tensors)
  if text_tower is None:
    raise load.LoadError(f'--text={text}: is no BERT of a size that plan_jax has; they are '
                         f'{", ".join(config_lib.TextVariant)}')
  positions = tensors.get(layouts.TEXT_POSITIONS)
  pieces = min(len(positions), 512) if positions is not None else 512
  tensors = load.named(files.read(image))
  layout = load.layout_of(tensors, image)
  image_tower = load.image_variant(tensors, layout)
  if image_tower is None:
    raise load.LoadError(f'--image={image}: is no ViT or ResNet of a size that plan_jax has; they '
                         f'are {", ".join(config_lib.ImageVariant)}')
  values = {'model': {'text': str(text_tower), 'image': str(image_tower)},
            'data': {'max_pieces': pieces}}
  if image_tower in vit.VARIANTS:
    patches = tensors[layouts.image_positions(layout)].shape[1] - 1
    values['data']['image_size'] = round(patches**0.5) * vit.VARIANTS[image_tower].patch
    beside = pathlib.Path(image) / 'config.json'
    content = files.read_json(beside) if beside.is_file() else {'layer_norm_eps': 1e-6}
    values['model']['vit_epsilon'] = content.get('layer_norm_eps', 1e-12)
  return values


def _for_import(message: str) -> str:
  """The message to who starts a run, in the options of this command."""
  for tower in ('text', 'image'):
    message = message.replace(f'config.init.{tower} = ', f'--{tower}=')
  return message.replace('set --config.', 'add --set ').replace('--config.', '--set ')


def _plain(value: str) -> Any:
  try:
    return json.loads(value)
  except ValueError:
    return value
