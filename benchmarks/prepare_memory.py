r"""Memory of `prepare` over a long run that is killed and continued.

  python benchmarks/prepare_memory.py [--pictures 50000] [--kill-at 0.44]

Pictures are smooth noise of 640 x 512 pixels, each another one. Resident memory of the
command and of the largest of its workers is read from /proc twice a second (Linux).
"""

import argparse
import collections
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import cv2
import numpy as np

from plan_jax.data import parts

_WIDTH, _HEIGHT, _COARSE = 512, 640, 24
_MIB = 2**20
_STEPS = 10  # rows of the table


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--pictures', type=int, default=50_000)
  parser.add_argument('--kill-at', type=float, default=0.44, help='share that is done by then')
  options = parser.parse_args()
  cv2.setNumThreads(1)
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    size = _write(root, options.pictures)
    print(f'{options.pictures} pictures of {_WIDTH} x {_HEIGHT}, {size / 1e9:.1f} GB')
    _run(root, options.pictures, kill_at=options.kill_at)
    _run(root, options.pictures, kill_at=None)
    rows = json.loads((root / 'out/dataset.json').read_text('utf-8'))['rows']
    print(f'rows in {rows["in"]}, records {rows["records"]}, rejected {rows["rejected"]}')


def _write(root: pathlib.Path, count: int) -> int:
  """JPEG files and a manifest of them; returns how many bytes the pictures take."""
  rng, size = np.random.default_rng(0), 0
  with open(root / 'rows.jsonl', 'w', encoding='utf-8') as file:
    for k in range(count):
      pixels = cv2.resize(
          rng.integers(0, 256, (_COARSE, _COARSE), np.uint8), (_WIDTH, _HEIGHT),
          interpolation=cv2.INTER_CUBIC)
      data = cv2.imencode('.jpg', pixels)[1].tobytes()
      path = root / f'{k // 1000}' / f'{k}.jpg'
      path.parent.mkdir(exist_ok=True)
      path.write_bytes(data)
      size += len(data)
      row = {'image': f'{path.parent.name}/{path.name}', 'patient': str(k // 3),
             'text': f'The heart of case {k} is normal. There is no pleural effusion.'}
      file.write(json.dumps(row) + '\n')
  return size


def _run(root: pathlib.Path, count: int, *, kill_at: float | None) -> None:
  """Runs the command, kills it at a share of the pictures, and tells of its memory."""
  out = root / 'out'
  command = [sys.executable, '-m', 'plan_jax.data.prepare', 'manifest', '--manifest',
             str(root / 'rows.jsonl'), '--out', str(out), '--size', '256']
  first = _done(out)
  began = time.monotonic()
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  seen: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
  killed = False
  while process.poll() is None:
    done = _done(out)
    phase = f'{min(_STEPS * done // count, _STEPS) / _STEPS:.0%} of the pictures'
    if any(out.glob('*.array_record*')):
      phase = 'records'
    workers = [_resident(child) for child in _children(process.pid)]
    if command_holds := _resident(process.pid):  # 0: it ended since `poll`, and tells nothing
      seen[phase].append((command_holds, max(workers, default=0)))
    if kill_at is not None and not killed and done >= kill_at * count:
      killed = True
      process.send_signal(signal.SIGKILL)
    time.sleep(0.5)
  if process.returncode != (-signal.SIGKILL if killed else 0):
    sys.exit(f'error: prepare ended with {process.returncode}')
  print(f'\n{"killed" if killed else "done"} after {time.monotonic() - began:.0f} s, from {first} '
        f'to {count if not killed else _done(out)} pictures; most resident memory, MiB:')
  print(f'{"":<20}{"command":>10}{"worker":>10}')
  for phase, values in seen.items():
    parent, worker = (max(column) / _MIB for column in zip(*values))
    print(f'{phase:<20}{parent:>10.0f}{worker:>10.0f}')


def _done(out: pathlib.Path) -> int:
  return parts.PART_ITEMS * len(list(out.glob('.parts/*.part')))


def _children(pid: int) -> list[int]:
  try:
    return [int(child) for child in pathlib.Path(
        f'/proc/{pid}/task/{pid}/children').read_text().split()]
  except OSError:  # it has just ended
    return []


def _resident(pid: int) -> int:
  """Bytes; 0 for a process that has ended."""
  try:
    return int(pathlib.Path(f'/proc/{pid}/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
  except OSError:
    return 0


if __name__ == '__main__':
  main()
