"""Where a run's figures go: one live line, metrics.jsonl, TensorBoard."""

import json
import math
from pathlib import Path
import sys
import time
from typing import Mapping


def read(path: str | Path) -> list[dict]:
  """The rows of a metrics.jsonl; [] if there is none. A torn last line is left out."""
  path = Path(path)
  rows = []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      break  # only a killed writer's last line is torn; what follows would be older anyway
  return rows


class Silent:
  """A writer for the processes that leave writing to the first."""

  def write(self, step: int, values: Mapping[str, float | str]) -> None:
    """Does nothing."""

  def close(self) -> None:
    """Does nothing."""


class Writer:
  """Appends rows to `<workdir>/metrics.jsonl` and to TensorBoard.

  A resumed run repeats the steps after its checkpoint: rows of those steps are
  removed on opening, so each step stands once.
  """

  def __init__(self, workdir: str | Path, *, start_step: int):
    # Here, for it imports torch where that is installed: a second or two of each start.
    import tensorboardX  # pylint: disable=g-import-not-at-top

    workdir = Path(workdir)
    path = workdir / 'metrics.jsonl'
    kept = [row for row in read(path) if row['step'] <= start_step]
    # Whole or not at all: a kill here must not cost the rows before.
    fresh = path.with_suffix('.tmp')
    fresh.write_text(''.join(json.dumps(row) + '\n' for row in kept))
    fresh.replace(path)
    self._file = path.open('a')
    self._board = tensorboardX.SummaryWriter(str(workdir / 'tensorboard'), purge_step=start_step + 1)

  def write(self, step: int, values: Mapping[str, float | str]) -> None:
    """Adds one row; strings (the stage's name) go to the file only."""
    # JSON knows no NaN; a step that is skipped for it reads null.
    plain = {name: None if isinstance(value, float) and not math.isfinite(value) else value
             for name, value in values.items()}
    self._file.write(json.dumps({'step': step, **plain}) + '\n')
    self._file.flush()
    for name, value in values.items():
      if not isinstance(value, str):
        self._board.add_scalar(name, value, step)

  def close(self) -> None:
    """Flushes and closes both."""
    self._file.close()
    self._board.close()


class Progress:
  """The live line: stage, step, pairs/s, loss terms, time left.

  On a terminal the line is rewritten in place; elsewhere a line is printed at
  most every `quiet_s` seconds.
  """

  def __init__(
      self, *, total_steps: int, start_step: int, batch_size: int, quiet_s: float = 10.0):
    self._total, self._batch = total_steps, batch_size
    self._last_step, self._last = start_step, time.monotonic()
    self._updates, self._step_s = 0, 0.0
    self._quiet_s, self._printed = quiet_s, -quiet_s
    self._live = sys.stdout.isatty()
    self._paused_s = 0.0

  def pause(self, seconds: float) -> None:
    """Leaves `seconds` (an evaluation, a save) out of the next rate."""
    self._paused_s += seconds

  def update(
      self, step: int, *, stage: str, losses: Mapping[str, float], peak_share_of_step: float = 0.0,
  ) -> dict[str, float]:
    """Shows the line; returns `pairs_per_s` since the last call and, if known, `mfu` (0..1).

    `peak_share_of_step` is what a step of one second would use of the devices' peak FLOP/s; 0 where
    that is not known, and no MFU is shown.
    """
    now = time.monotonic()
    seconds = max(now - self._last - self._paused_s, 1e-9)
    step_s = seconds / (step - self._last_step)
    # The first interval holds the compilation: the second one replaces it.
    self._step_s = step_s if self._updates < 2 else 0.7 * self._step_s + 0.3 * step_s
    rate, eta = self._batch / step_s, self._step_s * (self._total - step)
    self._last_step, self._last, self._paused_s = step, now, 0.0
    self._updates += 1
    terms = ' '.join(f'{name.removeprefix("loss_")} {value:.3f}' for name, value in losses.items())
    speed = {'pairs_per_s': rate}
    if peak_share_of_step:
      speed['mfu'] = peak_share_of_step / step_s
    mfu = f'  MFU {speed["mfu"]:.0%}' if 'mfu' in speed else ''
    line = (f'{stage:<8} step {step}/{self._total}  {rate:.0f} pairs/s{mfu}  {terms}'
            f'  ETA {int(eta) // 60}:{int(eta) % 60:02d}')
    if self._live:
      print(f'\r\033[K{line}', end='' if step < self._total else '\n', flush=True)
    elif now - self._printed >= self._quiet_s or step == self._total:
      print(line, flush=True)
      self._printed = now
    return speed

  def note(self, text: str) -> None:
    """Prints a line of its own, below the live line."""
    print(f'\r\033[K{text}' if self._live else text, flush=True)
