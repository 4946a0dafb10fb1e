"""How each finding changes the attenuation of the chest.

Every function returns a layer [h w] to be added (dark findings are negative). The
looks follow the Fleischner glossary and the papers cited in docs/phantoms.md.
"""

import numpy as np

from plan_jax.data.phantom import anatomy as anatomies
from plan_jax.data.phantom import frame as frames
from plan_jax.data.phantom import latent

_ZONE = {'upper': (0.08, 0.36), 'mid': (0.36, 0.68), 'lower': (0.66, 1.02)}


def draw(
    finding: latent.Finding,
    rng: np.random.Generator,
    *,
    anatomy: anatomies.Anatomy,
    layers: anatomies.Layers,
    frame: frames.Frame,
) -> np.ndarray:
  """Attenuation [h w] that a lung or pleural finding adds.

  Cardiomegaly is part of the anatomy (`anatomy.deform`) and has no layer.

  Raises:
    ValueError: for a finding without a layer.
  """
  painters = {
      'atelectasis': _atelectasis, 'consolidation': _consolidation, 'edema': _edema,
      'lung opacity': _opacity, 'pleural effusion': _effusion, 'pneumonia': _pneumonia,
      'pneumothorax': _pneumothorax}
  if finding.name not in painters:
    raise ValueError(f'finding {finding.name!r} has no layer; one of {sorted(painters)} has')
  layer = np.zeros((frame.height, frame.width), np.float32)
  for side in finding.sides:
    layer += painters[finding.name](
        finding, rng, lung=anatomy.lung(side), air=layers.lung[side],
        depth=anatomy.lung_air, vessels=layers.vessels, frame=frame)
  return layer


def _spot(rng, zone: str, *, across: tuple[float, float]) -> tuple[float, float]:
  low, high = _ZONE[zone]
  return rng.uniform(*across), rng.uniform(low + 0.06, high - 0.06)


def _consolidation(finding, rng, *, lung, air, depth, vessels, frame):
  """Dense, lobar, one straight fissural border, air bronchograms, lost silhouette."""
  del vessels
  reach = 0.50 + 0.45 * finding.amount
  fissure = 0.38 + rng.uniform(-0.03, 0.03)
  slope = rng.uniform(-0.03, 0.05)
  near = 0.02 if finding.zone != 'lower' else rng.uniform(0.02, 0.25)
  far = near + reach * (1.0 - near)
  if rng.random() < 0.5 and finding.zone != 'mid':
    near, far = 1.0 - far + near, 1.05  # peripheral rather than central
  if finding.zone == 'upper':
    top, bottom, sharp = fissure - 0.20 - 0.15 * finding.amount, fissure, 1
  elif finding.zone == 'mid':
    top, bottom, sharp = fissure, fissure + 0.20 + 0.14 * finding.amount, -1
  else:
    top, bottom, sharp = 0.80 - 0.20 * finding.amount, 1.25, 0
  across = np.linspace(near, far, 6)
  upper = lung.point(across, top + (slope * across if sharp < 0 else 0))
  lower = lung.point(across[::-1], bottom + (slope * across[::-1] if sharp > 0 else 0))
  region = frame.polygon(np.concatenate([upper, lower]), soft=0.05)
  ragged = frames.ramp(region + 0.09 * frame.noise(rng, cell=0.09), 0.15, 0.80)
  if sharp:  # the fissure cuts the region off along a straight line
    edge = lung.point(np.array([-0.3, 1.3]), fissure + slope * np.array([-0.3, 1.3]))
    away = lung.point(np.array([1.3, -0.3]), -0.3 if sharp > 0 else 1.5)
    ragged *= frame.polygon(np.concatenate([edge, away]), soft=0.006)
  start = lung.hilum
  ends = lung.point(rng.uniform(near, far, 5), rng.uniform(top, min(bottom, 1.0), 5))
  t = np.linspace(0.2, 0.95, 8)[:, None]
  bend = rng.normal(0, 0.05, (5, 2)).astype(np.float32)
  tubes = [start + (end - start) * t + np.sin(np.pi * t) * b for end, b in zip(ends, bend)]
  tubes += [np.stack([tube[4], tube[4] + (tube[7] - tube[4]) @ turn])
            for tube, turn in zip(tubes, rng.normal(0.6, 0.4, (5, 2, 2)))]
  bronchi = frame.strokes(tubes, width=0.016, soft=0.006)
  return (0.85 + 0.12 * finding.amount) * depth * air * ragged * (1 - 0.5 * bronchi)


def _pneumonia(finding, rng, *, lung, air, depth, vessels, frame):
  """Patchy: many ill-defined fluffy foci of differing size that partly merge."""
  del vessels
  across, down = _spot(rng, finding.zone, across=(0.35, 0.70))
  count = 6 + round(7 * finding.amount)
  spread = 0.13 + 0.10 * finding.amount
  centres = lung.point(
      np.clip(across + rng.normal(0, 1.3 * spread, count), 0.08, 0.95),
      np.clip(down + rng.normal(0, spread, count), 0.06, 1.02))
  radii = rng.uniform(0.030, 0.068, count)
  angles = np.linspace(0, 2 * np.pi, 9)[:-1]
  field = np.zeros((frame.height, frame.width), np.float32)
  for centre, radius in zip(centres, radii):
    wobble = radius * rng.uniform(0.7, 1.3, len(angles))
    rim = np.stack([np.cos(angles), np.sin(angles)], axis=1) * wobble[:, None]
    np.maximum(field, frame.polygon(centre + rim), out=field)
  field = frame.blur(field, 0.022)
  mottle = 1 + 0.30 * frame.noise(rng, cell=0.025) + 0.25 * frame.noise(rng, cell=0.06)
  fluffy = frames.ramp(field * mottle, 0.05, 1.0)
  return (0.62 + 0.22 * finding.amount) * depth * air * frame.blur(fluffy, 0.008)


def _opacity(finding, rng, *, lung, air, depth, vessels, frame):
  """One smooth round or oval veil (ground glass, vessels stay visible) or a nodule."""
  del vessels
  across, down = _spot(rng, finding.zone, across=(0.38, 0.72))
  centre = lung.point(across, down)
  nodular = finding.kind == 1
  radius = (0.065 + 0.05 * finding.amount) if nodular else (0.13 + 0.09 * finding.amount)
  angles = np.linspace(0, 2 * np.pi, 13)[:-1]
  turn, stretch = rng.uniform(0, np.pi), rng.uniform(0.75, 1.0)
  x, y = radius * np.cos(angles), radius * stretch * np.sin(angles)
  rim = np.stack([np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y], axis=1)
  veil = frame.polygon(frames.curve(centre + rim, closed=True), soft=0.010 if nodular else 0.022)
  return (0.9 if nodular else 0.62 + 0.1 * finding.amount) * depth * air * veil


def _atelectasis(finding, rng, *, lung, air, depth, vessels, frame):
  """Plate-like bands; with volume loss also a wedge (the dome rises, `anatomy.deform`)."""
  del vessels
  _, down = _spot(rng, finding.zone, across=(0, 1))
  count = 2 + (finding.level + 1) // 2
  t = np.linspace(0, 1, 8)
  bands = []
  tilt, gap = rng.normal(0, 0.10), rng.uniform(0.065, 0.085)
  for k in range(count):
    near = rng.uniform(0.10, 0.35)
    far = min(near + rng.uniform(0.34, 0.62) + 0.1 * finding.amount, 1.0)
    height = down + gap * (k - (count - 1) / 2) + (tilt + rng.normal(0, 0.05)) * (t - 0.5)
    sag = rng.uniform(-0.03, 0.03) * np.sin(np.pi * t)
    bands.append(lung.point(near + (far - near) * t, height + sag))
  plates = np.maximum(  # thicker in the middle than at the ends
      0.75 * frame.strokes(bands, width=0.015, soft=0.006),
      frame.strokes([band[2:-2] for band in bands], width=0.028, soft=0.008))
  haze = frame.strokes(bands, width=0.08, soft=0.03)
  field = (0.72 + 0.2 * finding.amount) * plates + 0.10 * haze
  if finding.kind == 1:
    corner = 0.30 + 0.25 * finding.amount
    if finding.zone == 'upper':  # collapses towards the apex, concave lower border
      wedge = lung.point([0, corner, 0.45 * corner, 0.1, 0], [0.02, 0.03, 0.13, 0.24, 0.40])
    else:  # collapses behind the heart and onto the diaphragm
      wedge = lung.point([0, 0.15, 0.4 * corner, 1.2 * corner, 0], [0.62, 0.74, 0.87, 1.1, 1.3])
    field = np.maximum(field, 0.7 * frame.polygon(wedge, soft=0.015))
  return depth * air * field


def _edema(finding, rng, *, lung, air, depth, vessels, frame):
  """Perihilar (batwing) haze, thick vessels, Kerley B lines at the lateral bases."""
  u, v = frame.grid()
  centre = lung.point(0.30, 0.54)
  spread_u = (0.13 + 0.06 * finding.amount) * lung.width / 0.62
  spread_v = (0.24 + 0.09 * finding.amount) * (lung.dome - lung.apex) / 1.1
  wing = np.exp(-((u - centre[0]) / spread_u) ** 2 - ((v - centre[1]) / spread_v) ** 2)
  mottle = np.clip(1 + 0.33 * frame.noise(rng, cell=0.035), 0.2, 1.8)
  strength = 0.42 + 0.38 * finding.amount
  field = strength * wing * mottle * depth * air
  rows = np.arange(0.62, 1.05, 0.042) + rng.normal(0, 0.006, 11)
  lengths = rng.uniform(0.10, 0.20, len(rows))
  lines = [lung.point([1.0 - length, 0.99], [row, row + rng.normal(0, 0.008)])
           for row, length in zip(rows, lengths)]
  hilum = lung.hilum
  for _ in range(5):  # Kerley A: longer, oblique, from the hilum
    end = lung.point(rng.uniform(0.45, 0.75), rng.uniform(0.08, 0.5))
    lines.append(hilum + (end - hilum) * np.array([[0.4], [0.95]]))
  kerley = frame.strokes(lines, width=0.010)
  own = lung.side * u > 0
  return field + (0.22 + 0.12 * finding.amount) * depth * air * kerley + (
      (0.10 + 0.25 * finding.amount) * vessels * own * wing)


def _effusion(finding, rng, *, lung, air, depth, vessels, frame):
  """Blunted costophrenic angle; a meniscus that climbs the lateral wall."""
  del vessels
  level = 1.03 - 0.42 * finding.amount**1.2 + rng.normal(0, 0.015)
  climb = rng.uniform(0.16, 0.24) + 0.08 * finding.amount
  across = np.linspace(-0.1, 1.06, 14)
  top = level + 0.06 - climb * np.clip(across, 0, 1) ** 2.6
  surface = lung.point(across, top)
  floor = lung.point(across[::-1], 1.7)
  fluid = frame.polygon(np.concatenate([surface, floor]), soft=0.016)
  return 0.97 * depth * air * fluid


def _pneumothorax(finding, rng, *, lung, air, depth, vessels, frame):
  """A lucent apical to lateral crescent without vessels, bounded by a thin pleural line."""
  # The chest wall from the medial apex down, drawn towards the hilum: the visceral pleura.
  reach = 0.45 + 0.5 * finding.amount
  t = np.linspace(0.0, 1.0, 12)
  wall = np.concatenate([
      lung.point([0.0, 0.3, 0.65], [0.03, 0.01, 0.01]), lung.point(1.0, 0.02 + (reach - 0.02) * t)])
  along = np.linspace(0.0, 1.0, len(wall))
  inset = (0.20 + 0.28 * finding.amount) * (1 - along**2.4) * rng.uniform(0.9, 1.1)
  pleura = frames.curve(wall + inset[:, None] * (lung.hilum - wall), steps=3)
  down = np.linspace(reach + 0.02, -0.08, 10)
  outside = lung.point(1.15, down)
  apex = np.array([[0.0, lung.apex - 0.15]], np.float32)
  space = frame.polygon(np.concatenate([pleura, outside, apex]), soft=0.005)
  line = frame.strokes([pleura], width=0.016)
  own = (air > 0.02).astype(np.float32)
  return (-0.95 * vessels * space * own - 0.42 * depth * air * space
          + 0.50 * depth * line * np.minimum(air * 1.5, 1.0))
