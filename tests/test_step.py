"""The train step: the same on any number of devices, one compilation for all stages."""

import dataclasses

import jax
import numpy as np
import pytest

from plan_jax import config as config_lib
from tests import tiny


@pytest.fixture(scope='module')
def reference():
  config = tiny.config(model={'dropout': 0.1})
  return config, tiny.run(config, devices=1, steps=3, stage_steps=[0, 3, 8])


@pytest.mark.parametrize('devices', [2, 4, 8])
def test_equal_on_any_number_of_devices(reference, devices):
  config, (state, history, _) = reference
  other, other_history, _ = tiny.run(config, devices=devices, steps=3, stage_steps=[0, 3, 8])
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


def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(reference):
  config, (_, straight, train_step) = reference
  before, _, _ = tiny.run(config, devices=1, steps=1, train_step=train_step)
  after, history, _ = tiny.run(config, devices=1, steps=2, poison=1, train_step=train_step)
  assert int(after.skipped) == 1 and int(after.step) == 2
  assert np.isnan(history[1]['loss'])
  for name in ('params', 'batch_stats', 'ema', 'opt_state'):
    for a, b in zip(jax.tree.leaves(getattr(before, name)), jax.tree.leaves(getattr(after, name))):
      np.testing.assert_array_equal(a, b)
  _, longer, _ = tiny.run(config, devices=1, steps=3, poison=1, train_step=train_step)
  assert longer[2]['lr'] == straight[1]['lr'] != straight[2]['lr']  # the optimizer's second step


def test_split_parameters_give_the_same_step_in_less_memory(reference):
  config, (state, history, _) = reference
  split = dataclasses.replace(
      config, train=dataclasses.replace(config.train, sharding=config_lib.Sharding.FSDP))
  other, other_history, _ = tiny.run(split, devices=4, steps=3, stage_steps=[0, 3, 8])
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
  key = other.params['text_tower']['stack']['blocks']['attention']['key']['kernel']
  assert not key.sharding.is_fully_replicated  # no PRNG key
  moments = [leaf for leaf in jax.tree.leaves(other.opt_state) if leaf.shape == kernel.shape]
  assert moments and all(leaf.sharding.spec == kernel.sharding.spec for leaf in moments)
  assert other.params['relation'].sharding.spec == jax.sharding.PartitionSpec()
