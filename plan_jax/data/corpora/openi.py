"""Open-i, the Indiana University chest X-ray collection: XML reports, PNG or DICOM pictures.

Source: Demner-Fushman et al., JAMIA 2016; openi.nlm.nih.gov.
"""

import pathlib
from typing import Iterator, Mapping
import xml.etree.ElementTree as ElementTree

import tqdm

from plan_jax.data import dicom
from plan_jax.data import reports
from plan_jax.data import rows as rows_lib
from plan_jax.data.corpora import base
from plan_jax.data.corpora import tables

_SECTIONS = {
    'FINDINGS': reports.Section.FINDINGS, 'IMPRESSION': reports.Section.IMPRESSION,
    'INDICATION': reports.Section.INDICATION, 'COMPARISON': reports.Section.COMPARISON}

LAYOUT = """\
  ecgen-radiology/1.xml ...                 reports (NLMCXR_reports.tgz); elsewhere: --reports
  CXR1_1_IM-0001-3001.png ...               pictures in any folders below --root: PNG
                                            (NLMCXR_png.tgz), DICOM (NLMCXR_dcm.tgz), or those of
                                            Kaggle's copy (1_IM-0001-3001.dcm.png)
  indiana_projections.csv                   views (from Kaggle's copy: uid, filename, projection);
                                            elsewhere: --tables; without it DICOM headers say, and
                                            for PNG alone: --views all"""


def read(request: base.Request) -> Iterator[base.Found]:
  """One line an image that a report names; a report without images is a reject."""
  folder = request.reports / 'ecgen-radiology'
  paths = sorted((folder if folder.is_dir() else request.reports).glob('*.xml'), key=_number)
  if not paths:
    raise base.CorpusError(
        f'{request.reports} holds no reports (*.xml, or a folder ecgen-radiology of them); unpack '
        'NLMCXR_reports.tgz there, or name their folder with --reports')
  files = {_key(stem): path for stem, path in base.index(request.root).items()}
  views = _views(request, files)
  print(f'Reading reports: {len(paths)}', flush=True)
  for path in paths:
    try:
      tree = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
      yield _reject(path, rows_lib.Reason.UNREADABLE_REPORT, f'no XML: {type(error).__name__}')
      continue
    text = reports.report_text(_sections(tree), options=request.text)
    labels = [part.text.split('/')[0] for part in tree.iterfind('.//MeSH/major') if part.text]
    images = [entry.get('id', '') for entry in tree.iterfind('.//parentImage')]
    if not images:
      yield _reject(path, rows_lib.Reason.MISSING_COLUMN, 'the report names no image')
    for number, image in enumerate(images, 1):
      yield base.Line(
          source=path.name, line=number, view=views.get(_key(image), base.View.UNKNOWN),
          values={'image': files.get(_key(image), f'{image}.png') if image else '', 'id': image,
                  # A report is a patient: the collection does not tell which belong together.
                  'patient': f'CXR{path.stem}', 'text': text, 'labels': labels})


def _reject(path: pathlib.Path, reason: rows_lib.Reason, detail: str) -> rows_lib.Reject:
  return rows_lib.Reject(manifest=path.name, line=1, id=path.stem, reason=reason, detail=detail)


def _number(path: pathlib.Path) -> tuple[int, str]:
  return (int(path.stem) if path.stem.isdigit() else 0, path.stem)


def _key(name: str) -> str:
  """'CXR1_1_IM-0001-3001', as XML and PNG say, and '1_IM-0001-3001', as DICOM says, are one."""
  head, _, rest = name.removeprefix('CXR').partition('_')
  return rest if rest.startswith(f'{head}_') else name.removeprefix('CXR')


def _sections(tree: ElementTree.Element) -> dict[reports.Section, str]:
  found = {}
  for part in tree.iterfind('.//AbstractText'):
    section = _SECTIONS.get((part.get('Label') or '').upper())
    if section and part.text:
      found[section] = part.text
  return found


def _views(request: base.Request, files: Mapping[str, str]) -> dict[str, base.View]:
  path = tables.find_optional(request.tables, 'indiana_projections.csv')
  if path is None:
    views = {} if request.views is base.Views.ALL else _views_of_headers(request.root, files)
    if not views and request.views is not base.Views.ALL:
      raise base.CorpusError(
          f'{request.tables} holds no indiana_projections.csv, and neither reports nor PNG say '
          'which picture is frontal; put that table there (it is in Kaggle\'s copy of the '
          'collection), or take all pictures with --views all')
    return views
  views = {}
  for line, values in tables.read(path, needs=('filename', 'projection')):
    try:
      view = base.View(values['projection'].strip().lower())
    except ValueError as error:
      raise base.CorpusError(
          f'{path}, line {line}: projection is {values["projection"]!r}; it must be Frontal or '
          'Lateral') from error
    views[_key(values['filename'].split('.')[0])] = view
  return views


def _views_of_headers(root: pathlib.Path, files: Mapping[str, str]) -> dict[str, base.View]:
  paths = {key: path for key, path in files.items() if path.lower().endswith('.dcm')}
  views = {}
  for key, path in tqdm.tqdm(paths.items(), desc='headers', unit='file', disable=not paths):
    try:
      views[key] = base.view_of(dicom.read_header(str(root / path)).view)
    except (dicom.DicomError, OSError):
      continue  # UNKNOWN; --views all gives its reject
  return views


CORPUS = base.Corpus(
    name='openi', title='Open-i (Indiana University): 7,470 chest radiographs, 3,955 reports',
    layout=LAYOUT, read=read, texts=base.Texts.FILES, has_views=True)
