r"""Compiles the training step for a TPU slice on a machine without one, and says whether it fits.

  pip install -e '.[compile_check]'
  python -m plan_jax.compile_check --config=configs/mimic_vit_b16.py --topology=v5e:16x16 \
      --batch=16384

Nothing is executed: times are estimates, of a step in which nothing is left out (teacher, short
texts, reports of full length). The exit status is 0 if the step fits, 1 if not, 2 if it cannot be
compiled.
"""

import dataclasses
import importlib.metadata
import json
import os
import re
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
from plan_jax import tpus
from plan_jax.losses import cross_pair as cross_pair_lib
from plan_jax.losses import pair_scores
from plan_jax.models import vit

_TOPOLOGY = flags.DEFINE_string('topology', None, 'TPU slice, such as v5e:16x16 or v4:4x4x4.')
_SLICES = flags.DEFINE_integer('slices', 1, 'How many such slices, over the network between them.')
_BATCH = flags.DEFINE_integer('batch', None, 'Global batch; default: config.train.batch_size.')
_VOCAB_SIZE = flags.DEFINE_integer('vocab-size', 30522, 'Word pieces in the vocabulary.')
_JSON = flags.DEFINE_boolean('json', False, 'Print one line of JSON instead of the table.')

# Parts of a step by the scopes of its operations; the first that matches.
_PARTS = (
    ('image tower', r'image_tower|/see/'),
    ('text tower', r'text_tower|/read/'),
    ('word-pixel scores of all pairs (9)', r'cross_pair'),
    ('heads and the other losses', r'jvp|teach|plan_loss'),
    ('optimizer, copies', r''),
)


class CheckError(errors.UserError):
  """A step that cannot be compiled for a slice; the message says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """What a compilation tells of one step; GiB, bytes and times are those of a chip.

  Attributes:
    hbm_gib: what the step holds at once: state, batch, temporaries, program. If the compiler
      gave up, what it says the temporaries alone need.
    model_tflop: of all chips.
    collectives: None if the compiler gave up; so are the times that follow from it.
    unknown_loops: loops of unknown length, which count once.
    arithmetic_ms: model FLOPs at the published peak.
    memory_ms: what operations read from main memory and write to it, at the published rate. If
      the compiler gave up: what the step holds, once in and once out.
    collectives_ms: what is sent at the published rates.
    step_ms_estimate: the largest of these three. Vector arithmetic is not among them.
    compiler_ms: the compiler's own estimates of all operations but collectives, one after another;
      pessimistic, since they let on-chip data come at the rate of main memory.
    parts: by part of the step, [milliseconds of memory traffic, of the compiler's estimates].
  """

  topology: str
  slices: int
  chips: int
  batch: int
  cross_pair: str | None
  fits: bool
  hbm_gib: float
  chip_hbm_gib: float
  model_tflop: float
  collectives: dict[str, dict[str, int]] | None
  unknown_loops: int | None
  arithmetic_ms: float
  memory_ms: float
  collectives_ms: float | None
  step_ms_estimate: float | None
  mfu_estimate: float | None
  compiler_ms: float | None
  parts: dict[str, tuple[float, float]] | None
  compile_s: float
  versions: dict[str, str]
  advice: list[str]


def check(
    config: config_lib.Config, *, topology: str, slices: int = 1, vocab_size: int) -> Report:
  """Compiles the step of `config` for every chip of `slices` slices.

  Raises:
    TopologyError: no such slice.
    CheckError: no libtpu, another than this jax reads, or a batch that the chips cannot share.
  """
  if config.train.precision is config_lib.Precision.AUTO:  # the TPU's, not that of this machine
    config = dataclasses.replace(config, train=dataclasses.replace(
        config.train, precision=config_lib.Precision.BFLOAT16))
  wanted = tpus.topology(topology, slices=slices)
  try:
    devices = topologies.get_topology_desc(topology, 'tpu', **wanted.options).devices
  except Exception as error:  # libtpu's many ways of saying no
    raise CheckError(
        f'--topology={topology}: libtpu is not installed (pip install -e '
        f"'.[compile_check]'), or does not know it "
        f'({str(error).splitlines()[0][:200]})') from error
  mesh = mesh_lib.make_mesh(list(devices))
  if mesh.size != wanted.chips:
    raise CheckError(f'--topology={topology}: this libtpu makes {mesh.size} devices of '
                     f'{wanted.chips} chips; use another version of libtpu')
  shares = mesh.size * config.train.chunks
  if config.train.batch_size < 1 or config.train.batch_size % shares:
    parts = f' times train.chunks = {config.train.chunks}' if config.train.chunks > 1 else ''
    raise CheckError(f'--batch={config.train.batch_size}: must be a multiple of the {mesh.size} '
                     f'chips of {topology}{parts}')
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
    cost, held = None, _needed(str(error))
  else:
    cost, held = hlo.cost(_text(compiled)), _held(compiled.memory_analysis())
  return report(
      config, topology=wanted, slices=slices, held=held, cost=cost,
      peak_flops=flops.peak(devices[0]),
      step_flops=step_lib.model_flops(model, optimizer, config=config, mesh=mesh).dearest,
      cross_pair=step_lib.contrast_plan(config, mesh), compile_s=time.monotonic() - began)


def report(
    config: config_lib.Config, *, topology: tpus.Topology, slices: int, held: float,
    cost: hlo.Cost | None, peak_flops: float, step_flops: int, cross_pair: cross_pair_lib.Plan | None,
    compile_s: float,
) -> Report:
  """The figures that follow from what was compiled.

  Args:
    config: of the step.
    topology: of each slice.
    slices: how many.
    held: bytes on each chip, or that the compiler says it would need.
    cost: None if the compiler gave up.
    peak_flops: of a chip, a second.
    step_flops: of all chips.
    cross_pair: how term (9) is computed, if it is.
    compile_s: how long compiling took.
  """
  chip = topology.chip
  arithmetic = 1e3 * step_flops / (topology.chips * peak_flops)
  memory = 1e3 * 2 * held / (chip.hbm_gb_s * 1e9)
  links = compiler = estimate = parts = None
  if cost is not None:
    links = sum(1e3 * each.bytes / (_rate(chip, kind) * 1e9)
                for kind, each in cost.collectives.items())
    moved, cycles = _parts(cost.traffic), _parts(cost.cycles)
    parts = {name: (moved.get(name, 0) / (chip.hbm_gb_s * 1e6),
                    cycles.get(name, 0) / (chip.clock_ghz * 1e6)) for name, _ in _PARTS
             if name in moved or name in cycles}
    memory, compiler = (sum(times) for times in zip(*parts.values(), strict=True))
    estimate = max(arithmetic, memory, links)
  fits = cost is not None and held <= chip.hbm_gib * 2**30
  return Report(
      topology=topology.name, slices=slices, chips=topology.chips, batch=config.train.batch_size,
      cross_pair=None if cross_pair is None else str(cross_pair), fits=fits,
      hbm_gib=held / 2**30, chip_hbm_gib=chip.hbm_gib, model_tflop=step_flops / 1e12,
      collectives=None if cost is None else {
          kind: dataclasses.asdict(each) for kind, each in sorted(cost.collectives.items())},
      unknown_loops=None if cost is None else cost.unknown_loops,
      arithmetic_ms=arithmetic, memory_ms=memory, collectives_ms=links, step_ms_estimate=estimate,
      mfu_estimate=None if estimate is None else arithmetic / estimate, compiler_ms=compiler,
      parts=parts, compile_s=compile_s,
      versions={'jax': jax.__version__, 'libtpu': _libtpu_version()},
      advice=[] if fits else advice(config, cross_pair=cross_pair))


def advice(config: config_lib.Config, *, cross_pair: cross_pair_lib.Plan | None) -> list[str]:
  """What to change when a step does not fit, the cheapest first."""
  changes = []
  if config.model.remat is config_lib.Remat.NONE:
    changes.append('--config.model.remat=dots: keep only the matrix products and convolutions of '
                   'the towers')
  if config.model.remat is not config_lib.Remat.BLOCKS:
    changes.append('--config.model.remat=blocks: keep only the inputs of their blocks')
  if config.train.sharding is not config_lib.Sharding.FSDP:
    changes.append('--config.train.sharding=fsdp: split parameters and optimizer over the chips')
  if config.model.image in vit.VARIANTS or config.optim.image.freeze:  # else `rules` refuses it
    changes.append(
        f'--config.train.chunks={2 * config.train.chunks}: run the towers in more parts')
  if cross_pair is not None:
    tile = min(config.objective.block_mib, pair_scores.MOST_MIB['tpu'])
    changes.append(f'--config.objective.block_mib={max(tile // 2, 1)}: smaller tiles of the '
                   'word-pixel scores')
    if cross_pair.is_global and cross_pair.algorithm is not config_lib.Algorithm.RING:
      changes.append('--config.objective.algorithm=ring: words travel, no chip holds all of them')
  changes.append('a smaller --batch, or a larger slice')
  return changes


def _rate(chip: tpus.Chip, kind: str) -> float:
  """GB/s at which a chip sends in collectives of a kind, at best."""
  if kind == hlo.BETWEEN_SLICES:
    return chip.network_gb_s
  if kind == 'collective-permute':  # to one neighbour, by one link
    return chip.link_gb_s / (4 if chip.flat else 6)
  return chip.link_gb_s


def table(found: Report) -> str:
  """The report for people."""
  slices = f'{found.slices} slices of ' if found.slices > 1 else ''
  lines = [
      f'{slices}{found.topology}, {found.chips} chips, global batch {found.batch}, '
      f'compiled in {found.compile_s:.0f} s']
  if found.cross_pair is not None:
    lines.append(f'word-pixel scores  {found.cross_pair}')
  if found.collectives is None:
    lines.append(f'memory a chip      the compiler gave up: {found.hbm_gib:.2f} GiB of temporaries '
                 f'alone, {found.chip_hbm_gib:g} GiB usable: DOES NOT FIT')
  else:
    verdict = 'fits' if found.fits else 'DOES NOT FIT'
    lines.append(
        f'memory a chip      {found.hbm_gib:.2f} of {found.chip_hbm_gib:g} GiB usable: {verdict}')
  lines.append(f'model FLOPs        {found.model_tflop:.4g} TFLOP a step, all chips')
  if found.collectives is not None:
    lines += [f'{kind:<18} {each["count"]} a step, {each["bytes"] / 2**20:.1f} MiB sent a chip'
              for kind, each in found.collectives.items()]
    if found.unknown_loops:
      lines.append(f'{found.unknown_loops} loops of unknown length count once in what follows')
    lines += [
        f'estimates          arithmetic at peak {found.arithmetic_ms:.1f} ms, memory traffic '
        f'{found.memory_ms:.1f} ms, collectives {found.collectives_ms:.1f} ms',
        f'step at best       {found.step_ms_estimate:.1f} ms, the largest of these; MFU at most '
        f'{found.mfu_estimate:.0%} (nothing was run)',
        f"compiler's own     {found.compiler_ms:.1f} ms, pessimistic, without collectives",
        "by parts           memory traffic, compiler's own:",
        *(f'{moved:15.1f} ms {cycles:9.1f} ms   {part}'
          for part, (moved, cycles) in found.parts.items())]
  return '\n'.join(lines + [f'to make it fit: {change}' for change in found.advice])


def _text(compiled: jax.stages.Compiled) -> str:
  """The program.

  Raises:
    CheckError: it has what this jax does not know.
  """
  try:
    return compiled.as_text()
  except jax.errors.JaxRuntimeError as error:
    raise CheckError(
        f'the step compiled, but jax {jax.__version__} cannot read what libtpu {_libtpu_version()} made '
        f"of it; install the libtpu of this jax: pip install 'jax[tpu]=={jax.__version__}' "
        f'({str(error).splitlines()[0][:200]})') from error


def _held(memory) -> float:
  """Bytes of `compiled.memory_analysis()` that a chip holds at most: the program beside all arrays.

  Not the sum of arguments and temporaries: in some versions of libtpu those count 4 GiB too much.
  """
  return memory.peak_memory_in_bytes + memory.generated_code_size_in_bytes


def _needed(message: str) -> float:
  """Bytes that the compiler says it would need, where it ran out of memory.

  Raises:
    CheckError: it failed for another reason.
  """
  found = re.search(
      r'(?:on HBM, [^(]*required[^(]*\(|memory space hbm. Used )([\d.]+)([KMGT])', message)
  if 'RESOURCE_EXHAUSTED' not in message or not found:
    raise CheckError('the compiler failed, and not for lack of HBM; this is a defect of the '
                     f'step or of libtpu, please report it: {message[:1000]}')
  return float(found[1]) * 2**{'K': 10, 'M': 20, 'G': 30, 'T': 40}[found[2]]


def _parts(of_scopes: dict[str, int]) -> dict[str, int]:
  """Counts of scopes added up by `_PARTS`."""
  parts: dict[str, int] = {}
  for scope, count in of_scopes.items():
    name = next(name for name, pattern in _PARTS if re.search(pattern, scope))
    parts[name] = parts.get(name, 0) + count
  return parts


def _libtpu_version() -> str:
  try:
    return importlib.metadata.version('libtpu')
  except importlib.metadata.PackageNotFoundError:
    return 'unknown'


def main(argv: list[str]) -> None:
  """Command line."""
  del argv
  command_line.require(config=command_line.CONFIG.value, topology=_TOPOLOGY.value)
  config = config_lib.resolve(command_line.CONFIG.value)
  size = config.train.batch_size if _BATCH.value is None else _BATCH.value
  config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=size))
  found = check(
      config, topology=_TOPOLOGY.value, slices=_SLICES.value, vocab_size=_VOCAB_SIZE.value)
  print(json.dumps(dataclasses.asdict(found)) if _JSON.value else table(found))
  if not found.fits:
    sys.exit(1)


if __name__ == '__main__':
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # there is no TPU to ask
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # no chip is shared, only compiled for
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  if os.environ.pop('XLA_FLAGS', ''):  # libtpu would end the process
    print('XLA_FLAGS is left out: libtpu knows no flags of other platforms; those of TPUs go into '
          'LIBTPU_INIT_ARGS', file=sys.stderr)
  sys.exit(errors.exit_status(
      lambda: app.run(main, flags_parser=command_line.parse), again='start it again'))
