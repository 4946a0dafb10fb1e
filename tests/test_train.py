"""A whole run through the command line: to its end, killed and continued, and refused."""

import json
import os
from pathlib import Path
import shlex
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import plan_jax
from plan_jax import checkpoint
from plan_jax import command_line
from plan_jax import config as config_lib
from plan_jax import metrics
from plan_jax import train
from plan_jax.data import prepare
from tests import quick_to_compile

ROOT = Path(__file__).parents[1]
STEPS = 40
TINY = [
    '--config.data.image_size=32', '--config.data.max_pieces=48', '--config.data.max_words=32',
    '--config.model.joint_dim=16', f'--config.train.steps={STEPS}', '--config.train.batch_size=4',
    '--config.train.log_every=1', '--config.train.eval_every=20', '--config.train.eval_pairs=8',
    '--config.train.checkpoint_every=10', '--config.train.keep_newest=1',
    '--config.evaluation.max_pairs=16', '--config.evaluation.pictures=4',
    '--config.stages.discover.share=0.2', '--config.stages.refine.share=0.3',
    '--config.stages.focus.share=0.5',
    # All terms and the teacher's own weights: resuming must bring back everything.
    '--config.objective.teacher=ema', '--config.objective.word_region_weight=0.3',
    '--config.objective.pixel_word_weight=0.5',
]


GIVEN = shlex.split(os.environ.get('PLAN_JAX_RUN_OPTIONS', ''))


@pytest.fixture(scope='module')
def records(tmp_path_factory):
  out = tmp_path_factory.mktemp('records') / 'phantoms'
  assert prepare.main(['phantom', '--pairs', '96', '--seed', '3', '--size', '80', '--workers', '1',
                       '--out', str(out)]) == 0
  return out


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
  """The compiled step is shared between the runs of this file."""
  return {**os.environ, 'XLA_FLAGS': quick_to_compile.FLAGS,
          'JAX_COMPILATION_CACHE_DIR': str(tmp_path_factory.mktemp('compiled')),
          'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.5'}


def command(workdir, records, *options):
  # `bash launch/test.sh --config.optim.lr=1e-4` comes here through the environment. --workdir
  # names the folder of the runs' folders: each test needs its own.
  given = [o for o in GIVEN if not o.startswith('--workdir=')]
  return [sys.executable, '-m', 'plan_jax.train', '--config=configs/demo.py',
          f'--workdir={workdir}', f'--config.data.records={records}', *TINY, *options, *given]


@pytest.fixture(scope='module')
def straight(tmp_path_factory, records, environment):
  """An uninterrupted run: its workdir and what it printed."""
  workdir = tmp_path_factory.mktemp('straight')
  for option in GIVEN:
    if option.startswith('--workdir='):
      workdir = Path(option.partition('=')[2]).absolute() / f'straight-{int(time.time())}'
  done = subprocess.run(command(workdir, records), cwd=ROOT, env=environment, capture_output=True,
                        text=True, timeout=500)
  assert done.returncode == 0, done.stderr[-3000:]
  return workdir, done.stdout


def saved(workdir, step):
  """All arrays of a checkpoint, as numpy."""
  where = Path(workdir) / 'checkpoints' / str(step)
  return {item: ocp.PyTreeCheckpointer().restore(where / item) for item in ('model', 'train')}


def test_a_run_trains_three_stages_and_says_where_things_are(straight):
  workdir, printed = straight
  rows = [row for row in metrics.read(workdir / 'metrics.jsonl') if 'loss' in row]
  assert [row['step'] for row in rows] == list(range(1, STEPS + 1))
  stages = [row['stage'] for row in rows]
  assert (stages[7], stages[8], stages[19], stages[20]) == ('discover', 'refine', 'refine', 'focus')
  assert all(np.isfinite(row['loss']) for row in rows)
  for name in ('checkpoints', 'eval/metrics.json', 'eval/grounding.png', 'curves.png'):
    assert (workdir / name).exists(), name
    assert str(workdir / name) in printed, name
  assert list((workdir / 'tensorboard').glob('events*'))
  assert 'ETA' in printed and 'pairs/s' in printed


def test_metrics_json_has_the_agreed_shape(straight):
  results = json.loads((straight[0] / 'eval' / 'metrics.json').read_text())
  assert set(results['zero_shot']['macro_auroc']) == {'value', 'low', 'high', 'n'}
  for name in ('cnr', 'miou', 'pointing'):
    assert set(results['grounding'][name]) == {'value', 'low', 'high', 'n'}
  assert 0 <= results['retrieval']['image_to_text']['r@5']['value'] <= 1


def test_the_last_checkpoint_of_each_stage_is_kept(straight):
  steps = {int(path.name) for path in (straight[0] / 'checkpoints').iterdir()}
  assert {8, 20, 40} <= steps
  assert 30 not in steps  # neither the end of a stage, nor the newest; validated ones may be best


def test_a_checkpoint_explains_itself_and_loads(straight):
  about = checkpoint.read_about(straight[0] / 'checkpoints' / '8')
  assert about['stage'] == 'discover' and about['examples_seen'] == 8 * 4
  assert config_lib.resolve(about['config']).data.image_size == 32
  assert about['vocabulary'][0] == '[PAD]' and about['versions']['jax']
  model = plan_jax.load(straight[0])
  scores = model.similarity([np.full((90, 70), 99, np.uint8)], ['no pneumothorax', 'clear lungs'])
  assert scores.shape == (1, 2) and np.all(np.abs(scores) <= 1 + 1e-5)


def interrupted(workdir, records, environment, *, by, when, log):
  """Starts the run and sends a signal when `when(metric rows)`; exit status and what it printed."""
  with open(log, 'w') as out:
    running = subprocess.Popen(command(workdir, records), cwd=ROOT, env=environment, stdout=out,
                               stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 400
    while (running.poll() is None and time.monotonic() < deadline
           and not when(metrics.read(workdir / 'metrics.jsonl'))):
      time.sleep(0.01)
    running.send_signal(by)
    running.wait(timeout=120)
  return running.returncode, log.read_text()


def test_stopped_killed_and_continued_is_bitwise_the_same(straight, tmp_path, records, environment):
  status, printed = interrupted(
      tmp_path, records, environment, by=signal.SIGTERM, when=bool, log=tmp_path / 'stopped.log')
  assert status == 1 and 'the same command continues' in printed, printed[-2000:]
  assert 'Traceback' not in printed
  last = metrics.read(tmp_path / 'metrics.jsonl')[-1]['step']
  assert max(int(path.name) for path in (tmp_path / 'checkpoints').iterdir()) == last < STEPS - 10

  status, printed = interrupted(
      tmp_path, records, environment, by=signal.SIGKILL, log=tmp_path / 'killed.log',
      when=lambda rows: rows[-1]['step'] > last + 5)
  assert status == -signal.SIGKILL, printed[-2000:]
  assert f'continuing from step {last}' in printed
  assert not (tmp_path / 'checkpoints' / str(STEPS)).exists()

  done = subprocess.run(command(tmp_path, records), cwd=ROOT, env=environment, capture_output=True,
                        text=True, timeout=500)
  assert done.returncode == 0, done.stderr[-3000:]
  assert 'continuing from step' in done.stdout
  ours, theirs = saved(tmp_path, STEPS), saved(straight[0], STEPS)
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  arrays = list(zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))
  for a, b in arrays:
    np.testing.assert_array_equal(a, b)
  print(f'{len(arrays)} arrays bitwise equal')

  def plain(workdir):  # each step once, everything but the speed
    return [{k: v for k, v in row.items() if k != 'pairs_per_s'}
            for row in metrics.read(workdir / 'metrics.jsonl')]

  assert plain(tmp_path) == plain(straight[0])


def refused(records, workdir, **changes):
  values = {'data': {'records': str(records), 'image_size': 32, 'max_pieces': 48, 'max_words': 32},
            'model': {'image': 'resnet_tiny', 'text': 'bert_tiny', 'joint_dim': 16},
            'train': {'steps': STEPS, 'batch_size': 8}}
  for group, settings in changes.items():
    values[group] = {**values.get(group, {}), **settings}
  with pytest.raises(train.errors.UserError) as error:
    train.train(config_lib.resolve(values), Path(workdir))
  return str(error.value)


def test_refusals_name_the_thing_and_the_fix(straight, records, tmp_path):
  assert 'config.data.records' in refused('', tmp_path)
  assert 'does not exist' in refused(tmp_path / 'nowhere', tmp_path)
  assert 'batch_size = 9' in refused(records, tmp_path, train={'batch_size': 9})  # 8 devices
  assert "algorithm = 'fused' is a kernel for TPUs, this is cpu; use 'auto'" in refused(
      records, tmp_path, objective={'algorithm': 'fused'})
  blocked = tmp_path / 'file'
  blocked.write_text('')
  assert '--workdir' in refused(records, blocked / 'run')
  another = refused(records, straight[0], train={'batch_size': 8})
  assert 'config.train.batch_size = 8 (checkpoint: 4)' in another and '--workdir' in another


@pytest.mark.parametrize('source, part', [
    ('def get_config(:', 'SyntaxError'), ('LR = 1', 'get_config'), ('import absent_package', 'absent_package'),
    ('from plan_jax import config\ndef get_config():\n  c = config.defaults()\n  c.optimm.lr = 1\n'
     '  return c', 'optimm'),
])
def test_a_broken_config_file_is_named(source, part, tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(source)
  before = command_line.flags.FLAGS
  with pytest.raises(command_line.CommandLineError, match='mine.py.*cannot be used') as error:
    command_line.parse(['train', f'--config={path}', f'--workdir={tmp_path}'])
  assert part in str(error.value)
  before.unparse_flags()


@pytest.mark.parametrize('options, parts', [
    (['--config.optim.lrr=1'], ['lrr']),
    (['--config.optim.lr=fast'], ['lr', 'fast']),
    (['--config=configs/absent.py'], ['configs/absent.py']),
    (['--confg=configs/demo.py'], ['confg', 'Did you mean']),
    (['configs/demo.py'], ['unknown arguments: configs/demo.py']),
])
def test_the_command_line_refuses_without_a_traceback(options, parts, tmp_path, environment):
  done = subprocess.run(
      [sys.executable, '-m', 'plan_jax.train', '--config=configs/demo.py',
       f'--workdir={tmp_path}', *options], cwd=ROOT, env=environment, capture_output=True, text=True)
  assert done.returncode == 2
  assert 'Traceback' not in done.stderr, done.stderr
  for part in parts:
    assert part in done.stderr + done.stdout
