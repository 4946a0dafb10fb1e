"""Programs for JAX without plan_jax, and for whatever else runs StableHLO (`jax.export`).

A program is a file, its weights are another, beside it: inside they would be constants, which
XLA tries to fold and every compiled batch size would hold again.
"""

import pathlib
from typing import Any

from flax import traverse_util
import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors_numpy

from plan_jax import config as config_lib
from plan_jax import shapes
from plan_jax import stages
from plan_jax import step as step_lib
from plan_jax.convert import agreement
from plan_jax.convert import files
from plan_jax.convert import tables
from plan_jax.models import plan as plan_model
from plan_jax.objectives import matching

PLATFORMS = ('cpu', 'cuda', 'tpu')  # one file for all of them
_PARTS = {'images': ('image_tower', 'image_global', 'image_local'),
          'texts': ('text_tower', 'text_global', 'text_local')}


def write(
    out: pathlib.Path, config: config_lib.Config, *, vocab_size: int, ours: tables.Tensors,
    dtype: files.Dtype,
) -> None:
  """Writes `images`, `texts` and `ground` as .stablehlo, with the weights of the first two.

  Args:
    out: an existing directory.
    config: of the model; computes in fp32 where its `train.precision` says so.
    vocab_size: word pieces.
    ours: arrays by path.
    dtype: of the weights in the files; programs turn them into fp32.
  """
  tower = step_lib.build_model(config, vocab_size=vocab_size)
  size, words = config.data.image_size, config.data.max_words
  # Arrays of the joint space, which these two functions do not use and Flax wants to find.
  joint = {path: x for path, x in ours.items() if path.count('/') == 1}
  # Each program's sizes are symbols of its own.
  b, = jax_export.symbolic_shape('b')
  b_text, s = jax_export.symbolic_shape('b, s', constraints=(f's <= {config.data.max_pieces}',))

  def images(weights, frames, extent):
    found = _apply(tower, {**joint, **weights}, frames, extent, method='encode_image')
    return {name: getattr(found, name) for name in agreement.IMAGES}

  def texts(weights, pieces, piece_word):
    # Which word form a word has matters in training alone.
    forms = jnp.zeros((pieces.shape[0], words), jnp.int32)
    found = _apply(tower, {**joint, **weights}, pieces, piece_word, forms, method='encode_text')
    return {name: getattr(found, name) for name in agreement.TEXTS}

  arguments = {
      'images': (_spec((b, size, size), np.uint8), _spec((b, 4), np.int32)),
      'texts': (_spec((b_text, s), np.int32),) * 2}
  outputs = []
  for name, function in (('images', images), ('texts', texts)):
    weights = {path: x for path, x in ours.items() if path.split('/')[1] in _PARTS[name]}
    files.write(out / f'{name}.safetensors', weights, dtype=dtype)
    specs = {path: _spec(x.shape, jnp.dtype(str(dtype))) for path, x in weights.items()}
    outputs.append(_write(out / f'{name}.stablehlo', function, specs, *arguments[name]))
  relation = ours.get('params/relation')
  if relation is not None:  # inside the program, as exact as in a file
    relation = relation.astype(jnp.dtype(str(dtype))).astype(np.float32)
  b, = jax_export.symbolic_shape('b')
  _write(out / 'ground.stablehlo', _ground(config, relation), *jax.tree.map(
      lambda x: _spec((b, *x.shape), x.dtype), outputs))


def read(out: pathlib.Path) -> agreement.Programs:
  """The programs of `write`, as a user of the files runs them."""
  def program(name):
    # From bytes: the file is ours, and jax.export runs nothing of it but the program.
    return jax.jit(jax_export.deserialize((out / f'{name}.stablehlo').read_bytes()).call)

  def with_weights(name):
    weights = jax.device_put(safetensors_numpy.load_file(out / f'{name}.safetensors'))
    run = program(name)
    return lambda *arguments: run(weights, *arguments)

  return agreement.Programs(
      images=with_weights('images'), texts=with_weights('texts'), ground=program('ground'))


def _apply(tower, weights, *arguments, method: str):
  variables = traverse_util.unflatten_dict(
      {path: jnp.asarray(x, jnp.float32) for path, x in weights.items()}, sep='/')
  return tower.apply(variables, *arguments, train=False, method=method)


def _ground(config: config_lib.Config, relation: np.ndarray | None):
  """Maps of text b on image b, [b rows columns]; padding has the map's minimum."""
  settings, grid = config.objective, plan_model.grid_shape(config.model, config.data.image_size)
  stage = stages.schedule(config.stages, total_steps=config.train.steps).values(
      config.train.steps - 1)

  def ground(images, texts):
    images = shapes.ImageFeatures(**images, attention=None)
    texts = shapes.TextFeatures(**texts)
    is_pixel = images.is_pixel

    def one(kind):
      if kind is matching.MapKind.POOLED:
        maps = jnp.einsum('bpd,bd->bp', images.pixels, texts.pooled)
      else:
        maps = matching.phrase_map(
            relation, matching.local_words(settings, texts), texts.is_word, texts.attention,
            matching.local_pixels(settings, images), is_pixel, stage=stage, settings=settings,
            kind=kind)
      lowest = jnp.min(maps, axis=1, keepdims=True, where=is_pixel, initial=jnp.inf)
      lowest = jnp.where(jnp.isfinite(lowest), lowest, 0)
      return jnp.where(is_pixel, maps, lowest).reshape(-1, *grid)

    return {name: one(kind) for name, kind in agreement.MAPS.items()}

  return ground


def _write(path: pathlib.Path, function, *arguments) -> Any:
  """Writes the program; shapes of what it gives, without the first axis."""
  program = jax_export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
  path.write_bytes(program.serialize())
  return jax.tree.unflatten(
      program.out_tree, [_spec(x.shape[1:], x.dtype) for x in program.out_avals])


def _spec(shape, dtype) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype)
