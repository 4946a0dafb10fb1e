"""FLOPs against closed forms: products, convolutions, loops, whole towers."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plan_jax import config as config_lib
from plan_jax import flops
from plan_jax import mesh as mesh_lib
from plan_jax import optim
from plan_jax import stages
from plan_jax import step as step_lib
from tests import tiny


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_products_loops_and_branches():
  product = lambda x, y: jnp.einsum('bij,bjk->bik', x, y)
  assert flops.count(product, shape(3, 4, 5), shape(3, 5, 6)) == 2 * 3 * 4 * 5 * 6
  square = lambda x: jax.lax.fori_loop(0, 7, lambda _, x: x @ x, x)
  assert flops.count(square, shape(8, 8)) == 7 * 2 * 8**3
  either = lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x, lambda: x)
  assert flops.count(either, shape(8, 8)) == 2 * 8**3
  assert flops.count(either, shape(8, 8), branch=min) == 0
  gradient = jax.grad(lambda x, y: jnp.sum(jnp.sin(x @ y)), argnums=(0, 1))
  assert flops.count(gradient, shape(4, 5), shape(5, 6)) == 3 * 2 * 4 * 5 * 6


@pytest.mark.parametrize('stride', [1, 2])
def test_convolutions_forward_and_backward(stride):
  def conv(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

  x, kernel, side = shape(2, 16, 16, 3), shape(3, 3, 3, 8), 16 // stride
  forward = 2 * 2 * side**2 * 3 * 3 * 3 * 8
  assert flops.count(conv, x, kernel) == forward
  both = flops.count(jax.grad(lambda *a: jnp.sum(jnp.sin(conv(*a))), argnums=(0, 1)), x, kernel)
  assert both == pytest.approx(3 * forward, rel=0.01)


@pytest.mark.parametrize('image, gflop', [('resnet50', 24.5), ('vit_b16', 105.6)])
def test_towers_cost_what_is_published(image, gflop):
  """Forward 4.1 G multiply-adds of a ResNet-50 and 17.6 of a ViT-B/16 at 224 pixels, three
  times for a step; beside it BERT-base: 6 FLOPs a weight of its blocks and token, attention."""
  pieces, batch = 97, 2
  config = config_lib.resolve({
      'model': {'image': image}, 'objective': {'name': 'convirt', 'teacher': 'self'},
      'data': {'max_pieces': pieces}, 'train': {'batch_size': batch}})
  model = step_lib.build_model(config, vocab_size=1000)
  optimizer = optim.make_optimizer(config.optim, total_steps=10)
  mesh = mesh_lib.make_mesh(jax.devices()[:1])
  found = step_lib.model_flops(model, optimizer, config=config, mesh=mesh)
  assert found.dearest == found.base  # no teacher, no short texts
  bert = 6 * pieces * 12 * (12 * 768**2 + 2 * pieces * 768) / 1e9
  assert found.base / batch / 1e9 == pytest.approx(gflop + bert, rel=0.04)  # heads, words from pieces


def test_a_step_costs_the_same_however_it_is_computed():
  def cost(devices, **changes):
    config = tiny.config(model={'image': 'vit_ti16', **changes})
    model = step_lib.build_model(config, vocab_size=tiny.VOCAB_SIZE)
    optimizer = optim.make_optimizer(config.optim, total_steps=10)
    return step_lib.model_flops(
        model, optimizer, config=config, mesh=mesh_lib.make_mesh(jax.devices()[:devices]))

  assert cost(1, remat='blocks') == cost(1)
  # Each device turns all words by the relation.
  assert cost(4).dearest == pytest.approx(cost(1).dearest, rel=1e-3)


def test_the_cost_of_a_stage_is_that_of_what_it_does():
  """The teacher's pass is a third of a step's forward and backward; short texts are the text tower's."""
  def cost(**changes):
    config = tiny.config(**changes)
    model = step_lib.build_model(config, vocab_size=tiny.VOCAB_SIZE)
    optimizer = optim.make_optimizer(config.optim, total_steps=100)
    found = step_lib.model_flops(
        model, optimizer, config=config, mesh=mesh_lib.make_mesh(jax.devices()[:1]))
    return found, stages.schedule(config.stages, total_steps=100)

  found, schedule = cost()
  plain, _ = cost(objective={'teacher': 'self'})
  convirt, _ = cost(objective={'name': 'convirt', 'teacher': 'self'})
  assert plain.base == found.base and plain.teacher == 0 and plain.short_text == found.short_text
  assert found.teacher == pytest.approx(convirt.base / 3, rel=0.05)
  assert 0 < found.short_text < convirt.base - found.teacher
  discover, refine, focus = (
      found.mean(schedule.values(schedule.ends[name] - 1)) for name in ('discover', 'refine', 'focus'))
  assert discover == found.base
  assert refine == found.base + found.teacher
  assert focus == found.base + found.teacher + found.short_text / 2 < found.dearest


def test_peaks():
  assert flops.peak(types.SimpleNamespace(device_kind='TPU v5 lite')) == 197e12
  for kind, tflops in (('NVIDIA H100 80GB HBM3', 989), ('NVIDIA H100 PCIe', 756),
                       ('NVIDIA H100 NVL', 835), ('NVIDIA H200', 989), ('NVIDIA H200 NVL', 835)):
    assert flops.peak(types.SimpleNamespace(device_kind=kind)) == tflops * 1e12
  assert flops.peak(jax.devices('cpu')[0]) is None
  assert np.isclose(flops.peak(types.SimpleNamespace(device_kind='TPU v6 lite')), 918e12)
