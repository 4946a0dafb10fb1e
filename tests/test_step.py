"""The train step: the same on any number of devices, one compilation for all stages."""

import dataclasses

import jax
import numpy as np
import pytest

from plan_jax import config as config_lib
from plan_jax import mesh as mesh_lib
from plan_jax import optim
from plan_jax import stages
from plan_jax import step as step_lib
from tests import tiny


def run(config, *, devices, steps, stage_steps=None, poison=None):
  """Losses and parameters after `steps`; step k runs with the stage of stage_steps[k]."""
  mesh = mesh_lib.make_mesh(jax.devices()[:devices])
  model = step_lib.build_model(config, vocab_size=tiny.VOCAB_SIZE)
  optimizer = optim.make_optimizer(config.optim, total_steps=config.train.steps)
  state = jax.jit(lambda: step_lib.init_state(model, optimizer, config=config),
                  out_shardings=step_lib.state_shardings(
                      model, optimizer, config=config, mesh=mesh))()
  train_step = step_lib.make_train_step(model, optimizer, config=config, mesh=mesh)
  schedule = stages.schedule(config.stages, total_steps=config.train.steps)
  history = []
  for k in range(steps):
    batch = jax.device_put(tiny.batch(config, seed=k), mesh_lib.split(mesh))
    stage = schedule.values(stage_steps[k] if stage_steps else k)
    if poison == k:
      stage = dataclasses.replace(stage, refine_weight=np.float32(np.nan))
    state, metrics = train_step(state, batch, stage)
    history.append({name: float(value) for name, value in metrics.items()})
  return state, history, train_step


@pytest.fixture(scope='module')
def reference():
  config = tiny.config(model={'dropout': 0.1})
  return config, run(config, devices=1, steps=3, stage_steps=[0, 3, 8])


@pytest.mark.parametrize('devices', [2, 4, 8])
def test_equal_on_any_number_of_devices(reference, devices):
  config, (state, history, _) = reference
  other, other_history, _ = run(config, devices=devices, steps=3, stage_steps=[0, 3, 8])
  for one, many in zip(history, other_history, strict=True):
    for name, value in one.items():
      assert many[name] == pytest.approx(value, rel=2e-4, abs=2e-5), name
  worst = max(jax.tree.leaves(jax.tree.map(
      lambda a, b: float(np.max(np.abs(np.asarray(a) - np.asarray(b)))),
      state.params, other.params)))
  print(f'{devices} devices: parameters differ by at most {worst:.1e} after 3 steps')
  assert worst < 5e-4  # Adam turns rounding of tiny gradients into a share of lr = 1e-3


def test_all_stages_share_one_compilation(reference):
  _, (_, history, train_step) = reference
  assert train_step._cache_size() == 1
  assert history[0]['loss_refine'] == 0 and history[0]['loss_pixel_word'] == 0
  assert history[2]['loss_refine'] > 0 and history[2]['loss_pixel_word'] > 0
  assert history[2]['cells_per_word'] < history[0]['cells_per_word']


def test_a_step_that_is_not_finite_changes_nothing_but_the_counters():
  config = tiny.config()
  before, _, _ = run(config, devices=1, steps=1)
  after, history, _ = run(config, devices=1, steps=2, poison=1)
  assert int(after.skipped) == 1 and int(after.step) == 2
  assert np.isnan(history[1]['loss'])
  for name in ('params', 'batch_stats', 'ema', 'opt_state'):
    for a, b in zip(jax.tree.leaves(getattr(before, name)), jax.tree.leaves(getattr(after, name))):
      np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('name', ['gloria', 'mgca'])
def test_baselines_are_equal_on_two_devices(name):
  config = tiny.config(objective={'name': name})
  (_, one, _), (_, two, _) = (run(config, devices=n, steps=2) for n in (1, 2))
  for a, b in zip(one, two, strict=True):
    for key, value in a.items():
      assert b[key] == pytest.approx(value, rel=2e-4, abs=2e-5), key


@pytest.mark.parametrize('changes', [
    {'objective': {'name': 'convirt'}, 'model': {'pixel_head': 'global', 'pixel_stage': 4}},
    {'objective': {'name': 'sparc'}},
    {'objective': {'name': 'gloria'}},
    {'objective': {'name': 'mgca'}},
    {'objective': {'name': 'mgca'}, 'model': {'image': 'vit_ti16'}},
    {'objective': {'teacher': 'self', 'rounds': 2}, 'model': {'image': 'vit_ti16'}},
    {'objective': {'negatives': 'pair', 'gate': 'hard', 'term_weights': 'uniform',
                   'term_filter': False}},
    {'objective': {'negatives': 'device'}, 'model': {'learn_temperature': True}},
])
def test_every_kind_of_run_learns_a_repeated_batch(changes):
  config = tiny.config(**changes, train={'steps': 8, 'batch_size': 8})
  mesh = mesh_lib.make_mesh(jax.devices()[:2])
  model = step_lib.build_model(config, vocab_size=tiny.VOCAB_SIZE)
  optimizer = optim.make_optimizer(config.optim, total_steps=8)
  state = step_lib.init_state(model, optimizer, config=config)
  state = jax.device_put(state, mesh_lib.replicated(mesh))
  train_step = step_lib.make_train_step(model, optimizer, config=config, mesh=mesh)
  stage = stages.schedule(config.stages, total_steps=8).values(0)
  batch = jax.device_put(tiny.batch(config), mesh_lib.split(mesh))
  losses = []
  for _ in range(8):
    state, metrics = train_step(state, batch, stage)
    losses.append(float(metrics['loss']))
  assert int(state.skipped) == 0
  assert min(losses[4:]) < losses[0]


def test_split_parameters_give_the_same_step_in_less_memory(reference):
  config, (state, history, _) = reference
  split = dataclasses.replace(
      config, train=dataclasses.replace(config.train, sharding=config_lib.Sharding.FSDP))
  other, other_history, _ = run(split, devices=4, steps=3, stage_steps=[0, 3, 8])
  for one, many in zip(history, other_history, strict=True):
    for name, value in one.items():
      assert many[name] == pytest.approx(value, rel=2e-4, abs=2e-5), name

  def on_first_device(state):
    first = jax.devices()[0]
    return sum(shard.data.nbytes for leaf in jax.tree.leaves(state.params)
               for shard in leaf.addressable_shards if shard.device == first)

  assert on_first_device(other) < 0.3 * on_first_device(state)
  kernel = other.params['text_tower']['stack']['blocks']['mlp']['dense_1']['kernel']
  assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, None, 'data')
  moments = [leaf for leaf in jax.tree.leaves(other.opt_state) if leaf.shape == kernel.shape]
  assert moments and all(leaf.sharding.spec == kernel.sharding.spec for leaf in moments)
  assert other.params['relation'].sharding.spec == jax.sharding.PartitionSpec()
