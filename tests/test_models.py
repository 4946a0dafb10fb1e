"""The two-tower model: masks, words, short reports, heads, switches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plan_jax import config
from plan_jax import shapes
from plan_jax.models import bert
from plan_jax.models import layers
from plan_jax.models import plan
from plan_jax.models import resnet
from plan_jax.models import vit

_IMAGE = config.ImageVariant
_VOCAB, _PIECES, _WORDS = 40, 14, 9


def _settings(**changes) -> config.Model:
  small = config.Model(
      image=_IMAGE.RESNET_TINY, text=config.TextVariant.BERT_TINY, joint_dim=16)
  return dataclasses.replace(small, **changes)


def _model(settings=_settings(), dtype=jnp.float32):
  return plan.make_model(settings, vocab_size=_VOCAB, max_pieces=_PIECES, dtype=dtype)


def _batch(size=64) -> shapes.Batch:
  """Three reports: one with split words and punctuation, one short, one empty."""
  pieces = np.zeros((3, _PIECES), np.int32)
  piece_word = np.full((3, _PIECES), -1, np.int32)
  word_form = np.full((3, _WORDS), -1, np.int32)
  #             CLS  w0  w1  w1   .  w2  w3   ,  w4 SEP
  pieces[0, :10] = 2, 10, 11, 12, 5, 13, 14, 6, 15, 3
  piece_word[0, 1:9] = 0, 1, 1, -1, 2, 3, -1, 4
  word_form[0, :5] = 7, 8, 9, 7, 6
  pieces[1, :4] = 2, 20, 21, 3
  piece_word[1, 1:3] = 0, 1
  word_form[1, :2] = 1, 2
  pieces[2, :2] = 2, 3
  image = np.random.default_rng(0).integers(0, 256, (3, size, size), dtype=np.uint8)
  extent = np.array([[0, 0, size, size], [5, 0, size, size // 2 + 3], [0, 0, 0, 0]], np.int32)
  return shapes.Batch(
      image=jnp.asarray(image), extent=jnp.asarray(extent), pieces=jnp.asarray(pieces),
      piece_word=jnp.asarray(piece_word), word_form=jnp.asarray(word_form),
      is_negation=jnp.zeros((3, _WORDS), bool))


def _variables(model, size=64):
  """Random variables, without compiling the initialisation; no term is trivial."""
  tree = jax.eval_shape(lambda: model.init(jax.random.key(0), _batch(size), train=False))
  rng = np.random.default_rng(1)

  def draw(path, leaf):
    noise = rng.standard_normal(leaf.shape).astype(np.float32)
    name = path[-1].key
    if name == 'var':
      return 0.5 + np.abs(noise)
    if name == 'kernel':
      return noise / np.sqrt(np.prod(leaf.shape[:-1]))
    return 0.2 * noise + (name == 'scale')

  return jax.tree_util.tree_map_with_path(draw, tree)


@pytest.fixture(scope='module')
def tiny():
  """Model with the tiny ResNet, and its variables."""
  model = _model()
  return model, _variables(model)


@functools.partial(jax.jit, static_argnums=0)
def _encode_image(model, variables, image, extent):
  return model.apply(variables, image, extent, train=False, method='encode_image')


@functools.partial(jax.jit, static_argnums=0)
def _encode_text(model, variables, batch, keep=None):
  return model.apply(variables, batch.pieces, batch.piece_word, batch.word_form, keep=keep,
                     train=False, method='encode_text')


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, variables, batch):
  return model.apply(variables, batch, train=False)


def _assert_close(a, b, atol=1e-5):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


# Image branch.


def test_outputs_are_unit_vectors_or_zero(tiny):
  model, variables = tiny
  batch = _batch()
  outputs = _apply(model, variables, batch)
  image, text = outputs.image, outputs.text
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(outputs))
  _assert_close(jnp.linalg.norm(image.pooled, axis=-1), jnp.array([1.0, 1.0, 0.0]))  # last: blank
  _assert_close(jnp.linalg.norm(image.pixels, axis=-1), image.is_pixel.astype(jnp.float32))
  _assert_close(jnp.linalg.norm(text.pooled, axis=-1), jnp.ones(3))
  _assert_close(jnp.linalg.norm(text.words, axis=-1), text.is_word.astype(jnp.float32))
  assert image.is_pixel.sum(-1).tolist() == [16, 4 * 3, 0]
  assert text.is_word.sum(-1).tolist() == [5, 2, 0]
  assert image.backbone.shape == (3, 256) and text.backbone.shape == (3, 128)
  _assert_close(outputs.relation, variables['params']['relation'])
  _assert_close(outputs.temperature, jnp.float32(0.07))


@pytest.mark.parametrize('image', [_IMAGE.RESNET_TINY, _IMAGE.VIT_TI16])
def test_pixel_values_of_padding_change_nothing(image):
  model = _model(_settings(image=image))
  variables, batch = _variables(model), _batch()
  rows, columns = np.arange(64)[:, None], np.arange(64)
  other = np.array(batch.image)
  for x, (y0, x0, y1, x1) in zip(other, np.asarray(batch.extent)):
    outside = (rows < y0) | (rows >= y1) | (columns < x0) | (columns >= x1)
    x[outside] = 255 - x[outside]
  assert (other != batch.image).any()
  ours = _encode_image(model, variables, batch.image, batch.extent)
  _assert_close(_encode_image(model, variables, other, batch.extent), ours, atol=0)
  changed = _encode_image(model, variables, other, batch.extent.at[1, 3].add(4))
  assert np.abs(changed.pooled[1] - ours.pooled[1]).max() > 1e-4


# 64 pixels are whole cells of all stages, 70 are not.
@pytest.mark.parametrize('size, pixel_stage', [(64, 2), (70, 3), (70, 4)])
def test_resnet_padding_equals_no_padding(size, pixel_stage):
  model = _model(_settings(pixel_stage=pixel_stage))
  variables = _variables(model)
  alone = np.random.default_rng(2).integers(0, 256, (2, size, size), dtype=np.uint8)
  padded = np.pad(alone, ((0, 0), (0, 32), (0, 64)))
  extent = np.tile(np.array([0, 0, size, size], np.int32), (2, 1))
  a = _encode_image(model, variables, alone, extent)
  b = _encode_image(model, variables, padded, extent)
  assert a.is_pixel.all() and not b.is_pixel.all()
  _assert_close(b.pooled, a.pooled)
  _assert_close(b.pixels[b.is_pixel], a.pixels[a.is_pixel])


def test_resnet_batch_statistics_ignore_padding(tiny):
  model, variables = tiny
  alone = np.random.default_rng(2).integers(0, 256, (3, 70, 70), dtype=np.uint8)
  extent = np.tile(np.array([0, 0, 70, 70], np.int32), (3, 1))
  padded = np.pad(alone, ((0, 1), (0, 32), (0, 64)))  # and one image without any pixel

  @jax.jit
  def encode(image, extent):
    return model.apply(variables, image, extent, train=True, mutable=['batch_stats'],
                       method='encode_image')

  a, stats_a = encode(alone, extent)
  b, stats_b = encode(padded, np.pad(extent, ((0, 1), (0, 0))))
  _assert_close(b.pooled[:3], a.pooled, atol=1e-4)
  _assert_close(stats_b, stats_a, atol=1e-4)
  before = variables['batch_stats']['image_tower']['stem']['norm']['mean']
  assert np.abs(stats_a['batch_stats']['image_tower']['stem']['norm']['mean'] - before).max() > 1e-3


def test_batch_without_image_is_finite_and_keeps_statistics(tiny):
  model, variables = tiny
  batch = _batch().replace(extent=jnp.zeros((3, 4), jnp.int32))

  @jax.jit
  def loss(params):
    outputs, stats = model.apply(
        {**variables, 'params': params}, batch, train=True, mutable=['batch_stats'],
        rngs={'dropout': jax.random.key(0)})
    return outputs.image.pooled.sum() + outputs.image.pixels.sum(), stats

  grads, stats = jax.grad(loss, has_aux=True)(variables['params'])
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
  for part in ('image_tower', 'image_global', 'image_local'):  # the reports are real
    _assert_close(stats['batch_stats'][part], variables['batch_stats'][part], atol=1e-6)


@pytest.mark.parametrize('image, size, stage, side', [
    (_IMAGE.RESNET_TINY, 224, 2, 28), (_IMAGE.RESNET_TINY, 224, 3, 14),
    (_IMAGE.RESNET_TINY, 224, 4, 7), (_IMAGE.RESNET50, 299, 3, 19), (_IMAGE.VIT_TI16, 224, 3, 14)])
def test_grid_shape(image, size, stage, side):
  settings = _settings(image=image, pixel_stage=stage)
  model = _model(settings)
  batch = _batch().replace(image=jnp.zeros((3, size, size), jnp.uint8))
  outputs, _ = jax.eval_shape(
      lambda: model.init_with_output(jax.random.key(0), batch, train=False))
  assert plan.grid_shape(settings, size) == (side, side)
  assert outputs.image.pixels.shape == (3, side * side, 16)
  assert outputs.image.is_pixel.shape == (3, side * side)


def test_errors_name_the_setting():
  with pytest.raises(ValueError, match='model.pixel_stage is 1'):
    _model(_settings(pixel_stage=1))
  model = _model(_settings(image=_IMAGE.VIT_TI16))
  key = jax.random.key(0)
  with pytest.raises(ValueError, match='multiple of the ViT patch side 16.* to 64'):
    jax.eval_shape(lambda: model.init(key, _batch(70), train=False))
  variables = jax.eval_shape(lambda: model.init(key, _batch(64), train=False))
  with pytest.raises(ValueError, match='embeddings for 16 patches, the image has 25'):
    jax.eval_shape(lambda v: model.apply(v, _batch(80), train=False), variables)
  long = _batch().replace(pieces=jnp.ones((3, _PIECES + 1), jnp.int32))
  with pytest.raises(ValueError, match='15 pieces.*14.*data.max_pieces'):
    jax.eval_shape(lambda v: model.apply(v, long, train=False), variables)


def test_attention_over_pixels():
  """The ViT's [CLS] attention, without its own share; a ResNet's pixels count alike."""
  batch = _batch()
  for variant in (_IMAGE.VIT_TI16, _IMAGE.RESNET_TINY):
    model = _model(_settings(image=variant))
    found = _encode_image(model, _variables(model), batch.image, batch.extent)
    total = found.attention.sum(1)
    assert (found.attention[~found.is_pixel] == 0).all()
    if variant is _IMAGE.VIT_TI16:
      assert ((total[:2] > 0) & (total[:2] < 1)).all()
      assert float(jnp.std(found.attention[0])) > 1e-4
    else:
      _assert_close(total, jnp.array([1.0, 1.0, 0.0]))
      assert len(np.unique(found.attention[1][found.is_pixel[1]])) == 1


def test_pixels_through_the_global_head():
  """Of an image of one cell, the pixel is the pooled vector."""
  model = _model(_settings(pixel_head=config.PixelHead.GLOBAL, pixel_stage=4))
  variables = _variables(model, size=32)
  assert 'image_local' not in variables['params']
  batch = _batch(32)
  found = _encode_image(model, variables, batch.image, batch.extent)
  assert found.pixels.shape == (3, 1, 16)
  _assert_close(found.pixels[:, 0], found.pooled)
  # In training the pooled images alone move the statistics.
  _, updates = model.apply(
      variables, batch.image, batch.extent, train=True, method='encode_image',
      mutable=['batch_stats'])
  local = _model(_settings(pixel_stage=4))
  more = {**_variables(local, size=32)['params'], **variables['params']}
  stats = {**_variables(local, size=32)['batch_stats'], **variables['batch_stats']}
  _, others = local.apply(
      {'params': more, 'batch_stats': stats}, batch.image, batch.extent, train=True,
      method='encode_image', mutable=['batch_stats'])
  _assert_close(updates['batch_stats']['image_global'], others['batch_stats']['image_global'])


# Text branch.


def test_word_is_the_sum_of_its_pieces(tiny):
  model, variables = tiny
  batch = _batch()
  features = _encode_text(model, variables, batch)
  tower = bert.Bert(bert.VARIANTS[config.TextVariant.BERT_TINY], _VOCAB, _PIECES, 0.1, jnp.float32)
  tokens = jax.jit(lambda v: tower.apply({'params': v}, batch.pieces, train=False))(
      variables['params']['text_tower'])
  word = tokens.hidden[0, 2] + tokens.hidden[0, 3]
  head = layers.Head(16, jnp.float32)
  weights = {name: variables[name]['text_local'] for name in ('params', 'batch_stats')}
  raw = head.apply(weights, word[None], jnp.ones(1, bool), train=False)[0]
  expected = layers.l2_normalise(raw)
  _assert_close(features.word_norm[0, 1], jnp.linalg.norm(raw))
  _assert_close(features.words[0, 1], expected)
  _assert_close(features.attention[0, 1], tokens.attention[0, 2] + tokens.attention[0, 3])
  _assert_close(tokens.attention.sum(-1), jnp.ones(3))
  assert (features.attention[~features.is_word] == 0).all()
  assert (features.attention[features.is_word] > 0).all()


def test_padding_pieces_and_words_change_nothing(tiny):
  model, variables = tiny
  batch = _batch()
  short = batch.replace(
      pieces=batch.pieces[:, :10], piece_word=batch.piece_word[:, :10],
      word_form=batch.word_form[:, :5])
  a, b = _encode_text(model, variables, short), _encode_text(model, variables, batch)
  _assert_close(b.replace(words=b.words[:, :5], word_norm=b.word_norm[:, :5],
                          is_word=b.is_word[:, :5], attention=b.attention[:, :5]), a)


def test_word_without_pieces_is_no_word(tiny):
  model, variables = tiny
  batch = _batch()
  batch = batch.replace(word_form=batch.word_form.at[1, 4].set(3))
  features = _encode_text(model, variables, batch)
  assert features.is_word[1].tolist() == [True, True] + [False] * 7
  assert (features.words[1, 4] == 0).all()


def test_keep_equals_a_report_with_the_words_deleted(tiny):
  model, variables = tiny
  batch = _batch()
  keep = jnp.zeros((3, _WORDS), bool).at[0, jnp.array([1, 4])].set(True)
  keep = keep.at[:, 8].set(True)  # no such word
  ours = _encode_text(model, variables, batch, keep)
  deleted = batch.replace(
      pieces=jnp.zeros_like(batch.pieces)
      .at[0, :5].set(jnp.array([2, 11, 12, 15, 3])).at[1:, :2].set(jnp.array([2, 3])),
      piece_word=jnp.full_like(batch.piece_word, -1).at[0, 1:4].set(jnp.array([1, 1, 4])),
      word_form=jnp.where(keep, batch.word_form, -1))
  _assert_close(ours, _encode_text(model, variables, deleted), atol=1e-6)
  assert ours.is_word.sum(-1).tolist() == [2, 0, 0]
  full = _encode_text(model, variables, batch)
  assert np.abs(full.pooled[0] - ours.pooled[0]).max() > 1e-3
  _assert_close(ours.pooled[1], ours.pooled[2])  # both are [CLS] [SEP]


def test_keep_all_drops_punctuation_only(tiny):
  batch = _batch()
  short = bert.delete_words(batch.pieces, batch.piece_word, keep=jnp.ones((3, _WORDS), bool))
  assert short.pieces[0].tolist() == [2, 10, 11, 12, 13, 14, 15, 3] + [0] * 6
  assert short.piece_word[0].tolist() == [-1, 0, 1, 1, 2, 3, 4, -1] + [-1] * 6
  assert (short.pieces[1:] == batch.pieces[1:]).all()


def test_attention_has_no_gradient(tiny):
  model, variables = tiny
  grads = jax.grad(lambda params: _encode_text(
      model, {**variables, 'params': params}, _batch()).attention.sum())(variables['params'])
  assert all((g == 0).all() for g in jax.tree.leaves(grads))


# Heads and switches.


def test_relation_and_temperature_switches():
  model = _model(_settings(relation=config.Relation.COSINE, learn_temperature=True))
  variables = _variables(model)
  outputs = _apply(model, variables, _batch())
  assert 'relation' not in variables['params']
  assert outputs.relation is None
  _assert_close(outputs.temperature, jnp.exp(variables['params']['log_temperature']))


def test_initial_relation_and_temperature():
  model = _model(_settings(learn_temperature=True, temperature=0.2))

  @jax.jit
  def init():  # returns, so compiles, these two leaves only
    params = model.init(jax.random.key(0), _batch(), train=False)['params']
    return params['relation'], params['log_temperature']

  relation, log_temperature = init()
  assert relation.shape == (16, 16) and (relation == 0).all()
  _assert_close(log_temperature, jnp.log(0.2))


def test_bf16_keeps_parameters_and_outputs_fp32(tiny):
  model, variables = tiny
  half = _model(dtype=jnp.bfloat16)
  params = jax.eval_shape(lambda: half.init(jax.random.key(0), _batch(), train=False))
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
  a = _apply(model, variables, _batch())
  b = _apply(half, variables, _batch())
  floats = [x.dtype for x in jax.tree.leaves(b) if jnp.issubdtype(x.dtype, jnp.floating)]
  assert set(floats) == {jnp.dtype(jnp.float32)}
  assert (b.image.pooled != a.image.pooled).any()
  _assert_close(b.image.pooled, a.image.pooled, atol=0.05)
  _assert_close(b.text.words, a.text.words, atol=0.05)


def test_parameter_names(tiny):
  _, variables = tiny
  params = variables['params']
  assert set(params) == {'image_tower', 'text_tower', 'image_global',
                         'image_local', 'text_global', 'text_local', 'relation'}
  tower = params['image_tower']
  assert tower['stage_2']['block_0']['shortcut']['conv']['kernel'].shape == (1, 1, 32, 64)
  blocks = params['text_tower']['stack']['blocks']
  assert blocks['attention']['query']['kernel'].shape == (2, 128, 2, 64)
  assert set(variables['batch_stats']) == {
      'image_tower', 'image_global', 'image_local', 'text_global', 'text_local'}
  assert set(resnet.VARIANTS) | set(vit.VARIANTS) == set(_IMAGE)
  assert set(bert.VARIANTS) == set(config.TextVariant)
