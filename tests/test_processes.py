"""Several processes: the roll call, and what they tell each other (test_pod.py trains)."""

import contextlib
import errno
import socket
import threading
import time

import pytest

from plan_jax import processes
from plan_jax import roll_call


def free_port() -> int:
  """A port that is free, and the next one as well."""
  while True:
    with socket.socket() as first, socket.socket() as second:
      first.bind(('', 0))
      port = first.getsockname()[1]
      try:
        second.bind(('', port + 1))
        return port
      except (OSError, OverflowError):
        pass


def team(port, *, come, count, timeout_s=10.0, on_loss=lambda index, name: None):
  """What each caller in `come` (its number, how many it believes in) gets: a line or an error."""
  found = {}

  def one(key, index, believed):
    place = roll_call.Place(host='127.0.0.1', port=port, count=believed, index=index)
    try:
      found[key] = roll_call.call(
          place, timeout_s=timeout_s, on_loss=lambda name: on_loss(index, name))
    except roll_call.RollCallError as error:
      found[key] = str(error)

  threads = [threading.Thread(target=one, args=(key, index, believed or count))
             for key, (index, believed) in enumerate(come)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
  return [found[key] for key in range(len(come))]


def test_who_has_not_come_is_named_to_those_who_have():
  found = team(free_port(), come=[(0, None), (2, None)], count=5, timeout_s=1.5)
  for message in found:
    assert 'processes 1, 3, 4 of 5 have not come to 127.0.0.1:' in message
    assert 'within 1.5 s' in message


def test_a_missing_process_0_is_named():
  message, = team(free_port(), come=[(1, None)], count=2, timeout_s=0.6)
  assert 'process 0 of 2 does not answer at 127.0.0.1:' in message


@pytest.mark.parametrize('come, said', [
    ([(0, None), (1, 3)], 'as one of 3 processes, process 0 as one of 2'),
    ([(0, 3), (1, 3), (1, 3)], 'was started twice'),
])
def test_processes_that_contradict_each_other_are_named(come, said):
  assert all(said in message for message in team(free_port(), come=come, count=2))


def test_what_is_no_process_of_ours_is_left_standing():
  port = free_port()

  def knock():
    time.sleep(0.3)
    with socket.create_connection(('127.0.0.1', port + 1)) as stranger:
      stranger.sendall(b'GET / HTTP/1.0\r\n\r\n')
      time.sleep(0.2)

  stranger = threading.Thread(target=knock)
  late = threading.Timer(1.0, lambda: found.extend(team(port, come=[(1, None)], count=2)))
  found = []
  stranger.start()
  late.start()
  line, = team(port, come=[(0, None)], count=2)
  late.join()
  stranger.join()
  assert isinstance(line, roll_call.Line)
  for each in (line, *found):
    each.drop()


def test_values_go_round_and_a_loss_is_told_to_all():
  losses, told = [], threading.Event()

  def on_loss(index, name):
    losses.append((index, name))
    if len(losses) == 2:
      told.set()

  lines = team(free_port(), come=[(0, None), (1, None), (2, None)], count=3, on_loss=on_loss)
  values = {}
  threads = [threading.Thread(target=lambda i=i: values.update({i: lines[i].gather({'n': i})}))
             for i in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(10)
  assert values == {i: [{'n': 0}, {'n': 1}, {'n': 2}] for i in range(3)}

  lines[1].drop()
  assert told.wait(10)
  assert {index for index, _ in losses} == {0, 2}
  assert all(news.startswith('process 1 (host ') and news.endswith(') has ended') for _, news in losses)


class Silent:
  """A connection to a host that has lost its power: the system gives up waiting."""

  def makefile(self, mode):
    return self

  def readline(self, limit):
    raise TimeoutError(errno.ETIMEDOUT, 'Connection timed out')

  def setsockopt(self, *option):
    pass


def test_a_host_that_falls_silent_is_not_said_to_have_ended():
  news, told = [], threading.Event()
  roll_call.Line(
      {1: roll_call._Peer(Silent(), 'process 1 (host n2)')},
      place=roll_call.Place(host='n1', port=1, count=2, index=0),
      on_loss=lambda what: (news.append(what), told.set()))
  assert told.wait(10)
  assert news == ['process 1 (host n2) cannot be reached any more (connection timed out)']


def test_all_close_together_without_a_loss():
  losses = []
  lines = team(free_port(), come=[(0, None), (1, None)], count=2,
               on_loss=lambda *loss: losses.append(loss))
  closing = [threading.Thread(target=line.close) for line in lines]
  closing[1].start()
  closing[1].join(0.3)
  assert closing[1].is_alive()  # it waits for process 0
  closing[0].start()
  for thread in closing:
    thread.join(10)
    assert not thread.is_alive()
  assert not losses


@pytest.mark.parametrize('given, said', [
    (dict(coordinator='a:1', count=2, index=None), '--process-id: missing'),
    (dict(coordinator='a', count=2, index=0), 'HOST:PORT'),
    (dict(coordinator='a:65535', count=2, index=0), '65534'),
    (dict(coordinator='a:1', count=2, index=2), '--process-id=2 with --num-processes=2'),
])
def test_a_place_that_cannot_be_is_refused(given, said):
  with pytest.raises(processes.ProcessError, match=said):
    processes.place(**given)


class Heard(processes.Team):
  """A team of which this process hears what the others say."""

  def gather(self, value):
    return [['n1', '10.0.0.1'], value]


@pytest.mark.parametrize('name, address, shown', [
    ('n2', '127.0.1.1', 'host n2 (127.0.1.1): its own name'), ('n2', '', 'host n2 (unknown): its own'),
    ('n2', '10.0.0.2', ''), ('n1', '127.0.0.1', '')])  # one host may talk to itself
def test_a_host_that_calls_itself_by_a_loopback_address_is_named(name, address, shown, monkeypatch):
  def look_up(host):
    if not address:
      raise socket.gaierror
    return address

  monkeypatch.setattr(socket, 'gethostname', lambda: name)
  monkeypatch.setattr(socket, 'gethostbyname', look_up)
  with pytest.raises(processes.ProcessError) if shown else contextlib.nullcontext() as error:
    processes.require_reachable(Heard(index=1, count=2))
  assert not shown or shown in str(error.value)


def test_a_process_alone_needs_no_place():
  assert processes.place(coordinator=None, count=None, index=None) is None
  assert processes.place(coordinator='a:1', count=1, index=0) is None


def test_processes_that_do_not_train_the_same_are_refused():
  found = {}

  def one(index, line):
    try:
      processes.Team(index=index, count=2, line=line).require_same(
          f'config {index}', what='the config', fix='give all the same')
    except processes.ProcessError as error:
      found[index] = str(error)

  lines = team(free_port(), come=[(0, None), (1, None)], count=2)
  threads = [threading.Thread(target=one, args=pair) for pair in enumerate(lines)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(10)
  assert set(found.values()) == {
      'the config of process 1 is not that of process 0; give all the same'} and len(found) == 2
  for line in lines:
    line.drop()
