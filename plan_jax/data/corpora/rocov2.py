"""ROCOv2: figures of any modality from open-access papers, with captions and UMLS concepts.

Source: Rueckert et al., Scientific Data 2024; zenodo.org/records/8333645.
"""

from typing import Iterator

from plan_jax.data import reports
from plan_jax.data.corpora import base
from plan_jax.data.corpora import tables

_SPLITS = {'train': 'train', 'valid': 'val', 'test': 'test'}

LAYOUT = """\
  train_captions.csv, valid_captions.csv, test_captions.csv   (those that are there)
  train_concepts.csv ... and cui_mapping.csv                  concepts as labels, if they are there
  ROCOv2_2023_train_000001.jpg ...                            in any folders below --root"""


def read(request: base.Request) -> Iterator[base.Found]:
  """One line a figure."""
  found = {name: path for name in _SPLITS
           if (path := tables.find_optional(request.tables, f'{name}_captions.csv'))}
  if not found:
    tables.find(request.tables, *(f'{name}_captions.csv' for name in _SPLITS),
                needed_for='figures and captions')
  names = _concept_names(request)
  files = base.index(request.root)
  for name, path in found.items():
    concepts = _concepts(request, name)
    for line, values in tables.read(path, needs=('ID', 'Caption')):
      identity = values['ID']
      yield base.Line(
          source=path.name, line=line,
          values={
              'image': files.get(identity, f'{identity}.jpg') if identity else '',
              'id': identity,
              'split': _SPLITS[name],
              'text': reports.report_text(
                  {reports.Section.UNTITLED: values['Caption']}, options=request.text),
              'labels': [names.get(cui, cui) for cui in concepts.get(identity, ())],
          })


def _concepts(request: base.Request, name: str) -> dict[str, list[str]]:
  path = tables.find_optional(request.tables, f'{name}_concepts.csv')
  if path is None:
    return {}
  return {values['ID']: [cui.strip() for cui in values['CUIs'].split(';') if cui.strip()]
          for _, values in tables.read(path, needs=('ID', 'CUIs'))}


def _concept_names(request: base.Request) -> dict[str, str]:
  """CUI -> name, from a table whose first two columns are these, whatever they are called."""
  path = tables.find_optional(request.tables, 'cui_mapping.csv')
  if path is None:
    return {}
  rows = (list(values.values()) for _, values in tables.read(path, needs=()))
  return {row[0].strip(): row[1].strip() for row in rows if len(row) > 1}


CORPUS = base.Corpus(
    name='rocov2', title='ROCOv2: 79,789 radiological figures with captions', layout=LAYOUT,
    read=read, texts=base.Texts.PLAIN)
