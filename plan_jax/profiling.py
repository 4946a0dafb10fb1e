"""A profile of some steps of a run, no more and no less, for TensorBoard or xprof."""

from pathlib import Path
from typing import Any

import jax


class Trace:
  """Records steps of given numbers; close it, and what was recorded so far is written.

  Steps are dispatched before those ahead of them have run: `before` and `after` wait.
  """

  def __init__(self, directory: Path, *, steps: range):
    """Into `directory/plugins/profile`; with no steps all methods do nothing."""
    self._directory, self._steps = directory, steps
    self._is_on = False

  def before(self, step: int, state: Any) -> None:
    """Begins, if it is the first of the steps, when `state`, which it starts from, is there."""
    if self._steps and step == self._steps[0]:
      jax.block_until_ready(state)
      jax.profiler.start_trace(str(self._directory))
      self._is_on = True

  def after(self, step: int, state: Any) -> None:
    """Ends, if it was the last of the steps, when `state`, which it leaves, is there."""
    if self._is_on and step == self._steps[-1]:
      jax.block_until_ready(state)
      self._write(f'steps {self._steps[0]} to {step}')

  def close(self) -> None:
    """Writes a profile that was begun and not ended: the run stopped or failed within it."""
    if self._is_on:
      self._write(f'steps from {self._steps[0]} on, cut short')

  def _write(self, what: str) -> None:
    self._is_on = False  # first: what cannot be written is not tried again
    jax.profiler.stop_trace()
    print(f'\nprofile of {what}, in {self._directory}: tensorboard --logdir, with xprof', flush=True)
