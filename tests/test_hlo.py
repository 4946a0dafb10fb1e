"""Collectives in HLO text: counted by hand, and in a program compiled for host devices."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from plan_jax import hlo
from plan_jax import mesh as mesh_lib

TEXT = '''HloModule step, entry_computation_layout={()->f32[]}

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
  ROOT %loop = (s32[], bf16[8,16]) while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"7"}}
}
'''


def test_kinds_bytes_and_loops_by_hand():
  assert hlo.collectives(TEXT) == {
      'all-gather': hlo.Collective(count=1, bytes=8 * 4 * 4 * 3 // 4),
      'all-reduce': hlo.Collective(count=1, bytes=2 * (100 * 4 + 50 * 2) * 3 // 4),
      'reduce-scatter': hlo.Collective(count=1, bytes=25 * 4 * 3),
      'collective-permute': hlo.Collective(count=7, bytes=7 * 8 * 16 * 2)}


def test_a_compiled_loop_counts_as_often_as_it_runs():
  mesh = mesh_lib.make_mesh(jax.devices()[:4])

  def local(x):
    turn = lambda x, _: (jax.lax.ppermute(x, 'data', [(i, (i + 1) % 4) for i in range(4)]), None)
    x, _ = jax.lax.scan(turn, x, None, length=5)
    return jax.lax.psum(x, 'data')

  function = jax.shard_map(
      local, mesh=mesh, in_specs=PartitionSpec('data'), out_specs=PartitionSpec())
  shape = jax.ShapeDtypeStruct((8, 3), jnp.float32)
  found = hlo.collectives(jax.jit(function).lower(shape).compile().as_text())
  assert found == {
      'collective-permute': hlo.Collective(count=5, bytes=5 * 2 * 3 * 4),
      'all-reduce': hlo.Collective(count=1, bytes=2 * 2 * 3 * 4 * 3 // 4)}
