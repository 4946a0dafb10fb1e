r"""Pre-trains a model: records in, checkpoints, curves, pictures and figures out.

  python -m plan_jax.train --config=configs/demo.py --workdir=runs/demo \
      --config.data.records=runs/demo/records

Run the same command again to continue a run that stopped. The loop's contract:
  1. the batch, the stage and the random key of a step depend on its number only;
  2. a checkpoint of step n holds the state after n steps, and is written after
     the metrics of step n;
  3. the last step of each stage is validated and checkpointed, whatever the rhythm.
"""

import contextlib
import dataclasses
import itertools
import json
from pathlib import Path
import signal
import sys
import time
from typing import Any, Callable, Iterator

from absl import app
from absl import flags
from absl import logging
import jax

from plan_jax import checkpoint
from plan_jax import command_line
from plan_jax import config as config_lib
from plan_jax import errors
from plan_jax import evaluation
from plan_jax import flops
from plan_jax import inference
from plan_jax import mesh as mesh_lib
from plan_jax import metrics
from plan_jax import optim
from plan_jax import processes
from plan_jax import profiling
from plan_jax import prompts as prompts_lib
from plan_jax import report
from plan_jax import shapes
from plan_jax import stages
from plan_jax import step as step_lib
from plan_jax.convert import load
from plan_jax.data import pipeline
from plan_jax.data import records as records_lib
from plan_jax.data import tokenize

_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Directory of the run: checkpoints, metrics, pictures. A run found there is '
    'continued.')
_PROFILE = flags.DEFINE_boolean(
    'profile', False, 'Record a profile of five steps in WORKDIR/profile, for TensorBoard or xprof.')
_COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'HOST:PORT of process 0, for a run of several processes; they use this '
    'port and the next.')
_NUM_PROCESSES = flags.DEFINE_integer('num-processes', None, 'How many processes the run has.')
_PROCESS_ID = flags.DEFINE_integer('process-id', None, 'Which of them this is, from 0.')
_START_TIMEOUT = flags.DEFINE_integer(
    'start-timeout', 1800, 'Seconds that processes wait for each other at the start.')
MAX_SKIPPED_IN_A_ROW = 20
_PROFILED = range(11, 16)  # of the steps since the start: all is compiled and caches are warm


class TrainingError(errors.UserError):
  """A run that cannot go on."""


def train(
    config: config_lib.Config, workdir: Path, *, team: processes.Team = processes.Team(),
    profile: bool = False,
) -> None:
  """Runs, or continues, the training that `config` describes, in `workdir`.

  All processes of `team` call it, with the same arguments; records may be copies, the workdir
  must be one. With `profile` a trace of five steps is written as well.

  Raises:
    UserError: records, checkpoint or workdir cannot be used; the message says why.
  """
  errors.require_writable(workdir, option='--workdir')
  print(f'reading records: {config.data.records or "(none given)"}', flush=True)
  if not config.data.records:
    raise TrainingError('config.data.records is empty; give the directory that '
                        'plan_jax.data.prepare wrote: --config.data.records=DIR')
  card = records_lib.read_card(config.data.records)
  _require_one_run(team, config=config, workdir=workdir, content_hash=card['content_hash'])
  vocabulary = tokenize.read_vocabulary(records_lib.vocabulary_path(config.data.records))
  tokenizer = tokenize.Tokenizer(
      vocabulary, max_pieces=config.data.max_pieces, max_words=config.data.max_words)
  records = records_lib.Records(config.data.records, 'train')
  if config.evaluation.prompts:  # read at the end, refused now
    prompts_lib.require_known(prompts_lib.read(config.evaluation.prompts), known=card['classes'],
                              where=config.data.records)
  mesh = mesh_lib.make_mesh()
  if config.train.batch_size % (mesh.size * config.train.chunks):
    parts = f' times config.train.chunks = {config.train.chunks}' if config.train.chunks > 1 else ''
    raise TrainingError(f'config.train.batch_size = {config.train.batch_size}: must be a multiple '
                        f'of the {mesh.size} devices{parts}')
  if (team.count > 1 and jax.default_backend() == 'cpu'
      and config.train.sharding is config_lib.Sharding.FSDP):
    raise TrainingError(  # gloo aborts: XLA does not keep the gathers of all processes in one order
        'config.train.sharding = fsdp: several processes on CPUs cannot split parameters; use '
        'replicated, or one process with several devices')
  try:
    how = step_lib.contrast_plan(config, mesh)
  except ValueError as error:  # an algorithm that this platform does not have
    raise TrainingError(f'config.{error}') from None

  model = step_lib.build_model(config, vocab_size=len(vocabulary))
  optimizer = optim.make_optimizer(config.optim, total_steps=config.train.steps)
  placed = step_lib.state_shardings(model, optimizer, config=config, mesh=mesh)
  init = jax.jit(lambda: step_lib.init_state(model, optimizer, config=config), out_shardings=placed)
  schedule = stages.schedule(config.stages, total_steps=config.train.steps)
  checkpoints = checkpoint.Checkpoints(
      workdir / 'checkpoints', stage_ends=list(schedule.ends.values()),
      keep_newest=config.train.keep_newest)

  start = checkpoints.latest_step() or 0
  if profile and config.train.steps < start + _PROFILED[-1]:
    raise TrainingError(f'--profile needs {_PROFILED[-1]} steps to go, there are '
                        f'{config.train.steps - start}; leave it out')
  profiled = range(start + _PROFILED.start, start + _PROFILED.stop) if profile else range(0)

  run = _Run(config=config, workdir=workdir, team=team, mesh=mesh, schedule=schedule,
             checkpoints=checkpoints, vocabulary=vocabulary, content_hash=card['content_hash'],
             peak_share=_peak_share(model, optimizer, config=config, mesh=mesh))
  if checkpoints.latest_step() is None:
    hosts = f' of {team.count} processes' if team.count > 1 else ''
    print(f'new run: {len(records)} training pairs, {mesh.size} {jax.default_backend()} '
          f'device(s){hosts}', flush=True)
    state = load.start(init, settings=config, vocabulary=vocabulary)
  else:
    print(f'continuing from step {checkpoints.latest_step()} of {config.train.steps}', flush=True)
    state = checkpoints.restore(
        jax.eval_shape(init), config=config, vocabulary=vocabulary,
        content_hash=card['content_hash'], shardings=placed)
  if team.is_first:
    (workdir / 'config.json').write_text(json.dumps(config_lib.to_dict(config), indent=2) + '\n')
  if how:
    print(f'word-pixel contrast: {how}', flush=True)
  parameters = sum(x.size for x in jax.tree.leaves(state.params))
  print(f'{parameters / 1e6:.1f} M parameters; compiling the step (once for all stages)', flush=True)
  train_step = step_lib.make_train_step(model, optimizer, config=config, mesh=mesh)
  batches = pipeline.batches(
      records, tokenizer=tokenizer, settings=config.data, batch_size=config.train.batch_size,
      seed=config.train.seed, start_step=int(state.step),
      host=team.index, hosts=team.count)
  with (contextlib.closing(pipeline.to_device(batches, mesh_lib.split(mesh))) as device_batches,
        contextlib.closing(profiling.Trace(workdir / 'profile', steps=profiled)) as trace):
    state = run.loop(state, train_step, device_batches, trace=trace)
  run.finish(state)


def _require_one_run(
    team: processes.Team, *, config: config_lib.Config, workdir: Path, content_hash: str) -> None:
  """Fails unless all processes train the same, and into the same directory.

  Raises:
    ProcessError: it names the processes that differ.
  """
  shared = dataclasses.replace(
      config, data=dataclasses.replace(config.data, records='', workers=0, threads=1))
  team.require_same(json.dumps(config_lib.to_dict(shared)), what='the config',
                    fix='give all the same code and options')
  team.require_same(content_hash, what=f'config.data.records={config.data.records}: the content',
                    fix='copy the same records to all hosts, or share them')
  if team.count == 1:
    return
  mark = workdir / '.processes'
  if team.is_first:
    mark.write_text(str(time.time_ns()))
  team.gather(None)  # now it is there
  team.require_same(mark.read_text() if mark.exists() else '', what=f'--workdir={workdir}: the directory',
                    fix='give a directory that all hosts share, such as one on NFS')


def _peak_share(model, optimizer, *, config, mesh) -> Callable[[shapes.StageValues], float]:
  """Of a stage: the FLOPs of a step as a share of a second of all devices; 0 if their peak is unknown."""
  peak = flops.peak(mesh.devices.flat[0])
  if peak is None:
    return lambda stage: 0.0
  found = step_lib.model_flops(model, optimizer, config=config, mesh=mesh)
  print(f'model FLOPs of a step: {found.base / 1e12:.3g} TFLOP, {found.teacher / 1e12:.3g} more with the '
        f'teacher, {found.short_text / 1e12:.3g} more with short texts', flush=True)
  return lambda stage: found.mean(stage) / (peak * mesh.size)


@dataclasses.dataclass(kw_only=True)
class _Run:
  """What the loop needs besides the state."""

  config: config_lib.Config
  workdir: Path
  team: processes.Team
  mesh: jax.sharding.Mesh
  schedule: stages.Schedule
  checkpoints: checkpoint.Checkpoints
  vocabulary: list[str]
  content_hash: str
  peak_share: Callable[[shapes.StageValues], float]

  def loop(
      self, state: step_lib.TrainState, train_step: step_lib.TrainStep,
      batches: Iterator[shapes.Batch], *, trace: profiling.Trace,
  ) -> step_lib.TrainState:
    """Steps to the end, logging, validating and saving on the way."""
    settings, start = self.config.train, int(state.step)
    writer = (metrics.Writer(self.workdir, start_step=start) if self.team.is_first
              else metrics.Silent())
    progress = metrics.Progress(
        total_steps=settings.steps, start_step=start, batch_size=settings.batch_size)
    stop = _StopSignal()
    log = _Log(config=self.config, schedule=self.schedule, writer=writer, progress=progress,
               peak_share=self.peak_share, skipped=int(state.skipped), all_skipped_since=start)
    ends = set(self.schedule.ends.values())
    if start < settings.steps:
      train_step, batches = self.compiled(train_step, state, batches)
    for step in range(start + 1, settings.steps + 1):
      trace.before(step, state)
      state, values = train_step(state, next(batches), self.schedule.values(step - 1))
      trace.after(step, state)
      log.flush()  # of the step before: the device is busy with this one
      logged = step % settings.log_every == 0 or step == settings.steps
      if logged:
        log.pending = step, values
      validate = step % settings.eval_every == 0 or step in ends
      save = step % settings.checkpoint_every == 0 or step in ends
      # Several processes ask each other only now and then.
      stopping = (logged or self.team.count == 1) and self.team.any(stop.asked)
      if validate or save or stopping or step == settings.steps:
        log.flush()
      if validate or save or stopping:
        jax.block_until_ready(state)  # steps under way are no part of the pause
        began = time.monotonic()
        found = self.validate(state) if validate else {}
        if found:
          writer.write(step, found)
          progress.note(f'validation at step {step}: ' + ', '.join(
              f'{name.removeprefix("val_")} {value:.3f}' for name, value in found.items()))
        stopping = self.team.any(stop.asked)  # may have come during the validation
        if save or stopping:
          self.checkpoints.save(state, about=self.about(step, found))
        progress.pause(time.monotonic() - began)
        if stopping:
          self.checkpoints.close()
          writer.close()
          raise SystemExit(f'stopped at step {step}, saved; the same command continues')
    self.checkpoints.close()
    writer.close()
    stop.restore()
    return state

  def compiled(self, train_step, state, batches):
    """The step as a program, ready to run, and the batches, of which it has read the first."""
    first = next(batches)  # what cannot be read is told before minutes of compiling
    program = train_step.lower(state, first, self.schedule.values(int(state.step))).compile()
    processes.trim_heap()
    return program, itertools.chain(iter([first]), batches)  # a list would keep it for the whole run

  def about(self, step: int, found: dict[str, float]) -> dict[str, Any]:
    """What the checkpoint of `step` says of itself."""
    return checkpoint.describe(
        self.config, vocabulary=self.vocabulary, stage=self.schedule.name(step - 1),
        content_hash=self.content_hash, examples_seen=step * self.config.train.batch_size,
        metrics=found)

  def model(self, state: step_lib.TrainState) -> inference.Model:
    """The present weights, ready for evaluation; all processes must call it."""
    return inference.Model(
        self.config, self.vocabulary, mesh_lib.local_copy(
            {'params': state.params, 'batch_stats': state.batch_stats}, mesh=self.mesh),
        team=self.team)

  def validate(self, state: step_lib.TrainState) -> dict[str, float]:
    """Retrieval and grounding on `train.eval_pairs` validation pairs, the same every time.

    All processes have the figures; those of the first are saved.
    """
    found = evaluation.validate(
        self.model(state), self.config.data.records, max_pairs=self.config.train.eval_pairs)
    return self.team.gather(found)[0]

  def finish(self, state: step_lib.TrainState) -> None:
    """Figures, curves, pictures, and where they are."""
    settings = self.config.evaluation
    model = self.model(state)
    out = self.workdir / 'eval'
    if self.team.is_first:
      report.curves(metrics.read(self.workdir / 'metrics.jsonl'), self.workdir / 'curves.png')
    saved = self.checkpoints.directory / str(int(state.step))
    if not len(records_lib.Records(self.config.data.records, settings.split)):
      print(f'the records have no {settings.split} split, so there are no figures\n\n'
            f'checkpoint  {saved}\npictures    {self.workdir / "curves.png"}')
      return
    print(f'evaluating on the {settings.split} split (up to {settings.max_pairs} pairs)', flush=True)
    card = records_lib.read_card(self.config.data.records)
    first_only = dict(pictures=settings.pictures, out=out) if self.team.is_first else dict(replicates=1)
    results = evaluation.evaluate(
        model, self.config.data.records, split=settings.split,
        max_pairs=settings.max_pairs, prompts=settings.prompts or None, checkpoint=saved,
        include_text=card['kind'] == 'phantom',  # the text of no patient
        **first_only)
    print(evaluation.table(results))
    pictures = [path for path in (out / 'grounding.png', self.workdir / 'curves.png')
                if path.exists()]  # without phrases there is nothing to ground
    print(f'\ncheckpoint  {saved}\n'
          f'page        {out / "report.html"}\n'
          f'figures     {out / "metrics.json"}\n'
          f'pictures    {", ".join(map(str, pictures))}')


@dataclasses.dataclass(kw_only=True)
class _Log:
  """Figures of a step, fetched when the next one is under way, so that no step waits."""

  config: config_lib.Config
  schedule: stages.Schedule
  writer: metrics.Writer
  progress: metrics.Progress
  peak_share: Callable[[shapes.StageValues], float]
  skipped: int
  all_skipped_since: int
  pending: tuple[int, step_lib.Metrics] | None = None

  def flush(self) -> None:
    """Writes and shows what is pending.

    Raises:
      TrainingError: the steps since the last time were all skipped, and too many.
    """
    if self.pending is None:
      return
    (step, values), self.pending = self.pending, None
    values = {name: float(value) for name, value in jax.device_get(values).items()}
    if values['skipped_steps'] - self.skipped < step - self.all_skipped_since:
      self.skipped, self.all_skipped_since = values['skipped_steps'], step
    elif step - self.all_skipped_since >= MAX_SKIPPED_IN_A_ROW:
      raise TrainingError(
          f'step {step}: loss or gradient was not finite for {step - self.all_skipped_since} '
          'steps in a row; start a new --workdir with a lower config.optim.lr '
          f'(now {self.config.optim.lr:g})')
    losses = {k: v for k, v in values.items() if k.startswith('loss')}
    stage = self.schedule.name(step - 1)
    speed = self.progress.update(
        step, stage=stage, losses=losses,
        peak_share_of_step=self.peak_share(self.schedule.values(step - 1)))
    self.writer.write(step, {'stage': stage, **speed, **values})


class _StopSignal:
  """Remembers that SIGTERM or Ctrl-C came, so that the loop saves before it ends."""

  def __init__(self):
    self.asked = False
    self._before = {number: signal.signal(number, self._ask)
                    for number in (signal.SIGTERM, signal.SIGINT)}

  def restore(self) -> None:
    """Gives the signals back."""
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _ask(self, number, frame):
    del frame
    self.asked = True
    print('\nstopping after this step', flush=True)
    signal.signal(number, signal.SIG_DFL)  # a second signal ends at once


def _keep_compiled(workdir: Path) -> None:
  """Has JAX keep what it compiles, so that a run that continues need not wait for it again."""
  if jax.config.jax_compilation_cache_dir is None:  # JAX_COMPILATION_CACHE_DIR is not set
    jax.config.update('jax_compilation_cache_dir', str(workdir / 'compiled'))


def main(argv: list[str]) -> None:
  """Command line."""
  del argv
  command_line.require(config=command_line.CONFIG.value, workdir=_WORKDIR.value)
  where = processes.place(coordinator=_COORDINATOR.value, count=_NUM_PROCESSES.value,
                          index=_PROCESS_ID.value)
  workdir = Path(_WORKDIR.value).absolute()
  _keep_compiled(workdir)
  logging.set_verbosity(logging.ERROR)  # orbax tells of every file, and warns of what is meant
  with processes.joined(where, timeout_s=_START_TIMEOUT.value) as team, team.one_voice():
    train(config_lib.resolve(command_line.CONFIG.value), workdir, team=team,
          profile=_PROFILE.value)


def cli() -> None:
  """Runs `main`; an error that the user can mend is one line, not a traceback."""
  sys.exit(errors.exit_status(
      lambda: app.run(main, flags_parser=command_line.parse),
      again='the same command continues from the last checkpoint'))


if __name__ == '__main__':
  cli()
