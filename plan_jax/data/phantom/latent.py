"""What a phantom shows: the latent that both the picture and the words follow."""

import dataclasses

import numpy as np

FINDINGS = (
    'atelectasis', 'cardiomegaly', 'consolidation', 'edema', 'lung opacity',
    'pleural effusion', 'pneumonia', 'pneumothorax')
DEVICES = ('central venous line', 'endotracheal tube', 'pacemaker')
NO_FINDING = 'no finding'
CLASSES = tuple(sorted(FINDINGS + DEVICES + (NO_FINDING,)))

_COUNT_SHARES = (0.27, 0.35, 0.26, 0.12)  # of images with 0, 1, 2, 3 findings
_DEVICE_SHARE = 0.18
_DEVICE_RIGHT = {'central venous line': 0.65, 'pacemaker': 0.3}
_FOCAL = ('atelectasis', 'consolidation', 'lung opacity', 'pneumonia')
_ZONE_SHARES = {  # upper, mid, lower
    'atelectasis': (0.1, 0.3, 0.6),
    'consolidation': (0.35, 0.25, 0.4),
    'lung opacity': (0.35, 0.4, 0.25),
    'pneumonia': (0.25, 0.35, 0.4),
}
_BILATERAL_SHARE = {
    'atelectasis': 0.2, 'edema': 1.0, 'pleural effusion': 0.25, 'pneumonia': 0.25}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
  """One finding or device.

  Attributes:
    name: class name.
    side: 'right', 'left', 'both', or '' where sides do not apply.
    zone: 'upper', 'mid', 'lower', or ''.
    level: 0, 1, 2: small / mild to large / severe.
    amount: 0..1, the same on a continuous scale; level = which third.
    kind: 0 or 1: which of two looks, where a class has two (atelectasis:
      bands / volume loss; lung opacity: hazy / nodular; central line: neck /
      subclavian).
  """

  name: str
  side: str = ''
  zone: str = ''
  level: int = 1
  amount: float = 0.5
  kind: int = 0

  @property
  def sides(self) -> tuple[str, ...]:
    return ('right', 'left') if self.side == 'both' else (self.side,)


def sample_findings(rng: np.random.Generator) -> tuple[Finding, ...]:
  """Findings (0-3, each class at most once) and devices of one patient."""
  count = rng.choice(len(_COUNT_SHARES), p=_COUNT_SHARES)
  names = rng.choice(FINDINGS, size=count, replace=False)
  taken: set[tuple[str, str]] = set()
  findings = []
  for name in map(str, names):
    finding = _place(rng, name)
    # Two focal opacities in one zone would hide each other: look for another place.
    for _ in range(20):
      places = {(side, finding.zone) for side in finding.sides}
      if name not in _FOCAL or not places & taken:
        break
      finding = _place(rng, name)
    else:
      continue
    if name in _FOCAL:
      taken |= places
    findings.append(finding)
  for name in DEVICES:
    if rng.random() < _DEVICE_SHARE:
      side = '' if name == 'endotracheal tube' else _side(rng, right=_DEVICE_RIGHT[name])
      findings.append(Finding(name=name, side=side, kind=int(rng.random() < 0.5)))
  return tuple(findings)


def labels(findings: tuple[Finding, ...]) -> tuple[str, ...]:
  """Positive classes, sorted; 'no finding' where none of the eight is there."""
  names = {finding.name for finding in findings}
  if not names & set(FINDINGS):
    names.add(NO_FINDING)
  return tuple(sorted(names))


def _place(rng: np.random.Generator, name: str) -> Finding:
  amount = float(rng.random())
  zone = ''
  if name in _ZONE_SHARES:
    zone = str(rng.choice(['upper', 'mid', 'lower'], p=_ZONE_SHARES[name]))
  side = '' if name == 'cardiomegaly' else _side(rng, right=0.5)
  if rng.random() < _BILATERAL_SHARE.get(name, 0.0):
    side = 'both'
  kind = int(rng.random() < 0.4)
  if name == 'atelectasis' and side == 'both':
    zone, kind = 'lower', 0  # bibasal bands
  return Finding(
      name=name, side=side, zone=zone, level=min(2, int(amount * 3)), amount=amount, kind=kind)


def _side(rng: np.random.Generator, *, right: float) -> str:
  return 'right' if rng.random() < right else 'left'
