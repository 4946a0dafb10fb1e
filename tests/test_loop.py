"""The training loop around a step that is none: what waits for what, profiles, MFU, the cache."""

import contextlib
import dataclasses
import os
import signal
import types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plan_jax import mesh as mesh_lib
from plan_jax import metrics
from plan_jax import processes
from plan_jax import profiling
from plan_jax import stages
from plan_jax import step as step_lib
from plan_jax import train
from tests import tiny

STEPS = 20


class Figure:
  """A metric that tells when it is fetched."""

  def __init__(self, events, step):
    self._events, self._step = events, step

  def __array__(self, dtype=None, copy=None):
    del dtype, copy
    self._events.append(('fetch', self._step))
    return np.float32(0.0)


class Loop:
  """A run of no model; `events` are what its steps did, in order."""

  def __init__(self, workdir):
    one_stage = {'discover': {'share': 1.0}, 'refine': {'share': 0.0}, 'focus': {'share': 0.0}}
    config = tiny.config(stages=one_stage, train={
        'steps': STEPS, 'batch_size': 8, 'log_every': 1, 'eval_every': 100, 'checkpoint_every': 100})
    self.workdir, self.events, self.at_step = workdir, [], lambda step: None
    self.run = train._Run(
        config=config, workdir=workdir, team=processes.Team(), mesh=None,
        schedule=stages.schedule(config.stages, total_steps=STEPS), vocabulary=[], content_hash='',
        checkpoints=types.SimpleNamespace(save=lambda *_, **__: None, close=lambda: None),
        peak_share=lambda stage: 1e-9)
    self.run.validate, self.run.about = (lambda *_: {}), (lambda *_: {})
    self.run.compiled = lambda step, state, batches: (step, batches)

  def step(self, state, batch, stage):
    del batch, stage
    number = int(state.step) + 1
    self.events.append(('dispatch', number))
    self.at_step(number)
    value = jnp.sin(jnp.ones(8) * number)
    values = {'loss': Figure(self.events, number), 'skipped_steps': 0}
    return types.SimpleNamespace(step=number, skipped=0, value=value), values

  def __call__(self, *, steps=range(0)):
    start = types.SimpleNamespace(step=0, skipped=0, value=None)
    trace = profiling.Trace(self.workdir / 'profile', steps=steps)
    with contextlib.closing(trace):
      self.run.loop(start, self.step, iter(range(STEPS)), trace=trace)


@pytest.fixture
def loop(tmp_path):
  before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
  yield Loop(tmp_path)
  for number, handler in before.items():  # a stopped run keeps them: its process ends
    signal.signal(number, handler)


def test_figures_of_a_step_are_fetched_when_the_next_is_under_way(loop):
  loop()
  order = {event: place for place, event in enumerate(loop.events)}
  assert len(order) == 2 * STEPS
  for step in range(1, STEPS):
    assert order['fetch', step] > order['dispatch', step + 1], step


def test_a_profile_holds_its_steps_and_waits_for_those_before(loop, monkeypatch):
  monkeypatch.setattr(profiling.jax.profiler, 'start_trace', lambda _: loop.events.append('start'))
  monkeypatch.setattr(profiling.jax.profiler, 'stop_trace', lambda: loop.events.append('stop'))
  monkeypatch.setattr(
      profiling.jax, 'block_until_ready', lambda state: loop.events.append(('wait', state.step)))
  loop(steps=range(11, 16))
  events = [event for event in loop.events if event[0] != 'fetch']
  begin, end = events.index('start'), events.index('stop')
  assert events[begin - 1:end + 1] == [
      ('wait', 10), 'start', *(('dispatch', step) for step in range(11, 16)), ('wait', 15), 'stop']
  assert events.count('start') == events.count('stop') == 1


@pytest.mark.parametrize('ending', ['stopped', 'failed'])
def test_a_run_that_ends_within_its_profile_leaves_it(loop, ending, capsys):
  def end(step):
    if step == 12 and ending == 'stopped':
      os.kill(os.getpid(), signal.SIGTERM)
    elif step == 12:
      raise RuntimeError('no more memory')

  loop.at_step = end
  with pytest.raises(SystemExit if ending == 'stopped' else RuntimeError):
    loop(steps=range(11, 16))
  assert list((loop.workdir / 'profile').rglob('*.xplane.pb'))
  assert 'profile of steps from 11 on, cut short' in capsys.readouterr().out
  jax.profiler.start_trace(str(loop.workdir / 'another'))  # none is open any more
  jax.profiler.stop_trace()


def test_mfu_is_shown_and_kept(loop, monkeypatch, capsys):
  mesh = mesh_lib.make_mesh(jax.devices()[:4])
  monkeypatch.setattr(train.flops, 'peak', lambda device: 5e12)
  of_a_step = step_lib.StepFlops(base=2 * 10**12, teacher=10**12)
  monkeypatch.setattr(train.step_lib, 'model_flops', lambda *_, **__: of_a_step)
  loop.run.peak_share = train._peak_share(None, None, config=None, mesh=mesh)
  assert loop.run.peak_share(loop.run.schedule.values(0)) == pytest.approx(0.1)
  loop()
  printed = capsys.readouterr().out
  assert 'model FLOPs of a step: 2 TFLOP, 1 more with the teacher' in printed and '%' in printed.partition('MFU ')[2][:12]
  rows = metrics.read(loop.workdir / 'metrics.jsonl')
  assert len(rows) == STEPS
  for row in rows:
    assert row['mfu'] == pytest.approx(0.1 * row['pairs_per_s'] / 8)


def test_the_first_batch_is_read_before_compiling_and_not_kept(loop):
  class Batch:
    pass

  def read():
    for number in range(3):
      loop.events.append(('read', number))
      yield Batch()

  def compile_it():
    loop.events.append('compile')
    return 'program'

  step = types.SimpleNamespace(lower=lambda *_: types.SimpleNamespace(compile=compile_it))
  start = types.SimpleNamespace(step=0)
  program, batches = train._Run.compiled(loop.run, step, start, read())
  assert program == 'program' and loop.events == [('read', 0), 'compile']
  first = weakref.ref(next(batches))
  assert isinstance(next(batches), Batch) and loop.events[-1] == ('read', 1)
  assert first() is None
  assert len(list(batches)) == 1


def test_a_pause_does_not_hold_the_steps_before_it(loop, monkeypatch):
  """Steps that are under way when a validation begins take their time; the validation takes its own."""
  clock = [0.0]
  monkeypatch.setattr(metrics.time, 'monotonic', lambda: clock[0])
  monkeypatch.setattr(train.time, 'monotonic', lambda: clock[0])
  ran = [0]

  def run_to(number):
    clock[0] += 2.0 * (number - ran[0])  # a step takes two seconds
    ran[0] = number

  def validate(state):
    run_to(state.step)
    clock[0] += 100.0
    return {'val_x': 1.0}

  settings = dataclasses.replace(loop.run.config.train, log_every=10, eval_every=15)
  loop.run.config = dataclasses.replace(loop.run.config, train=settings)
  loop.run.validate = validate
  monkeypatch.setattr(train.jax, 'block_until_ready', lambda state: run_to(state.step))
  monkeypatch.setattr(train.jax, 'device_get', lambda values: run_to(values['of']) or values)
  step = loop.step

  def of_number(state, batch, stage):
    state, values = step(state, batch, stage)
    return state, {**values, 'loss': 0.0, 'of': state.step}

  loop.step = of_number
  loop()
  rows = [row for row in metrics.read(loop.workdir / 'metrics.jsonl') if 'pairs_per_s' in row]
  assert [row['step'] for row in rows] == [10, 20]
  assert [row['pairs_per_s'] for row in rows] == [8 / 2.0, 8 / 2.0]


@pytest.mark.parametrize('given, kept', [(None, 'run/compiled'), ('elsewhere', 'elsewhere')])
def test_what_is_compiled_is_kept_with_the_run_unless_told_where(given, kept, tmp_path):
  before = jax.config.jax_compilation_cache_dir
  try:
    jax.config.update('jax_compilation_cache_dir', given and str(tmp_path / given))
    train._keep_compiled(tmp_path / 'run')
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / kept)
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
