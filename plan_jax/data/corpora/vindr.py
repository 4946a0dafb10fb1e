"""VinDr-CXR: boxes and labels, by three radiologists in training and by consensus in test.

Source: Nguyen et al., Scientific Data 2022; physionet.org/content/vindr-cxr.
"""

import pathlib
from typing import Iterator

from plan_jax.data import rows as rows_lib
from plan_jax.data.corpora import base
from plan_jax.data.corpora import tables

_NOT_CLASSES = {'image_id', 'rad_id'}
_NO_FINDING = 'no finding'
# One class under two names: the table of the test set has the first.
_SAME_CLASS = {'Other disease': 'Other diseases'}
_SUFFIXES = ('.dicom', '.dcm', '.png', '.jpg')
_PROBED = 200

LAYOUT = """\
  annotations/image_labels_train.csv, annotations_train.csv, image_labels_test.csv,
      annotations_test.csv                     (one split alone will do; elsewhere: --tables)
  train/000434271f63a053c4128a0ba6352c7f.dicom ..., test/..."""


def read(request: base.Request) -> Iterator[base.Found]:
  """One line an image, then one a box, for each split.

  In training a class is present if more than half of the readers say so. Of such a class
  the boxes of one reader are taken, the first by name who drew any: boxes of several
  readers are not several findings. The others are left out by choice.
  """
  folder = request.tables
  folder = folder / 'annotations' if (folder / 'annotations').is_dir() else folder
  splits = [name for name in ('train', 'test')
            if tables.find_optional(folder, f'image_labels_{name}.csv')]
  if not splits:
    tables.find(folder, 'image_labels_train.csv', 'image_labels_test.csv',
                needed_for='images and labels')
  for name in splits:
    yield from _split(request.root, folder, name)


def _split(root: pathlib.Path, folder: pathlib.Path, name: str) -> Iterator[base.Found]:
  path = tables.find(folder, f'image_labels_{name}.csv', needed_for='labels')
  readers: dict[str, list[dict[str, float | None]]] = {}
  lines: dict[str, int] = {}
  for line, values in tables.read(path, needs=('image_id',)):
    values = {_SAME_CLASS.get(key, key): cell for key, cell in values.items()}
    classes = [key for key in values if key not in _NOT_CLASSES]
    try:
      marks = tables.marks(values, classes=classes)
    except ValueError as error:
      raise base.CorpusError(f'{path}, line {line}: {error}') from error
    readers.setdefault(values['image_id'], []).append(marks)
    lines.setdefault(values['image_id'], line)
  suffix = _SUFFIXES[base.probe(root, (
      [f'{name}/{image}{suffix}' for suffix in _SUFFIXES] for image in list(readers)[:_PROBED]))]
  agreed = {image: _majority(votes) for image, votes in readers.items()}
  for image, labels in agreed.items():
    yield base.Line(
        source=path.name, line=lines[image],
        values={
            'image': f'{name}/{image}{suffix}', 'id': image,
            'split': 'test' if name == 'test' else base.train_or_val(image),
            'labels': labels, 'annotations': []})
  yield from _boxes(folder, name, agreed, suffix)


def _majority(votes: list[dict[str, float | None]]) -> dict[str, int]:
  return {key: int(2 * sum(vote[key] == 1 for vote in votes) > len(votes)) for key in votes[0]}


def _boxes(
    folder: pathlib.Path, name: str, agreed: dict[str, dict[str, int]], suffix: str,
) -> Iterator[base.Found]:
  path = tables.find(folder, f'annotations_{name}.csv', needed_for='boxes')
  needs = ('image_id', 'class_name', 'x_min', 'y_min', 'x_max', 'y_max')
  drawn = [(line, values) for line, values in tables.read(path, needs=needs)
           if values['class_name'].strip().lower() != _NO_FINDING]  # says so without a box
  first: dict[tuple[str, str], str] = {}
  for _, values in drawn:
    key = values['image_id'], values['class_name']
    first[key] = min(first.get(key, '~'), values.get('rad_id', ''))
  for line, values in drawn:
    image, label = values['image_id'], values['class_name']
    if image not in agreed:
      yield rows_lib.Reject(
          manifest=path.name, line=line, id=image, reason=rows_lib.Reason.UNKNOWN_IMAGE,
          detail=f'image_labels_{name}.csv has no such image')
      continue
    left_out = ''
    if not agreed[image].get(label, 1):
      left_out = 'box_of_a_minority'
    elif values.get('rad_id', '') != first[image, label]:
      left_out = 'box_of_another_reader'
    x, y = values['x_min'], values['y_min']
    yield base.Line(
        source=path.name, line=line, left_out=left_out,
        values={'image': f'{name}/{image}{suffix}', 'id': image, 'annotations': [{
            'label': label, 'phrase': label.lower(),
            'box': _corners(x, y, values['x_max'], values['y_max'])}]})


def _corners(*cells: str) -> list[float]:
  try:
    return [float(cell) for cell in cells]
  except ValueError:
    return [float('nan')] * 4  # rejected where boxes are checked


CORPUS = base.Corpus(
    name='vindr', title='VinDr-CXR: 18,000 chest radiographs with boxes of 22 findings',
    layout=LAYOUT, read=read, texts=base.Texts.NONE)
