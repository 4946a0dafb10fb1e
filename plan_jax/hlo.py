"""What a compiled program does in a step, from its HLO text: collectives, memory traffic, cycles.

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
_SHAPE = re.compile(r'\b(' + '|'.join(_BYTES) + r')\[([\d,]*)\](?:\{([^}]*)\})?')
_TILE = re.compile(r'T\((\d+)(?:,(\d+))?\)')
_ON_CHIP = re.compile(r'S\([1-9]\d*\)')  # a memory space other than the main one
# What moves no data of its own: names, views, what is counted where it begins or inside.
_FREE = frozenset((
    'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'while',
    'conditional', 'call', 'partition-id', 'replica-id', 'opt-barrier', 'send', 'recv', 'iota'))
_SLICES = frozenset(('dynamic-slice', 'slice', 'gather'))
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_INDEX = re.compile(r'\bindex=(\d+)')
_PARTITIONS = re.compile(r'\bnum_partitions=(\d+)')
# {{0,1},{2,3}}, [groups,members]<=[...], or by axes: mesh['a'=2,'b'=4] {'a','b'}.
_GROUPS = re.compile(
    r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\]<=|mesh\[([^\]]*)\]\s*\{([^}]*)\}|(\{\}))")
_PAIRS = re.compile(r'source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}')
_PAIR = re.compile(r'\{(\d+),(\d+)\}')
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
    traffic: bytes that operations read from main memory and write to it, by their scopes
      (below); what stays in on-chip memory is not among them, nor are collectives.
    cycles: the compiler's own estimates (TPUs; others give none), by the scope of the
      operation, `jit(train_step)/...` as in its metadata.
    unknown_loops: loops whose length could not be found out; their bodies count once.
  """

  collectives: dict[str, Collective]
  traffic: dict[str, int]
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
      traffic=dict(total.traffic), cycles=dict(total.cycles), unknown_loops=total.unknown_loops)


class _Total:
  """A sum of costs."""

  def __init__(self):
    self.collectives: dict[str, tuple[int, int]] = {}
    self.traffic: dict[str, int] = {}
    self.cycles: dict[str, int] = {}
    self.unknown_loops = 0

  def add(self, other: '_Total', *, times: int = 1, scope: str = '') -> None:
    """`scope` is that of operations, copies above all, that have none of their own."""
    for kind, (count, size) in other.collectives.items():
      self.collect(kind, times * count, times * size)
    for mine, others in ((self.cycles, other.cycles), (self.traffic, other.traffic)):
      for name, count in others.items():
        mine[name or scope] = mine.get(name or scope, 0) + times * count
    self.unknown_loops += other.unknown_loops

  def collect(self, kind: str, count: int, size: int) -> None:
    counted, sized = self.collectives.get(kind, (0, 0))
    self.collectives[kind] = counted + count, sized + size

  @property
  def weight(self) -> tuple[int, ...]:
    sent = sum(size for _, size in self.collectives.values())
    return sum(self.cycles.values()), sum(self.traffic.values()), sent


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
    inside = self.bodies.get(name, {})
    for each in inside.values():
      kind = each.operation.removesuffix('-start')
      if kind in _KINDS:
        total.collect(kind, 1, _sent(each, kind, partitions=self.partitions))
      elif each.operation == 'send' and '_xla_megascale' in each.rest:
        total.collect(BETWEEN_SLICES, 1, _sizes(each.shape)[0])
      elif each.operation not in _FREE and not each.operation.endswith('-done'):
        scope = _scope(each)
        total.traffic[scope] = total.traffic.get(scope, 0) + self._moved(inside, each)
      cycles = _CYCLES.search(each.rest)
      if cycles:
        scope = _scope(each)
        total.cycles[scope] = total.cycles.get(scope, 0) + int(cycles[1])
      if each.operation == 'while':
        trips = self._trips(name, each)
        total.unknown_loops += trips is None
        total.add(self.total(_CALLED.search(each.rest)[1]), times=1 if trips is None else trips,
                  scope=_scope(each))
      elif each.operation == 'conditional':
        branches = _CALLED.findall(each.rest) + [
            branch.strip().lstrip('%') for found in _BRANCHES.findall(each.rest)
            for branch in found.split(',')]
        total.add(max((self.total(branch) for branch in branches), key=lambda x: x.weight),
                  scope=_scope(each))
      elif each.operation == 'call':
        total.add(self.total(_CALLED.search(each.rest)[1]))
      elif each.operation == 'fusion' or each.operation.startswith('async'):
        for called in _CALLED.findall(each.rest):
          self._add_collectives(total, called)
    return total

  def _add_collectives(self, total: '_Total', fused: str) -> None:
    """Those inside a fusion. libtpu spreads one over several fusions, each with a copy of it, of
    which the one that starts it counts."""
    texts = [each.rest for each in self.bodies.get(fused, {}).values()]
    is_copy = 'async_collective_fusion' in fused or any(
        '"AsyncCollectiveDone"' in text for text in texts)
    if is_copy and not any('"AsyncCollectiveStart"' in text for text in texts):
      return
    for kind, (count, size) in self.total(fused).collectives.items():
      total.collect(kind, count, size)

  def _moved(self, inside: dict[str, _Instruction], each: _Instruction) -> int:
    """Bytes that an operation reads from main memory and writes to it."""
    if each.operation == 'fusion':
      fused = _CALLED.search(each.rest)[1]
      read = sum(min(self._read(fused, k), _moved(inside[operand].shape))
                 for k, operand in enumerate(each.operands) if operand in inside)
      return read + self._written(fused, each.shape)
    if each.operation in _SLICES:
      return 2 * _moved(each.shape)
    if each.operation == 'dynamic-update-slice':
      update = inside.get(each.operands[1])
      return 2 * _moved(update.shape) if update else 0
    if each.operation.endswith('-start'):  # a copy: (to, from, ...)
      return sum(_moves(each.shape)[:2])
    return _moved(each.shape) + sum(
        _moved(inside[operand].shape) for operand in each.operands if operand in inside)

  def _read(self, fused: str, index: int) -> int:
    """Bytes that a fusion reads of one of its operands: all, or the parts that it takes."""
    inside = self.bodies[fused]
    name = next((each.name for each in inside.values()
                 if each.operation == 'parameter' and each.rest.startswith(f'{index})')), None)
    read = 0
    for each in inside.values():
      if name not in each.operands:
        continue
      if each.operation in _SLICES and each.operands[0] == name:
        read += _moved(each.shape)
      elif each.operation == 'fusion':
        read += self._read(_CALLED.search(each.rest)[1], each.operands.index(name))
      elif each.operation != 'dynamic-update-slice' or each.operands[0] != name:
        return _moved(inside[name].shape)
    return read

  def _written(self, fused: str, shape: str) -> int:
    """Bytes that a fusion writes: its results, or the parts that it writes into them."""
    inside = self.bodies[fused]
    root = next(each for each in inside.values() if each.is_root)
    results = root.operands if root.operation == 'tuple' else (root.name,)
    written = 0
    for result, size in zip(results, _moves(shape)):
      maker = _source(inside, result)
      if maker is not None and maker.operation == 'dynamic-update-slice' and size:
        update = inside.get(maker.operands[1])
        size = min(size, _moved(update.shape)) if update else size
      written += size
    return written

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


def _scope(each: _Instruction) -> str:
  found = _OP_NAME.search(each.rest)
  return found[1] if found else ''


def _moves(shape: str) -> list[int]:
  """Bytes of each array of a shape as it lies in main memory, tiles padded; 0 on chip."""
  found = []
  for kind, dims, layout in _SHAPE.findall(shape):
    sizes = [int(n) for n in dims.split(',') if n]
    order = [int(n) for n in layout.partition(':')[0].split(',') if n.isdigit()]
    tile = _TILE.search(layout)
    if tile and sizes and len(order) == len(sizes):
      sides = [int(side) for side in tile.groups() if side]
      for axis, side in zip(order, reversed(sides)):
        sizes[axis] = -(-sizes[axis] // side) * side
    found.append(0 if _ON_CHIP.search(layout) else math.prod(sizes) * _BYTES[kind])
  return found


def _moved(shape: str) -> int:
  return sum(_moves(shape))


def _sizes(shape: str) -> list[int]:
  """Bytes of each array of a shape."""
  return [math.prod(int(n) for n in dims.split(',') if n) * _BYTES[kind]
          for kind, dims, _ in _SHAPE.findall(shape)]


def _sent(each: _Instruction, kind: str, *, partitions: int) -> int:
  """Bytes that each member of the group sends."""
  sizes = _sizes(each.shape)
  if each.operation.endswith('-start') and kind in ('all-gather', 'collective-permute'):
    # (operands, results, ...): the second half, or of a permute the second array.
    sizes = sizes[1:2] if kind == 'collective-permute' else sizes[len(sizes) // 2:]
  size = sum(sizes)
  if kind == 'collective-permute':
    pairs = _PAIRS.search(each.rest)
    stays = pairs is not None and all(a == b for a, b in _PAIR.findall(pairs[1]))
    return 0 if stays else size
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
