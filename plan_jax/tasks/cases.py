"""What the report page shows of an evaluation: curves, grounded phrases, retrieved reports."""

from typing import Any, Iterator, Mapping, Sequence

from jaxtyping import Float
import numpy as np

from plan_jax import inference
from plan_jax import page
from plan_jax.data import augment
from plan_jax.data import records as records_lib
from plan_jax.evals import grounding as grounding_lib
from plan_jax.evals import retrieval as retrieval_lib
from plan_jax.objectives import matching
from plan_jax.tasks import examples as examples_lib
from plan_jax.tasks import grounding
from plan_jax.tasks import retrieval

CASES = 12  # of each section
_RETRIEVED = 6  # images of each section
_CANDIDATES = 5  # reports an image
_CURVES = {  # key before '/': (title, x, y, with the line of guessing)
    'zero_shot': ('Zero-shot classification', 'false positive rate', 'true positive rate', True),
    'recall': ('Retrieval: found within the first K', 'K', 'share of queries', False)}


def choose(categories: Sequence[str], *, count: int, seed: int) -> list[int]:
  """Up to `count` positions, by lot, the categories in turn: not the best ones."""
  order = np.random.default_rng(seed).permutation(len(categories))
  queues: dict[str, list[int]] = {}
  for i in order:
    queues.setdefault(categories[i], []).append(int(i))
  turns = sorted(
      (place, name, i) for name, queue in queues.items() for place, i in enumerate(queue))
  return [i for _, _, i in turns[:count]]


def frame_image(example: records_lib.Example) -> np.ndarray:
  """The image in the square frame that the model sees."""
  frame, _ = augment.eval_frame(augment.decode_image(example.image), size=grounding_lib.FRAME)
  return frame


def curves(outcomes: Sequence[examples_lib.Outcome]) -> list[page.Curve]:
  """One plot for each task's curves."""
  series: dict[str, dict[str, Any]] = {}
  for outcome in outcomes:
    for key, points in outcome.curves.items():
      task, _, name = key.partition('/')
      series.setdefault(task, {})[name.split('/')[-1].replace('_', ' ')] = points
  return [page.Curve(title=_CURVES[task][0], x_label=_CURVES[task][1], y_label=_CURVES[task][2],
                     diagonal=_CURVES[task][3], series=lines) for task, lines in series.items()]


def sections(
    model: inference.Model, data: examples_lib.Encoded, grounded: grounding.Grounded, *, seed: int,
) -> Mapping[str, Sequence[page.GroundingCase]]:
  """Phrases drawn by lot, and those with the highest and the lowest CNR."""
  cnr = grounded.scores.cnr
  defined = np.flatnonzero(np.isfinite(cnr))
  order = defined[np.argsort(-cnr[defined], kind='stable')]
  chosen = {
      'typical': choose([t.category for t in grounded.targets], count=CASES, seed=seed),
      'best': order[:CASES].tolist(),
      'worst': order[::-1][:CASES].tolist()}
  return {name: list(_cases(model, data, grounded, rows)) for name, rows in chosen.items()}


def _cases(
    model: inference.Model, data: examples_lib.Encoded, grounded: grounding.Grounded,
    chosen: Sequence[int],
) -> Iterator[page.GroundingCase]:
  if not chosen:
    return
  targets = [grounded.targets[i] for i in chosen]
  texts = model.encode_texts([target.text for target in targets], name='phrase')
  images = grounding.take(data.images, [target.row for target in targets])
  by_words = grounded.kind is not matching.MapKind.POOLED
  if by_words:
    maps, weights = model.word_maps(images, texts, kind=grounded.kind)
  for k, (i, target) in enumerate(zip(chosen, targets, strict=True)):
    example = data.examples[target.row]
    iou = grounded.scores.iou[i]
    words = [
        page.WordMap(text=word, weight=float(weights[k, place]),
                     heat=grounding_lib.to_frame(
                         maps[k, place].reshape(1, *model.grid), side=56)[0])
        for place, word in enumerate(model.words(target.text) if by_words else ())]
    yield page.GroundingCase(
        id=example.id, image=frame_image(example), phrase=target.text, category=target.category,
        heat=grounding_lib.to_frame(grounded.maps[i][None], side=112)[0], words=words,
        truth=target.truth, boxes=_boxes(example, target),
        cnr=float(grounded.scores.cnr[i]), pointing=float(grounded.scores.pointing[i]),
        miou=float(np.mean(iou[np.isfinite(iou)])) if np.isfinite(iou).any() else np.nan)


def _boxes(example: records_lib.Example, target: examples_lib.Target) -> list[tuple[float, ...]]:
  height, width = augment.decode_image(example.image).shape
  key = examples_lib.normal_text(target.text)
  found = [augment.eval_frame_boxes(
      phrase.boxes, height=height, width=width, size=grounding_lib.FRAME)
           for phrase in example.phrases if examples_lib.normal_text(phrase.text) == key]
  return [tuple(map(float, box)) for boxes in found for box in boxes]


def retrieved(
    data: examples_lib.Encoded, scores: Float[np.ndarray, 'n n'], *, seed: int,
) -> Mapping[str, Sequence[page.RetrievalCase]]:
  """Images with the reports offered for them: by lot, and those found last."""
  ids = retrieval.text_ids(data)
  ranks = retrieval_lib.ranks(scores, text_id=ids)
  count = min(_RETRIEVED, len(ranks))
  chosen = {
      'retrieval': np.random.default_rng(seed).permutation(len(ranks))[:count],
      'missed': np.argsort(-ranks, kind='stable')[:count]}

  def case(row: int) -> page.RetrievalCase:
    example = data.examples[data.reported[row]]
    order = np.argsort(-scores[row], kind='stable')[:_CANDIDATES]
    return page.RetrievalCase(
        id=example.id, image=frame_image(example), report=example.text, rank=int(ranks[row]),
        candidates=[
            page.Candidate(text=data.examples[data.reported[j]].text,
                           similarity=float(scores[row, j]), is_hit=bool(ids[j] == ids[row]),
                           rank=place + 1)
            for place, j in enumerate(order)])

  return {name: [case(int(row)) for row in rows] for name, rows in chosen.items()}
