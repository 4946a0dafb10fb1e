r"""Compiles the training step for a TPU slice on a machine without one, and says whether it fits.

  pip install -e '.[compile_check]'
  python -m plan_jax.compile_check --config=configs/mimic_vit_b16.py --topology=v5e:16x16 \
      --batch=16384 --vocab-size=30522

The step time is a roofline estimate: the largest of arithmetic, memory traffic and collectives at
the chip's published rates, as if each ran alone and perfectly. Nothing is executed. libtpu lets one
process at a time compile on a machine.
"""

import dataclasses
import json
import os
import sys
import time

from absl import app
from absl import flags
import jax
from jax.experimental import topologies

from plan_jax import command_line
from plan_jax import config as config_lib
from plan_jax import errors
from plan_jax import flops
from plan_jax import hlo
from plan_jax import mesh as mesh_lib
from plan_jax import optim
from plan_jax import stages
from plan_jax import step as step_lib

_TOPOLOGY = flags.DEFINE_string('topology', None, 'TPU slice, such as v5e:16x16 or v4:4x4x4.')
_BATCH = flags.DEFINE_integer('batch', None, 'Global batch; default: config.train.batch_size.')
_VOCAB_SIZE = flags.DEFINE_integer('vocab-size', 30522, 'Word pieces in the vocabulary.')
_JSON = flags.DEFINE_boolean('json', False, 'Print one line of JSON instead of the table.')


class CheckError(errors.UserError):
  """A slice that cannot be compiled for; the message says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """Published figures of a TPU: memory in GiB, and GB/s of memory and of all its links one way.

  Source: cloud.google.com/tpu/docs, system architecture of each version.
  """

  hbm_gib: float
  hbm_gb_s: float
  link_gb_s: float


CHIPS = {
    'v4': Chip(hbm_gib=32, hbm_gb_s=1228, link_gb_s=300),
    'v5e': Chip(hbm_gib=16, hbm_gb_s=819, link_gb_s=200),
    'v5p': Chip(hbm_gib=95, hbm_gb_s=2765, link_gb_s=600),
    'v6e': Chip(hbm_gib=32, hbm_gb_s=1640, link_gb_s=448),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """What a compilation tells of one step; memory in GiB and bytes are a chip's."""

  topology: str
  chips: int
  batch: int
  fits: bool
  hbm_gib: float
  chip_hbm_gib: float
  model_tflop: float
  collectives: dict[str, dict[str, int]]
  arithmetic_ms: float
  memory_ms: float
  collectives_ms: float
  step_ms_estimate: float
  mfu_estimate: float
  compile_s: float
  advice: list[str]


def check(config: config_lib.Config, *, topology: str, vocab_size: int) -> Report:
  """Compiles the step of `config` for every chip of `topology`.

  Raises:
    CheckError: no libtpu, no such slice, or a batch that it cannot share.
  """
  chip = _chip(topology)
  try:
    devices = topologies.get_topology_desc(topology, 'tpu').devices
  except Exception as error:  # libtpu's many ways of saying no
    raise CheckError(
        f'--topology={topology}: libtpu does not know it, or is not installed '
        f"(pip install -e '.[compile_check]'), or compiles for another process "
        f'({str(error).splitlines()[0][:200]})') from error
  mesh = mesh_lib.make_mesh(list(devices))
  if config.train.batch_size % mesh.size:
    raise CheckError(f'--batch={config.train.batch_size}: must be a multiple of the {mesh.size} '
                     f'chips of {topology}')
  model = step_lib.build_model(config, vocab_size=vocab_size)
  optimizer = optim.make_optimizer(config.optim, total_steps=config.train.steps)
  state = jax.eval_shape(lambda: step_lib.init_state(model, optimizer, config=config))
  batch = jax.eval_shape(lambda: step_lib.empty_batch(config.data, size=config.train.batch_size))
  stage = stages.schedule(config.stages, total_steps=config.train.steps).values(0)
  print(f'compiling for {mesh.size} chips of {topology} (minutes)', file=sys.stderr, flush=True)
  began = time.monotonic()
  step = step_lib.make_train_step(model, optimizer, config=config, mesh=mesh)
  try:
    compiled = step.lower(state, batch, stage).compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    raise CheckError(f'{topology}: does not fit, the compiler gave up: '
                     f'{str(error).splitlines()[0][:300]}\n' + '\n'.join(advice(config))) from error
  compile_s = time.monotonic() - began
  memory = compiled.memory_analysis()
  used = (memory.argument_size_in_bytes + memory.temp_size_in_bytes
          + memory.output_size_in_bytes - memory.alias_size_in_bytes)
  return report(
      config, topology=topology, chip=chip, chips=mesh.size, hbm_gib=used / 2**30,
      peak_flops=flops.peak(devices[0]),
      step_flops=step_lib.model_flops(model, optimizer, config=config, mesh=mesh),
      collectives=hlo.collectives(compiled.as_text()), compile_s=compile_s)


def report(
    config: config_lib.Config, *, topology: str, chip: Chip, chips: int, hbm_gib: float,
    peak_flops: float, step_flops: int, collectives: dict[str, hlo.Collective], compile_s: float,
) -> Report:
  """The figures that follow from what was compiled; `hbm_gib` is used on each chip."""
  arithmetic = 1e3 * step_flops / (chips * peak_flops)
  # What a step holds is written and read at least once.
  memory = 1e3 * 2 * hbm_gib * 2**30 / (chip.hbm_gb_s * 1e9)
  sent = sum(each.bytes for each in collectives.values())
  links = 1e3 * sent / (chip.link_gb_s * 1e9)
  estimate = max(arithmetic, memory, links)
  fits = hbm_gib <= chip.hbm_gib
  return Report(
      topology=topology, chips=chips, batch=config.train.batch_size, fits=fits, hbm_gib=hbm_gib,
      chip_hbm_gib=chip.hbm_gib, model_tflop=step_flops / 1e12,
      collectives={kind: dataclasses.asdict(each) for kind, each in sorted(collectives.items())},
      arithmetic_ms=arithmetic, memory_ms=memory, collectives_ms=links, step_ms_estimate=estimate,
      mfu_estimate=arithmetic / estimate, compile_s=compile_s, advice=[] if fits else advice(config))


def advice(config: config_lib.Config) -> list[str]:
  """What to change when a step does not fit, the cheapest first."""
  changes = []
  if config.model.remat is not config_lib.Remat.BLOCKS:
    changes.append('--config.model.remat=blocks: keep only the inputs of the blocks')
  if config.train.sharding is not config_lib.Sharding.FSDP:
    changes.append('--config.train.sharding=fsdp: split parameters and optimizer over the chips')
  changes.append(f'--config.train.chunks={2 * config.train.chunks}: run the towers in more parts')
  changes.append(f'--config.objective.block_mib={max(config.objective.block_mib // 2, 1)}: smaller '
                 'tiles of the word-pixel scores')
  changes.append('a smaller --batch, or a larger slice')
  return changes


def table(found: Report) -> str:
  """The report for people."""
  verdict = 'fits' if found.fits else 'DOES NOT FIT'
  lines = [
      f'{found.topology}, {found.chips} chips, global batch {found.batch}, '
      f'compiled in {found.compile_s:.0f} s',
      f'memory a chip      {found.hbm_gib:.2f} of {found.chip_hbm_gib:g} GiB: {verdict}',
      f'model FLOPs        {found.model_tflop:.4g} TFLOP a step',
      *(f'{kind:<18} {each["count"]} a step, {each["bytes"] / 2**20:.1f} MiB sent a chip'
        for kind, each in found.collectives.items()),
      f'estimates (roofline): arithmetic {found.arithmetic_ms:.1f} ms, memory '
      f'{found.memory_ms:.1f} ms, collectives {found.collectives_ms:.1f} ms',
      f'step at best       {found.step_ms_estimate:.1f} ms, MFU at most {found.mfu_estimate:.0%} '
      '(estimates; nothing was run)']
  return '\n'.join(lines + [f'to make it fit: {change}' for change in found.advice])


def _chip(topology: str) -> Chip:
  version = topology.partition(':')[0]
  if version not in CHIPS:
    raise CheckError(f'--topology={topology}: write one of {", ".join(CHIPS)} and its shape, such '
                     'as v5e:16x16')
  return CHIPS[version]


def main(argv: list[str]) -> None:
  """Command line."""
  del argv
  command_line.require(config=command_line.CONFIG.value, topology=_TOPOLOGY.value)
  config = config_lib.resolve(command_line.CONFIG.value)
  size = config.train.batch_size if _BATCH.value is None else _BATCH.value
  precision = config.train.precision
  if precision is config_lib.Precision.AUTO:  # as on the TPU, not as on the machine that compiles
    precision = config_lib.Precision.BFLOAT16
  config = dataclasses.replace(
      config, train=dataclasses.replace(config.train, batch_size=size, precision=precision))
  found = check(config, topology=_TOPOLOGY.value, vocab_size=_VOCAB_SIZE.value)
  print(json.dumps(dataclasses.asdict(found)) if _JSON.value else table(found))


if __name__ == '__main__':
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # there is no TPU to ask
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  sys.exit(errors.exit_status(
      lambda: app.run(main, flags_parser=command_line.parse), again='start it again'))
