"""MS-CXR: phrases of radiologists with boxes, on images of MIMIC-CXR.

Source: Boecking et al., ECCV 2022; physionet.org/content/ms-cxr.
"""

import itertools
import re
from typing import Iterator

from plan_jax.data.corpora import base
from plan_jax.data.corpora import mimic_cxr
from plan_jax.data.corpora import tables

_PATIENT = re.compile(r'/p(\d+)/s\d+/')
_SUFFIXES = ('.jpg', '.dcm')
_PROBED = 200

LAYOUT = """\
  MS_CXR_Local_Alignment_v1.1.0.csv (or v1.0.0)  elsewhere: --tables
  files/p10/p10032725/s50331901/687754ce-....jpg  pictures of MIMIC-CXR-JPG, or .dcm (MIMIC-CXR)"""


def read(request: base.Request) -> Iterator[base.Found]:
  """One line a box; all of it is split 'test', whatever the table's own column says."""
  path = tables.find(
      request.tables, 'MS_CXR_Local_Alignment_v*.csv', needed_for='phrases and boxes')
  listed = tables.read(path, needs=(
      'category_name', 'label_text', 'path', 'dicom_id', 'x', 'y', 'w', 'h', 'image_width',
      'image_height'))
  head = list(itertools.islice(listed, _PROBED))
  images = mimic_cxr.files_folder(request.root)
  suffix = _SUFFIXES[base.probe(images, (
      [_path(values) + suffix for suffix in _SUFFIXES] for _, values in head))]
  for line, values in itertools.chain(head, listed):
    patient = _PATIENT.search(values['path'])
    yield base.Line(
        source=path.name, line=line,
        values={
            'image': str(images / (_path(values) + suffix)) if values['path'] else '',
            'id': values['dicom_id'],
            'patient': patient[1] if patient else '',
            'split': 'test',
            'width': values['image_width'], 'height': values['image_height'],
            'labels': [values['category_name']],
            'annotations': [{
                'label': values['category_name'], 'phrase': values['label_text'],
                'box': base.box(values['x'], values['y'], values['w'], values['h'])}],
        })


def _path(values: dict[str, str]) -> str:
  """Below the folder `files`, without suffix."""
  return values['path'].removeprefix('files/').rpartition('.')[0]


CORPUS = base.Corpus(
    name='ms_cxr', title='MS-CXR: 1,162 phrases with boxes in 1,047 images of MIMIC-CXR',
    layout=LAYOUT, read=read, texts=base.Texts.NONE)
