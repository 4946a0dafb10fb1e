"""A checkpoint from towers of other programs, or from an export."""

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any

import jax

from plan_jax import checkpoint
from plan_jax import config as config_lib
from plan_jax import errors
from plan_jax import step as step_lib
from plan_jax.convert import export
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
  for tower, path in (('text', text), ('image', image)):
    _as_said_here(load.require_here, tower, path)
  beside = load.directory_of(text)
  if not beside.is_dir():
    raise load.LoadError(f'--text={text}: is a file, which says no vocabulary; give the directory '
                         'of a BERT, with vocab.txt or tokenizer.json in it')
  whole, chosen = _export_of(text, image), {}
  _change(chosen, changes)
  values = whole['about']['config'] if whole else _settings(text, image, chosen.get('model', {}))
  values['init'] = {'normalisation': str(normalisation)}
  _change(values, changes)
  values['init'] |= {'text': text, 'image': image}
  settings = config_lib.resolve(values)
  vocabulary = tokenize.read_vocabulary(beside)
  model = step_lib.build_model(settings, vocab_size=len(vocabulary))
  key = jax.random.PRNGKey(settings.train.seed)
  blank = step_lib.empty_batch(settings.data, size=1)

  def init():
    found = model.init({'params': key, 'dropout': key}, blank, train=False)
    return {'params': found['params'], 'batch_stats': found.get('batch_stats', {})}

  expected = jax.eval_shape(init)
  shapes = load.shapes_of(expected)
  found = _as_said_here(load.arrays, settings, shapes=shapes, vocabulary=vocabulary)
  if whole:
    heads = beside.parent / 'heads.safetensors'
    fitted = tables.read(to_torch.joint_rows(shapes), files.read(heads), shapes=shapes)
    found |= _as_said_here(load.checked, fitted, 'the heads', str(heads), settings)
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
  """The plan.json of the export that both towers are of.

  Raises:
    LoadError: it is of another format, or has no towers.
  """
  roots = {load.directory_of(path).resolve().parent for path in (text, image)}
  path = roots.pop() / 'plan.json'
  if roots or not path.is_file():
    return None
  content = files.read_json(path)
  what, version = str(content.get('what')), content.get('format')
  if not what.startswith(export.WHAT):
    return None  # of another program
  if version != export.FORMAT:
    raise load.LoadError(
        f'{path}: format is {version!r}, this plan_jax reads {export.FORMAT}; export the checkpoint '
        'again with this plan_jax, or copy the towers elsewhere to take them without their heads')
  about = content.get('about')
  if what != export.WHAT + export.Format.TORCH or not isinstance(about, dict) or 'config' not in about:
    raise load.LoadError(f'{path}: what is {what!r}, without towers or damaged; give what '
                         '`export --format torch` writes')
  return content


def _settings(text: str, image: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
  """Settings of the model that has these tensors: `chosen` towers, else by their sizes."""
  tensors = _as_said_here(load.read, 'text', text, quiet=True)
  text_tower = chosen.get('text') or load.text_variant(tensors)
  if text_tower is None:
    raise load.LoadError(_unknown('text', text, 'BERT', config_lib.TextVariant))
  positions = tensors.get(layouts.TEXT_POSITIONS)
  pieces = min(len(positions), 512) if positions is not None and positions.ndim else 512
  tensors = _as_said_here(load.read, 'image', image, quiet=True)
  layout = _as_said_here(load.layout_of, tensors, image)
  image_tower = chosen.get('image') or load.image_variant(tensors, layout)
  if image_tower is None:
    raise load.LoadError(_unknown('image', image, 'ViT or ResNet', config_lib.ImageVariant))
  values = {'model': {'text': str(text_tower), 'image': str(image_tower)},
            'data': {'max_pieces': pieces}}
  if image_tower in vit.VARIANTS:
    positions = tensors.get(layouts.image_positions(layout))
    if positions is not None and positions.ndim == 3:
      side = round((positions.shape[1] - 1)**0.5)
      values['data']['image_size'] = side * vit.VARIANTS[image_tower].patch
    beside = load.directory_of(image) / 'config.json'
    content = files.read_json(beside) if beside.is_file() else {'layer_norm_eps': 1e-6}
    values['model']['vit_epsilon'] = content.get('layer_norm_eps', 1e-12)
  return values


def _unknown(tower: str, path: str, kind: str, variants) -> str:
  return (f'--{tower}={path}: is no {kind} of a size that plan_jax has; they are '
          f'{", ".join(variants)}. Where it should be one of them, --set model.{tower}=NAME says '
          'what does not fit')


def _change(values: dict[str, Any], changes: Sequence[str]) -> None:
  """Sets these 'group.key=value' in nested settings.

  Raises:
    UserError: no such setting, or none that may be set.
  """
  for change in changes:
    key, is_pair, value = change.partition('=')
    *groups, name = key.split('.')
    if not is_pair or not groups:
      raise load.LoadError(
          f'--set {change}: is not GROUP.KEY=VALUE; give it as in --set model.joint_dim=64')
    if key in ('init.text', 'init.image'):
      raise load.LoadError(
          f'--set {change}: the tower comes from what --{name} says; give it there, and leave this out')
    config_lib.require_key(key)
    node = values
    for group in groups:
      node = node.setdefault(group, {})
    node[name] = _plain(value)


def _as_said_here(function, *arguments, **named):
  """Calls it; an error says its advice, which is for who starts a run, in this command's options."""
  try:
    return function(*arguments, **named)
  except load.LoadError as error:
    message = str(error)
    for tower in ('text', 'image'):
      message = message.replace(f'config.init.{tower} = ', f'--{tower}=')
    raise load.LoadError(
        message.replace('set --config.', 'add --set ').replace('--config.', '--set ')) from error


def _plain(value: str) -> Any:
  try:
    return json.loads({'True': 'true', 'False': 'false'}.get(value, value))
  except ValueError:
    return value
