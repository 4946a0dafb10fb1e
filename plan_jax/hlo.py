"""What a compiled program does in a step, from its HLO text: collectives, bytes, cycles.

XLA's own cost analysis counts the body of a loop once; here a body counts as often as its
loop runs. Of a branch the dearest side counts.
"""

import dataclasses
import math
import re

_KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'collective-permute', 'all-to-all',
          'ragged-all-to-all', 'collective-broadcast')
_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4,
          'f32': 4, 's64': 8, 'u64': 8, 'f64': 8}
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) .*\{$')
# A shape may be a tuple and hold layouts such as {1,0:T(8,128)S(1)}: the operation is the first
# word before a bracket that follows a blank.
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*?)\s([a-z][\w\-]*)\((.*)$')
_NAME = re.compile(r'%([\w.\-]+)')
_CALLED = re.compile(r'\b(?:to_apply|calls|body|true_computation|false_computation)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'\bbranch_computations=\{([^}]*)\}')
_CONDITION = re.compile(r'\bcondition=%?([\w.\-]+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SHAPE = re.compile(r'\b(' + '|'.join(_BYTES) + r')\[([\d,]*)\]')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_INDEX = re.compile(r'\bindex=(\d+)')
_PARTITIONS = re.compile(r'\bnum_partitions=(\d+)')
# {{0,1},{2,3}}, [groups,members]<=[...], or by axes: mesh['a'=2,'b'=4] {'a','b'}.
_GROUPS = re.compile(
    r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\]<=|mesh\[([^\]]*)\]\s*\{([^}]*)\}|(\{\}))")
_AXIS = re.compile(r"'?([\w.\-]+)'?=(\d+)")
_AXIS_USED = re.compile(r"'?([\w.\-]+)'?(?::\(\d+\)(\d+))?")


BETWEEN_SLICES = 'between slices'  # what is handed to the network, whatever becomes of it there


class HloError(ValueError):
  """HLO text that is not understood."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """All collectives of one kind in a step: `bytes` is what each chip sends, by ring algorithms."""

  count: int
  bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
  """What one run of a program costs a chip.

  Attributes:
    collectives: by kind.
    cycles: the compiler's own estimates (TPUs; others give none), by the scope of the
      operation, `jit(train_step)/...` as in its metadata.
    unknown_loops: loops whose length could not be found out; their bodies count once.
  """

  collectives: dict[str, Collective]
  cycles: dict[str, int]
  unknown_loops: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Instruction:
  name: str
  shape: str
  operation: str
  operands: tuple[str, ...]
  rest: str  # operands and attributes
  is_root: bool


def cost(text: str) -> Cost:
  """Of a module (`compiled.as_text()`).

  Raises:
    HloError: a collective whose groups are written in an unknown form.
  """
  program = _Program(text)
  total = program.total(program.entry)
  return Cost(
      collectives={kind: Collective(count=count, bytes=size)
                   for kind, (count, size) in total.collectives.items()},
      cycles=dict(total.cycles), unknown_loops=total.unknown_loops)


class _Total:
  """A sum of costs."""

  def __init__(self):
    self.collectives: dict[str, tuple[int, int]] = {}
    self.cycles: dict[str, int] = {}
    self.unknown_loops = 0

  def add(self, other: '_Total', *, times: int = 1) -> None:
    for kind, (count, size) in other.collectives.items():
      self.collect(kind, times * count, times * size)
    for scope, cycles in other.cycles.items():
      self.cycles[scope] = self.cycles.get(scope, 0) + times * cycles
    self.unknown_loops += other.unknown_loops

  def collect(self, kind: str, count: int, size: int) -> None:
    counted, sized = self.collectives.get(kind, (0, 0))
    self.collectives[kind] = counted + count, sized + size

  @property
  def weight(self) -> tuple[int, int]:
    return sum(self.cycles.values()), sum(size for _, size in self.collectives.values())


class _Program:
  """The computations of a module."""

  def __init__(self, text: str):
    self.bodies: dict[str, dict[str, _Instruction]] = {}
    self.totals: dict[str, _Total] = {}
    self.entry = ''
    partitions = _PARTITIONS.search(text[:text.find('\n')])
    self.partitions = int(partitions[1]) if partitions else 1
    current = None
    for line in text.splitlines():
      start = _COMPUTATION.match(line)
      if start:
        current = self.bodies.setdefault(start[2], {})
        self.entry = start[2] if start[1] else self.entry
      elif line.startswith('}'):
        current = None
      elif current is not None and (found := _INSTRUCTION.match(line)):
        current[found[2]] = _Instruction(
            name=found[2], shape=found[3], operation=found[4], is_root=bool(found[1]),
            operands=tuple(_NAME.findall(_in_brackets(found[5]))), rest=found[5])

  def total(self, name: str) -> '_Total':
    """The cost of one run of a computation."""
    if name not in self.totals:
      self.totals[name] = self._total(name)
    return self.totals[name]

  def _total(self, name: str) -> '_Total':
    total = _Total()
    for each in self.bodies.get(name, {}).values():
      kind = each.operation.removesuffix('-start')
      if kind in _KINDS:
        total.collect(kind, 1, _sent(each, kind, partitions=self.partitions))
      elif each.operation == 'send' and '_xla_megascale' in each.rest:
        total.collect(BETWEEN_SLICES, 1, _sizes(each.shape)[0])
      cycles = _CYCLES.search(each.rest)
      if cycles:
        scope = _OP_NAME.search(each.rest)
        scope = scope[1] if scope else ''
        total.cycles[scope] = total.cycles.get(scope, 0) + int(cycles[1])
      if each.operation == 'while':
        trips = self._trips(name, each)
        total.unknown_loops += trips is None
        total.add(self.total(_CALLED.search(each.rest)[1]), times=1 if trips is None else trips)
      elif each.operation == 'conditional':
        branches = _CALLED.findall(each.rest) + [
            branch.strip().lstrip('%') for found in _BRANCHES.findall(each.rest)
            for branch in found.split(',')]
        total.add(max((self.total(branch) for branch in branches), key=lambda x: x.weight))
      else:
        for called in _CALLED.findall(each.rest):
          total.add(self.total(called))
    return total

  def _trips(self, name: str, loop: _Instruction) -> int | None:
    """How often a loop runs; None if that is not written down.

    CPUs and GPUs state it. For TPUs it follows from `i < n`, where i starts and grows by a
    constant.
    """
    stated = _TRIPS.search(loop.rest)
    if stated:
      return int(stated[1])
    condition = self.bodies[_CONDITION.search(loop.rest)[1]]
    body = self.bodies[_CALLED.search(loop.rest)[1]]
    start = self.bodies[name].get(loop.operands[0])
    test = next(each for each in condition.values() if each.is_root)
    if test.operation != 'compare' or 'direction=LT' not in test.rest or start is None:
      return None

    def at_start(index: int) -> int | None:
      if start.operation != 'tuple':
        return None
      return _constant(self.bodies[name], start.operands[index])

    def value(inside: dict[str, _Instruction], operand: str) -> int | None:
      index = _element(inside, operand)
      return _constant(inside, operand) if index is None else at_start(index)

    counter = _element(condition, test.operands[0])
    end = value(condition, test.operands[1])
    if counter is None or end is None or at_start(counter) is None:
      return None
    after = next(each for each in body.values() if each.is_root)
    grown = _source(body, after.operands[counter]) if after.operation == 'tuple' else None
    if grown is None or grown.operation != 'add':
      return None
    steps = [value(body, x) for x in grown.operands if _element(body, x) != counter]
    if len(steps) != 1 or not steps[0] or steps[0] < 0:
      return None
    return max(0, -(-(end - at_start(counter)) // steps[0]))


def _in_brackets(text: str) -> str:
  """Up to the bracket that closes the one before the text."""
  depth = 1
  for k, letter in enumerate(text):
    depth += (letter == '(') - (letter == ')')
    if not depth:
      return text[:k]
  return text


def _source(inside: dict[str, _Instruction], name: str) -> _Instruction | None:
  """The instruction that makes a value, behind copies."""
  found = inside.get(name)
  while found is not None and found.operation in ('copy', 'bitcast', 'convert'):
    found = inside.get(found.operands[0])
  return found


def _constant(inside: dict[str, _Instruction], name: str) -> int | None:
  found = _source(inside, name)
  if found is None or found.operation != 'constant':
    return None
  written = re.match(r'(-?\d+)\)', found.rest)
  return int(written[1]) if written else None


def _element(inside: dict[str, _Instruction], name: str) -> int | None:
  """Which element of the computation's only parameter a value is; None if it is none."""
  found = _source(inside, name)
  if found is None or found.operation != 'get-tuple-element':
    return None
  whole = inside.get(found.operands[0])
  if whole is None or whole.operation != 'parameter':
    return None
  return int(_INDEX.search(found.rest)[1])


def _members(each: _Instruction, *, partitions: int) -> int:
  """How many chips take part in each group of a collective.

  Raises:
    HloError: the groups are written in an unknown form.
  """
  found = _GROUPS.search(each.rest)
  if found is None:
    raise HloError(f'groups of this collective are not understood: {each.name} = {each.shape[:80]} '
                   f'{each.operation}({each.rest[:300]}')
  listed, counted, axes, used, everybody = found.groups()
  if everybody:
    return partitions
  if listed or counted:
    return listed.count(',') + 1 if listed else int(counted)
  sizes = {axis: int(size) for axis, size in _AXIS.findall(axes)}
  return math.prod(int(size) if size else sizes[axis] for axis, size in _AXIS_USED.findall(used))


def _sizes(shape: str) -> list[int]:
  """Bytes of each array of a shape."""
  return [math.prod(int(n) for n in dims.split(',') if n) * _BYTES[kind]
          for kind, dims in _SHAPE.findall(shape)]


def _sent(each: _Instruction, kind: str, *, partitions: int) -> int:
  """Bytes that each member of the group sends."""
  sizes = _sizes(each.shape)
  if each.operation.endswith('-start') and kind in ('all-gather', 'collective-permute'):
    # (operands, results, ...): the second half, or of a permute the second array.
    sizes = sizes[1:2] if kind == 'collective-permute' else sizes[len(sizes) // 2:]
  size = sum(sizes)
  if kind == 'collective-permute':
    return size
  members = _members(each, partitions=partitions)
  match kind:
    case 'all-reduce':
      return 2 * size * (members - 1) // members
    case 'reduce-scatter':
      return size * (members - 1)
    case 'collective-broadcast':
      return size
    case _:
      return size * (members - 1) // members
