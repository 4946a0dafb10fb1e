"""compile_check: what follows from a compilation, what is refused, and, with libtpu, one of its own."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import pytest

from plan_jax import compile_check
from plan_jax import config as config_lib
from plan_jax import hlo
from plan_jax import optim
from plan_jax import step as step_lib
from plan_jax import tpus
from plan_jax.losses import cross_pair
from tests import tiny

ROOT = pathlib.Path(__file__).parents[1]
CHIP = tpus.Chip(hbm_gib=16, hbm_gb_s=1000, link_gb_s=100, network_gb_s=10, clock_ghz=1, flat=True)
COST = hlo.Cost(
    collectives={'all-reduce': hlo.Collective(count=3, bytes=10**9)},
    traffic={'jit(train_step)/jvp(PlanModel)/image_tower/dot': 10**9,
             'jit(train_step)/transpose(jvp(cross_pair))/shard_map/exp': 3 * 10**9},
    cycles={'jit(train_step)/jvp(PlanModel)/image_tower/dot': 6 * 10**6,
            'jit(train_step)/transpose(jvp(PlanModel))/image_tower/dot': 10**6,
            'jit(train_step)/jvp()/cross_pair/while/body/exp': 2 * 10**6,
            '': 10**6}, unknown_loops=0)


GLOBAL = cross_pair.plan(batch=8, words=8, pixels=16, dim=16, is_global=True, mib=1, devices=4)


def report(gib, *, cost=COST, plan=None, **changes):
  return compile_check.report(tiny.config(**changes), **{
      'topology': tpus.Topology(name='v5e:2x2', chip=CHIP, chips=4, options={}), 'slices': 1,
      'held': gib * 2**30, 'cost': cost, 'peak_flops': 1e14, 'step_flops': 8 * 10**12,
      'cross_pair': plan, 'compile_s': 1.0})


def test_the_estimate_is_the_slowest_of_three():
  found = report(1.0)
  assert found.arithmetic_ms == pytest.approx(20)
  assert found.memory_ms == pytest.approx(4)
  assert found.collectives_ms == pytest.approx(10)
  assert found.compiler_ms == pytest.approx(10)
  assert (found.step_ms_estimate, found.mfu_estimate) == (pytest.approx(20), pytest.approx(1))
  heavy = dataclasses.replace(COST, traffic={'': 10**11})
  assert report(1.0, cost=heavy).step_ms_estimate == pytest.approx(100)
  assert report(1.0, cost=heavy).mfu_estimate == pytest.approx(0.2)
  between = dataclasses.replace(COST, collectives={
      **COST.collectives, hlo.BETWEEN_SLICES: hlo.Collective(count=1, bytes=10**9)})
  assert report(1.0, cost=between).step_ms_estimate == pytest.approx(10 + 100)
  moved = dataclasses.replace(
      COST, collectives={'collective-permute': hlo.Collective(count=1, bytes=10**9)})
  assert report(1.0, cost=moved).step_ms_estimate == pytest.approx(4 * 10)  # one link of four


def test_time_is_told_by_parts_that_add_up():
  parts = report(1.0).parts
  assert parts['image tower'] == pytest.approx((1, 7))
  assert parts['word-pixel scores of all pairs (9)'] == pytest.approx((3, 2))
  assert [sum(times) for times in zip(*parts.values())] == pytest.approx([4, 10])


def test_what_does_not_fit_comes_with_advice_that_is_not_already_taken():
  found = report(17.0)
  assert not found.fits and report(16.0).fits and not report(16.0).advice
  assert found.advice[0].startswith('--config.model.remat=dots')
  assert not any('objective' in change for change in found.advice)
  assert any('block_mib=16' in change for change in report(17.0, plan=GLOBAL).advice)
  assert any('ring' in change for change in report(17.0, plan=GLOBAL).advice)
  taken = report(17.0, model={'remat': 'blocks'}, train={'sharding': 'fsdp'})
  assert not any('remat' in change or 'fsdp' in change for change in taken.advice)
  assert 'DOES NOT FIT' in compile_check.table(found)
  assert 'to make it fit: --config.model.remat=blocks' in compile_check.table(found)
  line = json.loads(json.dumps(dataclasses.asdict(found)))
  assert {'fits', 'hbm_gib', 'collectives', 'step_ms_estimate'} <= set(line)


def test_where_the_compiler_gives_up_there_is_a_report_all_the_same():
  message = ('RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total '
             'memory required for HLO temporaries (22.50G) exceeds available HBM (15.75G).')
  needed = compile_check._needed(message)
  assert needed == 22.5 * 2**30
  found = report(needed / 2**30, cost=None)
  assert not found.fits and found.step_ms_estimate is None and found.advice
  assert not report(1.0, cost=None).fits
  assert 'gave up: 22.50 GiB' in compile_check.table(found)
  assert compile_check._needed(
      'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512M of 1G.') == 2**29
  for other in ('INTERNAL: Mosaic failed', 'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. '
                'Ran out of memory in memory space vmem. Used 20.29M of 16.00M vmem.'):
    with pytest.raises(compile_check.CheckError, match='not for lack of HBM'):
      compile_check._needed(other)


def test_a_program_that_this_jax_cannot_read_names_the_libtpu_that_it_can():
  class Compiled:
    def as_text(self):
      raise jax.errors.JaxRuntimeError('INTERNAL: async-update instruction should have 1 operands')

  with pytest.raises(compile_check.CheckError, match=rf"'jax\[tpu\]=={jax.__version__}' .*async-update"):
    compile_check._text(Compiled())


@pytest.mark.parametrize('devices, chunks, named', [(3, 1, '4 chips of v5e:2x2'),
                                                    (4, 2, '4 chips of v5e:2x2 times train.chunks = 2')])
def test_a_batch_that_chips_cannot_share_is_refused(monkeypatch, devices, chunks, named):
  # Devices of this machine instead of libtpu's: the batch is looked at before anything is compiled.
  monkeypatch.setattr(compile_check.topologies, 'get_topology_desc', lambda *_, **__: types.SimpleNamespace(
      devices=jax.devices()[:4]))
  config = tiny.config(model={'image': 'vit_ti16'}, train={'batch_size': 4 * chunks, 'chunks': chunks})
  config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=devices))
  with pytest.raises(compile_check.CheckError, match=f'--batch={devices}: must be a multiple of the {named}'):
    compile_check.check(config, topology='v5e:2x2', vocab_size=50)


@pytest.mark.parametrize('name, chips', [
    ('v5e:16x16', 256), ('v6e:2x4', 8), ('v4:2x2x1', 4), ('v4:4x4x8', 128), ('v5p:8x8x16', 1024)])
def test_slices(name, chips):
  assert tpus.topology(name).chips == chips


def test_several_slices():
  found = tpus.topology('v5e:16x16', slices=4)
  assert (found.chips, found.options) == (1024, {'num_slices': 4})
  with pytest.raises(tpus.TopologyError, match='slices=0'):
    tpus.topology('v5e:16x16', slices=0)
  with pytest.raises(tpus.TopologyError, match='network'):
    tpus.topology('v4:4x4x4', slices=2)


@pytest.mark.parametrize('name, fix', [
    ('h100:8', 'v5e, v5p, v6e'), ('v5e', '16x16'), ('v5e:32x32', 'slices'), ('v5e:0x0', '16x16'),
    ('v5e:4x4x4', '16x16'), ('v4:4x4', '4x4x8'), ('v5p:6x6x6', '4x4x8'), ('v4:0x4x4', '4x4x8'),
    ('v4:16x16x32', 'at most 64'), ('v6e:2x', '16x16')])
def test_a_slice_that_nobody_can_have_is_refused(name, fix):
  with pytest.raises(tpus.TopologyError, match=f'{name}: .*{fix}'):
    compile_check.check(tiny.config(), topology=name, vocab_size=50)


WITH_LIBTPU = importlib.util.find_spec('libtpu') is not None


@pytest.mark.skipif(WITH_LIBTPU, reason='libtpu is installed')
def test_without_libtpu_the_extra_is_named():
  with pytest.raises(compile_check.CheckError, match='compile_check'):
    compile_check.check(tiny.config(), topology='v5e:2x2', vocab_size=50)


@pytest.mark.skipif(
    not WITH_LIBTPU, reason="libtpu is not installed (pip install -e '.[compile_check]')")
def test_a_small_step_compiles_for_a_slice():
  # In a process of its own: libtpu aborts at a flag in XLA_FLAGS that it does not know.
  done = subprocess.run(
      [sys.executable, '-m', 'plan_jax.compile_check', '--config=configs/demo.py', '--json',
       '--topology=v5e:2x2', '--batch=8', '--vocab-size=50', '--config.objective.name=convirt',
       '--config.objective.teacher=self', '--config.data.image_size=32'],
      cwd=ROOT, env={**os.environ, 'XLA_FLAGS': '--xla_cpu_no_such_flag=true'},
      capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  assert 'XLA_FLAGS is left out' in done.stderr
  found = json.loads(done.stdout)
  assert found['fits'] and found['chips'] == 4 and found['unknown_loops'] == 0
  config = config_lib.resolve({
      'model': {'image': 'resnet_tiny', 'text': 'bert_tiny'},
      'objective': {'name': 'convirt', 'teacher': 'self'}, 'data': {'image_size': 32}})
  model = step_lib.build_model(config, vocab_size=50)
  optimizer = optim.make_optimizer(config.optim, total_steps=10)
  state = jax.eval_shape(lambda: step_lib.init_state(model, optimizer, config=config))
  weights = sum(x.size for x in jax.tree.leaves(state.params))
  # Gradients are summed once, in bf16 or fp32, by a ring of four; ConVIRT leaves out some heads.
  sent = found['collectives']['all-reduce']['bytes']
  assert 0.9 * 2 * 2 * weights * 3 / 4 < sent < 1.1 * 2 * 4 * weights * 3 / 4
  assert found['hbm_gib'] * 2**30 > 3 * 4 * weights  # with AdamW's moments
  assert found['compiler_ms'] > 0 and {'image tower', 'text tower'} <= set(found['parts'])
