"""A config, batches and records small enough for tests."""

import dataclasses
import functools
import pathlib
from typing import Any, Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from plan_jax import checkpoint
from plan_jax import config as config_lib
from plan_jax import mesh as mesh_lib
from plan_jax import optim
from plan_jax import shapes
from plan_jax import stages
from plan_jax import step as step_lib

VOCAB_SIZE = 50


def config(**changes) -> config_lib.Config:
  """A tiny run of every part; `changes` are groups of settings, as dicts."""
  values = {
      'data': {'image_size': 64, 'max_pieces': 12, 'max_words': 8},
      'model': {'image': 'resnet_tiny', 'text': 'bert_tiny', 'joint_dim': 16},
      # All terms, also those that the defaults leave out.
      'objective': {'word_region_weight': 1.0, 'pixel_word_weight': 1.0, 'refine_weight': 1.0},
      'optim': {'lr': 1e-3, 'warmup': 0.1},
      'train': {'steps': 10, 'batch_size': 8},
  }
  for group, settings in changes.items():
    values[group] = {**values.get(group, {}), **settings}
  return config_lib.resolve(values)


def batch(settings: config_lib.Config, *, seed: int = 0) -> shapes.Batch:
  """Random pairs: one padded image, one empty report, repeated words, negations."""
  rng = np.random.default_rng(seed)
  b, size = settings.train.batch_size, settings.data.image_size
  s, t = settings.data.max_pieces, settings.data.max_words
  image = rng.integers(0, 256, (b, size, size), np.uint8)
  extent = np.tile(np.array([0, 0, size, size], np.int32), (b, 1))
  extent[1] = [0, size // 4, size, size - size // 4]
  pieces = np.zeros((b, s), np.int32)
  piece_word = np.full((b, s), -1, np.int32)
  word_form = np.full((b, t), -1, np.int32)
  for i in range(b):
    words = 0 if i == 2 else int(rng.integers(1, min(t, s - 2) + 1))
    pieces[i, 0], pieces[i, words + 1] = 2, 3
    pieces[i, 1:words + 1] = rng.integers(5, VOCAB_SIZE, words)
    piece_word[i, 1:words + 1] = np.arange(words)
    word_form[i, :words] = pieces[i, 1:words + 1]
  return shapes.Batch(
      image=image, extent=extent, pieces=pieces, piece_word=piece_word, word_form=word_form,
      is_negation=(word_form % 7 == 0) & (word_form >= 0))


def random_state(model, optimizer, *, settings: config_lib.Config) -> step_lib.TrainState:
  """A state of random weights: compiling the initialisation would take far longer."""
  expected = jax.eval_shape(lambda: step_lib.init_state(model, optimizer, config=settings))
  rng = np.random.default_rng(0)
  return jax.tree.map(
      lambda x: jnp.asarray(0.1 * np.abs(rng.normal(size=x.shape)), x.dtype), expected)


def save_checkpoint(
    directory: pathlib.Path, *, vocabulary: Sequence[str], settings: config_lib.Config,
    draw: Callable[[Any], Any] = lambda variables: variables, content_hash: str = '0' * 64) -> None:
  """One checkpoint of random weights in a run's directory.

  `draw` turns params and batch_stats into others of the same shapes; `content_hash` is that
  of the records.
  """
  model = step_lib.build_model(settings, vocab_size=len(vocabulary))
  optimizer = optim.make_optimizer(settings.optim, total_steps=10)
  state = random_state(model, optimizer, settings=settings)
  state = state.replace(**draw({'params': state.params, 'batch_stats': state.batch_stats}))
  store = checkpoint.Checkpoints(directory / 'checkpoints', stage_ends=[10], keep_newest=2)
  store.save(state, about=checkpoint.describe(
      settings, vocabulary=vocabulary, stage='discover', content_hash=content_hash, examples_seen=0,
      metrics={}))
  store.close()


def random_weights(variables):
  """Others that leave no term trivial, for `save_checkpoint`."""
  rng = np.random.default_rng(0)

  def draw(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    noise = rng.normal(size=x.shape).astype(np.float32)
    if name.endswith('var'):
      return 0.5 + np.abs(noise)
    if name.endswith('scale'):
      return 1 + 0.2 * noise
    if name.endswith('kernel'):
      fan_in = x.size // x.shape[-1] if 'blocks' not in name else x.shape[1]
      return noise * np.float32(1.4 / np.sqrt(fan_in))
    return 0.2 * noise

  return jax.tree_util.tree_map_with_path(draw, variables)


@functools.cache
def first_state(config) -> step_lib.TrainState:
  """The state of step 0, on the host: compiled once for any number of devices."""
  model = step_lib.build_model(config, vocab_size=VOCAB_SIZE)
  optimizer = optim.make_optimizer(config.optim, total_steps=config.train.steps)
  return jax.device_get(jax.jit(lambda: step_lib.init_state(model, optimizer, config=config))())


def make_step(config, *, devices):
  """The train step on that many devices, not yet compiled."""
  return step_lib.make_train_step(
      step_lib.build_model(config, vocab_size=VOCAB_SIZE),
      optim.make_optimizer(config.optim, total_steps=config.train.steps),
      config=config, mesh=mesh_lib.make_mesh(jax.devices()[:devices]))


def run(config, *, devices, steps, stage_steps=None, poison=None, train_step=None):
  """State, metrics of each step and train step after `steps`; step k runs with the stage of
  stage_steps[k], step `poison` with a loss that is not finite."""
  mesh = mesh_lib.make_mesh(jax.devices()[:devices])
  model = step_lib.build_model(config, vocab_size=VOCAB_SIZE)
  optimizer = optim.make_optimizer(config.optim, total_steps=config.train.steps)
  split = dataclasses.replace(config.train, sharding=config_lib.Sharding.REPLICATED)
  state = jax.device_put(
      first_state(dataclasses.replace(config, train=split)),
      step_lib.state_shardings(model, optimizer, config=config, mesh=mesh))
  train_step = train_step or make_step(config, devices=devices)
  schedule = stages.schedule(config.stages, total_steps=config.train.steps)
  history = []
  for k in range(steps):
    pairs = jax.device_put(batch(config, seed=k), mesh_lib.split(mesh))
    stage = schedule.values(stage_steps[k] if stage_steps else k)
    if poison == k:
      stage = dataclasses.replace(stage, refine_weight=np.float32(np.nan))
    state, metrics = train_step(state, pairs, stage)
    history.append({name: float(value) for name, value in metrics.items()})
  return state, history, train_step
