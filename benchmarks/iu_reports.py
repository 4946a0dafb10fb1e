"""What the rules for reports find in the Indiana reports; figures of docs/data-reports.md.

PLAN_JAX_DATA=DIR python benchmarks/iu_reports.py; DIR/iu_reports/reports.jsonl has one
report a line with its sections apart.
"""

import json
import os
import pathlib
import re
import sys
from typing import Iterable, Mapping

import numpy as np

from plan_jax.data import reports
from plan_jax.data import sentences

_NAMES = (reports.Section.INDICATION, reports.Section.COMPARISON, reports.Section.FINDINGS,
          reports.Section.IMPRESSION)


def read(directory: str) -> list[dict[reports.Section, str]]:
  """The sections of each report."""
  lines = (pathlib.Path(directory) / 'iu_reports' / 'reports.jsonl').read_text('utf-8')
  return [{name: row[name] for name in _NAMES} for row in map(json.loads, lines.splitlines())]


def figures(found: list[Mapping[reports.Section, str]]) -> dict[str, float]:
  """Each figure by its name."""
  result: dict[str, float] = {'reports': len(found)}
  for name in _NAMES:
    result[f'with {name}'] = sum(bool(report[name].strip()) for report in found)
  both = [' '.join(report[name] for name in (reports.Section.IMPRESSION, reports.Section.FINDINGS))
          for report in found]
  split = [sentences.split(text) for text in both]
  result |= _spread('sentences', map(len, split))
  result['sentences'] = sum(map(len, split))
  result['one-word sentences'] = sum(
      sentences.count_words(sentence) == 1 for found in split for sentence in found)
  result['sizes cut by the published rule'] = sum(
      len(re.findall(r'\d\.\d', text)) for text in both)
  texts = [reports.report_text(report, options=reports.Options()) for report in found]
  result['empty'] = sum(not text for text in texts)
  result |= _spread('words', (sentences.count_words(text) for text in texts if text))
  result['same sections from one text'] = sum(
      _plain(reports.sections(_joined(report, '\n\n'))) == _plain(report) for report in found)
  result['same sections from one line'] = sum(
      _plain(reports.sections(_joined(report, ' '))) == _plain(report) for report in found)
  return result


def _joined(report: Mapping[reports.Section, str], gap: str) -> str:
  """One text with headings, as other corpora store reports."""
  return gap.join(f'{name.upper()}: {text}' for name, text in report.items() if text.strip())


def _plain(report: Mapping[reports.Section, str]) -> dict[reports.Section, str]:
  return {name: ' '.join(text.split()) for name, text in report.items() if text.strip()}


def _spread(name: str, values: Iterable[int]) -> dict[str, float]:
  values = list(values)
  return {f'{name} median': float(np.median(values)),
          f'{name} 95 %': float(np.percentile(values, 95)), f'{name} most': max(values)}


if __name__ == '__main__':
  if 'PLAN_JAX_DATA' not in os.environ:
    sys.exit('error: set PLAN_JAX_DATA to the directory that holds iu_reports/')
  for key, value in figures(read(os.environ['PLAN_JAX_DATA'])).items():
    print(f'{key:<28} {value:g}')
