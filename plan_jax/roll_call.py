"""Who belongs to a run of several processes, who has not come, and who has gone.

Process 0 listens on the port after that of `jax.distributed`. The others come to it before JAX
starts, so that after a time-out the error names those who have not. The connections stay open
until the run is over: a process that dies closes its own, whatever the accelerators are waiting
for, and process 0 tells the rest. Small values travel the same way.
"""

import dataclasses
import errno
import json
import os
import queue
import socket
import sys
import threading
import time
from typing import Any, Callable

from plan_jax import errors

_RETRY_S = 0.5
_HELLO_S = 10.0  # for a caller to say who it is
_HELLO_BYTES = 4096
_GONE = object()
_UNREACHABLE = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)


class RollCallError(errors.UserError):
  """Processes that have not come, or contradict each other; the message says which."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
  """Where in a run a process stands: process `index` of `count`, process 0 at `host`:`port`."""

  host: str
  port: int
  count: int
  index: int


class Line:
  """The open connections of one process: process 0 has one to each other, the others one to it."""

  def __init__(self, peers: dict[int, '_Peer'], *, place: Place, on_loss: Callable[[str], None]):
    self._peers, self._place, self._on_loss = peers, place, on_loss
    self._closing = False
    for peer in peers.values():
      threading.Thread(target=self._listen, args=(peer,), name='roll call', daemon=True).start()

  def gather(self, value: Any) -> list[Any]:
    """The values (JSON) of all processes, in their order; all must call it, and it waits for all."""
    if self._place.index == 0:
      values = [value, *(self._next(self._peers[i]) for i in range(1, self._place.count))]
      for peer in self._peers.values():
        peer.tell({'value': values})
      return values
    self._peers[0].tell({'value': value})
    return self._next(self._peers[0])

  def close(self) -> None:
    """Waits until all processes have come here, and lets go."""
    self._closing = True
    self.gather(None)
    self.drop()

  def drop(self) -> None:
    """Lets go at once; unless all have closed, the others end."""
    self._closing = True
    for peer in self._peers.values():
      peer.close()

  def _next(self, peer: '_Peer') -> Any:
    value = peer.heard.get()
    if value is _GONE:
      self._lose(peer)
    return value

  def _listen(self, peer: '_Peer') -> None:
    while (message := peer.hear()) is not None:
      if 'gone' in message:
        self._on_loss(message['gone'])
        return
      peer.heard.put(message['value'])
    peer.heard.put(_GONE)  # after the values it sent before
    if not self._closing:
      self._lose(peer)

  def _lose(self, lost: '_Peer') -> None:
    news = f'{lost.name} {lost.fate}'
    if self._place.index == 0:
      for peer in self._peers.values():
        if peer is not lost:
          peer.tell({'gone': news})
    self._on_loss(news)


def call(
    place: Place, *, timeout_s: float, on_loss: Callable[[str], None] | None = None) -> Line:
  """Waits until all processes of the run have come to process 0.

  Later `on_loss(news)` is called, in a thread, when one has gone before all have closed their
  line, with words such as 'process 1 (host n2) has ended'; unless given, it says so and ends this
  process.

  Raises:
    RollCallError: not all have come within `timeout_s`, or they do not agree who they are.
  """
  on_loss = on_loss or _end
  peers = _wait_for_all(place, timeout_s) if place.index == 0 else _report(place, timeout_s)
  return Line(peers, place=place, on_loss=on_loss)


class _Peer:
  """One connection: a line of JSON each way is a message."""

  def __init__(self, connection: socket.socket, name: str = ''):
    self.name, self.fate = name, 'has ended'
    self.heard: queue.SimpleQueue = queue.SimpleQueue()
    self._connection, self._lock = connection, threading.Lock()
    self._reader = connection.makefile('rb')
    # A host that loses power sends no farewell: ask after 30 s of silence, give up after 90. Nothing
    # is asked while sent bytes wait for their receipt, which systems do for a quarter of an hour.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (('TCP_KEEPIDLE', 30), ('TCP_KEEPINTVL', 10), ('TCP_KEEPCNT', 6),
                          ('TCP_USER_TIMEOUT', 90_000)):
      if hasattr(socket, option):
        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

  def tell(self, message: dict[str, Any]) -> None:
    try:
      with self._lock:
        self._connection.sendall(json.dumps(message).encode() + b'\n')
    except OSError:
      pass  # whoever listens to this peer hears that it has gone

  def hear(self, *, limit: int = -1) -> dict[str, Any] | None:
    """The next message; None when the other side has closed or speaks another language."""
    try:
      message = json.loads(self._reader.readline(limit))
    except OSError as error:
      if error.errno in _UNREACHABLE:
        self.fate = f'cannot be reached any more ({error.strerror.lower()})'
      return None
    except ValueError:
      return None
    return message if isinstance(message, dict) else None

  def is_open(self) -> bool:
    try:
      return self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b''
    except BlockingIOError:
      return True
    except OSError:
      return False

  def wait(self, seconds: float | None) -> None:
    self._connection.settimeout(seconds)

  def close(self) -> None:
    try:
      self._connection.shutdown(socket.SHUT_RDWR)  # wakes the thread that listens
    except OSError:
      pass
    self._connection.close()


def _wait_for_all(place: Place, timeout_s: float) -> dict[int, _Peer]:
  """Process 0: the others by their number, all told that everyone is here."""
  peers: dict[int, _Peer] = {}
  deadline = time.monotonic() + timeout_s
  try:
    server = socket.create_server(('', place.port + 1))
  except OSError as error:
    raise RollCallError(
        f'--coordinator={place.host}:{place.port}: this process, 0 of {place.count}, cannot listen '
        f'on port {place.port + 1} ({error.strerror}); take another port') from error
  with server:
    try:
      while len(peers) < place.count - 1:
        server.settimeout(max(deadline - time.monotonic(), 0.01))
        try:
          connection, _ = server.accept()
        except TimeoutError:
          raise RollCallError(_missing(place, peers, timeout_s)) from None
        _admit(_Peer(connection), peers, place=place)
    except RollCallError as error:
      for peer in peers.values():
        peer.tell({'error': str(error)})
      raise
  for peer in peers.values():
    peer.tell({'all': True})
  return peers


def _admit(peer: _Peer, peers: dict[int, _Peer], *, place: Place) -> None:
  """Adds a caller that says who it is; whoever else knocks at a port is not ours."""
  peer.wait(_HELLO_S)
  hello = peer.hear(limit=_HELLO_BYTES) or {}
  index, count, host = (hello.get(key) for key in ('process', 'of', 'host'))
  if not isinstance(index, int) or not isinstance(count, int):
    peer.close()
    return
  peer.name = f'process {index} (host {host})'
  twin = peers.get(index)
  problem = ''
  if count != place.count:
    problem = (f'{peer.name} was started as one of {count} processes, process 0 as one of '
               f'{place.count}; give all the same --num-processes')
  elif not 0 < index < count:
    problem = (f'{peer.name} called process 0 at {place.host}:{place.port}; give each process '
               f'its own --process-id, 0 to {count - 1}')
  elif twin and twin.is_open():
    problem = (f'{twin.name} was started twice, the second time on host {host}; give each process '
               'its own --process-id')
  if problem:
    peer.tell({'error': problem})
    raise RollCallError(problem)
  peer.wait(None)
  peers[index] = peer  # a twin that has closed was started again
  print(f'{peer.name} has come: {len(peers) + 1} of {place.count}', flush=True)


def _missing(place: Place, peers: dict[int, _Peer], timeout_s: float) -> str:
  absent = [str(i) for i in range(1, place.count) if i not in peers]
  shown = ', '.join(absent[:20]) + (f' and {len(absent) - 20} more' if len(absent) > 20 else '')
  noun, verb = ('process', 'has') if len(absent) == 1 else ('processes', 'have')
  return (f'{noun} {shown} of {place.count} {verb} not come to {place.host}:{place.port} within '
          f'{timeout_s:g} s; see their output, and whether their hosts reach ports {place.port} '
          f'and {place.port + 1} there')


def _report(place: Place, timeout_s: float) -> dict[int, _Peer]:
  """Another process: the connection to process 0, once it has said that everyone is here."""
  deadline = time.monotonic() + timeout_s
  while True:
    try:
      connection = socket.create_connection((place.host, place.port + 1), timeout=_HELLO_S)
      break
    except OSError as error:  # not there yet, or its name is not yet known
      if time.monotonic() > deadline:
        raise RollCallError(
            f'process 0 of {place.count} does not answer at {place.host}:{place.port + 1} within '
            f'{timeout_s:g} s ({error.strerror or error}); see its output, and whether this host '
            f'reaches ports {place.port} and {place.port + 1} there') from error
      time.sleep(_RETRY_S)
  peer = _Peer(connection, name=f'process 0 (host {place.host})')
  peer.wait(None)
  peer.tell({'process': place.index, 'of': place.count, 'host': socket.gethostname()})
  answer = peer.hear()
  if answer is None:
    raise RollCallError(f'{peer.name} ended before all had come; see its output')
  if 'error' in answer:
    raise RollCallError(answer['error'])
  return {0: peer}


def _end(news: str) -> None:
  print(f'\nerror: {news} before the run was over, so this one ends too; its own output '
        'says why, unless it was killed. The same command continues from the last checkpoint',
        file=sys.stderr, flush=True)
  os._exit(1)  # the main thread may wait for ever for what will never come
