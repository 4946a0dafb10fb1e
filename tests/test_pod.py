"""One run handed from 2 processes to 4 and to 1, beside the same run by one process.

All have 4 devices in all, so that they differ in the processes only.
"""

import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import plan_jax
from plan_jax import config as config_lib
from plan_jax import mesh as mesh_lib
from plan_jax import metrics
from plan_jax import train
from plan_jax.data import prepare
from tests import pod_config
from tests import quick_to_compile
from tests import small_pairs
from tests.test_processes import free_port

ROOT = Path(__file__).parents[1]
DEVICES, STEPS = 4, 12
# Processes that share a batch add its sums in another order. Measured: losses differ by 2e-6 at most;
# gradient norms by 6e-6, but for two steps of up to 3e-4, where rounding changes which cell is the largest.
LOSS, GRADIENT = 1e-4, 2e-3


@pytest.fixture(scope='module')
def records(tmp_path_factory):
  """Pairs for training and validation; without a test split nothing is evaluated at the end."""
  folder = tmp_path_factory.mktemp('pairs')
  small_pairs.pairs(folder, 48)
  rows = [json.loads(line) for line in (folder / 'rows.jsonl').read_text().splitlines()]
  manifest = small_pairs.manifest(folder, *(
      {**row, 'split': 'val' if i % 2 else 'train'} for i, row in enumerate(rows)))
  assert prepare.main(['manifest', '--manifest', str(manifest), '--out', str(folder / 'records'),
                       '--workers', '1']) == 0
  return folder / 'records'


@pytest.fixture
def compiled(tmp_path):
  """What this process compiles for the first run it finds for the last one."""
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'compiled'))
  yield
  jax.config.update('jax_compilation_cache_dir', before)


def alone(workdir, records):
  """Trains in this process, to the end; `few_devices` is in force."""
  config = pod_config.get_config()
  config.data.records = str(records)
  train.train(config_lib.resolve(config), workdir)


@pytest.fixture
def few_devices(monkeypatch):
  make_mesh = mesh_lib.make_mesh
  monkeypatch.setattr(mesh_lib, 'make_mesh', lambda: make_mesh(jax.devices()[:DEVICES]))


def start(workdir, records, *, count):
  """The processes of a run; process i of them writes to <workdir>.<count>.<i>.log."""
  environment = {
      **os.environ, 'PYTHONPATH': str(ROOT),
      'XLA_FLAGS': f'{quick_to_compile.FLAGS} --xla_force_host_platform_device_count='
                   f'{DEVICES // count}'}
  port = free_port()
  running = []
  for i in range(count):
    with open(f'{workdir}.{count}.{i}.log', 'w') as out:
      running.append(subprocess.Popen(
          [sys.executable, '-m', 'plan_jax.train', '--config=tests/pod_config.py',
           f'--workdir={workdir}', f'--config.data.records={records}', '--start-timeout=120',
           f'--coordinator=127.0.0.1:{port}', f'--num-processes={count}', f'--process-id={i}'],
          cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT))
  return running


def said(workdir, count, index):
  return Path(f'{workdir}.{count}.{index}.log').read_text()


def figures(workdir):
  return {row['step']: [row['loss'], row['grad_norm']]
          for row in metrics.read(workdir / 'metrics.jsonl') if 'loss' in row}


def validation(workdir):
  return {row['step']: {name: value for name, value in row.items() if name.startswith('val_')}
          for row in metrics.read(workdir / 'metrics.jsonl') if 'loss' not in row}


def wait_until(running, happened):
  while not happened() and all(each.poll() is None for each in running):
    time.sleep(0.01)


def test_a_run_by_2_processes_4_and_1_gives_the_losses_of_1(
    tmp_path, records, compiled, few_devices):
  one, pod = tmp_path / 'one', tmp_path / 'pod'
  alone(one, records)

  # Two start it; one is killed, and the other ends.
  first, second = start(pod, records, count=2)
  wait_until([first, second], lambda: 3 in figures(pod) and (pod / 'checkpoints' / '2').exists())
  second.kill()
  second.wait()
  assert first.wait(60) == 1, said(pod, 2, 0)[-3000:]
  message = said(pod, 2, 0)
  assert 'error: process 1 (host ' in message and 'has ended before the run was over' in message
  assert 'the same command continues from the last checkpoint' in message.lower()
  by_two = figures(pod)
  assert max(by_two) < STEPS

  # Four continue it, until one is asked to stop; they validate after step 5.
  four = start(pod, records, count=4)
  wait_until(four, lambda: f'step 6/{STEPS}' in said(pod, 4, 0))
  four[3].send_signal(signal.SIGTERM)
  assert [each.wait(120) for each in four] == [1] * 4, said(pod, 4, 0)[-3000:]
  assert re.search(rf'continuing from step \d+ of {STEPS}', said(pod, 4, 0))
  assert 'continuing from' not in said(pod, 4, 1)  # one speaks
  by_four = figures(pod)
  saved = max(int(path.name) for path in (pod / 'checkpoints').iterdir())
  assert max(by_four) == saved and 6 <= saved < STEPS

  # What four wrote is a model for one CPU, and one process ends the run.
  vectors = plan_jax.load(pod).embed_texts(['lungs', 'no report'])
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
  alone(pod, records)

  expected = figures(one)
  assert list(expected) == list(range(1, STEPS + 1)) == list(figures(pod))
  for found in (by_two, by_four, figures(pod)):
    for k, tolerance in enumerate((LOSS, GRADIENT)):
      np.testing.assert_allclose([row[k] for row in found.values()],
                                 [expected[step][k] for step in found], rtol=tolerance)
  assert set(validation(one)) == {5, 9, 12}
  assert validation(pod) == validation(one)
