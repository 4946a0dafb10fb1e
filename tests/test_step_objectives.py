"""The step of each objective and teacher."""

import jax
import pytest

from plan_jax import mesh as mesh_lib
from plan_jax import optim
from plan_jax import stages
from plan_jax import step as step_lib
from tests import tiny


@pytest.mark.parametrize('name', ['gloria', 'mgca'])
def test_baselines_are_equal_on_two_devices(name):
  config = tiny.config(objective={'name': name})
  (_, one, _), (_, two, _) = (tiny.run(config, devices=n, steps=2) for n in (1, 2))
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
  config = tiny.config(**changes)  # GLoRIA's and MGCA's programs are those of the test above
  mesh = mesh_lib.make_mesh(jax.devices()[:2])
  model = step_lib.build_model(config, vocab_size=tiny.VOCAB_SIZE)
  optimizer = optim.make_optimizer(config.optim, total_steps=config.train.steps)
  state = jax.device_put(tiny.first_state(config), mesh_lib.replicated(mesh))
  train_step = step_lib.make_train_step(model, optimizer, config=config, mesh=mesh)
  stage = stages.schedule(config.stages, total_steps=config.train.steps).values(0)
  batch = jax.device_put(tiny.batch(config), mesh_lib.split(mesh))
  losses = []
  for _ in range(8):
    state, metrics = train_step(state, batch, stage)
    losses.append(float(metrics['loss']))
  assert int(state.skipped) == 0
  assert min(losses[4:]) < losses[0]
