"""MIMIC-CXR: pictures of MIMIC-CXR-JPG or MIMIC-CXR (DICOM), reports, official split, labels.

Sources: Johnson et al., Scientific Data 2019 and arXiv 1901.07042; physionet.org/content/mimic-cxr
and .../mimic-cxr-jpg.
"""

import itertools
import pathlib
from typing import Iterator

from plan_jax.data.corpora import base
from plan_jax.data.corpora import tables

_SPLITS = {'train': 'train', 'validate': 'val', 'test': 'test'}
_PROBED = 2000  # images looked for to learn which suffix they have
_EXAMPLE = 'files/p10/p10000032/s50414267.txt'

LAYOUT = """\
  files/p10/p10000032/s50414267/02aa804e-....jpg   pictures (MIMIC-CXR-JPG), or .dcm (MIMIC-CXR)
  files/p10/p10000032/s50414267.txt                reports (mimic-cxr-reports.zip);
                                                   elsewhere: --reports; without them:
                                                   --allow-empty-text (evaluation)
  mimic-cxr-2.0.0-metadata.csv.gz, -split.csv.gz, and -chexpert.csv.gz or -negbio.csv.gz
                                                   from MIMIC-CXR-JPG; elsewhere: --tables"""


def read(request: base.Request) -> Iterator[base.Found]:
  """One line an image of the metadata table."""
  metadata = tables.find(
      request.tables, 'mimic-cxr-*-metadata.csv', needed_for='the images and their views')
  split_path = tables.find(
      request.tables, 'mimic-cxr-*-split.csv', needed_for='the official split')
  split_of = {values['dicom_id']: values['split'] for _, values in tables.read(
      split_path, needs=('dicom_id', 'split'))}
  labels, notes = _labels(request)
  yield from notes
  images, written = files_folder(request.root), files_folder(request.reports)
  has_reports = _has_reports(written)
  if not has_reports:
    if request.reports != request.root:
      raise base.CorpusError(
          f'--reports {request.reports} holds no report such as {_EXAMPLE}; unpack '
          'mimic-cxr-reports.zip there, or leave --reports out')
    yield 'no mimic-cxr-reports below --root: the records have no reports'
  listed = tables.read(metadata, needs=('dicom_id', 'subject_id', 'study_id', 'ViewPosition'))
  head = list(itertools.islice(listed, _PROBED))
  suffix = ('.jpg', '.dcm')[base.probe(images, (
      [f'{_study(values)}/{values["dicom_id"]}{suffix}' for suffix in ('.jpg', '.dcm')]
      for _, values in head))]
  without_split = without_labels = 0
  for line, values in itertools.chain(head, listed):
    split = split_of.get(values['dicom_id'], '')
    without_split += not split
    study = labels.get(values['study_id'])
    without_labels += study is None
    yield base.Line(
        source=metadata.name, line=line, view=base.view_of(values['ViewPosition']),
        report=str(written / f'{_study(values)}.txt') if has_reports else '',
        values={
            'image': str(images / _study(values) / f'{values["dicom_id"]}{suffix}'),
            'id': values['dicom_id'],
            'patient': values['subject_id'],
            'split': _SPLITS.get(split, split),
            'labels': study,
        })
  if without_split:
    yield (f'{split_path.name} lacks {without_split} images of {metadata.name}: each goes with '
           'its patient, or by a hash')
  if not labels:
    yield f'no mimic-cxr-*-{request.labeler}.csv(.gz): the records have no labels'
  elif without_labels:
    yield f'{without_labels} images belong to studies without {request.labeler} labels'


def _has_reports(folder: pathlib.Path) -> bool:
  print(f'Looking for reports below {folder.name}/', flush=True)
  return next(folder.glob('p1*/p*/s*.txt'), None) is not None


def _study(values: dict[str, str]) -> str:
  subject = values['subject_id']
  return f'p{subject[:2]}/p{subject}/s{values["study_id"]}'


def files_folder(folder: pathlib.Path) -> pathlib.Path:
  """The folder of p10 ... p19: `files`, as published, or the given one itself."""
  return folder / 'files' if (folder / 'files').is_dir() else folder


def _labels(request: base.Request) -> tuple[dict[str, dict[str, float | None]], list[str]]:
  """study -> marks by class; and notes."""
  path = tables.find_optional(request.tables, f'mimic-cxr-*-{request.labeler}.csv')
  if path is None:
    return {}, []
  found, classes, notes = {}, (), []
  for line, values in tables.read(path, needs=('subject_id', 'study_id')):
    if not classes:
      classes, notes = tables.classes(path, values, others=('subject_id', 'study_id'))
    try:
      found[values['study_id']] = tables.marks(values, classes=classes)
    except ValueError as error:
      raise base.CorpusError(f'{path}, line {line}: {error}') from error
  return found, notes


CORPUS = base.Corpus(
    name='mimic_cxr', title='MIMIC-CXR: 377,110 chest radiographs with reports', layout=LAYOUT,
    read=read, texts=base.Texts.FILES, has_views=True, labelers=('chexpert', 'negbio'))
