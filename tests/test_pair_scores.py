"""Scores of all pairs (9): every algorithm against the oracle, on 1 to 8 devices; memory."""

import functools
import importlib.util
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plan_jax import config
from plan_jax import flops
from plan_jax import hlo
from plan_jax import mesh as mesh_lib
from plan_jax.losses import contrastive
from plan_jax.losses import cross_pair
from plan_jax.losses import fused
from plan_jax.losses import pair_scores
from plan_jax.losses import word_pixel
from plan_jax.objectives import gloria

Algorithm = config.Algorithm
SOFT = word_pixel.Salient(fixed=0.5, gate_width=0.05)
PERCENTILE = word_pixel.Salient(percentile=0.85, gate_width=0.05)


def units(rng, *shape):
  x = rng.normal(size=shape)
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def features(b=4, t=5, p=7, d=6, seed=0):
  """Ragged words and pixels; one empty report and one blank image among more than four."""
  rng = np.random.default_rng(seed)
  is_word = np.arange(t) < rng.integers(1, t + 1, b)[:, None]
  is_pixel = np.arange(p) < rng.integers(p // 2, p + 1, b)[:, None]
  if b > 4:
    is_word[1], is_pixel[2] = False, False
  return units(rng, b, t, d) * is_word[..., None], units(rng, b, p, d), is_word, is_pixel


def looks(d):
  """The forms that are in use: PLAN's, of two rounds, by cosine (Gram), and GLoRIA's."""
  delta = 0.3 * np.random.default_rng(1).normal(size=(d, d)).astype(np.float32)
  return {
      'plan': word_pixel.Look(relation=delta, attend=SOFT),
      'percentile': word_pixel.Look(relation=delta, attend=PERCENTILE),
      'two rounds': word_pixel.Look(relation=delta, attend=SOFT, rounds=2),
      'cosine': word_pixel.Look(relation=None, attend=SOFT),
      'gloria': gloria.LOOK}


def loop_scores(words, pixels, *, look, is_word, is_pixel):
  """One pair at a time, by the formulas."""
  relation = 0.0 if look.relation is None else look.relation

  def region(w, v, **masks):
    weights = look.attend(w @ (jnp.eye(w.shape[-1]) + relation) @ v.T, **masks)
    return contrastive.unit(weights @ v)

  rows = []
  for v, real_pixel in zip(pixels, is_pixel, strict=True):
    row = []
    for w, real_word in zip(words, is_word, strict=True):
      masks = dict(is_word=real_word, is_pixel=real_pixel)
      query = w
      for _ in range(look.rounds - 1):
        query = contrastive.unit(query + region(query, v, **masks))
      cosine = jnp.sum(contrastive.unit(w) * region(query, v, **masks), axis=-1)
      row.append(jnp.log(jnp.sum(jnp.where(real_word, jnp.exp(5 * cosine), 0.0))))
    rows.append(jnp.stack(row))
  return jnp.stack(rows)


def close(ours, theirs, *, rtol=1e-5):
  """Within `rtol` of the largest value of each array."""
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    assert np.isfinite(a).all()
    assert np.abs(a - b).max() <= rtol * max(np.abs(b).max(), 1e-3)


@pytest.mark.parametrize('name', list(looks(6)))
def test_the_oracle_equals_a_loop_over_pairs(name):
  words, pixels, is_word, is_pixel = features()
  look = looks(6)[name]

  def total(score, words, pixels, relation):
    scores = score(words, pixels, look=look.replace(relation=relation), is_word=is_word,
                   is_pixel=is_pixel)
    return jnp.sum(jnp.sin(scores)), scores

  inputs = (0, 1) if look.relation is None else (0, 1, 2)
  found, expected = (
      jax.jit(jax.grad(functools.partial(total, score), inputs, has_aux=True))(
          words, pixels, look.relation) for score in (pair_scores.reference, loop_scores))
  close(found, expected, rtol=1e-4)


@pytest.mark.parametrize('pixels_below_dim', [False, True])
def test_gram_form_is_the_same(pixels_below_dim):
  words, pixels, is_word, is_pixel = features(p=12, d=16 if pixels_below_dim else 8)
  look = looks(1)['gloria']
  scores = pair_scores.reference(words, pixels, is_word=is_word, is_pixel=is_pixel, look=look)
  close(scores, loop_scores(words, pixels, is_word=is_word, is_pixel=is_pixel, look=look))


@pytest.mark.parametrize('name', ['percentile', 'cosine', 'gloria'])
def test_the_fused_kernel_equals_the_oracle(name, monkeypatch):
  """Interpreted; ragged reports, an empty one, a blank image; 5 reports in 3 blocks of 2, the
  last not full, 2 of which fill a row of scores."""
  monkeypatch.setattr(fused, '_LANES', 4)
  monkeypatch.setattr(fused, '_REPORTS', 2)
  words, pixels, is_word, is_pixel = features(b=5, t=7, p=12, d=8)
  look, pixels, is_pixel = looks(8)[name], pixels[:3], is_pixel[:3]

  def total(score, words, pixels, relation):
    scores = score(words, pixels, look=look.replace(relation=relation), is_word=is_word,
                   is_pixel=is_pixel)
    return jnp.sum(jnp.sin(scores)), scores

  inputs = (0, 1) if look.relation is None else (0, 1, 2)
  found, expected = (
      jax.jit(jax.grad(functools.partial(total, score), inputs, has_aux=True))(
          words, pixels, look.relation)
      for score in (functools.partial(fused.scores, interpret=True), pair_scores.reference))
  close(found, expected)
  with pytest.raises(ValueError, match='looks once, not 2 times'):
    fused.scores(words, pixels, is_word=is_word, is_pixel=is_pixel, look=look.replace(rounds=2))


WITH_LIBTPU = importlib.util.find_spec('libtpu') is not None
COMPILE = """
import sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from plan_jax.losses import fused, word_pixel

i, j, t, p, d = 512, 512, 16, 49, 128
chip = topologies.get_topology_desc(sys.argv[1], 'tpu').devices[0]
here = jax.sharding.SingleDeviceSharding(chip)
shapes = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=here)
          for shape in ((j, t, d), (i, p, d), (d, d), (i, j))]

def step(words, pixels, relation, d_scores):
  look = word_pixel.Look(relation=relation, attend=word_pixel.Salient(percentile=0.85, gate_width=0.05))
  scores, pull = jax.vjp(
      lambda *x: fused.scores(*x[:2], is_word=jnp.ones((j, t), bool),
                              is_pixel=jnp.ones((i, p), bool), look=x[2]), words, pixels, look)
  return scores, pull(d_scores)

print(jax.jit(step).lower(*shapes).compile().memory_analysis().temp_size_in_bytes)
"""


@pytest.mark.skipif(
    not WITH_LIBTPU, reason="libtpu is not installed (pip install -e '.[compile_check]')")
@pytest.mark.parametrize('topology', ['v5e:2x2', 'v4:2x2x1'])
def test_the_fused_kernel_compiles_for_tpus_and_keeps_nothing_a_pair(topology):
  # In a process of its own: libtpu aborts at a flag in XLA_FLAGS that it does not know.
  done = subprocess.run(
      [sys.executable, '-c', COMPILE, topology], capture_output=True, text=True, timeout=300,
      cwd=pathlib.Path(__file__).parents[1],
      env={**os.environ, 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1'})
  assert done.returncode == 0, done.stderr[-3000:]
  temporary, inputs = int(done.stdout.split()[-1]), 4 * 512 * (16 + 49) * 128
  print(f'{topology}: {temporary / 2**20:.1f} MiB of temporaries')
  assert temporary < 3 * inputs  # 51 MB; it was above 130 when a TPU padded what a pair has


@functools.cache
def batch_gradients(name, algorithm, devices, tile):
  """Loss and gradients in tiles of at most these images and reports."""
  b, t, p, d = 16, 40, 14, 16
  words, pixels, is_word, is_pixel = features(b=b, t=t, p=p, d=d)
  look = looks(d)[name]
  mesh = mesh_lib.make_mesh(jax.devices()[:devices])
  split = functools.partial(jax.device_put, device=mesh_lib.split(mesh))

  @jax.jit
  def step(words, pixels, relation):
    def loss(words, pixels, relation):
      return cross_pair.batch_loss(
          words, pixels, look=look.replace(relation=relation), is_word=is_word,
          is_pixel=is_pixel, is_global=True, mib=1, mesh=mesh, algorithm=algorithm)
    inputs = (0, 1) if relation is None else (0, 1, 2)
    return jax.value_and_grad(loss, inputs)(words, pixels, relation)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pair_scores, 'choose_tile', lambda *, images, reports, **_: pair_scores.Tile(
        images=min(images, tile[0]), reports=min(reports, tile[1])))
    return jax.device_get(step(split(words), split(pixels), look.relation))


@pytest.mark.parametrize('devices', [1, 2, 4, 8])
@pytest.mark.parametrize('algorithm', [Algorithm.BLOCKWISE, Algorithm.RING])
@pytest.mark.parametrize('name, tile', [
    ('percentile', (1, 4)), ('gloria', (2, 2))])
def test_algorithms_equal_the_oracle(name, tile, algorithm, devices):
  """In several tiles, of which the first are cut short."""
  close(batch_gradients(name, algorithm, devices, tile),
        batch_gradients(name, Algorithm.REFERENCE, 1, (1, 1)))


@pytest.mark.parametrize('name', ['gloria', 'two rounds'])
def test_tiles_of_several_images_equal_the_oracle(name):
  """As on GPUs and TPUs; 12 reports in three tiles, cut to 8, 16 and 24 of 32 words."""
  words, pixels, is_word, is_pixel = features(b=12, t=32, p=10, d=8)
  is_word &= (np.arange(32) < np.resize([3, 8, 14, 22], 12)[:, None])
  look, pixels, is_pixel = looks(8)[name], pixels[:8], is_pixel[:8]
  weights = np.random.default_rng(5).normal(size=(8, 12)).astype(np.float32)

  def total(score, words, pixels, relation):
    scores = score(words, pixels, look=look.replace(relation=relation), is_word=is_word,
                   is_pixel=is_pixel)
    return jnp.sum(weights * scores), scores

  tiled = functools.partial(
      pair_scores.blockwise, tile=pair_scores.Tile(images=4, reports=4))
  inputs = (0, 1) if look.relation is None else (0, 1, 2)
  close(*(jax.jit(jax.grad(functools.partial(total, score), inputs, has_aux=True))(
      words, pixels, look.relation) for score in (tiled, pair_scores.reference)))


@pytest.mark.parametrize('algorithm', [Algorithm.BLOCKWISE, Algorithm.RING])
def test_scope_of_a_device(algorithm):
  """The loss is that of each device's pairs alone, weighted by those that take part."""
  words, pixels, is_word, is_pixel = features(b=16)
  look = looks(6)['plan']

  @functools.partial(jax.jit, static_argnames=('is_global', 'devices', 'algorithm'))
  def loss(words, pixels, is_word, is_pixel, *, is_global, devices, algorithm):
    return cross_pair.batch_loss(
        words, pixels, look=look, is_word=is_word, is_pixel=is_pixel, is_global=is_global, mib=1,
        mesh=mesh_lib.make_mesh(jax.devices()[:devices]), algorithm=algorithm)

  everything = words, pixels, is_word, is_pixel
  parts = [slice(k, k + 4) for k in range(0, 16, 4)]
  alone = [float(loss(*(x[part] for x in everything), is_global=True, devices=1,
                      algorithm=Algorithm.REFERENCE)) for part in parts]
  pairs = [np.sum(is_word[part].any(1) & is_pixel[part].any(1)) for part in parts]
  assert pairs == [2, 4, 4, 4]
  expected = np.average(alone, weights=pairs)
  found, of_all = (float(loss(*everything, is_global=is_global, devices=4, algorithm=algorithm))
                   for is_global in (False, True))
  assert found == pytest.approx(expected, rel=1e-5)
  assert abs(of_all - expected) > 0.1


def test_empty_reports_and_blank_images():
  words, pixels, is_word, is_pixel = features(b=5)
  look = looks(6)['two rounds']
  tile = pair_scores.Tile(images=1, reports=5)

  def total(words, pixels):
    scores = pair_scores.blockwise(
        words, pixels, look=look, is_word=is_word, is_pixel=is_pixel, tile=tile)
    return jnp.sum(scores), scores

  gradients, scores = jax.jit(jax.grad(total, (0, 1), has_aux=True))(words, pixels)
  assert all(np.isfinite(x).all() for x in (scores, *gradients))
  assert not np.any(scores[:, 1]) and np.all(np.asarray(scores)[[0, 1, 3, 4]][:, [0, 2, 3, 4]])
  assert not np.any(gradients[0][1]) and not np.any(gradients[1][2])


def test_tiles():
  of_one = 24 * 512 * 128

  def tile(pairs, *, platform):
    found = pair_scores.choose_tile(
        images=4, reports=12, words=512, pixels=128, mib=pairs * of_one / 2**20,
        platform=platform)
    return found.images, found.reports

  assert tile(5, platform='cpu') == (2, 2) and tile(0.1, platform='cpu') == (1, 1)
  assert tile(5, platform='gpu') == (2, 2) and tile(16, platform='gpu') == (4, 4)
  assert tile(3, platform='gpu') == (1, 3) and tile(100, platform='gpu') == (4, 12)
  assert tile(100, platform='cpu') == (2, 4)  # 10 are 16 MiB
  assert tile(100, platform='tpu') == (4, 4)  # 21 are 32 MiB
  words, pixels, is_word, is_pixel = features()
  with pytest.raises(ValueError, match='reports=3.* does not divide 4 images and 4 reports'):
    pair_scores.blockwise(
        words, pixels, look=looks(6)['plan'], is_word=is_word, is_pixel=is_pixel,
        tile=pair_scores.Tile(images=1, reports=3))


def temporaries(*, algorithm, devices, own, t=32, p=64, d=8, mib=1):
  """Bytes of temporary memory a device, loss and gradients, `own` pairs a device."""
  mesh = mesh_lib.make_mesh(jax.devices()[:devices])
  split, b = mesh_lib.split(mesh), own * devices
  shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32, sharding=split)

  @functools.partial(jax.jit, out_shardings=(split, split))
  def step(words, pixels):
    return jax.grad(lambda *x: cross_pair.batch_loss(
        *x, look=word_pixel.Look(relation=None, attend=SOFT), is_word=jnp.ones((b, t), bool),
        is_pixel=jnp.ones((b, p), bool), is_global=True, mib=mib, mesh=mesh,
        algorithm=algorithm), (0, 1))(words, pixels)

  compiled = step.lower(shape((b, t, d)), shape((b, p, d))).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_memory_stays_far_below_the_array_of_all_pairs():
  all_pairs = 4 * 64 * 64 * 32 * 64
  blockwise = temporaries(algorithm=Algorithm.BLOCKWISE, devices=1, own=64)
  assert blockwise < all_pairs / 8
  assert temporaries(algorithm=Algorithm.REFERENCE, devices=1, own=64) > 3 * all_pairs


def test_memory_of_a_ring_does_not_grow_with_the_devices():
  one, many = (temporaries(algorithm=Algorithm.RING, devices=n, own=16) for n in (1, 8))
  print(f'ring of 1 device {one / 2**20:.2f} MiB, of 8 {many / 2**20:.2f} MiB each')
  assert many < 1.3 * one


def test_the_plan_says_what_is_done_and_what_it_costs():
  sizes = dict(words=97, pixels=196, dim=128, is_global=True, mib=256)
  small = cross_pair.plan(batch=256, devices=8, **sizes)
  assert small.algorithm is Algorithm.BLOCKWISE
  assert small.tflop == pytest.approx(16 * 32 * 256 * 97 * 196 * 128 / 1e12)
  large = cross_pair.plan(batch=32768, devices=256, **sizes)
  assert large.algorithm is Algorithm.RING and large.mib < 300
  assert cross_pair.plan(batch=32768, **sizes).algorithm is Algorithm.BLOCKWISE  # one device
  assert small.tile == pair_scores.Tile(images=2, reports=16)  # 16 MiB on a CPU
  on_chip = cross_pair.plan(batch=16384, devices=256, platform='tpu', **sizes)
  assert on_chip.tile == pair_scores.Tile(images=8, reports=8)
  kernel = cross_pair.plan(batch=256, platform='tpu', algorithm=Algorithm.FUSED, **sizes)
  assert kernel.mib < cross_pair.plan(batch=256, platform='tpu', **sizes).mib  # no tile
  alone = cross_pair.plan(batch=256, algorithm=Algorithm.RING, **sizes)
  assert alone.algorithm is Algorithm.BLOCKWISE and alone.wire_mib == 0  # nothing to send around
  with pytest.raises(ValueError, match="'fused' is a kernel for TPUs, this is cpu; use 'auto'"):
    cross_pair.plan(batch=256, algorithm=Algorithm.FUSED, **sizes)
  assert str(small).startswith('blockwise, negatives of the global batch, 2 images x')
  with pytest.raises(ValueError, match='10 pairs cannot be shared by 4 devices equally'):
    cross_pair.plan(batch=10, devices=4, **sizes)


@pytest.mark.parametrize('name, dim, algorithm, devices', [
    ('gloria', 32, Algorithm.REFERENCE, 1), ('gloria', 32, Algorithm.BLOCKWISE, 1),
    ('gloria', 8, Algorithm.BLOCKWISE, 1), ('two rounds', 8, Algorithm.BLOCKWISE, 1),
    ('plan', 8, Algorithm.BLOCKWISE, 2), ('plan', 8, Algorithm.RING, 4)])
def test_the_plan_counts_what_runs(name, dim, algorithm, devices):
  """FLOPs against those of the traced program, bytes against those of the compiled one."""
  b, t, p = 32, 40, 24
  look, mesh = looks(dim)[name], mesh_lib.make_mesh(jax.devices()[:devices])

  def step(words, pixels):
    return jax.value_and_grad(lambda *x: cross_pair.batch_loss(
        *x, look=look, is_word=jnp.ones((b, t), bool), is_pixel=jnp.ones((b, p), bool),
        is_global=True, mib=1, mesh=mesh, algorithm=algorithm), (0, 1))(words, pixels)

  how = cross_pair.plan(
      batch=b, words=t, pixels=p, dim=dim, is_global=True, mib=1, devices=devices,
      algorithm=algorithm, has_relation=look.relation is not None, rounds=look.rounds)
  split = mesh_lib.split(mesh)
  inputs = [jax.ShapeDtypeStruct(x, jnp.float32, sharding=split) for x in ((b, t, dim), (b, p, dim))]
  # Backward a ring traces scores as well (2 products to the 8), which nobody reads: XLA drops them.
  traced = 1e12 * devices * how.tflop * (10 / 8 if algorithm is Algorithm.RING else 1)
  # Beside what a pair costs: relation and Gram matrices.
  assert flops.count(step, *inputs) == pytest.approx(traced, rel=0.12)
  compiled = jax.jit(step, in_shardings=(split, split), out_shardings=(None, (split, split)))
  compiled = compiled.lower(*inputs).compile()
  sent = hlo.cost(compiled.as_text()).collectives.values()
  assert sum(each.bytes for each in sent) == pytest.approx(
      how.wire_mib * 2**20, rel=0.05, abs=8192)  # beside it the masks and scores
  # GLoRIA's attention holds four arrays of a tile, of the six that are counted.
  lean = 2 / 3 if (name, dim) == ('gloria', 8) else 1
  assert compiled.memory_analysis().temp_size_in_bytes == pytest.approx(
      lean * how.mib * 2**20, rel=0.25)
