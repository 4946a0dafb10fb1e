"""Starts from towers of other programs: every tensor finds its place, or is named."""

from collections.abc import Callable, Mapping, Sequence
import pathlib
import re
from typing import Any

import jax
import numpy as np

from plan_jax import config as config_lib
from plan_jax import errors
from plan_jax import step as step_lib
from plan_jax.convert import files
from plan_jax.convert import layouts
from plan_jax.convert import tables
from plan_jax.data import tokenize
from plan_jax.models import bert
from plan_jax.models import resnet
from plan_jax.models import vit

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5,) * 3, (0.5,) * 3)
# What models have and towers do not: heads of other tasks, and counters.
_NOT_THE_TOWER = re.compile(
    r'(pooler|cls|classifier|fc|heads?|lm_head|qa_outputs|pre_logits|projection)\.'
    r'|.*(num_batches_tracked|position_ids|mask_token)$')
_PREFIX = re.compile(r'^(module\.|model\.)*(bert\.|vit\.|deit\.|resnet\.)?')
# By a name that it alone has a tower is known, and whose names an image tower's tensors have.
_TEXT_MARKS = ('embeddings.word_embeddings.weight',)
_IMAGE_MARKS = {
    'embeddings.cls_token': layouts.Layout.HUB,
    'embedder.embedder.convolution.weight': layouts.Layout.HUB,
    'conv1.weight': layouts.Layout.TORCHVISION,
    'class_token': layouts.Layout.TORCHVISION,
    'cls_token': layouts.Layout.TIMM,
}
_RESIDUAL = re.compile(r'(^|\.)layer\d\.\d+$')
_BLOCK = re.compile(r'\.\d+\.')
_ALIASES = (  # other versions' names of the same
    (r'LayerNorm\.gamma$', 'LayerNorm.weight'),
    (r'LayerNorm\.beta$', 'LayerNorm.bias'),
    (r'^layers\.(\d+)\.attention\.q_proj', r'encoder.layer.\1.attention.attention.query'),
    (r'^layers\.(\d+)\.attention\.k_proj', r'encoder.layer.\1.attention.attention.key'),
    (r'^layers\.(\d+)\.attention\.v_proj', r'encoder.layer.\1.attention.attention.value'),
    (r'^layers\.(\d+)\.attention\.o_proj', r'encoder.layer.\1.attention.output.dense'),
    (r'^layers\.(\d+)\.mlp\.fc1', r'encoder.layer.\1.intermediate.dense'),
    (r'^layers\.(\d+)\.mlp\.fc2', r'encoder.layer.\1.output.dense'),
    (r'^layers\.(\d+)\.layernorm', r'encoder.layer.\1.layernorm'),
    (r'\.mlp\.linear_1\.', '.mlp.0.'),
    (r'\.mlp\.linear_2\.', '.mlp.3.'),
)


class LoadError(errors.UserError):
  """Weights that do not fit the model; the message names each tensor and the fix."""


def start(
    init: Callable[[], step_lib.TrainState], *, settings: config_lib.Config,
    vocabulary: Sequence[str],
) -> step_lib.TrainState:
  """A new run's state, with the towers that `settings.init` names; placed as `init` places it.

  The weights are read and fitted first, so that what does not fit is refused before anything
  is compiled.

  Args:
    init: draws the state.
    settings: of the run.
    vocabulary: of the records.

  Raises:
    UserError: weights that cannot be read, or do not fit.
  """
  drawn = jax.eval_shape(init)
  found = arrays(settings, vocabulary=vocabulary, shapes=shapes_of(
      {'params': drawn.params, 'batch_stats': drawn.batch_stats}))
  state = init()
  if not found:
    return state
  variables = replace({'params': state.params, 'batch_stats': state.batch_stats}, found)
  return state.replace(
      **variables, ema=step_lib.first_ema(variables['params'], config=settings))


def shapes_of(variables: Any) -> dict[str, tuple[int, ...]]:
  """Shapes by path: 'params/text_tower/norm/scale'."""
  return {path: leaf.shape for path, leaf in tables.paths(variables)}


def replace(variables: Any, found: tables.Tensors) -> Any:
  """`variables` with the arrays of these paths, on the devices of those before."""
  chosen = [jax.device_put(found[path], before.sharding) if path in found else before
            for path, before in tables.paths(variables)]
  return jax.tree.unflatten(jax.tree.structure(variables), chosen)


def arrays(
    settings: config_lib.Config, *, shapes: Mapping[str, tuple[int, ...]],
    vocabulary: Sequence[str],
) -> tables.Tensors:
  """The arrays, by path, of the towers that `settings.init` names.

  Args:
    settings: of the run.
    shapes: of all arrays of the model, by path.
    vocabulary: of the records; must be that of the text tower.

  Raises:
    UserError: weights that cannot be read, or do not fit.
  """
  found, init = {}, settings.init
  if init.text:
    fitted = text(init.text, settings.model, unfit=init.unfit, shapes=shapes,
                  vocabulary=vocabulary)
    found |= checked(fitted, f'config.model.text = {settings.model.text}', init.text, settings)
  if init.image:
    fitted = image(init.image, settings.model, unfit=init.unfit,
                   normalisation=init.normalisation, shapes=shapes)
    found |= checked(
        fitted, f'config.model.image = {settings.model.image}', init.image, settings)
  return found


def text(
    path: str, model: config_lib.Model, *, unfit: config_lib.Unfit,
    shapes: Mapping[str, tuple[int, ...]], vocabulary: Sequence[str],
) -> tables.Fitted:
  """The text tower's arrays from a BERT: a directory, or a file of weights.

  Raises:
    UserError: unreadable, another vocabulary, or a BERT that computes otherwise.
  """
  tensors = read('text', path)
  _require_size('text', path, model.text, text_variant(tensors), unfit)
  shape = bert.VARIANTS[model.text]
  # Of other types with the same names RoBERTa counts positions otherwise.
  _require_config(path, 'bert', model_type='bert', num_attention_heads=shape.heads, layer_norm_eps=1e-12,
                  hidden_act='gelu', position_embedding_type='absolute')
  directory = directory_of(path)
  if any((directory / name).is_file() for name in ('vocab.txt', 'tokenizer.json')):
    if tokenize.read_vocabulary(directory) != list(vocabulary):
      raise LoadError(
          f'config.init.text = {path}: has another vocabulary than the records; prepare them with '
          f'--vocab {directory}')
  types = tensors.pop(layouts.TOKEN_TYPES, None)
  positions = tensors.get(layouts.TEXT_POSITIONS)
  if positions is not None and positions.ndim == 2:
    positions = positions[:shapes[f'{layouts.TEXT}/position_embedding'][0]]
    if types is not None and types.shape[1:] == positions.shape[1:]:
      # All pieces are of type 0. Where that is 0, nothing changes, not even the sign of a 0.
      positions = np.where(types[0] == 0, positions, positions + types[0])
    tensors[layouts.TEXT_POSITIONS] = positions
  return tables.read(layouts.text_rows(model.text), tensors, shapes=shapes)


def image(
    path: str, model: config_lib.Model, *, unfit: config_lib.Unfit,
    normalisation: config_lib.Normalisation, shapes: Mapping[str, tuple[int, ...]],
) -> tables.Fitted:
  """The image tower's arrays; position embeddings are interpolated to our grid.

  Raises:
    UserError: unreadable, of no known layout, or a tower that computes otherwise.
  """
  tensors = read('image', path)
  layout = layout_of(tensors, path)
  _require_size('image', path, model.image, image_variant(tensors, layout), unfit)
  if model.image in vit.VARIANTS:
    shape = vit.VARIANTS[model.image]
    _require_config(path, 'vit', num_attention_heads=shape.heads,
                    layer_norm_eps=model.vit_epsilon, hidden_act='gelu')
    if layout is not layouts.Layout.HUB and model.vit_epsilon != 1e-6:
      raise LoadError(f'config.init.image = {path}: ViTs of {layout} have an epsilon of 1e-6; '
                      'set --config.model.vit_epsilon=1e-6')
    name, ours = layouts.image_positions(layout), shapes[f'{layouts.IMAGE}/position_embedding']
    if name in tensors and tensors[name].ndim == 3:
      tensors[name] = interpolate(tensors[name], patches=ours[0] - 1)
  else:
    _require_config(path, 'resnet', downsample_in_bottleneck=False,
                    downsample_in_first_stage=False, hidden_act='relu')
  rows = layouts.image_rows(model.image, layout)
  _to_grey(tensors, rows, *_normalisation(path, normalisation))
  return tables.read(rows, tensors, shapes=shapes)


def interpolate(positions: np.ndarray, *, patches: int) -> np.ndarray:
  """Position embeddings [1 1+p c] for another square grid; [CLS] stays.

  Bicubic (a = -.75, half-pixel centres, edges repeated), as transformers and timm do it
  without antialiasing. What is no square grid comes back as it is, and will not fit.
  """
  before, after = positions.shape[1] - 1, patches
  old, new = round(before**0.5), round(after**0.5)
  if before == after or old**2 != before or new**2 != after:
    return positions
  place = (np.arange(new) + 0.5) * old / new - 0.5
  first = np.floor(place).astype(int)
  weights = np.zeros((new, old))
  for offset in range(-1, 3):
    x = np.abs(place - (first + offset))
    near = 1.25 * x**3 - 2.25 * x**2 + 1
    far = -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
    np.add.at(weights, (np.arange(new), np.clip(first + offset, 0, old - 1)),
              np.where(x <= 1, near, far))
  grid = positions[0, 1:].reshape(old, old, -1)
  grid = np.einsum('yh,xw,hwc->yxc', weights, weights, grid).reshape(1, after, -1)
  return np.concatenate([positions[:, :1], grid.astype(positions.dtype)], 1)


def _to_grey(tensors: tables.Tensors, rows: Sequence[layouts.Row], mean, std) -> None:
  """A stem of three channels as one of grey, in place.

  x_c = a_c g + b_c, with our grey value g: the kernels add up, and the constant goes to
  the patches' bias, or into the mean of the BatchNorm.
  """
  kernel = layouts.stem(rows)
  constant = next(row.theirs for row in rows if row.ours in (
      f'{layouts.IMAGE}/patch_embedding/bias', 'batch_stats/image_tower/stem/norm/mean'))
  shape = tensors[kernel].shape if kernel in tensors else ()
  if constant not in tensors or len(shape) != 4 or shape[1] != 3:
    return  # one channel already, or a stem that will be named as unfit
  mean, std, weight = np.array(mean), np.array(std), tensors[kernel].astype(np.float64)
  tensors[kernel] = np.einsum('oihw,i->ohw', weight, 0.5 / std)[:, None]
  added = np.einsum('oihw,i->o', weight, (0.5 - mean) / std)
  if added.any():
    sign = -1 if constant.endswith('running_mean') else 1
    tensors[constant] = tensors[constant] + sign * added


def _normalisation(path: str, asked: config_lib.Normalisation):
  if asked is not config_lib.Normalisation.AUTO:
    return _HALF if asked is config_lib.Normalisation.HALF else _IMAGENET
  beside = directory_of(path) / 'preprocessor_config.json'
  if not beside.is_file():
    raise LoadError(
        f'config.init.image = {path}: has no preprocessor_config.json, which says how its images '
        'were normalised; set --config.init.normalisation=imagenet (or half)')
  content = files.read_json(beside)
  mean, std = content.get('image_mean'), content.get('image_std')
  if not (isinstance(mean, list) and isinstance(std, list) and len(mean) == len(std) == 3):
    raise LoadError(f'{beside}: has no image_mean and image_std of three channels; set '
                    '--config.init.normalisation=imagenet (or half)')
  return mean, std


def named(tensors: tables.Tensors) -> tables.Tensors:
  """Under the names of the tables, without what is not the tower."""
  found = {}
  for name, tensor in tensors.items():
    name = _PREFIX.sub('', name)
    for pattern, replacement in _ALIASES:
      name = re.sub(pattern, replacement, name)
    if not _NOT_THE_TOWER.match(name):
      found[name] = tensor
  return found


def layout_of(tensors: tables.Tensors, path: str) -> layouts.Layout:
  """Whose names an image tower's tensors have, by one that only that library uses.

  Raises:
    LoadError: none is known; the message shows some of the names.
  """
  for name, layout in _IMAGE_MARKS.items():
    if name in tensors:
      return layout
  raise LoadError(
      f'config.init.image = {path}: is no ViT or ResNet of transformers, torchvision or timm; its '
      f'tensors are {", ".join(list(tensors)[:5])}, ...')


def text_variant(tensors: tables.Tensors) -> config_lib.TextVariant | None:
  """The BERT of these (`named`) tensors' width and depth; None if we have none."""
  words = tensors.get('embeddings.word_embeddings.weight')
  depth = len({name.split('.')[2] for name in tensors if name.startswith('encoder.layer.')})
  return next((variant for variant, shape in bert.VARIANTS.items() if words is not None
               and (words.shape[-1:], depth) == ((shape.width,), shape.depth)), None)


def image_variant(
    tensors: tables.Tensors, layout: layouts.Layout) -> config_lib.ImageVariant | None:
  """The ViT or ResNet of these (`named`) tensors' width and depth; None if we have none."""
  return next((variant for variant in config_lib.ImageVariant
               if _has_size(variant, layout, tensors)), None)


def _has_size(variant, layout, tensors) -> bool:
  rows = layouts.image_rows(variant, layout)
  theirs = {row.theirs for row in rows}
  # A ResNet-50 has all names of a ResNet-18; what it has besides is in numbered blocks.
  if theirs - tensors.keys() or any(_BLOCK.search(name) for name in tensors.keys() - theirs):
    return False
  first, last = layouts.stem(rows), rows[-1]
  shape = vit.VARIANTS.get(variant)
  if shape and tensors[first].shape[-1:] != (shape.patch,):
    return False
  width = shape.width if shape else resnet.VARIANTS[variant].stem
  end = shape.width if shape else resnet.VARIANTS[variant].widths[-1]
  return tensors[first].shape[:1] == (width,) and tensors[last.theirs].shape[:1] == (end,)


def require_here(tower: str, path: str) -> None:
  """Checks that there is such a directory or file.

  Raises:
    LoadError: there is not; the message says how one comes from the hub.
  """
  if not pathlib.Path(path).exists():
    raise LoadError(
        f'config.init.{tower} = {path}: is not here; give a directory or a file of weights. What is '
        'on the Hugging Face hub comes by: hf download NAME --local-dir DIR')


def read(tower: str, path: str, *, quiet: bool = False) -> tables.Tensors:
  """The (`named`) tensors of a tower, 'text' or 'image'.

  Where all its names begin alike (`gloria.img_encoder.model.`), the file is of a model that
  the tower is a part of, and what has other names is left out; says so unless `quiet`.

  Raises:
    UserError: nothing there that can be read, or several such towers.
  """
  require_here(tower, path)
  tensors = named(files.read(path))
  marks = tuple(f'.{mark}' for mark in (_TEXT_MARKS if tower == 'text' else _IMAGE_MARKS))
  starts = {f'.{name}'.removesuffix(mark)[1:] for name in tensors for mark in marks
            if f'.{name}'.endswith(mark)}
  # The outermost; a block of a ResNet has a conv1 of its own.
  starts = sorted(x for x in starts if not _RESIDUAL.search(x) and not any(
      x != other and (not other or x.startswith(f'{other}.')) for other in starts))
  if len(starts) > 1:
    raise LoadError(f'config.init.{tower} = {path}: holds several {tower} towers, '
                    f'{", ".join(starts)}; save the tensors of one to a file of their own')
  if starts in ([], ['']):
    return tensors
  start = f'{starts[0]}.'
  inside = {name.removeprefix(start): x for name, x in tensors.items() if name.startswith(start)}
  if not quiet:
    print(f'{path}: the {tower} tower is {start}*; {len(tensors) - len(inside)} other tensors are '
          'left out', flush=True)
  return named(inside)


def directory_of(path: str) -> pathlib.Path:
  """Where what is said of these weights lies; a file's folder is taken for a model's by its name."""
  whole = pathlib.Path(path)
  return whole.parent if whole.name in ('model.safetensors', 'pytorch_model.bin') else whole


def _require_size(tower: str, path: str, chosen: str, found: str | None, unfit) -> None:
  """What has the size of another tower gets that advice, and no list of all its tensors."""
  if found not in (None, chosen) and unfit is config_lib.Unfit.FAIL:
    raise LoadError(f'config.init.{tower} = {path}: has the size of {found}, and '
                    f'config.model.{tower} = {chosen}; set --config.model.{tower}={found}')


def _require_config(path: str, group: str, **expected: Any) -> None:
  """What no tensor shows: config.json, where there is one, must say the same."""
  beside = directory_of(path) / 'config.json'
  if not beside.is_file():
    return
  content = files.read_json(beside)
  for key, value in expected.items():
    if content.get(key, value) != value:
      fix = ('set --config.model.vit_epsilon to it' if group == 'vit' and key == 'layer_norm_eps'
             else 'choose another tower, or other weights')
      raise LoadError(f'{beside}: {key} is {content[key]}, the model has {value}; {fix}')


def checked(fitted: tables.Fitted, tower: str, path: str, settings: config_lib.Config,
) -> tables.Tensors:
  """The arrays, if all fits or need not.

  Raises:
    LoadError: something does not fit, and `init.unfit` is `fail`.
  """
  problems = [f'{kind}: {", ".join(names)}' for kind, names in (
      ('missing', fitted.missing), ('of another shape', fitted.misshapen),
      ('without a place', fitted.unmatched)) if names]
  if problems and settings.init.unfit is config_lib.Unfit.FAIL:
    raise LoadError(
        f'{path}: does not fit {tower}; '
        f'{"; ".join(problems)}. Choose the tower of these weights, or let what does not fit '
        'start fresh: --config.init.unfit=fresh')
  print(f'{tower} from {path}: {len(fitted.arrays)} arrays'
        + ''.join(f'\n  {problem}' for problem in problems), flush=True)
  return fitted.arrays
