"""A page with smooth made-up pictures, for the tests of plan_jax.page."""

import math
from typing import Any

import numpy as np

from plan_jax import page

CATEGORIES = ('edema', 'pleural effusion', 'pneumothorax')
SIDE = 96


def figure(value: float | None, *, n: int = 40) -> dict[str, Any]:
  if value is None:
    return {'value': None, 'low': None, 'high': None, 'n': n}
  return {'value': value, 'low': round(value - 0.03, 3), 'high': round(value + 0.04, 3), 'n': n}


def blob(y: float, x: float, *, side: int, width: float = 0.15) -> np.ndarray:
  """A Gaussian at (y, x), both as shares of the side."""
  grid = (np.arange(side) + 0.5) / side
  return np.exp(-((grid[:, None] - y) ** 2 + (grid[None] - x) ** 2) / (2 * width**2))


def image(number: int) -> np.ndarray:
  grid = np.linspace(0, 1, SIDE)
  waves = np.sin(7 * grid[:, None] + number) + np.cos(5 * grid[None] * (1 + number % 3))
  return (60 + 35 * (waves + 2)).astype(np.uint8)


def grounding_case(number: int, **changes) -> page.GroundingCase:
  """Words 'alpha<number>', 'beta<number>', ...; word k's map lies on the k-th third."""
  names = [f'{name}{number}' for name in ('alphaterm', 'betaterm', 'gammaterm')]
  words = [page.WordMap(text=name, weight=0.6 / (k + 1), heat=blob(0.5, (k + 0.5) / 3, side=14))
           for k, name in enumerate(names)]
  heat = blob(0.3, 0.6, side=14)
  case = dict(
      id=f'recordmark{number}', image=image(number), phrase=' '.join(names) + ' trailingterm.',
      category=CATEGORIES[number % 3], heat=heat, words=words,
      truth=blob(0.3, 0.6, side=SIDE) > 0.5, boxes=((40.0, 12.0, 74.0, 46.0),),
      cnr=1.0 + number / 10, miou=0.2, pointing=float(number % 2))
  return page.GroundingCase(**(case | changes))


def retrieval_case(number: int, *, rank: int = 2) -> page.RetrievalCase:
  candidates = [
      page.Candidate(text=f'candidateterm{number} ' * (60 if k == 1 else 5) + f'endingterm{k}',
                     similarity=0.9 - 0.1 * k, is_hit=k == rank, rank=k)
      for k in (1, 2, 3)]
  return page.RetrievalCase(id=f'querymark{number}', image=image(number), rank=rank,
                            report=f'reportterm{number} and more', candidates=candidates)


def results() -> dict[str, Any]:
  """metrics.json in its fixed shape, with parts that the page does not know."""
  grounding = {
      'maps': 'words', 'protocol': 'grounding/ms_cxr', 'cnr': figure(1.234),
      'abs_cnr': figure(1.345), 'miou': figure(0.212), 'pointing': figure(0.456),
      'categories': {
          name: {'cnr': figure(1.1 + k, n=10), 'abs_cnr': figure(1.2 + k, n=10),
                 'miou': figure(0.31, n=10), 'pointing': figure(0.5 if k else None, n=11)}
          for k, name in enumerate(CATEGORIES)},
      'undefined': 1}
  ways = {'r@1': figure(0.31), 'r@5': figure(0.62), 'median_rank': {
      'value': 4.0, 'low': 3.0, 'high': 6.5, 'n': 40}}
  return {
      'split': 'test', 'pairs': 40,
      'zero_shot': {
          'protocol': 'zero_shot/prompts', 'macro_auroc': figure(0.871),
          'classes': {'edema': {**figure(0.777), 'positives': 7, 'prevalence': 0.175},
                      'nodule': {**figure(None), 'positives': 0, 'prevalence': 0.0}},
          'undefined': ['nodule']},
      'grounding': grounding,
      'grounding_centre': {**grounding, 'maps': 'centre', 'cnr': figure(0.111)},
      'retrieval': {'protocol': 'retrieval/instance', 'image_to_text': ways,
                    'text_to_image': ways, 'candidates': 40, 'distinct_texts': 39},
      'detection': None,
      'future_part': {'protocol': 'future/one', 'deep': [{'odd_metric': figure(0.432)}],
                      'ways': {'first': {'score': figure(12.5)},
                           'second': {'score': figure(13.5)}}},
  }


def page_of(**changes) -> page.Page:
  """Six cases drawn by lot, two best, two worst, two reports found, one missed."""
  x = np.linspace(0, 1, 50)
  content = dict(
      title='A tiny page', facts={'checkpoint': 'step 7', 'date': '2025-01-02'},
      results=results(), is_phantom=True,
      curves=[page.Curve(title='ROC', x_label='false positive rate', y_label='true positive rate',
                         series={'edema': (x, np.sqrt(x)), 'nodule': (x, x)}, diagonal=True),
              page.Curve(title='Loss', x_label='step', y_label='loss',
                         series={'loss': (np.arange(9), np.r_[3, math.nan, 2:1:7j])})],
      typical=[grounding_case(k) for k in range(6)],
      best=[grounding_case(k) for k in (6, 7)],
      worst=[grounding_case(k) for k in (8, 9)],
      retrieval=[retrieval_case(0), retrieval_case(1)], missed=[retrieval_case(2, rank=17)])
  return page.Page(**(content | changes))
