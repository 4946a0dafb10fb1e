"""Tubes, lines and a pacemaker: metal and plastic on top of the chest."""

import numpy as np

from plan_jax.data.phantom import anatomy as anatomies
from plan_jax.data.phantom import frame as frames
from plan_jax.data.phantom import latent


def draw(
    device: latent.Finding,
    rng: np.random.Generator,
    *,
    anatomy: anatomies.Anatomy,
    frame: frames.Frame,
) -> np.ndarray:
  """Attenuation [h w] that a device adds.

  Raises:
    ValueError: for something that is no device.
  """
  painters = {
      'central venous line': _line, 'endotracheal tube': _tube, 'pacemaker': _pacemaker}
  if device.name not in painters:
    raise ValueError(f'{device.name!r} is no device; one of {sorted(painters)} is')
  return painters[device.name](device, rng, anatomy=anatomy, frame=frame)


def _tube(device, rng, *, anatomy, frame):
  """A radiopaque stripe beside an air-filled lumen in the trachea, tip above the carina."""
  del device
  tip = rng.uniform(-0.50, -0.36)
  v = np.linspace(-1.5, tip, 10)
  centre = anatomy.shift + 0.008 * np.sin(4 * v + rng.uniform(0, 6))
  walls = [np.stack([centre + offset, v], axis=1) for offset in (-0.034, 0.034)]
  stripe = [np.stack([centre + 0.034, v], axis=1)]
  lumen = [np.stack([centre, v], axis=1)]
  return (0.70 * frame.strokes(walls, width=0.020) + 0.40 * frame.strokes(stripe, width=0.024)
          - 0.35 * frame.strokes(lumen, width=0.040))


def _line(device, rng, *, anatomy, frame):
  """From the neck or below the clavicle down the superior vena cava; a hub at the skin."""
  side = frames.RIGHT if device.side == 'right' else frames.LEFT
  cava = anatomy.shift - 0.085
  tip = rng.uniform(-0.18, 0.04)
  clavicle = anatomy.lung(device.side).apex + 0.15
  if device.kind == 0:  # internal jugular
    start = [[side * 0.20, -1.2], [side * 0.15, -0.85], [side * 0.12, clavicle]]
  else:  # subclavian
    start = [[side * 0.62, clavicle + 0.16], [side * 0.48, clavicle + 0.03],
             [side * 0.28, clavicle + 0.03]]
  path = start + [[(side * 0.05 + cava) / 2, -0.48], [cava, -0.36], [cava + 0.01, tip]]
  catheter = frames.curve(np.array(path) + rng.normal(0, 0.006, (len(path), 2)))
  hub = np.array(path[1 if device.kind == 0 else 0])  # where it leaves the skin
  wings = np.array([[-0.035, -0.010], [0.035, -0.022], [0.035, 0.010], [-0.035, 0.022]])
  line = 1.00 * frame.strokes([catheter], width=0.023)
  return np.maximum(line, 1.00 * frame.polygon(hub + wings, soft=0.003))


def _pacemaker(device, rng, *, anatomy, frame):
  """A generator over the upper chest, two leads into the right heart."""
  lung = anatomy.lung(device.side)
  side = lung.side
  centre = np.array([side * rng.uniform(0.40, 0.50), lung.apex + rng.uniform(0.26, 0.36)])
  half = np.array([rng.uniform(0.075, 0.10), rng.uniform(0.055, 0.075)])
  angles = np.linspace(0, 2 * np.pi, 25)[:-1]
  shape = np.sign(np.cos(angles)) * np.abs(np.cos(angles)) ** 0.6, (
      np.sign(np.sin(angles)) * np.abs(np.sin(angles)) ** 0.6)
  box = frame.polygon(centre + half * np.stack(shape, axis=1), soft=0.003)
  inner = frame.polygon(centre + 0.55 * half * np.stack(shape, axis=1), soft=0.003)
  base = (anatomy.left.dome + anatomy.right.dome) / 2
  cava = anatomy.shift - 0.08
  leads = []
  for end in ([cava - 0.02, base - 0.16], [anatomy.shift + 0.20, base + 0.02]):
    leads.append(frames.curve(np.array([
        centre - [side * half[0], 0.02], [side * 0.24, centre[1] - 0.13],
        [(side * 0.08 + cava) / 2, -0.47], [cava, -0.32], [cava, -0.05],
        [(cava + end[0]) / 2, (base + end[1]) / 2 - 0.09], end])))
  wires = frame.strokes(leads, width=0.010)
  return np.maximum(0.55 * box + 0.2 * inner, 0.36 * wires)
