"""Checkpoints: what is kept, what comes back, what is refused."""

import json

import jax
import numpy as np
import pytest

from plan_jax import checkpoint
from plan_jax import config as config_lib
from plan_jax import mesh as mesh_lib
from plan_jax import optim
from plan_jax import step as step_lib
from tests import tiny

VOCABULARY = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'] + [f'w{i}' for i in range(45)]
CONFIG = tiny.config()


def make_state(config):
  model = step_lib.build_model(config, vocab_size=len(VOCABULARY))
  optimizer = optim.make_optimizer(config.optim, total_steps=config.train.steps)
  return step_lib.init_state(model, optimizer, config=config)


@pytest.fixture(scope='module')
def state():
  return make_state(CONFIG)


def about(step, metrics=None):
  return checkpoint.describe(
      CONFIG, vocabulary=VOCABULARY, stage='discover', content_hash='abc',
      examples_seen=step * 8, metrics=metrics or {})


@pytest.fixture(scope='module')
def directory(tmp_path_factory, state):
  """Six saves: steps 2 and 4 end stages, step 3 is the best."""
  directory = tmp_path_factory.mktemp('run') / 'checkpoints'
  saver = checkpoint.Checkpoints(directory, stage_ends=[2, 4], keep_newest=1)
  for step, score in enumerate([.1, .2, .9, .3, .4, .5], start=1):
    saver.save(state.replace(step=np.int32(step)),
               about=about(step, {checkpoint.BEST_METRIC: score}))
  saver.close()
  return directory


def test_stage_ends_the_best_and_the_newest_are_kept(directory):
  assert {int(path.name) for path in directory.iterdir()} == {2, 3, 4, 6}


def test_the_best_survives_a_restart(tmp_path, state):
  for steps in ([1, 2, 3], [4, 5]):
    saver = checkpoint.Checkpoints(tmp_path / 'c', stage_ends=[], keep_newest=1)
    for step in steps:
      saver.save(state.replace(step=np.int32(step)),
                 about=about(step, {checkpoint.BEST_METRIC: 0.9 if step == 2 else 0.1 * step}))
    saver.close()
  assert {int(path.name) for path in (tmp_path / 'c').iterdir()} == {2, 5}


def test_what_was_saved_comes_back(directory, state):
  saver = checkpoint.Checkpoints(directory, stage_ends=[2, 4], keep_newest=1)
  restored = saver.restore(
      jax.eval_shape(lambda: state), config=CONFIG, vocabulary=VOCABULARY, content_hash='abc',
      shardings=mesh_lib.replicated(mesh_lib.make_mesh(jax.devices()[:2])))
  saver.close()
  assert int(restored.step) == 6
  expected = state.replace(step=np.int32(6))
  jax.tree.map(np.testing.assert_array_equal, restored, expected)
  assert len(restored.key.sharding.device_set) == 2


@pytest.mark.parametrize('saved, wanted', [
    (('fsdp', 8), ('replicated', 1)), (('fsdp', 8), ('replicated', 2)), (('fsdp', 2), ('fsdp', 8)),
    (('replicated', 1), ('fsdp', 8)),
])
def test_a_state_comes_back_split_and_placed_otherwise(tmp_path, state, saved, wanted):
  def placed(how, devices):
    return mesh_lib.of_state(state, mesh=mesh_lib.make_mesh(jax.devices()[:devices]),
                             how=config_lib.Sharding(how))

  def is_split(state):
    return any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state.params))

  start = jax.device_put(state.replace(step=np.int32(7)), placed(*saved))
  assert is_split(start) == (saved[0] == 'fsdp')
  saver = checkpoint.Checkpoints(tmp_path / 'c', stage_ends=[], keep_newest=1)
  saver.save(start, about=about(7))
  saver.close()
  again = checkpoint.Checkpoints(tmp_path / 'c', stage_ends=[], keep_newest=1)
  restored = again.restore(
      jax.eval_shape(lambda: state), config=tiny.config(train={'sharding': wanted[0]}),
      vocabulary=VOCABULARY, content_hash='abc', shardings=placed(*wanted))
  again.close()
  assert is_split(restored) == (wanted[0] == 'fsdp')
  assert len(restored.key.sharding.device_set) == wanted[1]
  jax.tree.map(np.testing.assert_array_equal, restored, start)


@pytest.mark.parametrize('changes, parts', [
    (dict(config=tiny.config(optim={'lr': 0.5})), ['config.optim.lr = 0.5', '0.001']),
    (dict(vocabulary=VOCABULARY[:-1]), ['vocabulary', '50', '49']),
    (dict(content_hash='xyz'), ['other records', 'abc', 'xyz']),
])
def test_continuing_something_else_is_refused(directory, state, changes, parts):
  saver = checkpoint.Checkpoints(directory, stage_ends=[2, 4], keep_newest=1)
  with pytest.raises(checkpoint.CheckpointError) as error:
    saver.restore(
        jax.eval_shape(lambda: state),
        **{'config': CONFIG, 'vocabulary': VOCABULARY, 'content_hash': 'abc',
           'shardings': mesh_lib.replicated(mesh_lib.make_mesh()), **changes})
  saver.close()
  for part in [*parts, '--workdir']:
    assert part in str(error.value)


def test_harmless_settings_may_change(directory, state):
  saver = checkpoint.Checkpoints(directory, stage_ends=[2, 4], keep_newest=1)
  config = tiny.config(
      data={'records': 'elsewhere', 'threads': 1}, model={'remat': 'blocks'},
      objective={'algorithm': 'ring'}, train={'log_every': 3, 'sharding': 'fsdp'})
  restored = saver.restore(
      jax.eval_shape(lambda: state), config=config, vocabulary=VOCABULARY, content_hash='abc',
      shardings=mesh_lib.replicated(mesh_lib.make_mesh()))
  saver.close()
  assert int(restored.step) == 6


@pytest.mark.parametrize('below', ['..', '.', '3'])
def test_a_model_loads_from_workdir_checkpoints_or_step(directory, state, below):
  restored = checkpoint.load_model(directory / below)
  assert restored.config == CONFIG and restored.vocabulary == VOCABULARY
  assert restored.about['examples_seen'] == (24 if below == '3' else 48)
  jax.tree.map(np.testing.assert_array_equal, restored.variables,
               {'params': state.params, 'batch_stats': state.batch_stats})


def test_no_checkpoint_is_said_so(tmp_path):
  with pytest.raises(checkpoint.CheckpointError, match='no such directory'):
    checkpoint.load_model(tmp_path / 'nowhere')
  with pytest.raises(checkpoint.CheckpointError, match='holds no checkpoint'):
    checkpoint.load_model(tmp_path)
  (tmp_path / '7' / 'about').mkdir(parents=True)
  (tmp_path / '7' / 'about' / 'metadata').write_text('{"params": 1}')
  with pytest.raises(checkpoint.CheckpointError, match='not a plan_jax checkpoint'):
    checkpoint.load_model(tmp_path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path, state):
  saver = checkpoint.Checkpoints(tmp_path / 'c', stage_ends=[], keep_newest=1)
  saver.save(state, about=about(0))
  saver.close()
  path = tmp_path / 'c' / '0' / 'about' / 'metadata'
  said = json.loads(path.read_text())
  said['config'] = config_lib.to_dict(tiny.config(model={'joint_dim': 32}))
  path.write_text(json.dumps(said))
  with pytest.raises(checkpoint.CheckpointError, match='do not fit the model'):
    checkpoint.load_model(tmp_path / 'c')
