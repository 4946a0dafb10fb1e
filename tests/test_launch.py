"""What run.sh finds and would run, in made-up surroundings; Slurm and MPI themselves if there."""

import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import sysconfig

import pytest

from plan_jax import errors
from plan_jax.data import records
from tests import quick_to_compile

ROOT = Path(__file__).parents[1]
SLURM = {'SLURM_JOB_ID': '12', 'SLURM_STEP_ID': '0', 'SLURM_STEP_NUM_TASKS': '4',
         'SLURM_PROCID': '1', 'SLURM_STEP_NODELIST': 'n[03-05,9],x', 'SLURM_LOCALID': '0'}
OPEN_MPI = {'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': '1',
            'OMPI_COMM_WORLD_LOCAL_SIZE': '2', 'OMPI_COMM_WORLD_LOCAL_RANK': '1'}


def dry_run(*options, **environment):
  """Exit status, and what was printed on both outputs."""
  done = subprocess.run(
      ['bash', 'launch/run.sh', '--dry-run', *options], cwd=ROOT, capture_output=True, text=True,
      env={'PATH': os.environ['PATH'], 'PLAN_JAX_PLATFORM': 'cpu', **environment}, timeout=60)
  return done.returncode, done.stdout + done.stderr


def place(coordinator, count, index):
  return f'--coordinator={coordinator} --num-processes={count} --process-id={index}'


def test_one_host_gets_no_place():
  status, printed = dry_run()
  assert status == 0 and 'found: one host; process 0 of 1; cpu' in printed
  assert 'plan_jax.data.prepare phantom' in printed and '--coordinator' not in printed


@pytest.mark.parametrize('environment, options, expected', [
    ({}, ['--coordinator=a:1', '--num-processes=3', '--process-id=2'], ('a:1', 3, 2)),
    (OPEN_MPI, [], ('127.0.0.1:8476', 2, 1)),
    ({'PMI_SIZE': '2', 'PMI_RANK': '1', 'MPI_LOCALNRANKS': '2'}, [], ('127.0.0.1:8476', 2, 1)),
    ({**OPEN_MPI, 'OMPI_COMM_WORLD_LOCAL_SIZE': '1'}, ['--coordinator=b:9'], ('b:9', 2, 1)),
    ({'JOB_COMPLETION_INDEX': '3', 'PLAN_JAX_COORDINATOR': 'pod-0:8476',
      'PLAN_JAX_NUM_PROCESSES': '4'}, [], ('pod-0:8476', 4, 3)),
    ({'PLAN_JAX_PLATFORM': 'tpu', 'TPU_WORKER_ID': '1', 'TPU_WORKER_HOSTNAMES': 't0,t1'}, [],
     ('t0:8476', 2, 1)),
])
def test_processes_are_found(environment, options, expected):
  status, printed = dry_run(*options, **environment)
  assert status == 0 and place(*expected) in printed, printed
  assert ('data.prepare' in printed) == (expected[2] == 0)  # one process draws the demo's records


@pytest.mark.parametrize('nodes, first', [('n[03-05,9],x', 'n03'), ('a,b', 'a'), ('solo', 'solo')])
def test_slurm_is_found(nodes, first, tmp_path):
  for tool in ('bash', 'dirname', 'basename', 'cut', 'tr', 'paste', 'cat', 'ls'):  # no scontrol
    (tmp_path / tool).symlink_to(shutil.which(tool))
  status, printed = dry_run(
      **{**SLURM, 'SLURM_STEP_NODELIST': nodes, 'PATH': str(tmp_path)})
  assert status == 0 and 'found: Slurm job 12, step 0; process 1 of 4' in printed, printed
  assert place(f'{first}:20192', 4, 1) in printed


def test_a_slice_of_one_worker_is_one_process():
  status, printed = dry_run(PLAN_JAX_PLATFORM='tpu', TPU_WORKER_ID='0',
                            TPU_WORKER_HOSTNAMES='localhost')
  assert status == 0 and 'process 0 of 1; tpu' in printed and '--coordinator' not in printed


def test_mpi_on_several_hosts_asks_for_the_coordinator():
  status, printed = dry_run(**{**OPEN_MPI, 'OMPI_COMM_WORLD_LOCAL_SIZE': '1'})
  assert status == 2 and 'add --coordinator=HOST:PORT' in printed


@pytest.mark.parametrize('address', ['gs://bucket/run', 's3://bucket/run'])
def test_buckets_are_refused(address, tmp_path, monkeypatch):
  status, printed = dry_run(f'--workdir={address}')
  assert status == 2 and f'--workdir={address}: addresses of buckets' in printed
  monkeypatch.chdir(tmp_path)
  for refused in (lambda: errors.require_writable(address, option='--out'),
                  lambda: errors.require_writable(Path(address).absolute(), option='--out')):
    with pytest.raises(errors.UserError, match=f'--out={address}: .*mount the bucket'):
      refused()
  with pytest.raises(errors.UserError, match=f'records={address}: .*mount the bucket'):
    records.read_card(address)
  assert not list(tmp_path.iterdir())


def test_a_coordinator_alone_is_refused():
  status, printed = dry_run('--coordinator=a:1')
  assert status == 2 and '--num-processes and --process-id are needed' in printed


def test_settings_of_xla_are_shown_and_the_users_win():
  _, printed = dry_run(PLAN_JAX_PLATFORM='cuda12', XLA_FLAGS='--xla_mine=1')
  assert 'XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true --xla_mine=1' in printed
  assert 'XLA_FLAGS' not in dry_run()[1]


def slurm_nodes():
  """How many nodes a Slurm that works here has; 0 where there is none."""
  if not shutil.which('sbatch'):
    return 0
  try:
    done = subprocess.run(['sinfo', '--noheader', '--states=idle,mixed', '--format=%D'],
                          capture_output=True, text=True, timeout=10)
  except subprocess.TimeoutExpired:  # its controller does not answer
    return 0
  return sum(map(int, done.stdout.split())) if done.returncode == 0 else 0


@pytest.fixture(scope='module')
def accepted_venv(tmp_path_factory):
  """An environment that run.sh takes for one it made: this one, under another name."""
  venv = tmp_path_factory.mktemp('venv')
  subprocess.run([sys.executable, '-m', 'venv', '--without-pip', venv], check=True)
  packages = next(venv.glob('lib/python*/site-packages'))
  (packages / 'shared.pth').write_text(sysconfig.get_path('purelib') + '\n')
  made_for = subprocess.run(['bash', '-c', 'echo "cpu  $(cat requirements.txt setup.cfg | cksum)"'],
                            cwd=ROOT, capture_output=True, text=True, check=True)
  (venv / '.made-for').write_text(made_for.stdout)
  return venv


# Small and few, and to the end: drawn, trained by two processes, evaluated.
SHORT = ['--phantom-pairs=64', '--config.data.image_size=32', '--config.data.max_pieces=32',
         '--config.data.max_words=16', '--config.train.steps=4', '--config.train.batch_size=4',
         '--config.train.eval_pairs=8', '--config.evaluation.max_pairs=8']


def run_by_two(command, workdir, venv, **environment):
  """Runs the demo, shortened, by `command`; what it printed and left must be of two processes."""
  done = subprocess.run(
      [*command, f'--workdir={workdir}', *SHORT], cwd=ROOT, capture_output=True, text=True, timeout=600,
      env={**os.environ, 'PLAN_JAX_VENV': str(venv), 'PLAN_JAX_PLATFORM': 'cpu',
           'XLA_FLAGS': quick_to_compile.FLAGS, **environment})
  log = Path(f'{workdir}.log')
  printed = done.stdout + done.stderr + (log.read_text() if log.exists() else '')
  assert done.returncode == 0, printed[-3000:]
  for said in ('process 0 of 2', 'process 1 of 2', 'new run: ', '2 cpu device(s) of 2 processes',
               'step 4/4', 'test split, 8 pairs'):
    assert said in printed, printed[-3000:]
  assert printed.count('\npage  ') == 1  # one speaks
  assert json.loads((workdir / 'eval' / 'metrics.json').read_text())['pairs'] == 8
  return printed


@pytest.mark.skipif(not shutil.which('mpirun'), reason='no Open MPI on this machine (mpirun)')
def test_a_real_mpirun_runs_the_demo(tmp_path, accepted_venv):
  printed = run_by_two(
      ['mpirun', '-n', '2', '--oversubscribe', 'bash', 'launch/run.sh'], tmp_path / 'run', accepted_venv,
      OMPI_ALLOW_RUN_AS_ROOT='1', OMPI_ALLOW_RUN_AS_ROOT_CONFIRM='1')
  assert 'found: Open MPI; ' in printed


@pytest.mark.skipif(not slurm_nodes(), reason='no Slurm with an idle node on this machine (sbatch, sinfo)')
def test_a_real_slurm_runs_the_demo(tmp_path, accepted_venv):
  spread = ['--nodes=2'] if slurm_nodes() > 1 else ['--nodes=1', '--ntasks-per-node=2']
  workdir = tmp_path / 'run'
  printed = run_by_two(
      ['sbatch', '--wait', *spread, f'--output={workdir}.log', 'launch/slurm.sbatch'], workdir,
      accepted_venv)
  assert 'found: Slurm job ' in printed
