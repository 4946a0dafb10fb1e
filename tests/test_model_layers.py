"""Layers and towers on their own: masks, norms, attention keys, dropout."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from plan_jax import config
from plan_jax import hlo
from plan_jax import mesh as mesh_lib
from plan_jax.models import bert
from plan_jax.models import layers
from plan_jax.models import vit


def _assert_close(a, b, atol=1e-5):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def test_cell_mask_is_any_pixel():
  extent = jnp.array([[3, 0, 9, 4], [0, 0, 8, 8], [5, 5, 5, 9]])
  mask = layers.cell_mask(extent, grid=(3, 2), stride=4)
  expected = [[[1, 0], [1, 0], [1, 0]], [[1, 1], [1, 1], [0, 0]], [[0, 0], [0, 0], [0, 0]]]
  assert mask.astype(int).tolist() == expected


def test_l2_normalise_of_zero():
  x = jnp.array([[0.0, 0.0], [3.0, 4.0]])
  _assert_close(layers.l2_normalise(x), jnp.array([[0.0, 0.0], [0.6, 0.8]]))
  grad = jax.grad(lambda x: layers.l2_normalise(x)[:, 0].sum())(x)
  _assert_close(grad, jnp.array([[0.0, 0.0], [0.128, -0.096]]))


def test_batch_norm_counts_real_cells():
  x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3)) * 3 + 1
  is_cell = jnp.arange(4) < jnp.array([[2], [4]])
  is_cell = jnp.broadcast_to(is_cell[:, :, None], (2, 4, 4))
  ours = layers.BatchNorm(jnp.float32)
  variables = ours.init(jax.random.key(0), x, is_cell, train=True)
  out, stats = ours.apply(variables, x, is_cell, train=True, mutable=['batch_stats'])
  theirs = nn.BatchNorm(use_running_average=False, momentum=0.9)
  reals = x[is_cell]
  expected, expected_stats = theirs.apply(
      theirs.init(jax.random.key(0), reals), reals, mutable=['batch_stats'])
  _assert_close(out[is_cell], expected)
  _assert_close(stats, expected_stats)


def test_a_head_in_parts_is_the_same_in_less_memory():
  x, along = (jax.random.normal(jax.random.key(k), (64, 30, n)) for k, n in ((0, 48), (1, 8)))
  is_real = jax.random.bernoulli(jax.random.key(2), 0.7, x.shape[:2]).at[3].set(False)
  whole = layers.Head(8, jnp.float32)
  variables = whole.init(jax.random.key(3), x, is_real, train=False)

  def run(head):
    def loss(params, x):
      out, stats = head.apply(
          {**variables, 'params': params}, x, is_real, train=True, mutable=['batch_stats'])
      return jnp.sum(out * along), (out, stats)

    compiled = jax.jit(jax.grad(loss, (0, 1), has_aux=True)).lower(variables['params'], x).compile()
    return compiled(variables['params'], x), compiled.memory_analysis().temp_size_in_bytes

  (expected, whole_bytes), (found, parts_bytes) = run(whole), run(whole.clone(parts=8))
  assert float(jnp.abs(expected[1][1]['batch_stats']['norm']['mean']).max()) > 0.001
  _assert_close(found, expected, atol=2e-4)  # gradients are up to 100
  print(f'{whole_bytes / x.nbytes:.1f} times the input, in 8 parts {parts_bytes / x.nbytes:.1f}')
  assert parts_bytes < 0.75 * whole_bytes


def test_vit_does_not_attend_to_padding():
  tower = vit.ViT(vit.Shape(width=16, depth=1, heads=2), jnp.float32)
  image = jax.random.normal(jax.random.key(0), (1, 32, 64, 1))
  extent = jnp.array([[0, 0, 32, 17]])  # patches 2 and 3 of each row of 4 are padding
  variables = jax.jit(tower.init, static_argnames='train')(
      jax.random.key(1), image, extent, train=False)
  ours = jax.jit(lambda: tower.apply(variables, image, extent, train=False))()
  assert ours.is_patch[0].tolist() == [True, True, False, False] * 2
  positions = variables['params']['position_embedding']

  @jax.jit
  def moved(index):
    shift = jnp.arange(16.0)  # not constant: LayerNorm would remove that
    params = {**variables['params'], 'position_embedding': positions.at[1 + index].add(shift)}
    return tower.apply({'params': params}, image, extent, train=False)

  _assert_close(moved(2).pooled, ours.pooled, atol=1e-6)
  _assert_close(moved(7).patches[ours.is_patch], ours.patches[ours.is_patch], atol=1e-6)
  assert np.abs(moved(1).pooled - ours.pooled).max() > 1e-3


def test_dropout_in_training_only():
  pieces = jnp.array([[2, 7, 8, 3, 0]])
  tower = bert.Bert(bert.Shape(width=16, depth=1, heads=2), 10, 5, 0.1, jnp.float32)
  variables = jax.jit(tower.init, static_argnames='train')(
      jax.random.key(0), pieces, train=False)

  @functools.partial(jax.jit, static_argnums=1)
  def hidden(seed, train):
    rngs = {'dropout': jax.random.key(seed)}
    return tower.apply(variables, pieces, train=train, rngs=rngs).hidden

  assert (hidden(0, False) == hidden(1, False)).all()
  assert (hidden(0, True) == hidden(0, True)).all()
  assert (hidden(0, True) != hidden(1, True)).any()


def test_of_split_parameters_the_parameters_travel_and_not_the_activations():
  devices = mesh_lib.make_mesh(jax.devices()[:4])
  tower = vit.ViT(vit.Shape(width=128, depth=2, heads=2), jnp.float32)
  image, extent = jnp.zeros((32, 224, 224, 1)), jnp.tile(jnp.array([0, 0, 224, 224]), (32, 1))
  params = jax.eval_shape(
      lambda: tower.init(jax.random.key(0), image[:1], extent[:1], train=False))
  split = mesh_lib.of_state(params, mesh=devices, how=config.Sharding.FSDP)

  def gradients(params, image, extent):
    with jax.sharding.use_abstract_mesh(devices.abstract_mesh):
      return jax.grad(lambda params: jnp.sum(jnp.square(
          tower.apply(params, image, extent, train=True).patches)))(params)

  rows = mesh_lib.split(devices)
  compiled = jax.jit(gradients, in_shardings=(split, rows, rows), out_shardings=split).lower(
      params, image, extent).compile()
  sent = sum(each.bytes for each in hlo.cost(compiled.as_text()).collectives.values())
  size = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
  print(f'parameters {size / 2**20:.1f} MiB, sent {sent / 2**20:.1f} MiB')
  # Gathered forward and backward, gradients summed: at most 4 times 3/4 of them.
  assert 0.7 * size < sent < 3.2 * size
