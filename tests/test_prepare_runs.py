"""Runs of prepare: workers, restarts, interruptions, and directories that hold something."""

import errno
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from plan_jax.data import images
from plan_jax.data import parts as parts_lib
from plan_jax.data import prepare
from plan_jax.data import writer
import small_pairs as pack

_ROOT = pathlib.Path(__file__).parents[1]


def test_same_bytes_for_any_number_of_workers(tmp_path):
  manifest = pack.pairs(tmp_path / 'in', 5 * parts_lib.PART_ITEMS + 3)
  assert pack.run(manifest, tmp_path / 'one', workers=1) == 0
  assert pack.run(manifest, tmp_path / 'two', workers=2) == 0
  assert pack.contents(tmp_path / 'one') == pack.contents(tmp_path / 'two')


def test_finished_records_are_left_alone(tmp_path, capsys):
  manifest = pack.pairs(tmp_path / 'in', 10)
  out = tmp_path / 'out'
  assert pack.run(manifest, out) == 0
  before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
  assert pack.run(manifest, out) == 0
  assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
  assert pack.run(manifest, out, '--size', '20') == 2
  assert 'other input or options' in capsys.readouterr().err


def test_stop_kill_and_run_again_gives_the_same_bytes(tmp_path, monkeypatch):
  source = tmp_path / 'in'
  rows, count_all = [], 20 * parts_lib.PART_ITEMS
  for i in range(count_all):
    pack.save(source / f'{i}.jpg', pack.picture(i, width=400, height=300))
    rows.append({'image': f'{i}.jpg', 'text': f'Report {i}.'})
  manifest = pack.manifest(source, *rows)
  assert pack.run(manifest, tmp_path / 'whole', '--size', '64') == 0
  out = tmp_path / 'killed'
  command = [sys.executable, '-m', 'plan_jax.data.prepare', 'manifest', '--manifest',
             str(manifest), '--out', str(out), '--vocab-size', '300', '--size', '64',
             '--workers', '2']
  process = _started(command, out)
  os.killpg(process.pid, signal.SIGTERM)  # workers as well, as a cluster does it
  error = process.communicate()[1]
  assert process.returncode == 130 and 'Interrupted. Run the same command' in error
  assert 'Traceback' not in error and 'fewer workers' not in error
  process = _started(command, out)
  workers = _children(process.pid)
  process.send_signal(signal.SIGKILL)
  process.wait()
  process.stderr.close()
  assert not (out / 'dataset.json').exists()
  deadline = time.monotonic() + 20
  while any(os.path.exists(f'/proc/{pid}') for pid in workers):
    assert time.monotonic() < deadline, 'workers outlive a killed parent'
    time.sleep(0.02)
  finished = list(out.glob('.parts/*.part'))
  assert 0 < len(finished) < count_all // parts_lib.PART_ITEMS
  made = []

  def count(item, **options):
    made.append(item.id)
    return make(item, **options)

  make = images.make
  monkeypatch.setattr(images, 'make', count)
  assert pack.run(manifest, out, '--size', '64') == 0
  assert len(made) == count_all - parts_lib.PART_ITEMS * len(finished)  # the rest is reused
  assert pack.contents(out) == pack.contents(tmp_path / 'whole')


def _started(command: list[str], out: pathlib.Path) -> subprocess.Popen:
  """A run, when its first new part is there."""
  before = len(list(out.glob('.parts/*.part')))
  process = subprocess.Popen(
      command, cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
      start_new_session=True)
  deadline = time.monotonic() + 60
  while len(list(out.glob('.parts/*.part'))) <= before:
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.002)
  return process


def _children(parent: int) -> list[str]:
  path = pathlib.Path(f'/proc/{parent}/task/{parent}/children')
  return path.read_text().split() if path.exists() else []


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_interrupt_prints_one_line(tmp_path, capsys, monkeypatch, number):
  def interrupt(*_, **__):
    signal.raise_signal(number)

  def not_taken(*_):
    raise AssertionError(number)

  manifest = pack.pairs(tmp_path / 'in', 4)
  before = signal.signal(signal.SIGTERM, not_taken)
  # Shells start what runs in the background with SIGINT ignored, the tests as well.
  before_int = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    with monkeypatch.context() as patch:
      patch.setattr(images, 'make', interrupt)
      assert pack.run(manifest, tmp_path / 'out') == 130
    assert signal.getsignal(signal.SIGTERM) is not_taken
  finally:
    signal.signal(signal.SIGTERM, before)
    signal.signal(signal.SIGINT, before_int)
  error = capsys.readouterr().err
  assert 'Interrupted. Run the same command again' in error and 'Traceback' not in error
  assert pack.run(manifest, tmp_path / 'out') == 0


def test_a_second_run_in_the_same_directory_is_kept_out(tmp_path, capsys, monkeypatch):
  statuses = []

  def start_another(item, **options):
    statuses.append(pack.run(manifest, out))
    return make(item, **options)

  make, out = images.make, tmp_path / 'out'
  manifest = pack.pairs(tmp_path / 'in', 1)
  with monkeypatch.context() as patch:
    patch.setattr(images, 'make', start_another)
    assert pack.run(manifest, out) == 0
  assert statuses == [2]
  error = capsys.readouterr().err
  assert f'error: --out {out}: another run is writing there' in error and 'Traceback' not in error
  assert not (out / '.parts').exists() and pack.run(manifest, out) == 0


def test_parts_that_another_run_removes(tmp_path, capsys, monkeypatch):
  def twice(path, **options):  # a second run finds the card, and is faster
    remove(path, ignore_errors=True)
    remove(path, **options)

  remove, out = shutil.rmtree, tmp_path / 'out'
  monkeypatch.setattr(shutil, 'rmtree', twice)
  assert pack.run(pack.pairs(tmp_path / 'in', 2), out) == 0
  assert capsys.readouterr().err.count('error') == 0 and (out / 'sheet.jpg').is_file()


def test_a_lock_that_comes_while_parts_are_removed(tmp_path, monkeypatch):
  def late(path, **options):  # a second run opens it after the folder was listed
    (out / '.parts/lock').touch()
    remove(path, **options)

  manifest, remove, out = pack.pairs(tmp_path / 'in', 2), os.rmdir, tmp_path / 'out'
  with monkeypatch.context() as patch:
    patch.setattr(os, 'rmdir', late)
    assert pack.run(manifest, out) == 0
  assert (out / '.parts/lock').exists()
  assert pack.run(manifest, out) == 0 and not (out / '.parts').exists()


@pytest.mark.parametrize('is_late', [False, True])
def test_a_run_that_comes_to_the_lock_when_another_has_finished(
    tmp_path, capsys, monkeypatch, is_late):
  def overtaken(*arguments, **options):
    found = look(*arguments, **options)
    with monkeypatch.context() as patch:
      patch.setattr(writer, '_open_directory', look)
      assert pack.run(manifest, out) == 0
    if is_late:
      (out / '.parts').mkdir()
    return found

  manifest, look, out = pack.pairs(tmp_path / 'in', 2), writer._open_directory, tmp_path / 'out'
  monkeypatch.setattr(writer, '_open_directory', overtaken)
  assert pack.run(manifest, out) == 2
  assert f'--out {out}: another run has just finished' in capsys.readouterr().err
  assert not (out / '.parts').exists()


def test_a_file_system_without_locks_is_named(tmp_path, capsys, monkeypatch):
  def without(*_):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(fcntl, 'flock', without)
  assert pack.run(pack.pairs(tmp_path / 'in', 1), tmp_path / 'out') == 0
  assert 'has no locks; start no second run' in capsys.readouterr().out


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_line(tmp_path, capsys, monkeypatch, number):
  reason = os.strerror(number)

  def full(*_, **__):  # as ArrayRecord says it
    raise RuntimeError(f'write() failed: {reason}; writing x.tmp1')

  monkeypatch.setattr(parts_lib, 'make', full)
  assert prepare.main(['phantom', '--pairs', '2', '--workers', '1', '--out', str(tmp_path / 'o')]) == 2
  message = capsys.readouterr().err
  assert message.startswith('error: ') and reason in message and message.count('\n') == 1


def test_a_disk_that_fills_up_leaves_no_half_sheet(tmp_path, capsys, monkeypatch):
  def half(path, data):
    if not path.name.startswith('sheet'):
      return write(path, data)
    write(path, data[:len(data) // 2])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  write = pathlib.Path.write_bytes
  manifest, out = pack.pairs(tmp_path / 'in', 2), tmp_path / 'out'
  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, 'write_bytes', half)
    assert pack.run(manifest, out) == 2
  assert 'No space left' in capsys.readouterr().err and not list(out.glob('sheet*'))
  assert pack.run(manifest, out) == 0
  assert pack.pixels((out / 'sheet.jpg').read_bytes()).any()


def test_out_must_be_a_directory_for_us(tmp_path, capsys):
  manifest = pack.pairs(tmp_path / 'in', 3)
  assert pack.run(manifest, tmp_path / 'in') == 2
  assert 'is not empty' in capsys.readouterr().err
  assert pack.run(manifest, manifest) == 2
  assert 'is a file' in capsys.readouterr().err
  assert pack.run(manifest, manifest / 'out') == 2
  assert 'cannot write to --out' in capsys.readouterr().err
  assert pack.run(manifest, '/proc/records') == 2
  assert 'cannot write to --out /proc/records' in capsys.readouterr().err


def test_workers_import_neither_jax_nor_tensorflow():
  code = ('import sys, plan_jax.data.prepare\n'
          'print({"jax", "tensorflow", "torch"} & set(sys.modules))')
  done = subprocess.run(
      [sys.executable, '-c', code], cwd=_ROOT, capture_output=True, text=True, check=True)
  assert done.stdout.strip() == 'set()'


def test_phantoms_of_format_1_are_recognised(tmp_path, capsys):
  command = ['phantom', '--pairs', '4', '--seed', '3', '--size', '64', '--vocab-size', '300', '--workers',
             '1', '--out', str(tmp_path / 'out')]
  assert prepare.main(command) == 0
  card = json.loads((tmp_path / 'out/dataset.json').read_text())
  # What the release that wrote format 1 put there; falls with phantom.VERSION 2.
  card |= {'format_version': 1, 'fingerprint': 'b1ccd0c0d1aad0d23ca05b43705b17c3ff10cf0b55643985f03adc549411ddee'}
  del card['options']['near_duplicates'], card['rows']['left_out'], card['near_duplicates']
  (tmp_path / 'out/dataset.json').write_text(json.dumps(card))
  assert prepare.main(command) == 0
  assert 'holds exactly these records already' in capsys.readouterr().out
  assert prepare.main(command[:2] + ['5'] + command[3:]) == 2
  assert 'records of format 1, written by an earlier release' in capsys.readouterr().err
