"""Procedural chest radiographs with reports and exact truth (docs/phantoms.md)."""

import numpy as np

from plan_jax.data import records
from plan_jax.data.phantom import latent
from plan_jax.data.phantom import render
from plan_jax.data.phantom import report

CLASSES = latent.CLASSES
VERSION = 2  # of the drawing and the words: raise it with every change of either


def example(index: int, *, seed: int, size: int) -> records.Example:
  """Pair number `index` of the corpus `seed`; the long side of the picture is `size`.

  The same (seed, index, size) gives the same bytes. Of every 16 indices, 0 and 1 are
  test, 2 is validation and the rest training.

  Raises:
    ValueError: for a negative index or seed, or a size below 64.
  """
  if index < 0 or seed < 0:
    raise ValueError(f'index and seed must be at least 0, got {index=} {seed=}')
  if size < 64:
    raise ValueError(f'size must be at least 64 pixels to show ribs and vessels, got {size}')
  latent_rng, anatomy_rng, finding_rng, text_rng = np.random.default_rng([seed, index]).spawn(4)
  findings = latent.sample_findings(latent_rng)
  picture = render.radiograph(
      findings, anatomy_rng=anatomy_rng, finding_rng=finding_rng, size=size)
  written = report.write(findings, text_rng)
  masks = [render.encode_mask(mask) for mask in picture.masks]
  boxes = [render.boxes(mask) for mask in picture.masks]
  phrases = tuple(
      records.Phrase(text=text, category=findings[k].name, boxes=boxes[k], mask=masks[k])
      for k, text in written.phrases)
  name = f'phantom-{seed}-{index}'
  place = index % 16
  return records.Example(
      id=name, image=render.encode_image(picture.image), text=written.text, patient=name,
      split='test' if place < 2 else 'val' if place == 2 else 'train',
      labels=latent.labels(findings), phrases=phrases, is_annotated=True)
