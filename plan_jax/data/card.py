"""Counts over the records of a data set: what `dataset.json` says about them."""

import collections
import hashlib
from typing import Any, Iterable, Mapping

import numpy as np

from plan_jax.data import records
from plan_jax.data import rows as rows_lib


class Tally:
  """Counts records one by one, in the order in which they are stored."""

  def __init__(self):
    self._rows = 0
    self._digests = {split: hashlib.sha256() for split in records.SPLITS}
    self._words: list[int] = []
    self._sizes: dict[str, list[tuple[int, int]]] = {'original': [], 'stored': []}
    self._classes: dict[str, collections.Counter[str]] = {}
    self._marks = {'negatives': collections.Counter(), 'uncertain': collections.Counter()}
    self._labelled = self._annotated = 0
    self._categories: collections.Counter[str] = collections.Counter()
    self._boxes = self._masks = 0
    self.splits = dict.fromkeys(records.SPLITS, 0)
    self.sizes = dict.fromkeys(records.SPLITS, 0)  # bytes

  def add(self, example: records.Example, *, record: bytes, outcome: rows_lib.Outcome):
    """Counts one example that is about to be written as `record`."""
    self._rows += len(outcome.sources)
    self.splits[example.split] += 1
    self.sizes[example.split] += len(record)
    digest = self._digests[example.split]
    digest.update(len(record).to_bytes(8, 'big'))
    digest.update(record)
    self._words.append(len(example.text.split()))
    self._sizes['original'].append(outcome.original)
    self._sizes['stored'].append(outcome.stored)
    for label in example.labels:
      self._classes.setdefault(label, collections.Counter())[example.split] += 1
    for kind, counter in self._marks.items():
      counter.update(getattr(example, kind))
    self._labelled += bool(example.labels or example.negatives or example.uncertain)
    self._annotated += example.is_annotated
    for phrase in example.phrases:
      self._categories[phrase.category] += 1
      self._boxes += len(phrase.boxes)
      self._masks += bool(phrase.mask)

  def card(
      self, rejects: Iterable[rows_lib.Reject], *, left_out: Mapping[str, int],
  ) -> dict[str, Any]:
    """The part of `dataset.json` that follows from the records, rejects and choices."""
    reasons = collections.Counter(str(reject.reason) for reject in rejects)
    count = sum(self.splits.values())
    whole = hashlib.sha256(b''.join(
        self._digests[split].digest() for split in records.SPLITS))
    return {
        'content_hash': whole.hexdigest(),
        'rows': {
            'in': self._rows + sum(reasons.values()) + sum(left_out.values()),
            'records': count,
            'merged': self._rows - count,
            'rejected': dict(sorted(reasons.items())),
            'left_out': dict(sorted(left_out.items())),
        },
        'splits': self.splits,
        'images': {
            name: {'width': _spread([width for width, _ in sizes]),
                   'height': _spread([height for _, height in sizes])}
            for name, sizes in self._sizes.items()},
        'text': {
            'words': {
                'median': float(np.median(self._words)),
                'p95': round(float(np.percentile(self._words, 95)), 1),
                'max': max(self._words),
            },
            'empty_share': sum(words == 0 for words in self._words) / count,
        },
        'classes': sorted(self._classes),
        'class_counts': {
            name: {split: self._classes[name][split] for split in records.SPLITS}
            for name in sorted(self._classes)},
        'labelled': self._labelled,
        'annotated': self._annotated,
        **{kind: dict(sorted(counter.items())) for kind, counter in self._marks.items()},
        'phrases': {
            'phrases': sum(self._categories.values()),
            'boxes': self._boxes,
            'masks': self._masks,
            'categories': dict(sorted(self._categories.items())),
        },
    }


def _spread(values: list[int]) -> dict[str, float]:
  return {'min': min(values), 'median': float(np.median(values)), 'max': max(values)}
