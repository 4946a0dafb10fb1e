"""SIIM-ACR Pneumothorax Segmentation: masks as run lengths, every image read.

Source: kaggle.com/c/siim-acr-pneumothorax-segmentation.
"""

from typing import Iterator

from plan_jax.data import rows as rows_lib
from plan_jax.data.corpora import base
from plan_jax.data.corpora import tables

_CLASS = 'pneumothorax'
_SIDE = 1024  # of every image and mask

LAYOUT = """\
  train-rle.csv, or stage_2_train.csv          (columns ImageId, EncodedPixels; elsewhere: --tables)
  dicom-images-train/.../1.2.276.0.7230010.3.1.4.8323329.300.1517875162.258081.dcm
                                               in any folders below --root"""


def read(request: base.Request) -> Iterator[base.Found]:
  """One line a mask, or an image without any."""
  path = tables.find(
      request.tables, 'train-rle.csv', 'stage_2_train.csv', needed_for='images and masks')
  files = base.index(request.root)
  for line, values in tables.read(path, needs=('ImageId', 'EncodedPixels')):
    identity, encoded = values['ImageId'].strip(), values['EncodedPixels'].split()
    masks = []
    if encoded != ['-1']:
      if not encoded or len(encoded) % 2 or not all(part.isdecimal() for part in encoded):
        yield rows_lib.Reject(
            manifest=path.name, line=line, id=identity, reason=rows_lib.Reason.BAD_MASK,
            detail='EncodedPixels is neither -1 nor pairs of whole numbers')
        continue
      # Each pair is the way from the end of the last run, and a length: COCO's counts.
      masks = [{'label': _CLASS, 'phrase': _CLASS,
                'mask': {'size': [_SIDE, _SIDE], 'counts': [int(part) for part in encoded]}}]
    yield base.Line(
        source=path.name, line=line,
        values={'image': files.get(identity, f'{identity}.dcm') if identity else '',
                'id': identity, 'labels': {_CLASS: int(bool(masks))}, 'annotations': masks})


CORPUS = base.Corpus(
    name='siim', title='SIIM-ACR pneumothorax: 12,047 chest radiographs, masks in 2,669',
    layout=LAYOUT, read=read, texts=base.Texts.NONE)
