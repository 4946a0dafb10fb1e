"""TPU chips and the slices that can be had of them: published figures, and names such as v5e:16x16."""

import dataclasses
import math
import re

from plan_jax import errors


class TopologyError(errors.UserError):
  """No such slice; the message says which there are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """A TPU's figures; GB/s are those of one chip, links and network one way.

  Attributes:
    hbm_gib: what programs may use of its memory, as libtpu's compiler says it.
    hbm_gb_s: memory bandwidth.
    link_gb_s: of all its links to other chips of the slice.
    network_gb_s: its share of the network between slices; None if not published.
    clock_ghz: at which all matrix units together reach the published peak in bf16.
    flat: slices are rectangles, else boxes.

  Source: cloud.google.com/tpu/docs, the page of each version.
  """

  hbm_gib: float
  hbm_gb_s: float
  link_gb_s: float
  network_gb_s: float | None
  clock_ghz: float
  flat: bool


CHIPS = {
    'v4': Chip(hbm_gib=30.75, hbm_gb_s=1228, link_gb_s=300, network_gb_s=None, clock_ghz=1.05,
               flat=False),
    'v5e': Chip(hbm_gib=15.75, hbm_gb_s=819, link_gb_s=200, network_gb_s=3.125, clock_ghz=1.5,
                flat=True),
    'v5p': Chip(hbm_gib=95.73, hbm_gb_s=2765, link_gb_s=600, network_gb_s=6.25, clock_ghz=1.75,
                flat=False),
    'v6e': Chip(hbm_gib=31.24, hbm_gb_s=1600, link_gb_s=400, network_gb_s=12.5, clock_ghz=1.75,
                flat=True),
}

_RECTANGLES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_BOXES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))  # below whole cubes of 4x4x4
_MOST_CUBES = {'v4': 64, 'v5p': 96}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
  """A slice, or several equal ones over the network between them.

  `options` are those of libtpu: without them a v4 would be two devices a chip, which it is
  not for JAX on a real one.
  """

  name: str
  chip: Chip
  chips: int
  options: dict[str, object]


def topology(name: str, *, slices: int = 1) -> Topology:
  """The slice of a name such as v5e:16x16 or v5p:4x4x8.

  libtpu compiles for shapes that nobody can have, such as v5e:32x32, and ends the process on
  others; these are refused here.

  Raises:
    TopologyError: not a published shape, or slices without a known network between them.
  """
  version, _, shape = name.partition(':')
  if version not in CHIPS:
    raise TopologyError(f'--topology={name}: no such chip; write one of {", ".join(CHIPS)} and a '
                        'shape, such as v5e:16x16 or v5p:4x4x8')
  chip = CHIPS[version]
  sides = tuple(int(side) for side in shape.split('x')) if re.fullmatch(r'\d+(x\d+)*', shape) else ()
  if chip.flat:
    is_known = sides in _RECTANGLES
    known = ', '.join('x'.join(map(str, each)) for each in _RECTANGLES)
  else:
    cubes = math.prod(sides) // 64
    is_known = sides in _BOXES or (
        len(sides) == 3 and all(side and side % 4 == 0 for side in sides)
        and cubes <= _MOST_CUBES[version])
    known = (', '.join('x'.join(map(str, each)) for each in _BOXES)
             + f' and boxes of cubes of 4x4x4, at most {_MOST_CUBES[version]}, such as 4x4x8')
  if not is_known:
    more = '; larger ones are several slices (--slices)' if chip.flat else ''
    raise TopologyError(f'--topology={name}: {version} comes in {known}{more}')
  if slices < 1 or (slices > 1 and chip.network_gb_s is None):
    raise TopologyError(
        f'--slices={slices}: ' + ('write 1 or more' if slices < 1 else
                                  f'the network between slices of {version} is not published here'))
  options: dict[str, object] = {'chip_config_name': 'megacore'} if version == 'v4' else {}
  if slices > 1:
    options['num_slices'] = slices
  return Topology(name=name, chip=chip, chips=slices * math.prod(sides), options=options)
