"""CheXpert, and the reports of CheXpert Plus where they are.

Sources: Irvin et al., AAAI 2019; Chambon et al., arXiv 2405.19538 (CheXpert Plus).
"""

import itertools
import re
from typing import Iterator

from plan_jax.data import reports
from plan_jax.data.corpora import base
from plan_jax.data.corpora import tables

_TABLES = {'train': ('train.csv',), 'val': ('valid.csv',), 'test': ('test.csv', 'test_labels.csv')}
_ABOUT = ('Path', 'Sex', 'Age', 'Frontal/Lateral', 'AP/PA')
_PATH = re.compile(r'(?:train|valid|test)/(patient\d+)/.*?(frontal|lateral)?\.\w+$')
_SUFFIXES = ('.jpg', '.png', '.dcm')
_PROBED = 2000

LAYOUT = """\
  train.csv, valid.csv, test.csv or test_labels.csv (those that are there; elsewhere: --tables)
  train/patient00001/study1/view1_frontal.jpg ...  pictures: .jpg, or .png or .dcm of CheXpert Plus
  df_chexpert_plus_*.csv                           reports (CheXpert Plus), beside the other tables;
                                                   without it: --allow-empty-text"""


def read(request: base.Request) -> Iterator[base.Found]:
  """One line an image of each table."""
  found = [(path, split) for split, names in _TABLES.items()
           if (path := tables.find_optional(request.tables, *names))]
  if not found:
    tables.find(request.tables, *itertools.chain(*_TABLES.values()),
                needed_for='images and labels')
  texts = _texts(request)
  if not texts:
    yield 'no df_chexpert_plus_*.csv: the records have no reports'
  without_text = 0
  for path, split in found:
    listed = tables.read(path, needs=('Path',))
    head = list(itertools.islice(listed, _PROBED))
    suffix = _SUFFIXES[base.probe(request.root, (
        [_stem(values['Path']) + suffix for suffix in _SUFFIXES] for _, values in head))]
    classes, notes = tables.classes(path, head[0][1] if head else tables.CHEXPERT, others=_ABOUT)
    yield from notes
    for line, values in itertools.chain(head, listed):
      match = _PATH.search(values['Path'])
      stem = _stem(values['Path'])
      text = texts.get(stem, '')
      without_text += not text
      try:
        labels = tables.marks(values, classes=classes)
      except ValueError as error:
        raise base.CorpusError(f'{path}, line {line}: {error}') from error
      yield base.Line(
          source=path.name, line=line,
          view=base.View(match[2]) if match and match[2] else base.View.UNKNOWN,
          values={'image': stem + suffix if stem else '', 'id': stem, 'text': text,
                  'patient': match[1] if match else '', 'split': split, 'labels': labels})
  if texts and without_text:
    yield f'{without_text} images have no report in df_chexpert_plus, or nothing to train on in it'


def _stem(path: str) -> str:
  """'CheXpert-v1.0/train/patient1/study1/view1_frontal.jpg' -> 'train/.../view1_frontal'."""
  match = _PATH.search(path)
  return path[match.start():].rpartition('.')[0] if match else path


def _texts(request: base.Request) -> dict[str, str]:
  """Training text by path without suffix."""
  path = tables.find_optional(request.tables, 'df_chexpert_plus_*.csv')
  if path is None:
    return {}
  needs = ('path_to_image', 'section_findings', 'section_impression')
  found = {}
  for _, values in tables.read(path, needs=needs):
    sections = {reports.Section.FINDINGS: values['section_findings'],
                reports.Section.IMPRESSION: values['section_impression']}
    if not any(text.strip() for text in sections.values()):
      sections = values.get('report', '')  # whole
    found[_stem(values['path_to_image'])] = reports.report_text(sections, options=request.text)
  return found


CORPUS = base.Corpus(
    name='chexpert', title='CheXpert: 224,316 chest radiographs with labels; CheXpert Plus reports',
    layout=LAYOUT, read=read, texts=base.Texts.TABLES, has_views=True)
