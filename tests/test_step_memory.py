"""Steps in less memory are the same steps: parts of a batch, rematerialisation."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plan_jax import config as config_lib
from plan_jax import flops
from plan_jax import mesh as mesh_lib
from plan_jax import optim
from plan_jax import stages
from plan_jax import step as step_lib
from plan_jax.models import resnet
from tests import tiny


@functools.cache
def one_step(*, chunks=1, devices=1, frozen=False):
  """Metrics and mean gradients after steps of the last stage, short texts included; its bytes."""
  config = tiny.config(
      model={'dropout': 0.0, 'image': 'resnet_tiny' if frozen else 'vit_ti16'},
      train={'chunks': chunks, 'batch_size': 32}, optim={'image': {'freeze': frozen}},
      objective={'name': 'convirt'} if frozen else {'teacher': 'ema'}, stages={'focus': {
          **config_lib.to_dict(config_lib.Config())['stages']['focus'], 'short_text_prob': 1.0}})
  mesh = mesh_lib.make_mesh(jax.devices()[:devices])
  model = step_lib.build_model(config, vocab_size=tiny.VOCAB_SIZE)
  optimizer = optim.make_optimizer(config.optim, total_steps=config.train.steps)
  state = jax.jit(lambda: step_lib.init_state(model, optimizer, config=config),
                  out_shardings=mesh_lib.replicated(mesh))()
  stage = stages.schedule(config.stages, total_steps=config.train.steps).values(9)
  batch = jax.device_put(tiny.batch(config), mesh_lib.split(mesh))
  step = step_lib.make_train_step(model, optimizer, config=config, mesh=mesh)
  step = step.lower(state, batch, stage).compile()
  temporary = step.memory_analysis().temp_size_in_bytes
  for _ in range(2):  # the first step of the warm-up has learning rate 0
    state, metrics = step(state, batch, stage)
  return jax.device_get((metrics, optax.tree.get(state.opt_state, 'mu'))), temporary


@pytest.mark.parametrize('frozen, devices', [(False, 1), (False, 2), (True, 1)])
def test_parts_of_a_batch_give_the_plain_step(frozen, devices):
  (metrics, gradients), temporary = one_step(frozen=frozen)
  (other_metrics, other), of_parts = one_step(frozen=frozen, chunks=4, devices=devices)
  for name, value in metrics.items():
    assert other_metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
  # Adam's mean of them: its steps would turn the rounding of a gradient of 0 into a share of lr.
  # As vectors: where sums come in another order, a gate at times keeps another cell, and single
  # values then differ by up to 7e-5 of the largest.
  whole = float(optax.global_norm(gradients))
  for ours, theirs in zip(jax.tree.leaves(other), jax.tree.leaves(gradients), strict=True):
    off = np.linalg.norm(np.ravel(ours - theirs))
    assert off < 1e-3 * np.linalg.norm(np.ravel(theirs)) + 1e-5 * whole
  if not frozen and devices == 1:
    print(f'{temporary / 2**20:.1f} MiB, in four parts {of_parts / 2**20:.1f} MiB')
    assert of_parts < 0.5 * temporary


@functools.cache
def towers(*, image, remat='none'):
  """Gradients of the towers by their parameters, and new statistics, of a batch; its bytes."""
  config = tiny.config(
      model={'dropout': 0.0, 'remat': remat, 'image': image}, train={'batch_size': 32})
  model = step_lib.build_model(config, vocab_size=tiny.VOCAB_SIZE)
  batch = tiny.batch(config)
  variables = tiny.random_state(
      model, optim.make_optimizer(config.optim, total_steps=1), settings=config)

  # Random, of either sign, so that no gradient is 0 by symmetry.
  rng = np.random.default_rng(0)
  params = jax.tree.map(
      lambda x: (0.2 * rng.normal(size=x.shape)).astype(x.dtype), variables.params)

  def loss(params):
    features, changed = model.apply(
        {'params': params, 'batch_stats': variables.batch_stats}, batch, train=True,
        method=model.look, mutable=['batch_stats'], rngs={'dropout': jax.random.key(0)})
    value = jnp.mean(jnp.sin(features.image.pixels)) + jnp.mean(jnp.sin(features.text.words))
    return value, changed

  compiled = jax.jit(jax.grad(loss, has_aux=True)).lower(params).compile()
  return jax.device_get(compiled(params)), compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize('image, remat', [
    ('vit_ti16', 'dots'), ('vit_ti16', 'blocks'), ('resnet_tiny', 'dots'), ('resnet_tiny', 'blocks')])
def test_rematerialised_towers_are_the_same(image, remat):
  (gradients, statistics), temporary = towers(image=image)
  (other, others_statistics), less = towers(image=image, remat=remat)
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))
  assert largest > 1e-2
  for ours, theirs in zip(jax.tree.leaves(other), jax.tree.leaves(gradients), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5 * largest)
  # Once: what is computed again does not follow the batch again.
  for ours, theirs in zip(
      jax.tree.leaves(others_statistics), jax.tree.leaves(statistics), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
  print(f'{image}, {remat}: {less / temporary:.2f} of the memory')
  if image == 'vit_ti16' and remat == 'blocks':
    assert less < 0.8 * temporary


def backward(*, remat):
  """Shapes of the maps that the backward pass of a ResNet-18 keeps; its FLOPs, its program."""
  model = resnet.ResNet(
      resnet.VARIANTS[config_lib.ImageVariant.RESNET18], jnp.float32, config_lib.Remat(remat))
  inputs = jnp.zeros((8, 64, 64, 1)), jnp.zeros((8, 4), jnp.int32)
  variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), *inputs)

  def tower(params):
    stats = jax.tree.map(jnp.zeros_like, variables['batch_stats'])
    maps, _ = model.apply({'params': params, 'batch_stats': stats}, *inputs, train=True,
                          mutable=['batch_stats'])
    return maps.stages[-1]

  params = variables['params']
  kept = jax.tree.leaves(jax.eval_shape(lambda params: jax.vjp(tower, params)[1], params))
  gradient = jax.grad(lambda params: jnp.sum(jnp.sin(tower(params))))
  return (collections.Counter(x.shape for x in kept if x.ndim == 4 and len(x) == 8),
          flops.count(gradient, params), jax.jit(gradient).lower(params).as_text())


def test_a_rematerialised_resnet_keeps_what_its_choice_says():
  # Not what a compiled program holds: XLA:CPU takes the barriers out and merges the copies.
  (none, none_flops, _), (dots, dots_flops, dots_program), (blocks, blocks_flops, blocks_program) = (
      backward(remat=remat) for remat in ('none', 'dots', 'blocks'))
  one, two, three, four = (8, 16, 16, 64), (8, 8, 8, 128), (8, 4, 4, 256), (8, 2, 2, 512)
  inputs = {(8, 64, 64, 1): 1, one: 3, two: 2, three: 2, four: 1}  # of the stem and 8 blocks
  convolutions = {(8, 32, 32, 64): 1, one: 4, two: 5, three: 5, four: 5}  # and 3 shortcuts
  assert blocks == inputs
  assert dots == collections.Counter(inputs) + collections.Counter(convolutions)
  assert none.total() > 2 * dots.total()
  assert none_flops == dots_flops < blocks_flops
  # Else compilers merge what is computed again with what was computed before, and keep that.
  assert dots_program.count('optimization_barrier') == blocks_program.count('optimization_barrier') == 9


def test_parts_need_a_tower_without_batch_norm():
  with pytest.raises(config_lib.ConfigError, match=r'train.chunks = 2: must be 1 with a ResNet that learns'):
    tiny.config(train={'chunks': 2})
  with pytest.raises(config_lib.ConfigError, match=r'train.chunks = 3: must divide'):
    tiny.config(model={'image': 'vit_ti16'}, train={'chunks': 3})
