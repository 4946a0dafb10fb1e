"""Collectives of a compiled program, from its HLO text: how often, and how many bytes.

XLA's own cost analysis counts the body of a loop once; here a body counts as often as its
loop runs.
"""

import dataclasses
import math
import re

_KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'collective-permute', 'all-to-all')
_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4,
          'f32': 4, 's64': 8, 'u64': 8, 'f64': 8}
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) .*\{$')
_OPERATION = re.compile(
    r'^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) (' + '|'.join(_KINDS) + r')(-start)?\(')
_WHILE = re.compile(r' while\(.*condition=%?([\w.\-]+).*body=%?([\w.\-]+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r'(?:to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_SHAPE = re.compile(r'\b(' + '|'.join(_BYTES) + r')\[([\d,]*)\]')
_GROUPS = re.compile(r'replica_groups=(?:\{\{([\d,]+)\}|\[(\d+),(\d+)\]<=)')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """All collectives of one kind in a step: `bytes` is what each chip sends, by ring algorithms."""

  count: int
  bytes: int


def collectives(text: str) -> dict[str, Collective]:
  """The collectives of a module (`compiled.as_text()`) by kind.

  A loop whose length XLA does not state counts once; of a branch every side counts.
  """
  bodies, entry = _computations(text)
  totals: dict[str, list[int]] = {}

  def visit(name: str, times: int) -> None:
    for line in bodies.get(name, ()):
      found = _OPERATION.match(line)
      if found:
        total = totals.setdefault(found[2], [0, 0])
        total[0] += times
        total[1] += times * _sent(found[2], line, found[1], started=bool(found[3]))
      loop = _WHILE.search(line)
      if loop:
        trips = _TRIPS.search(line)
        visit(loop[2], times * (int(trips[1]) if trips else 1))
        continue
      for called in _CALLED.findall(line):
        visit(called, times)
      for branches in _BRANCHES.findall(line):
        for branch in branches.split(','):
          visit(branch.strip().lstrip('%'), times)

  visit(entry, 1)
  return {kind: Collective(count=count, bytes=size) for kind, (count, size) in totals.items()}


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  bodies, entry, current = {}, '', None
  for line in text.splitlines():
    start = _COMPUTATION.match(line)
    if start:
      current = bodies.setdefault(start[2], [])
      entry = start[2] if start[1] else entry
    elif line.startswith('}'):
      current = None
    elif current is not None:
      current.append(line)
  return bodies, entry


def _sent(kind: str, line: str, result: str, *, started: bool) -> int:
  """Bytes that each member of the group sends."""
  sizes = [math.prod(int(n) for n in dims.split(',') if n) * _BYTES[kind_of]
           for kind_of, dims in _SHAPE.findall(result)]
  groups = _GROUPS.search(line)
  members = 1
  if groups:
    members = groups[1].count(',') + 1 if groups[1] else int(groups[3])
  if started and kind in ('all-gather', 'collective-permute'):
    # (operands, results, ...): the second half, or of a permute the second array.
    sizes = sizes[1:2] if kind == 'collective-permute' else sizes[len(sizes) // 2:]
  size, others = sum(sizes), members - 1
  match kind:
    case 'all-reduce':
      return 2 * size * others // members
    case 'all-gather' | 'all-to-all':
      return size * others // members
    case 'reduce-scatter':
      return size * others
    case _:
      return size
