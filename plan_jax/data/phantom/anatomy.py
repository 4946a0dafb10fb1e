"""The chest without findings: who it is, and its attenuation layers.

Loosely after standard frontal anatomy (Fleischner glossary: Hansell et al.,
Radiology 2008;246:697); see docs/phantoms.md.
"""

import dataclasses

import numpy as np

from plan_jax.data.phantom import frame as frames
from plan_jax.data.phantom import latent

_LATERAL_DOWN = np.array([0.0, 0.03, 0.10, 0.25, 0.45, 0.70, 0.90, 1.0])
_LATERAL_OUT = np.array([0.42, 0.60, 0.76, 0.89, 0.96, 1.0, 1.0, 0.99])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lung:
  """One lung, body units; `side` is -1 (patient's right) or 1."""

  side: int
  width: float  # midline to the widest lateral wall
  medial: float  # midline to the medial border
  apex: float  # v of the top
  dome: float  # v of the top of the diaphragm
  sulcus: float  # v of the costophrenic angle

  def lateral(self, v) -> np.ndarray:
    """Distance of the lateral wall from the midline at height v."""
    down = (np.asarray(v) - self.apex) / (self.sulcus - self.apex)
    return self.width * np.interp(down, _LATERAL_DOWN, _LATERAL_OUT)

  def point(self, across, down) -> np.ndarray:
    """(across 0 medial .. 1 lateral, down 0 apex .. 1 dome) -> body coordinates [... 2]."""
    across, down = np.broadcast_arrays(
        np.asarray(across, np.float32), np.asarray(down, np.float32))
    v = self.apex + down * (self.dome - self.apex)
    u = self.side * (self.medial + across * (self.lateral(v) - self.medial))
    return np.stack([u, v], axis=-1).astype(np.float32)

  @property
  def hilum(self) -> np.ndarray:
    return self.point(0.12, 0.5)

  def outline(self) -> np.ndarray:
    """Closed contour [n 2]."""
    wall_v = self.apex + _LATERAL_DOWN * (self.sulcus - self.apex)
    wall = np.stack([self.lateral(wall_v), wall_v], axis=1)
    out = np.linspace(0.93, 0.25, 6)
    steep = np.where(out > 0.52, ((out - 0.52) / 0.47) ** 2, 0.45 * ((0.52 - out) / 0.47) ** 2)
    floor = np.stack([out * self.width, self.dome + steep * (self.sulcus - self.dome)], axis=1)
    down = np.array([0.93, 0.6, 0.3, 0.12, 0.03])
    inner = self.medial * np.array([1.1, 1.0, 0.9, 1.0, 1.5])
    medial = np.stack([inner, self.apex + down * (self.dome - self.apex)], axis=1)
    points = np.concatenate([wall, floor, medial])
    return frames.curve(points * [self.side, 1.0], closed=True, steps=4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Anatomy:
  """One patient, drawn independently of the findings."""

  right: Lung
  left: Lung
  heart_ratio: float  # cardiothoracic ratio
  heart_height: float
  heart_share: float  # share of the heart's width left of the midline
  shift: float  # of the mediastinum, u
  mediastinum: float  # half width
  knob: float  # size of the aortic knob
  fat: float  # soft tissue around the thorax
  breast: float  # density of breast shadows, 0: none
  bubble: float  # gastric bubble, 0: none
  bone: float  # contrast of bone
  markings: float  # contrast of vessels
  lung_air: float  # depth of the lungs
  arms: bool

  def lung(self, side: str) -> Lung:
    return self.right if side == 'right' else self.left

  @property
  def thorax_width(self) -> float:
    return self.right.width + self.left.width


def sample_anatomy(rng: np.random.Generator) -> Anatomy:
  """A patient: habitus, inspiration, rotation and the rest."""
  width = rng.uniform(0.61, 0.75)
  rotation = rng.normal(0.0, 0.025)
  apex = rng.uniform(-0.80, -0.66)
  dome = rng.uniform(0.22, 0.46)
  sulcus = rng.uniform(0.13, 0.22)
  step = rng.normal(0.035, 0.035)  # the right dome is usually the higher one
  lungs = []
  for side in (frames.RIGHT, frames.LEFT):
    height = dome + side * step / 2
    lungs.append(Lung(
        side=side, width=width - side * rotation, medial=rng.uniform(0.085, 0.125),
        apex=apex + rng.normal(0, 0.012), dome=height, sulcus=height + sulcus))
  return Anatomy(
      right=lungs[0], left=lungs[1], heart_ratio=rng.uniform(0.37, 0.475),
      heart_height=rng.uniform(0.40, 0.54), heart_share=rng.uniform(0.66, 0.76),
      shift=rotation + rng.normal(0, 0.008), mediastinum=rng.uniform(0.10, 0.145),
      knob=rng.uniform(0.045, 0.085), fat=rng.uniform(0.05, 0.24),
      breast=rng.uniform(0.06, 0.16) if rng.random() < 0.4 else 0.0,
      bubble=rng.uniform(0.5, 1.0) if rng.random() < 0.5 else 0.0,
      bone=rng.uniform(0.5, 1.0), markings=rng.uniform(0.6, 1.1),
      lung_air=rng.uniform(0.52, 0.64), arms=bool(rng.random() < 0.5))


def deform(anatomy: Anatomy, findings: tuple[latent.Finding, ...]) -> Anatomy:
  """The anatomy as the findings change it: heart size, volume loss, mediastinal shift."""
  for finding in findings:
    if finding.name == 'cardiomegaly':
      anatomy = dataclasses.replace(
          anatomy, heart_ratio=0.555 + 0.135 * finding.amount,
          heart_height=anatomy.heart_height * (1.08 + 0.1 * finding.amount),
          heart_share=0.5 * anatomy.heart_share + 0.34)
    elif finding.name == 'atelectasis' and finding.kind == 1:
      lung = anatomy.lung(finding.side)
      rise = 0.07 + 0.09 * finding.amount
      lung = dataclasses.replace(lung, dome=lung.dome - rise, sulcus=lung.sulcus - 0.6 * rise)
      anatomy = dataclasses.replace(anatomy, **{
          finding.side: lung, 'shift': anatomy.shift + lung.side * (0.02 + 0.04 * finding.amount)})
    elif finding.name == 'pneumothorax' and finding.level == 2:
      away = -anatomy.lung(finding.side).side
      anatomy = dataclasses.replace(anatomy, shift=anatomy.shift + away * 0.03)
  return anatomy


def heart_outline(anatomy: Anatomy) -> np.ndarray:
  """Closed contour [n 2] of the heart's silhouette."""
  width = anatomy.heart_ratio * anatomy.thorax_width
  left = width * anatomy.heart_share
  right = width - left
  base = max(anatomy.left.dome, anatomy.right.dome) + 0.10
  top = base - anatomy.heart_height - 0.1
  tall = base - top
  points = np.array([
      [-0.50 * right, top], [-0.86 * right, top + 0.3 * tall], [-right, top + 0.58 * tall],
      [-0.82 * right, top + 0.86 * tall], [0.0, base + 0.02], [0.55 * left, base + 0.01],
      [0.93 * left, top + 0.90 * tall], [left, top + 0.74 * tall], [0.86 * left, top + 0.52 * tall],
      [0.58 * left, top + 0.28 * tall], [0.36 * left, top]])
  return frames.curve(points + [anatomy.shift, 0.0], closed=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layers:
  """Attenuation layers [h w] of the normal chest; their sum is the chest.

  `lung` (per side) and `air` are 0..1 shares of aerated lung; findings fill them.
  """

  body: np.ndarray
  bones: np.ndarray
  vessels: np.ndarray
  central: np.ndarray
  lung: dict[str, np.ndarray]
  air: np.ndarray
  heart: np.ndarray


def draw(anatomy: Anatomy, rng: np.random.Generator, *, frame: frames.Frame) -> Layers:
  """Layers of the normal chest (heart and diaphragms as in `anatomy`)."""
  u, v = frame.grid()
  lung = {}
  for side in ('right', 'left'):
    mask = frame.polygon(anatomy.lung(side).outline(), soft=0.012)
    lung[side] = mask * (0.62 + 0.5 * frame.blur(mask, 0.14))
  air = np.minimum(lung['right'] + lung['left'], 1.0)
  heart = frame.polygon(heart_outline(anatomy), soft=0.012)
  return Layers(
      body=_body(anatomy, u, v, frame=frame), lung=lung, air=air, heart=heart,
      bones=anatomy.bone * _bones(anatomy, rng, v=v, u=u, frame=frame),
      vessels=anatomy.markings * _vessels(anatomy, rng, frame=frame),
      central=_central(anatomy, u, v, heart=heart, frame=frame))


def _body(anatomy: Anatomy, u, v, *, frame: frames.Frame) -> np.ndarray:
  """Torso, shoulders, neck and abdomen; breasts and gastric bubble."""
  wall = anatomy.thorax_width / 2 + anatomy.fat
  neck, shoulder = 0.20 + 0.3 * anatomy.fat, -0.80
  half = np.array([
      [neck, -1.6], [neck, -0.98], [neck + 0.12, -0.88], [wall + 0.02, shoulder],
      [wall + 0.24, shoulder + 0.14], [wall + 0.24, -0.45], [wall + 0.04, -0.22],
      [wall - 0.01, 0.2], [wall + 0.01, 0.6], [wall + 0.04, 1.6]])
  half = frames.curve(half)
  outline = np.concatenate([half, half[::-1] * [-1, 1]])
  torso = frame.polygon(outline, soft=0.02)
  depth = np.sqrt(np.clip(1.12 - (u / (wall + 0.06)) ** 2, 0.04, None))
  body = torso * (0.62 * depth + 0.12 + 0.5 * anatomy.fat)
  if anatomy.arms:
    for side in (-1, 1):
      arm = np.array([
          [wall + 0.03, -0.5], [wall + 0.26, -0.62], [wall + 0.34, 1.6], [wall + 0.12, 1.6]])
      body = np.maximum(body, 0.5 * frame.polygon(arm * [side, 1], soft=0.02))
  floor = (anatomy.right.dome + anatomy.left.dome) / 2
  body = body + 0.36 * torso * frames.ramp(v, floor - 0.08, floor + 0.28)
  if anatomy.breast:
    for side in (-1, 1):
      x = (u - side * 0.40) / 0.27
      y = (v - floor + 0.02) / 0.27
      body = body + anatomy.breast * frames.ramp(1.0 - x * x - y * y, 0.0, 0.25)
  if anatomy.bubble:
    x = (u - 0.30) / 0.16
    y = (v - anatomy.left.dome - 0.14) / 0.08
    body = body - 0.3 * anatomy.bubble * frames.ramp(1.0 - x * x - y * y, 0.0, 0.5)
  return body


def _central(anatomy: Anatomy, u, v, *, heart, frame: frames.Frame) -> np.ndarray:
  """Heart, great vessels, spine and trachea."""
  shift, half, knob = anatomy.shift, anatomy.mediastinum, anatomy.knob
  outline = frames.curve(np.array([
      [-half, 0.6], [-half, -0.1], [-half * 0.95, -0.45], [-half * 1.05, -0.75], [-half, -1.5],
      [half, -1.5], [half, -0.75], [half * 0.8, -0.52], [half + knob * 0.8, -0.40],
      [half + knob, -0.33], [half + knob * 0.5, -0.25], [half, -0.18], [half + 0.03, -0.05],
      [half, 0.6]]) + [shift, 0.0], closed=True, steps=4)
  mediastinum = frame.polygon(outline, soft=0.012)
  deep = heart * (0.55 + 0.45 * frame.blur(heart, 0.08))
  centre = u - 0.5 * shift
  vertebrae = 1.0 + 0.22 * np.cos(v * (2 * np.pi / 0.115))
  spine = np.exp(-np.square(np.square(centre / 0.075))) * vertebrae
  trachea = np.exp(-np.square(np.square((u - shift) / 0.036))) * frames.ramp(-v, 0.28, 0.42)
  mediastinum = mediastinum * (1 - 0.8 * frames.ramp(-v, 0.62, 0.90))  # the neck is thin
  silhouette = np.maximum(0.24 * mediastinum, 0.50 * deep)
  return silhouette + 0.09 * spine * (1 - 0.6 * heart) - 0.20 * trachea


def _bones(anatomy: Anatomy, rng, *, u, v, frame: frames.Frame) -> np.ndarray:
  """Ribs (posterior, anterior), clavicles, scapulae, humeral heads."""
  posterior, anterior, clavicles, blades = [], [], [], []
  t = np.linspace(0.0, 1.0, 12)[None, :]
  gap = rng.uniform(0.105, 0.13)
  drop = rng.uniform(0.12, 0.30)
  for lung in (anatomy.right, anatomy.left):
    start = (lung.apex + 0.02 + gap * np.arange(10))[:, None]
    rise = np.linspace(0.5, 1.0, 10)[:, None]
    height = start - 0.055 * np.sin(np.pi * np.minimum(1.25 * t, 1.0)) + rise * drop * t**2.6
    out = 0.09 + (1.01 * lung.lateral(height) - 0.09) * t
    posterior += list(np.stack([lung.side * out, height], axis=-1))
    low = (lung.apex + 0.28 + gap * 1.08 * np.arange(6))[:, None]
    height = low + 0.30 * (1 - t) ** 1.4
    out = 0.30 + (lung.lateral(low) - 0.30) * t
    anterior += list(np.stack([lung.side * out, height], axis=-1))
    clavicle = lung.apex + rng.uniform(0.07, 0.16)
    clavicles.append(frames.curve(np.array([
        [0.07, clavicle + 0.07], [0.25, clavicle + 0.04], [0.45, clavicle - 0.05],
        [0.66, clavicle - 0.09], [0.82, clavicle - 0.08]]) * [lung.side, 1]))
    edge = lung.width * rng.uniform(0.92, 1.15)
    blades.append(frames.curve(np.array([
        [edge + 0.02, -0.58], [edge - 0.01, -0.3], [edge + 0.02, -0.05], [edge + 0.12, -0.25]])
        * [lung.side, 1]))
  wide = frame.strokes(posterior, width=0.050, soft=0.008)
  core = frame.strokes(posterior, width=0.026, soft=0.008)
  ribs = 0.09 * wide + 0.05 * np.clip(wide - core, 0, 1)
  ribs += 0.055 * frame.strokes(anterior, width=0.045, soft=0.012)
  ribs += 0.14 * frame.strokes(clavicles, width=0.052, soft=0.010)
  ribs += 0.06 * frame.strokes(blades, width=0.03, soft=0.012)
  wall = anatomy.thorax_width / 2
  for side in (-1, 1):
    x, y = u - side * (wall + 0.20), v + 0.66
    ribs += 0.10 * frames.ramp(0.013 - x * x - y * y, 0.0, 0.009)
  return ribs


def _vessels(anatomy: Anatomy, rng, *, frame: frames.Frame) -> np.ndarray:
  """Hila and branching vessels, tapering towards the pleura."""
  trunks, middles, twigs, hila = [], [], [], []
  t = np.linspace(0.0, 1.0, 10)
  for lung in (anatomy.right, anatomy.left):
    hilum = lung.hilum
    down = np.linspace(0.03, 1.08, 9) + rng.normal(0, 0.04, 9)
    across = rng.uniform(0.45, 0.98, 9)
    bends = rng.normal(0, 0.05, 9)
    for k in range(9):
      end = lung.point(across[k], down[k])
      line = hilum + (end - hilum) * t[:, None]
      normal = np.array([-(end - hilum)[1], (end - hilum)[0]])
      line = line + (bends[k] * np.sin(np.pi * t) * 2)[:, None] * normal
      trunks.append(line[:4])
      middles.append(line[3:7])
      twigs.append(line[6:])
      for at in (3, 5, 7):
        fork = line[at] - hilum
        turn = rng.uniform(0.35, 0.9) * (1 if rng.random() < 0.5 else -1)
        turned = np.array([
            np.cos(turn) * fork[0] - np.sin(turn) * fork[1],
            np.sin(turn) * fork[0] + np.cos(turn) * fork[1]])
        reach = rng.uniform(0.08, 0.17) / max(float(np.hypot(*turned)), 0.05)
        twigs.append(np.stack([line[at], line[at] + turned * reach]))
    hila.append(frames.curve(hilum + np.array([[0, -0.10], [0.02 * lung.side, 0], [0, 0.11]])))
  vessels = 0.11 * frame.strokes(trunks, width=0.022, soft=0.007)
  vessels += 0.10 * frame.strokes(middles, width=0.014, soft=0.004)
  vessels += 0.085 * frame.strokes(twigs, width=0.009, soft=0.003)
  return vessels + 0.11 * frame.strokes(hila, width=0.06, soft=0.02)
