"""RSNA Pneumonia Detection Challenge: boxes around opacities, every image read.

Source: Shih et al., Radiology: AI 2019; kaggle.com/c/rsna-pneumonia-detection-challenge.
"""

from typing import Iterator

from plan_jax.data.corpora import base
from plan_jax.data.corpora import tables

_CLASS = 'pneumonia'
_SIDE = 1024  # pixels of every picture, which boxes count in

LAYOUT = """\
  stage_2_train_labels.csv (elsewhere: --tables)
  stage_2_train_images/0004cfab-14fd-4e49-80ba-63a80b6bddd6.dcm ..."""


def read(request: base.Request) -> Iterator[base.Found]:
  """One line a box, or an image without any. The images of stage 2's test have no labels."""
  path = tables.find(request.tables, 'stage_2_train_labels.csv', needed_for='images and boxes')
  needs = ('patientId', 'x', 'y', 'width', 'height', 'Target')
  for line, values in tables.read(path, needs=needs):
    identity, target = values['patientId'], values['Target'].strip()
    if target not in ('0', '1'):
      raise base.CorpusError(
          f'{path}, line {line}: Target is {target!r}, must be 0 or 1; download it again')
    boxes = []
    if target == '1':
      boxes = [{'label': _CLASS, 'phrase': _CLASS, 'box': base.box(
          *(values[name] for name in ('x', 'y', 'width', 'height')))}]
    yield base.Line(
        source=path.name, line=line,
        values={'image': f'stage_2_train_images/{identity}.dcm' if identity else '',
                'id': identity, 'width': _SIDE, 'height': _SIDE,
                'labels': {_CLASS: int(target)}, 'annotations': boxes})


CORPUS = base.Corpus(
    name='rsna', title='RSNA pneumonia: 26,684 chest radiographs, boxes in 6,012', layout=LAYOUT,
    read=read, texts=base.Texts.NONE)
