"""Evaluates a model on records: zero-shot, grounding, retrieval, pictures.

The shape of `metrics.json` is fixed: every figure is {value, low, high, n} with a
95 % bootstrap interval, and every part names its protocol. Parts:

  zero_shot            AUROC per class and macro (null without a prompt file)
  grounding            maps by the words; grounding_margin: centre of the frame only
  grounding_pooled     maps by the phrase's vector, the published protocol's form
  grounding_centre     the floor: the same Gaussian in the middle for every phrase
  retrieval            image to text and text to image over all pairs
"""

import dataclasses
import json
import math
import os
import pathlib
from typing import Any, Iterable, Iterator, Mapping, Sequence

import cv2
from jaxtyping import Bool, Float
import numpy as np
from scipy import special

from plan_jax import errors
from plan_jax import inference
from plan_jax import prompts as prompts_lib
from plan_jax import report
from plan_jax import shapes
from plan_jax.data import augment
from plan_jax.data import records as records_lib
from plan_jax.evals import bootstrap
from plan_jax.evals import grounding
from plan_jax.evals import retrieval
from plan_jax.evals import zero_shot

_FIGURES = ('cnr', 'miou', 'pointing')
# Weight of the word matches beside the vectors in a zero-shot score, both as the logits that
# were trained. Chosen on phantoms of a seed of its own; .2 to .5 do equally well.
_MATCH_WEIGHT = 0.3


class EvaluationError(errors.UserError):
  """Records that cannot be evaluated on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
  """A phrase of one image (its `row` among the examples) and its truth in the frame."""

  row: int
  text: str
  category: str
  truth: Bool[np.ndarray, 'h w']


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Encoded:
  """A split's examples with their features, computed once.

  `reports` are those of the rows `reported`: an example may have no report.
  """

  examples: Sequence[records_lib.Example]
  images: shapes.ImageFeatures
  reports: shapes.TextFeatures
  reported: Sequence[int]

  @property
  def patients(self) -> list[str]:
    return [example.patient or example.id for example in self.examples]

  def retrieval(self, **drawing) -> retrieval.Retrieval:
    """Over the pairs that have a report."""
    rows, patients = list(self.reported), self.patients
    return retrieval.retrieval(
        self.images.pooled[rows] @ self.reports.pooled.T, groups=[patients[k] for k in rows],
        text_id=[_normal_text(self.examples[k].text) for k in rows], **drawing)


def evaluate(
    model: inference.Model,
    directory: str | os.PathLike[str],
    *,
    split: str,
    max_pairs: int,
    prompts: str | os.PathLike[str] | None = None,
    pictures: int = 0,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    replicates: int = bootstrap.REPLICATES,
    progress: bool = True,
) -> dict[str, Any]:
  """All figures of a split, in the fixed shape (see the module).

  Args:
    model: to evaluate.
    directory: of records.
    split: 'train', 'val' or 'test'.
    max_pairs: pairs used, drawn with `seed` where the split has more.
    prompts: prompt file; None leaves zero-shot out.
    pictures: grounding overlays to draw, chosen by lot, the findings in turn.
    out: gets `metrics.json` and, with `pictures`, `grounding.png`; None writes nothing.
    seed: of the draw and the bootstrap.
    replicates: of the bootstrap.
    progress: prints each slow stage.

  Raises:
    EvaluationError: no pairs in that split.
    prompts.PromptError: the prompt file does not fit the records.
  """
  classes = ()
  if prompts is not None:
    # First, so that a slip in the file costs no minutes.
    classes = prompts_lib.read(prompts)
    prompts_lib.require_known(
        classes, known=records_lib.read_card(directory)['classes'], where=str(directory))
  data = _encode(model, directory, split=split, max_pairs=max_pairs, seed=seed, progress=progress)
  drawing = dict(seed=seed, replicates=replicates)
  targets = [target for row, example in enumerate(data.examples)
             for target in phrase_targets(example, row=row)]
  maps = _maps(model, data, targets, progress=progress)
  _note(progress, 'computing figures and their intervals')
  scores = {kind: grounding.score_all(grids, [t.truth for t in targets])
            for kind, grids in maps.items()}
  centre = grounding.score_all(
      np.broadcast_to(grounding.centre_map(model.grid), (len(targets), *model.grid)),
      [t.truth for t in targets])
  margin = grounding.score_all(
      maps[inference.MapKind.WORDS], [t.truth for t in targets], margin=True)

  def ground(found, *, maps, margin=False):
    figures = grounding.grounding(
        found, categories=[t.category for t in targets], groups=[t.row for t in targets],
        margin=margin, **drawing)
    return {'maps': maps, **figures.as_json()}

  results = {
      'split': split,
      'pairs': len(data.examples),
      'zero_shot': None,
      'grounding': ground(scores[inference.MapKind.WORDS], maps='words'),
      'grounding_margin': ground(margin, maps='words', margin=True),
      'grounding_pooled': ground(scores[inference.MapKind.POOLED], maps='pooled'),
      'grounding_centre': ground(centre, maps='centre'),
      'retrieval': data.retrieval(**drawing).as_json(),
  }
  if classes:
    results['zero_shot'] = zero_shot_figures(
        class_scores(model, [data.images], classes=classes), classes=classes,
        with_words=model.matches_words, patients=data.patients,
        labels=[example.labels for example in data.examples], **drawing)
  if out is not None:
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=2) + '\n'
    (out / 'metrics.json').write_text(text, 'utf-8')
    chosen = choose_pictures([t.category for t in targets], count=pictures, seed=seed)
    if chosen:
      _note(progress, f'drawing {len(chosen)} grounding overlays')
      kind = inference.MapKind.WORDS
      report.grounding_page(
          [_overlay(data, targets[i], maps[kind][i], scores[kind].cnr[i]) for i in chosen],
          out / 'grounding.png')
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
  data = _encode(model, directory, split='val', max_pairs=max_pairs, seed=0, progress=False)
  targets = [target for row, example in enumerate(data.examples)
             for target in phrase_targets(example, row=row)]
  found = data.retrieval(replicates=1)
  both = (found.image_to_text, found.text_to_image)
  values = {
      f'val_retrieval_r{k}': float(np.mean([way.recall[k].value for way in both]))
      for k in retrieval.CUTOFFS}
  if targets:
    maps = _maps(model, data, targets, progress=False)[inference.MapKind.WORDS]
    grounded = grounding.grounding(
        grounding.score_all(maps, [t.truth for t in targets]), replicates=1,
        categories=[t.category for t in targets], groups=[t.row for t in targets])
    values |= {f'val_grounding_{name}': getattr(grounded, name).value for name in _FIGURES}
  return {name: value for name, value in values.items() if math.isfinite(value)}


def class_scores(
    model: inference.Model,
    images: Iterable[shapes.ImageFeatures],
    *,
    classes: Sequence[prompts_lib.ClassPrompts],
) -> Float[np.ndarray, 'n k']:
  """Zero-shot score of each class on each image, larger is likelier.

  Cosine with the positive prompts' ensemble, minus that with the negative prompts'
  where there are any, over the temperature. Where the model was trained with (9), plus
  how well the words of the positive prompts find their regions: log-mean-exp over the
  prompts, since one fitting wording is enough. Negative prompts count by their vectors
  alone: they mostly name what is absent, and such words have no region to find.

  Args:
    model: the towers.
    images: features, in as many parts as memory asks for.
    classes: prompts of each class.

  Source: method (18).
  """
  texts = [text for entry in classes for text in entry.positive]
  positive = model.encode_texts(texts, name='prompt')
  counts = np.array([len(entry.positive) for entry in classes])
  starts = np.cumsum(counts) - counts
  directions = np.stack([
      zero_shot.ensemble(positive.pooled[start:start + count])
      for start, count in zip(starts, counts, strict=True)])
  for k, entry in enumerate(classes):
    if entry.negative:
      directions[k] -= zero_shot.ensemble(
          model.encode_texts(entry.negative, name='prompt').pooled)
  parts = []
  for part in images:
    scores = part.pooled @ directions.T / model.temperature
    if model.matches_words:
      matches = model.match(part, positive)
      scores += _MATCH_WEIGHT * np.stack([
          special.logsumexp(matches[:, start:start + count], axis=1) - math.log(count)
          for start, count in zip(starts, counts, strict=True)], axis=1)
    parts.append(scores)
  return np.concatenate(parts)


def zero_shot_figures(
    scores: Float[np.ndarray, 'n k'],
    *,
    classes: Sequence[prompts_lib.ClassPrompts],
    labels: Sequence[Sequence[str]],
    patients: Sequence[str],
    with_words: bool,
    seed: int = 0,
    replicates: int = bootstrap.REPLICATES,
) -> dict[str, Any]:
  """Zero-shot figures of images with labels; images without any label are left out.

  `scores` are those of `class_scores`; `with_words`: the model's words are part of them
  (a protocol of its own). The result also says how many images were
  left out, and which labels no class stands for.
  """
  normal = [{prompts_lib.normal_label(label) for label in row} for row in labels]
  labelled = np.array([bool(row) for row in normal], bool)
  is_positive = np.zeros(scores.shape, bool)
  for k, entry in enumerate(classes):
    is_positive[:, k] = [not row.isdisjoint(entry.labels) for row in normal]
  found = zero_shot.zero_shot(
      scores[labelled], is_positive[labelled], classes=[entry.name for entry in classes],
      groups=[p for p, kept in zip(patients, labelled, strict=True) if kept],
      seed=seed, replicates=replicates)
  covered = {label for entry in classes for label in entry.labels}
  return {
      **found.as_json(),
      'protocol': zero_shot.PROTOCOL + ('_words' if with_words else ''),
      'unlabelled': int((~labelled).sum()),
      'labels_without_prompts': sorted(set().union(*normal) - covered),
  }


def phrase_targets(example: records_lib.Example, *, row: int) -> Iterator[Target]:
  """The phrases of an example with their truth in the frame of the protocol.

  Boxes and masks that share a lower-cased phrase are one truth, their union; a
  phrase's mask counts where it has one, else its boxes, to whole pixels.
  """
  if not example.phrases:
    return
  height, width = augment.decode_image(example.image).shape
  merged: dict[str, Target] = {}
  for phrase in example.phrases:
    if phrase.mask:
      mask = cv2.imdecode(np.frombuffer(phrase.mask, np.uint8), cv2.IMREAD_GRAYSCALE)
      truth = augment.eval_frame_mask(mask > 0, size=grounding.FRAME)
    else:
      truth = np.zeros((grounding.FRAME, grounding.FRAME), bool)
      boxes = augment.eval_frame_boxes(
          phrase.boxes, height=height, width=width, size=grounding.FRAME)
      boxes = np.clip(np.floor(boxes), 0, grounding.FRAME).astype(int)
      for x0, y0, x1, y1 in boxes:
        truth[y0:y1, x0:x1] = True
    key = _normal_text(phrase.text)
    if key in merged:
      truth |= merged[key].truth
    merged[key] = Target(row=row, text=phrase.text, category=phrase.category, truth=truth)
  yield from merged.values()


def choose_pictures(categories: Sequence[str], *, count: int, seed: int) -> list[int]:
  """Up to `count` positions, by lot, the categories in turn: not the best ones."""
  order = np.random.default_rng(seed).permutation(len(categories))
  queues: dict[str, list[int]] = {}
  for i in order:
    queues.setdefault(categories[i], []).append(int(i))
  turns = sorted(
      (place, name, i) for name, queue in queues.items() for place, i in enumerate(queue))
  return [i for _, _, i in turns[:count]]


def table(results: Mapping[str, Any]) -> str:
  """A short table of the headline figures that are defined, for the screen."""
  rows = []
  if results['zero_shot']:
    rows.append(('zero-shot macro AUROC', results['zero_shot']['macro_auroc']))
  for part in ('grounding', 'grounding_pooled', 'grounding_centre'):
    name = {'words': 'by words', 'pooled': 'by phrase', 'centre': 'fixed centre'}[
        results[part]['maps']]
    rows += [(f'grounding {metric}, {name}', results[part][metric]) for metric in _FIGURES]
  for way in ('image_to_text', 'text_to_image'):
    for metric, found in results['retrieval'][way].items():
      if metric in ('r@1', 'r@5', 'median_rank'):
        rows.append((f'retrieval {way.replace("_", " ")} {metric}', found))
  rows = [(name, found) for name, found in rows if found['value'] is not None]
  width = max(len(name) for name, _ in rows)
  lines = [f'{results["split"]} split, {results["pairs"]} pairs: value [95 % interval] n']
  lines += [f'  {name:<{width}}  {figure_text(found):<26} {found["n"]}' for name, found in rows]
  return '\n'.join(lines)


def figure_text(found: Mapping[str, float | int | None]) -> str:
  """'0.871 [0.842, 0.893]', or 'undefined'."""
  if found['value'] is None:
    return 'undefined'
  return f'{found["value"]:.3f} [{found["low"]:.3f}, {found["high"]:.3f}]'


def _encode(model, directory, *, split, max_pairs, seed, progress) -> _Encoded:
  records = records_lib.Records(directory, split)
  if not len(records):
    raise EvaluationError(
        f'split {split!r} of {directory} has no pairs; evaluate another split, or prepare more')
  chosen = np.arange(len(records))
  if len(records) > max_pairs:
    chosen = np.sort(np.random.default_rng(seed).choice(len(records), max_pairs, replace=False))
  examples = [records[int(i)] for i in chosen]
  reported = [k for k, example in enumerate(examples) if example.text.strip()]
  if len(reported) < len(examples):
    _note(progress, f'{len(examples) - len(reported)} of {len(examples)} pairs have no report: '
          'they do not count in retrieval')
  images = model.encode_images(
      (example.image for example in examples), count=len(examples),
      names=[f'image of record {example.id!r}' for example in examples],
      label='images' if progress else '')
  reports = model.encode_texts(
      [examples[k].text for k in reported], name='report', label='reports' if progress else '')
  return _Encoded(examples=examples, images=images, reports=reports, reported=reported)


def _maps(
    model: inference.Model, data: _Encoded, targets: Sequence[Target], *, progress: bool,
) -> dict[inference.MapKind, Float[np.ndarray, 'n h w']]:
  """Both kinds of map for every target; each distinct phrase is encoded once."""
  distinct = sorted({target.text for target in targets})
  place = {text: k for k, text in enumerate(distinct)}
  phrases = model.encode_texts(distinct, name='phrase', label='phrases' if progress else '')
  which = np.array([place[target.text] for target in targets], int)
  rows = np.array([target.row for target in targets], int)

  def take(features, index):
    return type(features)(**{
        field.name: getattr(features, field.name)[index]
        for field in dataclasses.fields(features)})

  return {
      kind: model.ground_pairs(take(data.images, rows), take(phrases, which), kind=kind)
      for kind in inference.MapKind}


def _overlay(data: _Encoded, target: Target, grid_map, cnr: float) -> report.Overlay:
  frame, _ = augment.eval_frame(
      augment.decode_image(data.examples[target.row].image), size=grounding.FRAME)
  return report.Overlay(
      image=frame, heat=grounding.to_frame(grid_map[None])[0], truth=target.truth,
      phrase=target.text, category=target.category, cnr=float(cnr))


def _normal_text(text: str) -> str:
  return ' '.join(text.lower().split())


def _note(progress: bool, text: str) -> None:
  if progress:
    print(text, flush=True)
