"""Paces of the towers: what each array's update is beside that of the plain optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from plan_jax import config as config_lib
from plan_jax import optim
from plan_jax import stages
from plan_jax import step as step_lib
from plan_jax.convert import layouts
from plan_jax.convert import tables

STEPS = 20


def _changes(params, *, steps, **optim_settings):
  """The updates of `steps` steps with gradients of 1, a list of trees."""
  settings = tiny.config(optim={'warmup': 0.2, **optim_settings}).optim
  optimizer = optim.make_optimizer(settings, total_steps=STEPS)
  opt_state, found = optimizer.init(params), []
  grads = jax.tree.map(np.ones_like, params)
  update = jax.jit(optimizer.update)
  for _ in range(steps):
    changes, opt_state = update(grads, opt_state, params)
    found.append(jax.device_get(changes))
  return found


def _shares(params, **optim_settings):
  """The last update as a share of the plain optimizer's: one figure for each layer."""
  ours, plain = (_changes(params, steps=3, **s)[-1] for s in (optim_settings, {}))
  shares = jax.tree.map(lambda a, b: a / b, ours, plain)
  assert all(np.ptp(x.reshape(len(x), -1), axis=1).max() < 1e-5
             for x in jax.tree.leaves(shares['text_tower']['stack']))
  return jax.tree.map(lambda x: x.reshape(len(x), -1)[:, 0], shares)


def _text(depth):
  """A text tower of this depth, small."""
  return {'piece_embedding': {'embedding': np.ones((5, 4), np.float32)},
          'norm': {'scale': np.ones(4, np.float32)},
          'stack': {'blocks': {'mlp': {'dense_1': {
              'kernel': np.ones((depth, 4, 8), np.float32),
              'bias': np.ones((depth, 8), np.float32)}}}}}


def test_rates_fall_from_layer_to_layer():
  residual = {'conv_1': {'conv': {'kernel': np.ones((3, 3, 2, 2), np.float32)}}}
  params = {
      'text_tower': _text(3), 'relation': np.ones((4, 4), np.float32),
      'image_tower': {'stem': {'conv': {'kernel': np.ones((7, 7, 1, 2), np.float32)}},
                      'stage_1': {'block_0': residual, 'block_1': residual},
                      'stage_2': {'block_0': residual}}}
  shares = _shares(params, text={'layer_decay': 0.5, 'lr_scale': 0.1}, image={'layer_decay': 0.9})
  text, image = shares['text_tower'], shares['image_tower']
  for leaf in jax.tree.leaves(text['stack']):
    np.testing.assert_allclose(leaf, [0.0125, 0.025, 0.05], rtol=1e-5)
  for leaf in (text['piece_embedding']['embedding'], text['norm']['scale']):
    np.testing.assert_allclose(leaf, 0.00625, rtol=1e-5)
  np.testing.assert_allclose(image['stem']['conv']['kernel'], 0.9**4, rtol=1e-5)
  for stage, block, power in ((1, 0, 3), (1, 1, 2), (2, 0, 1)):
    found = image[f'stage_{stage}'][f'block_{block}']['conv_1']['conv']['kernel']
    np.testing.assert_allclose(found, 0.9**power, rtol=1e-5)
  np.testing.assert_array_equal(shares['relation'], 1.0)


def test_the_last_norm_of_a_vit_has_the_rate_of_the_heads():
  tower = {**_text(2), 'patch_embedding': {'bias': np.ones(4, np.float32)}}
  scales = optim.layer_scales(tower, decay=0.5)
  assert scales['norm']['scale'] == 1 and scales['patch_embedding']['bias'] == 0.125
  assert optim.layer_scales(_text(2), decay=0.5)['norm']['scale'] == 0.125


def test_a_tower_warms_up_longer():
  params = {'text_tower': _text(2), 'image_tower': _text(2)}
  ours, plain = (_changes(params, steps=14, **s) for s in ({'text': {'warmup': 0.5}}, {}))
  text, image = (
      [float(a[tower]['norm']['scale'][0]) / float(b[tower]['norm']['scale'][0])
       for a, b in zip(ours[1:], plain[1:])] for tower in ('text_tower', 'image_tower'))
  # The common warm-up has 4 steps, the tower's 10; a step's rate is that of its start.
  np.testing.assert_allclose(text, [0.4] * 4 + [.5, .6, .7, .8, .9, 1, 1, 1, 1], rtol=1e-5)
  np.testing.assert_array_equal(image, 1.0)


@pytest.mark.parametrize('image', ['resnet_tiny', 'vit_ti16'])
def test_what_is_a_vector_elsewhere_is_not_decayed(image):
  """Norms and biases are vectors in PyTorch's towers, also where ours stack or split them."""
  settings = tiny.config(model={'image': image}, optim={'warmup': 0.0, 'weight_decay': 0.5})
  model = step_lib.build_model(settings, vocab_size=tiny.VOCAB_SIZE)
  params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), jax.eval_shape(
      lambda: model.init({'params': jax.random.key(0), 'dropout': jax.random.key(0)},
                         step_lib.empty_batch(settings.data, size=1), train=False))['params'])
  optimizer = optim.make_optimizer(settings.optim, total_steps=STEPS)
  changes = jax.jit(  # of gradients that are 0: the decay is all there is
      lambda params: optimizer.update(
          jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)[0])(params)
  is_decayed = {path: bool(np.all(x)) for path, x in tables.paths({'params': changes})}
  arrays = dict(tables.paths({'params': params}))
  for rows in (layouts.text_rows(settings.model.text),
               layouts.image_rows(settings.model.image, layouts.Layout.HUB)):
    rows = [row for row in rows if row.ours in arrays]
    for row in rows:
      theirs = tables.write([row], arrays)[row.theirs]
      is_vector = theirs.size == max(theirs.shape)  # the [CLS] of a ViT has axes of length 1
      assert is_decayed[row.ours] != is_vector, row.ours
  for head in ('image_global', 'text_local'):
    assert {path.partition(f'{head}/')[2]: x for path, x in is_decayed.items() if head in path} == {
        'dense_1/kernel': True, 'dense_2/kernel': True, 'dense_2/bias': False,
        'norm/scale': False, 'norm/bias': False}


def test_without_a_pace_the_optimizer_is_the_plain_one():
  states = [optim.make_optimizer(tiny.config(optim=changes).optim, total_steps=STEPS).init(
      {'text_tower': _text(2), 'image_tower': _text(1)})
            for changes in ({}, {'text': {'lr_scale': 1.0}}, {'text': {'lr_scale': 0.5}})]
  plain, same, paced = map(jax.tree.structure, states)
  assert plain == same and plain != paced


def test_a_frozen_tower_stays_as_it_is():
  settings = tiny.config(
      model={'dropout': 0.1}, objective={'name': 'convirt'}, optim={
          'image': {'freeze': True}, 'text': {'layer_decay': 0.5}, 'weight_decay': 0.5,
          'warmup': 0.0})
  model = step_lib.build_model(settings, vocab_size=tiny.VOCAB_SIZE)
  optimizer = optim.make_optimizer(settings.optim, total_steps=settings.train.steps)
  before = jax.device_get(tiny.random_state(model, optimizer, settings=settings))
  after, metrics = tiny.make_step(settings, devices=1)(
      before, tiny.batch(settings), stages.schedule(settings.stages, total_steps=10).values(0))
  after = jax.device_get(after)
  assert metrics['grad_norm'] > 0 and metrics['skipped_steps'] == before.skipped
  for collection in ('params', 'batch_stats'):
    was, now = getattr(before, collection), getattr(after, collection)
    jax.tree.map(np.testing.assert_array_equal, was['image_tower'], now['image_tower'])
    for part in {'text_tower', 'image_global', 'text_global'} & set(was):
      for old, new in zip(jax.tree.leaves(was[part]), jax.tree.leaves(now[part])):
        assert not np.array_equal(old, new), part
  kernel = before.params['image_tower']['stem']['conv']['kernel']
  assert kernel.shape not in {leaf.shape for leaf in jax.tree.leaves(after.opt_state)}


def test_a_frozen_tower_is_its_own_teacher():
  settings = tiny.config(objective={'teacher': 'ema'}, optim={'image': {'freeze': True}})
  model = step_lib.build_model(settings, vocab_size=tiny.VOCAB_SIZE)
  optimizer = optim.make_optimizer(settings.optim, total_steps=settings.train.steps)
  state = jax.eval_shape(lambda: step_lib.init_state(model, optimizer, config=settings))
  assert state.ema.keys() == state.params.keys() - {'image_tower'}  # no copy that could drift
  after, _ = jax.eval_shape(  # fails where the teacher lacks a tower
      tiny.make_step(settings, devices=1), state, tiny.batch(settings),
      stages.schedule(settings.stages, total_steps=10).values(0))
  assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.parametrize('changes,message', [
    ({'image': {'lr_scale': 0.0}}, 'optim.image.lr_scale = 0.0.*freeze=True'),
    ({'text': {'layer_decay': 1.5}}, r'optim.text.layer_decay = 1.5: must lie in \(0, 1\]'),
    ({'text': {'warmup': 1.0}}, 'optim.text.warmup = 1.0: is a share'),
    ({'image': {'freeze': True, 'warmup': 0.5}}, 'optim.image.freeze = True: leaves no place'),
    ({'image': {'frozen': True}}, 'did you mean config.optim.image.freeze'),
])
def test_what_cannot_be_is_refused(changes, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    tiny.config(optim=changes)
