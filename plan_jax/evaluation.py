"""Evaluates a model on records: runs the tasks, writes figures, samples and pictures.

The shape of `metrics.json` is fixed: every figure is {value, low, high, n} with a
95 % bootstrap interval, every part names its protocol, and a task that was not asked for
is null or absent. Parts:

  zero_shot            AUROC per class and macro (null without a prompt file)
  zero_shot_decisions  accuracy and F1 at thresholds from the validation split
  grounding            by the kind of map that speaks for the objective (`maps` names it);
                       grounding_margin: centre of the frame only
  grounding_regions, grounding_words, grounding_pooled    the other kinds of map: by the
                       words' regions, their similarities, the phrase's vector
  grounding_centre     the floor: the same Gaussian in the middle for every phrase
  grounding_ceiling    truth itself, seen by the model's grid
  retrieval            image to text and text to image over all pairs, by the vectors
  retrieval_words      the same by vectors and words, where the model matches words
  class_retrieval      P@K over single-label pairs; class_retrieval_words likewise
  linear_probe, detection, segmentation    heads on the frozen tower

`samples.npz` holds the values behind the figures, one for each phrase, image or query, in
the order of the records: for paired comparisons of two models on the same records.
"""

import datetime
import enum
from importlib import metadata
import json
import math
import os
import pathlib
from typing import Any, BinaryIO, Callable, Mapping, Sequence

import numpy as np

from plan_jax import inference
from plan_jax import page
from plan_jax import prompts as prompts_lib
from plan_jax import report
from plan_jax.data import records as records_lib
from plan_jax.evals import bootstrap
from plan_jax.evals import grounding as grounding_lib
from plan_jax.tasks import cases
from plan_jax.tasks import examples as examples_lib
from plan_jax.tasks import grounding
from plan_jax.tasks import heads
from plan_jax.tasks import retrieval
from plan_jax.tasks import zero_shot


class Task(enum.StrEnum):
  """What a model can be asked for."""

  ZERO_SHOT = 'zero_shot'
  GROUNDING = 'grounding'
  RETRIEVAL = 'retrieval'
  LINEAR_PROBE = 'linear_probe'
  DETECTION = 'detection'
  SEGMENTATION = 'segmentation'


DEFAULT_TASKS = (Task.ZERO_SHOT, Task.GROUNDING, Task.RETRIEVAL)
HEADS = {  # (checks that there is something to learn from, the task)
    Task.LINEAR_PROBE: (heads.require_probe, heads.probe),
    Task.DETECTION: (heads.require_boxes, heads.detect),
    Task.SEGMENTATION: (heads.require_masks, heads.segment)}


def evaluate(
    model: inference.Model,
    directory: str | os.PathLike[str],
    *,
    split: str,
    max_pairs: int,
    tasks: Sequence[Task] = DEFAULT_TASKS,
    prompts: str | os.PathLike[str] | None = None,
    train_pairs: int = heads.TRAIN_PAIRS,
    pictures: int = 0,
    out: str | os.PathLike[str] | None = None,
    include_text: bool = False,
    checkpoint: str | os.PathLike[str] = '',
    seed: int = 0,
    replicates: int = bootstrap.REPLICATES,
    progress: bool = True,
) -> dict[str, Any]:
  """All figures of a split, in the fixed shape (see the module).

  Where `model` is that of several processes, all call it, and one with `out`.

  Args:
    model: to evaluate.
    directory: of records.
    split: 'train', 'val' or 'test'.
    max_pairs: pairs used, drawn with `seed` where the split has more.
    tasks: what to compute.
    prompts: prompt file; None leaves zero-shot out.
    train_pairs: the most that heads on the frozen tower learn from.
    pictures: grounding overlays to draw, chosen by lot, the findings in turn.
    out: gets `metrics.json`, `samples.npz`, `report.html` and, with `pictures`,
      `grounding.png`; None writes nothing.
    include_text: the page and the pictures may show phrases and reports, which are
      patients' text.
    checkpoint: where the model is from; named on the page.
    seed: of draws, heads and bootstrap.
    replicates: of the bootstrap.
    progress: prints each slow stage.

  Raises:
    EvaluationError: no pairs in that split, or nothing that a task could learn from.
    prompts.PromptError: the prompt file does not fit the records.
  """
  card = records_lib.read_card(directory)
  classes = ()
  if prompts is not None and Task.ZERO_SHOT in tasks:
    # First, so that a slip in the file costs no minutes.
    classes = prompts_lib.read(prompts)
    prompts_lib.require_known(classes, known=card['classes'], where=str(directory))
  source = heads.Source(directory, train_pairs=train_pairs, seed=seed, progress=progress)
  asked = [HEADS[task] for task in tasks if task in HEADS]
  for require, _ in asked:
    require(source)
  data = examples_lib.encode(
      model, directory, split=split, max_pairs=max_pairs, seed=seed, progress=progress)
  drawing = dict(seed=seed, replicates=replicates)
  outcomes, grounded, scores = [], None, None
  if classes:
    thresholds = None if split == 'val' else zero_shot.thresholds(
        model, directory, classes=classes, max_pairs=max_pairs, seed=seed, progress=progress)
    outcomes.append(
        zero_shot.run(model, data, classes=classes, thresholds=thresholds, **drawing))
  if Task.GROUNDING in tasks:
    outcome, grounded = grounding.run(model, data, progress=progress, **drawing)
    outcomes.append(outcome)
  if Task.RETRIEVAL in tasks:
    outcome, scores = retrieval.run(model, data, progress=progress, **drawing)
    outcomes.append(outcome)
  outcomes += [run(model, data, source, replicates=replicates) for _, run in asked]
  results = {
      'split': split, 'pairs': len(data.examples),
      'data': {name: card.get(name) for name in ('name', 'kind', 'content_hash')},
      'zero_shot': None}
  for outcome in outcomes:
    results |= outcome.parts
  if out is not None:
    model = model.alone()  # the other processes write nothing
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    codes = np.unique(np.array(data.patients, np.str_), return_inverse=True)[1]
    samples = {'patient': codes, 'reported': np.array(data.reported, int)}
    for outcome in outcomes:
      samples |= outcome.samples
    _replace(out / 'samples.npz', lambda file: np.savez_compressed(
        file, allow_pickle=False, **samples))
    if grounded and pictures:
      _draw_overlays(data, grounded, out / 'grounding.png', count=pictures, seed=seed,
                     include_text=include_text)
    examples_lib.note(progress, 'writing the report')
    shown = {'curves': cases.curves(outcomes)}
    if grounded:
      shown |= cases.sections(model, data, grounded, seed=seed)
    if scores is not None:
      shown |= cases.retrieved(data, scores, seed=seed)
    page.write(
        page.Page(title='What the model finds', results=results,
                  is_phantom=card.get('kind') == 'phantom',
                  facts=_facts(model, results, checkpoint=checkpoint, directory=directory),
                  **shown),
        out / 'report.html', include_text=include_text)
    # Last: where it stands, the rest does.
    text = json.dumps(results, indent=2) + '\n'
    _replace(out / 'metrics.json', lambda file: file.write(text.encode()))
  return results


def validate(
    model: inference.Model, directory: str | os.PathLike[str], *, max_pairs: int,
) -> dict[str, float]:
  """Retrieval and grounding on the validation split: plain numbers for a curve.

  `val_retrieval_r<k>` is the mean of both directions. What the split cannot tell
  (no phrases, no pairs) is left out.
  """
  if not len(records_lib.Records(directory, 'val')):
    return {}
  data = examples_lib.encode(
      model, directory, split='val', max_pairs=max_pairs, seed=0, progress=False)
  values = {f'val_retrieval_r{k}': value for k, value in retrieval.quick(data).items()}
  values |= {f'val_grounding_{name}': value
             for name, value in grounding.quick(model, data).items()}
  return {name: value for name, value in values.items() if math.isfinite(value)}


def table(results: Mapping[str, Any]) -> str:
  """A short table of the headline figures that are defined, for the screen."""
  rows = []
  if results['zero_shot']:
    rows.append(('zero-shot macro AUROC', results['zero_shot']['macro_auroc']))
  for part in ('grounding', 'grounding_pooled', 'grounding_centre'):
    rows += [(f'grounding {metric}, maps: {results[part]["maps"]}', results[part][metric])
             for metric in grounding.FIGURES if part in results]
  for part, name in (('retrieval', 'by vectors'), ('retrieval_words', 'with words')):
    rows += [(f'retrieval {way.replace("_", " ")} {metric}, {name}', results[part][way][metric])
             for way in ('image_to_text', 'text_to_image')
             for metric in ('r@1', 'r@5', 'median_rank') if part in results]
  rows = [(name, found) for name, found in rows if found['value'] is not None]
  width = max((len(name) for name, _ in rows), default=0)
  lines = [f'{results["split"]} split, {results["pairs"]} pairs: value [95 % interval] n']
  lines += [f'  {name:<{width}}  {figure_text(found):<26} {found["n"]}' for name, found in rows]
  return '\n'.join(lines)


def figure_text(found: Mapping[str, float | int | None]) -> str:
  """'0.871 [0.842, 0.893]', or 'undefined'."""
  if found['value'] is None:
    return 'undefined'
  return f'{found["value"]:.3f} [{found["low"]:.3f}, {found["high"]:.3f}]'


def _replace(path: pathlib.Path, write: Callable[[BinaryIO], Any]) -> None:
  """Writes a file whole or not at all."""
  fresh = path.with_name(path.name + '.tmp')
  with fresh.open('wb') as file:
    write(file)
  fresh.replace(path)


def _draw_overlays(
    data, grounded, path: pathlib.Path, *, count: int, seed: int, include_text: bool) -> None:
  chosen = cases.choose([t.category for t in grounded.targets], count=count, seed=seed)
  if not chosen:
    return
  report.grounding_page([
      report.Overlay(
          image=cases.frame_image(data.examples[target.row]), truth=target.truth,
          heat=grounding_lib.to_frame(grounded.maps[i][None])[0],
          phrase=target.text if include_text else '', category=target.category,
          cnr=float(grounded.scores.cnr[i]))
      for i, target in ((i, grounded.targets[i]) for i in chosen)], path)


def _facts(model, results: Mapping[str, Any], *, checkpoint, directory) -> dict[str, str]:
  """What was evaluated; names of directories, not whole paths, and no patient's text."""
  settings = model.config
  found = {
      'checkpoint': '/'.join(pathlib.Path(checkpoint).absolute().parts[-3:]) if checkpoint else '',
      'objective': {'plan': 'PLAN, reconstructed'}.get(
          settings.objective.name, str(settings.objective.name)),
      'towers': f'{settings.model.image}, {settings.model.text}',
      'image side': f'{model.image_size} pixels',
      'training': f'{settings.train.steps} steps of {settings.train.batch_size} pairs',
      'records': pathlib.Path(directory).name or str(directory),
      'records hash': str(results['data']['content_hash'] or 'unknown')[:16],
      'plan_jax': metadata.version('plan_jax'), 'jax': metadata.version('jax'),
      'date': datetime.date.today().isoformat()}
  return {name: value for name, value in found.items() if value}
