"""Phrase grounding: a map for each phrase, compared with its truth."""

import dataclasses
from typing import Any, Mapping, Sequence

from jaxtyping import Float
import numpy as np

from plan_jax import inference
from plan_jax.evals import grounding
from plan_jax.objectives import matching
from plan_jax.tasks import examples as examples_lib

FIGURES = ('cnr', 'miou', 'pointing')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grounded:
  """Phrases with the headline map's kind, grids and scores, for pictures."""

  targets: Sequence[examples_lib.Target]
  kind: matching.MapKind
  maps: Float[np.ndarray, 'n h w']
  scores: grounding.Scores


def targets_of(data: examples_lib.Encoded) -> list[examples_lib.Target]:
  """The phrases of all examples."""
  return [target for row, example in enumerate(data.examples)
          for target in examples_lib.phrase_targets(example, row=row)]


def run(
    model: inference.Model,
    data: examples_lib.Encoded,
    *,
    seed: int,
    replicates: int,
    progress: bool,
) -> tuple[examples_lib.Outcome, Grounded]:
  """Figures of each kind of map, of the centre of the frame only, of a floor and a ceiling.

  The floor is one Gaussian in the middle for all; the ceiling is truth itself, seen by
  the model's grid.
  """
  targets = targets_of(data)
  truths = [target.truth for target in targets]
  maps = phrase_maps(model, data, targets, progress=progress)
  examples_lib.note(progress, 'grounding: figures and their intervals')
  patients = data.patients

  def figures(found, *, maps, margin=False) -> dict[str, Any]:
    result = grounding.grounding(
        found, categories=[t.category for t in targets],
        groups=[patients[t.row] for t in targets], margin=margin, seed=seed,
        replicates=replicates)
    return {'maps': str(maps), **result.as_json()}

  headline = matching.headline(model.config.objective)
  scores = {kind: grounding.score_all(grids, truths) for kind, grids in maps.items()}
  parts = {'grounding': figures(scores[headline], maps=headline)}
  parts |= {f'grounding_{kind}': figures(found, maps=kind)
            for kind, found in scores.items() if kind is not headline}
  parts['grounding_margin'] = figures(
      grounding.score_all(maps[headline], truths, margin=True), maps=headline, margin=True)
  centre = np.broadcast_to(grounding.centre_map(model.grid), (len(targets), *model.grid))
  parts['grounding_centre'] = figures(grounding.score_all(centre, truths), maps='centre')
  ceiling = grounding.on_grid(truths, grid=model.grid)
  parts['grounding_ceiling'] = figures(grounding.score_all(ceiling, truths), maps='truth')
  samples = {'grounding_category': np.array([t.category for t in targets], np.str_),
             'grounding_image': np.array([t.row for t in targets], int)}
  for kind, found in scores.items():
    for field in dataclasses.fields(found):
      samples[f'grounding_{kind}/{field.name}'] = getattr(found, field.name)
  return (
      examples_lib.Outcome(parts=parts, samples=samples),
      Grounded(targets=targets, kind=headline, maps=maps[headline], scores=scores[headline]))


def quick(model: inference.Model, data: examples_lib.Encoded) -> dict[str, float]:
  """The headline map's figures without intervals; empty where there are no phrases."""
  targets = targets_of(data)
  if not targets:
    return {}
  headline = matching.headline(model.config.objective)
  maps = phrase_maps(model, data, targets, kinds=(headline,), progress=False)[headline]
  found = grounding.grounding(
      grounding.score_all(maps, [t.truth for t in targets]), replicates=1,
      categories=[t.category for t in targets], groups=[t.row for t in targets])
  return {name: getattr(found, name).value for name in FIGURES}


def phrase_maps(
    model: inference.Model,
    data: examples_lib.Encoded,
    targets: Sequence[examples_lib.Target],
    *,
    kinds: Sequence[matching.MapKind] = tuple(matching.MapKind),
    progress: bool,
) -> Mapping[matching.MapKind, Float[np.ndarray, 'n h w']]:
  """Grid maps of every target; each distinct phrase is encoded once."""
  distinct = sorted({target.text for target in targets})
  place = {text: k for k, text in enumerate(distinct)}
  phrases = model.encode_texts(distinct, name='phrase', label='phrases' if progress else '')
  which = np.array([place[target.text] for target in targets], int)
  rows = np.array([target.row for target in targets], int)
  images, texts = take(data.images, rows), take(phrases, which)
  return {kind: model.ground_pairs(images, texts, kind=kind) for kind in kinds}


def take(features, index):
  """The rows `index` of image or text features."""
  return type(features)(**{
      field.name: getattr(features, field.name)[index] for field in dataclasses.fields(features)})
