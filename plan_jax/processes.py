"""The processes of a run: how they find each other, and what they do together."""

import contextlib
import ctypes
import dataclasses
import ipaddress
import os
import re
import socket
import time
from typing import Any, Iterator

import jax
from jax.experimental import multihost_utils

from plan_jax import errors
from plan_jax import roll_call

_NEWS_S = 5.0  # for the news that another process has gone
_PART_S = 30  # for leaving JAX's own service, once all have finished or one has failed


def trim_heap() -> None:
  """Gives back to the system what was freed, where the C library can (glibc).

  Compiling frees a gigabyte that the process would hold for the rest of the run.
  """
  trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
  if trim is not None:
    trim(0)


class ProcessError(errors.UserError):
  """Processes that cannot work together; the message says which and why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Team:
  """All processes of the run, seen from this one; a process alone is a team as well."""

  index: int = 0
  count: int = 1
  line: roll_call.Line | None = None

  @property
  def is_first(self) -> bool:
    """Whether this is the process that writes figures and pictures and speaks to the user."""
    return self.index == 0

  def gather(self, value: Any) -> list[Any]:
    """Everybody's value (JSON), in the order of the processes; all must call it."""
    return self.line.gather(value) if self.line else [value]

  def stack(self, arrays: Any) -> Any:
    """Everybody's arrays (a tree, the same shapes in all) along a new first axis; all must call it."""
    if self.count == 1:
      return jax.tree.map(lambda x: x[None], arrays)
    self.gather(None)  # what waits in a collective gives up sooner than what waits here
    return multihost_utils.process_allgather(arrays)

  def any(self, value: bool) -> bool:
    """Whether it is so in any process; all must call it."""
    return any(self.gather(value))

  @contextlib.contextmanager
  def one_voice(self) -> Iterator[None]:
    """What is printed to stdout comes from the first process only; errors come from all."""
    if self.is_first:
      yield
      return
    with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
      yield

  def require_same(self, value: str, *, what: str, fix: str) -> None:
    """Fails in every process unless `value` is the same in all.

    Raises:
      ProcessError: it names the processes that differ from process 0.
    """
    values = self.gather(value)
    others = [str(i) for i, other in enumerate(values) if other != values[0]]
    if others:
      raise ProcessError(
          f'{what} of process {", ".join(others)} is not that of process 0; {fix}')


def place(
    *, coordinator: str | None, count: int | None, index: int | None) -> roll_call.Place | None:
  """The place that a command line gives; None for a process alone.

  Raises:
    ProcessError: a part is missing or impossible.
  """
  given = {'--coordinator': coordinator, '--num-processes': count, '--process-id': index}
  absent = [name for name, value in given.items() if value is None]
  if len(absent) == len(given):
    return None
  if absent:
    raise ProcessError(f'{" and ".join(absent)}: missing; a run of several processes needs '
                       f'{", ".join(given)}')
  match = re.fullmatch(r'(.+):(\d{1,5})', coordinator)
  if not match or not 0 < int(match[2]) < 2**16 - 1:
    raise ProcessError(f'--coordinator={coordinator}: write HOST:PORT, PORT from 1 to 65534')
  if count < 1 or not 0 <= index < count:
    raise ProcessError(f'--process-id={index} with --num-processes={count}: processes are numbered '
                       'from 0 to their number less 1')
  if count == 1:
    return None
  return roll_call.Place(host=match[1], port=int(match[2]), count=count, index=index)


def require_reachable(team: Team) -> None:
  """Fails in every process if a host's own name stands for an address that others cannot reach.

  Gloo, which carries the collectives of CPUs, gives that address to the others.

  Raises:
    ProcessError: it names the hosts.
  """
  name = socket.gethostname()
  try:
    address = socket.gethostbyname(name)
  except OSError:
    address = ''
  found = team.gather([name, address])
  wrong = sorted({f'{name} ({address or "unknown"})' for name, address in found
                  if not address or ipaddress.ip_address(address).is_loopback})
  if wrong and len({name for name, _ in found}) > 1:
    raise ProcessError(
        f'host {", ".join(wrong)}: its own name stands for an address that other hosts cannot reach, '
        'and gloo gives it to them; write its true address beside its name in its /etc/hosts')


@contextlib.contextmanager
def joined(where: roll_call.Place | None, *, timeout_s: int) -> Iterator[Team]:
  """The team of this process, from the roll call until all have finished.

  When one process fails, all end. Call it before anything else that uses JAX.

  Raises:
    UserError: not all processes have come within `timeout_s`, or not all can reach each other.
  """
  if where is None:
    yield Team()
    return
  print(f'process {where.index} of {where.count}: calling the roll at {where.host}:{where.port} '
        f'(up to {timeout_s} s)', flush=True)
  line = roll_call.call(where, timeout_s=timeout_s)
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  # Gloo matches collectives by their order, which must be that of the program in all processes: of
  # several threads each would start another one first.
  jax.config.update('jax_cpu_enable_async_dispatch', False)
  on_cpu = jax.config.jax_platforms == 'cpu'
  if on_cpu:
    os.environ['PJRT_NPROC'] = '1'
  jax.distributed.initialize(
      f'{where.host}:{where.port}', num_processes=where.count, process_id=where.index,
      initialization_timeout=timeout_s, shutdown_timeout_seconds=_PART_S)
  team = Team(index=where.index, count=where.count, line=line)
  try:
    if jax.default_backend() == 'cpu':
      if not on_cpu:
        raise ProcessError('JAX has no devices but CPUs here; several processes on CPUs need '
                           'JAX_PLATFORMS=cpu in their environment, so that each runs one thread')
      require_reachable(team)
    yield team
  except SystemExit:  # all stop together, when all is saved
    _part(line)
    raise
  except errors.UserError:
    line.drop()
    raise
  except Exception:
    # A process that dies makes the others' collectives fail: who it was is the better message.
    time.sleep(_NEWS_S)
    line.drop()
    raise
  _part(line)


def _part(line: roll_call.Line) -> None:
  line.close()
  jax.distributed.shutdown()
