"""compile_check without libtpu: what follows from a compilation, and what is refused."""

import dataclasses
import importlib.util
import json

import pytest

from plan_jax import compile_check
from plan_jax import hlo
from tests import tiny

CHIP = compile_check.Chip(hbm_gib=16, hbm_gb_s=1000, link_gb_s=100)


def report(hbm_gib, **changes):
  return compile_check.report(tiny.config(**changes), **{
      'topology': 'v5e:2x2', 'chip': CHIP, 'chips': 4, 'hbm_gib': hbm_gib, 'peak_flops': 1e14,
      'step_flops': 8 * 10**12, 'compile_s': 1.0,
      'collectives': {'all-reduce': hlo.Collective(count=3, bytes=10**9)}})


def test_the_estimate_is_the_slowest_of_three():
  found = report(1.0)
  assert found.arithmetic_ms == pytest.approx(20)
  assert found.memory_ms == pytest.approx(2 * 2**30 / 1e9)
  assert found.collectives_ms == pytest.approx(10)
  assert (found.step_ms_estimate, found.mfu_estimate) == (pytest.approx(20), pytest.approx(1))
  assert report(15.0).step_ms_estimate == pytest.approx(30 * 2**30 / 1e9)


def test_what_does_not_fit_comes_with_advice_that_is_not_already_taken():
  found = report(17.0)
  assert not found.fits and report(16.0).fits and not report(16.0).advice
  assert any('remat=blocks' in change for change in found.advice)
  taken = report(17.0, model={'remat': 'blocks'}, train={'sharding': 'fsdp'})
  assert not any('remat' in change or 'fsdp' in change for change in taken.advice)
  assert 'DOES NOT FIT' in compile_check.table(found)
  assert 'to make it fit: --config.model.remat=blocks' in compile_check.table(found)
  line = json.loads(json.dumps(dataclasses.asdict(found)))
  assert {'fits', 'hbm_gib', 'collectives', 'step_ms_estimate'} <= set(line)


def test_an_unknown_chip_is_refused():
  with pytest.raises(compile_check.CheckError, match='v5e, v5p, v6e'):
    compile_check.check(tiny.config(), topology='h100:8', vocab_size=50)


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is not None, reason='libtpu is installed')
def test_without_libtpu_the_extra_is_named():
  with pytest.raises(compile_check.CheckError, match='compile_check'):
    compile_check.check(tiny.config(), topology='v5e:2x2', vocab_size=50)
