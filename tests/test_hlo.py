"""Costs in HLO text: counted by hand, and in a program compiled for host devices."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import pytest

from plan_jax import hlo
from plan_jax import mesh as mesh_lib

TEXT = '''HloModule step, entry_computation_layout={()->f32[]}, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%body (p: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %moved = bf16[8,16]{1,0} collective-permute(%v), channel_id=1, source_target_pairs={{0,1},{1,0}}
}

%condition (p: (s32[], bf16[8,16])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: f32[10]) -> f32[] {
  %whole = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%a), replica_groups=[1,4]<=[4], dimensions={0}
  %done = f32[8,4]{1,0} all-gather-done(%whole)
  %sums = (f32[100]{0}, bf16[50]{0}) all-reduce(%b, %c), replica_groups={{0,1,2,3}}, to_apply=%add
  %part = f32[25]{0} reduce-scatter(%b), replica_groups=[2,4]<=[8], to_apply=%add
  %mixed = f32[80]{0} all-to-all(%b), replica_groups={}
  ROOT %loop = (s32[], bf16[8,16]) while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"7"}}
}
'''

# As libtpu 0.0.52 writes it: no trip count, groups by axes, cycles, memory spaces in layouts.
TPU = '''HloModule jit_step, is_scheduled=true, num_partitions=4

%fused (x.1: f32[12,8]) -> f32[12,8] {
  %x.1 = f32[12,8]{1,0:T(8,128)S(1)} parameter(0)
  ROOT %minus = f32[12,8]{1,0:T(8,128)S(1)} negate(%x.1)
}

%taken (y.1: f32[10,12,8], k: s32[]) -> f32[1,12,8] {
  %y.1 = f32[10,12,8]{2,1,0:T(8,128)} parameter(0)
  %k = s32[]{:T(128)S(6)} parameter(1)
  ROOT %one.1 = f32[1,12,8]{2,1,0:T(8,128)} dynamic-slice(%y.1, %k, %k, %k), dynamic_slice_sizes={1,12,8}
}

%put (z: f32[10,12,8], u: f32[1,12,8], k.1: s32[]) -> f32[10,12,8] {
  %z = f32[10,12,8]{2,1,0:T(8,128)} parameter(0)
  %u = f32[1,12,8]{2,1,0:T(8,128)} parameter(1)
  %k.1 = s32[]{:T(128)S(6)} parameter(2)
  ROOT %all = f32[10,12,8]{2,1,0:T(8,128)} dynamic-update-slice(%z, %u, %k.1, %k.1, %k.1)
}

%body (p: (s32[], f32[12,8], s32[])) -> (s32[], f32[12,8], s32[]) {
  %p = (s32[]{:T(128)}, f32[12,8]{1,0:T(8,128)S(1)}, /*index=2*/s32[]{:T(128)}) parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %i.copy = s32[]{:T(128)S(6)} copy(%i), backend_config={"flag_configs":[]}
  %x = f32[12,8]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=1
  %n = s32[]{:T(128)} get-tuple-element(%p), index=2
  %product = f32[12,8]{1,0:T(8,128)S(1)} fusion(%x), kind=kOutput, calls=%fused, metadata={op_name="jit(step)/tower/dot"}, backend_config={"window_config":{"estimated_cycles":"100"}}
  %sum = f32[12,8]{1,0:T(8,128)S(1)} all-reduce(%product), channel_id=1, replica_groups=mesh['x'=2,'y'=2] {'x','y'}, to_apply=%add
  %next = s32[]{:T(128)} add(%i.copy, %one)
  ROOT %out = (s32[]{:T(128)}, f32[12,8]{1,0:T(8,128)S(1)}, s32[]{:T(128)}) tuple(%next, %sum, %n)
}

%until (p.1: (s32[], f32[12,8], s32[])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, f32[12,8]{1,0:T(8,128)S(1)}, s32[]{:T(128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %n.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=2
  ROOT %less = pred[]{:T(512)} compare(%i.1, %n.1), direction=LT
}

%cheap (q: f32[12,8]) -> f32[12,8] {
  ROOT %q = f32[12,8]{1,0} parameter(0)
}

%dear (r: f32[12,8]) -> f32[12,8] {
  %r = f32[12,8]{1,0} parameter(0)
  ROOT %whole = f32[12,8]{1,0} all-gather(%r), replica_groups=mesh['x'=2,'y'=2] {'y'}, dimensions={0}, metadata={op_name="jit(step)/loss"}, backend_config={"estimated_cycles":"30"}
}

ENTRY %main (a: f32[12,8], many: f32[10,12,8]) -> f32[12,8] {
  %many = f32[10,12,8]{2,1,0:T(8,128)} parameter(1)
  %where = s32[]{:T(128)S(6)} constant(3)
  %part = f32[1,12,8]{2,1,0:T(8,128)} fusion(%many, %where), kind=kLoop, calls=%taken, metadata={op_name="jit(step)/take"}
  %back = f32[10,12,8]{2,1,0:T(8,128)} fusion(%many, %part, %where), kind=kLoop, calls=%put, metadata={op_name="jit(step)/put"}
  %a = f32[12,8]{1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)S(6)} constant(2)
  %zero.copy = s32[]{:T(128)S(6)} copy(%zero)
  %twelve = s32[]{:T(128)} constant(12)
  %start = (s32[]{:T(128)}, f32[12,8]{1,0:T(8,128)S(1)}, s32[]{:T(128)}) tuple(%zero.copy, %a, %twelve)
  %loop = (s32[]{:T(128)}, f32[12,8]{1,0:T(8,128)S(1)}, s32[]{:T(128)}) while(%start), condition=%until, body=%body
  %b = f32[12,8]{1,0} get-tuple-element(%loop), index=1
  %token = token[] after-all()
  %over = (f32[3,8]{1,0}, u32[], token[]) send(%b, %token), is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %either = f32[12,8]{1,0} conditional(%which, %b, %b), branch_computations={%cheap, %dear}
}
'''


def test_kinds_bytes_and_loops_by_hand():
  found = hlo.cost(TEXT)
  assert found.collectives == {
      'all-gather': hlo.Collective(count=1, bytes=8 * 4 * 4 * 3 // 4),
      'all-reduce': hlo.Collective(count=1, bytes=2 * (100 * 4 + 50 * 2) * 3 // 4),
      'reduce-scatter': hlo.Collective(count=1, bytes=25 * 4 * 3),
      'all-to-all': hlo.Collective(count=1, bytes=80 * 4 * 7 // 8),
      'collective-permute': hlo.Collective(count=7, bytes=7 * 8 * 16 * 2)}
  assert found.cycles == {} and found.unknown_loops == 0


def test_a_tpus_program_by_hand():
  size = 12 * 8 * 4
  padded = 16 * 128 * 4  # as it lies in tiles of 8 x 128
  assert hlo.cost(TPU) == hlo.Cost(
      collectives={
          'all-reduce': hlo.Collective(count=10, bytes=10 * (2 * size * 3 // 4)),
          'all-gather': hlo.Collective(count=1, bytes=size // 2),
          hlo.BETWEEN_SLICES: hlo.Collective(count=1, bytes=3 * 8 * 4)},
      traffic={
          'jit(step)/take': 2 * padded, 'jit(step)/put': 2 * padded,
          'jit(step)/tower/dot': 0, '': 10 * 12},  # on chip but for the loop's counter
      cycles={'jit(step)/tower/dot': 1000, 'jit(step)/loss': 30}, unknown_loops=0)
  unrolled = TPU.replace('%one = s32[]{:T(128)} constant(1)', '%one = s32[]{:T(128)} constant(4)')
  assert hlo.cost(unrolled).collectives['all-reduce'].count == 3  # at 2, 6 and 10


def test_what_is_not_understood_is_said():
  unknown = TPU.replace('%twelve = s32[]{:T(128)} constant(12)', '%twelve = s32[] parameter(1)')
  found = hlo.cost(unknown)
  assert found.unknown_loops == 1 and found.collectives['all-reduce'].count == 1
  with pytest.raises(hlo.HloError, match='groups'):
    hlo.cost(TPU.replace("mesh['x'=2,'y'=2] {'x','y'}", 'torus(2,2)'))


def test_a_compiled_loop_counts_as_often_as_it_runs():
  mesh = mesh_lib.make_mesh(jax.devices()[:4])

  def local(x):
    turn = lambda x, _: (jax.lax.ppermute(x, 'data', [(i, (i + 1) % 4) for i in range(4)]), None)
    x, _ = jax.lax.scan(turn, x, None, length=5)
    return jax.lax.psum(x, 'data')

  function = jax.shard_map(
      local, mesh=mesh, in_specs=PartitionSpec('data'), out_specs=PartitionSpec())
  shape = jax.ShapeDtypeStruct((8, 3), jnp.float32)
  found = hlo.cost(jax.jit(function).lower(shape).compile().as_text())
  assert found.collectives == {
      'collective-permute': hlo.Collective(count=5, bytes=5 * 2 * 3 * 4),
      'all-reduce': hlo.Collective(count=1, bytes=2 * 2 * 3 * 4 * 3 // 4)}
