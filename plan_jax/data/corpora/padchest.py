"""PadChest: 16-bit PNG, Spanish reports, labels by radiologists and a network.

Source: Bustos et al., Medical Image Analysis 2020.
"""

import ast
import itertools
import os
from typing import Iterator

from plan_jax.data import reports
from plan_jax.data import rows as rows_lib
from plan_jax.data.corpora import base
from plan_jax.data.corpora import tables

_FRONTAL = {'PA', 'AP', 'AP_HORIZONTAL'}
_PROBED = 2000

LAYOUT = """\
  PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv (or .csv.gz; elsewhere: --tables)
  0/216840111366964012768025509942010110150212424_00-002-039.png ... 54/
                                                   pictures, in folders by ImageDir; or all in
                                                   images/, or all in the folder itself"""


def read(request: base.Request) -> Iterator[base.Found]:
  """One line an image."""
  path = tables.find(
      request.tables, 'PADCHEST_chest_x_ray_images_labels_*.csv', needed_for='images and reports')
  listed = tables.read(path, needs=(
      'ImageID', 'ImageDir', 'PatientID', 'Projection', 'Report', 'Labels',
      'PhotometricInterpretation_DICOM'))
  head = list(itertools.islice(listed, _PROBED))
  way = base.probe(request.root, (_ways(values) for _, values in head))
  inverse = 0
  for line, values in itertools.chain(head, listed):
    try:
      labels = _list(values['Labels'])
    except ValueError:
      yield rows_lib.Reject(
          manifest=path.name, line=line, id=os.path.splitext(values['ImageID'])[0],
          reason=rows_lib.Reason.BAD_VALUE, detail="Labels is no list such as ['normal']")
      continue
    photometric = rows_lib.Photometric.MONOCHROME2
    if values['PhotometricInterpretation_DICOM'].strip() == 'MONOCHROME1':
      photometric = rows_lib.Photometric.MONOCHROME1
      inverse += 1
    yield base.Line(
        source=path.name, line=line, view=_view(values['Projection']),
        photometric=photometric,
        values={
            'image': _ways(values)[way] if values['ImageID'] else '',
            'id': os.path.splitext(values['ImageID'])[0],
            'patient': values['PatientID'],
            'text': reports.report_text(
                {reports.Section.UNTITLED: values['Report']}, options=request.text),
            'labels': labels,
        })
  if inverse:
    yield (f'{inverse} images come from MONOCHROME1 files, whose values run from white to black: '
           'they are inverted (docs/data.md)')


def _ways(values: dict[str, str]) -> list[str]:
  directory = values['ImageDir'].removesuffix('.0')  # pandas writes 3.0 where cells are empty
  return [f'{directory}/{values["ImageID"]}', f'images/{values["ImageID"]}', values['ImageID']]


def _view(projection: str) -> base.View:
  projection = projection.strip().upper()
  if projection in _FRONTAL:
    return base.View.FRONTAL
  if projection == 'L':
    return base.View.LATERAL
  return base.View.OTHER if projection else base.View.UNKNOWN


def _list(cell: str) -> list[str]:
  """"['normal', ' pleural effusion']" -> its parts; an empty cell gives none.

  Raises:
    ValueError: no list of strings.
  """
  if cell.strip() in ('', 'nan'):
    return []
  try:
    value = ast.literal_eval(cell)
  except SyntaxError as error:
    raise ValueError(cell[:20]) from error
  if not isinstance(value, list):
    raise ValueError(cell[:20])
  return [part for part in value if isinstance(part, str)]


CORPUS = base.Corpus(
    name='padchest', title='PadChest: 160,861 chest radiographs with Spanish reports',
    layout=LAYOUT, read=read, texts=base.Texts.PLAIN, has_views=True)
