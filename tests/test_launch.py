"""What run.sh finds and would run, by --dry-run in made-up surroundings; Slurm itself if there."""

import os
from pathlib import Path
import shutil
import subprocess

import pytest

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


def test_a_coordinator_alone_is_refused():
  status, printed = dry_run('--coordinator=a:1')
  assert status == 2 and '--num-processes and --process-id are needed' in printed


def test_settings_of_xla_are_shown_and_the_users_win():
  _, printed = dry_run(PLAN_JAX_PLATFORM='cuda12', XLA_FLAGS='--xla_mine=1')
  assert 'XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true --xla_mine=1' in printed
  assert 'XLA_FLAGS' not in dry_run()[1]


@pytest.mark.skipif(not shutil.which('srun'), reason='no Slurm on this machine (srun)')
def test_a_real_slurm_starts_two_processes():
  done = subprocess.run(
      ['srun', '-n', '2', 'bash', 'launch/run.sh', '--dry-run'], cwd=ROOT, capture_output=True,
      text=True, timeout=60)
  assert done.returncode == 0, done.stderr
  for index in (0, 1):
    assert f'process {index} of 2' in done.stdout
