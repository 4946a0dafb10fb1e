"""A folder of pictures: classes are subfolders, reports are text files of the same name."""

import pathlib
from typing import Iterator

from plan_jax.data.corpora import base

_SPLITS = ('train', 'training', 'val', 'valid', 'validation', 'dev', 'test', 'testing')

LAYOUT = """\
  [train|val|test/][class/]name.png            pictures (PNG, JPEG, DICOM)
  [train|val|test/][class/]name.txt            the picture's report, if there is one;
                                               without any: --allow-empty-text"""


def read(request: base.Request) -> Iterator[base.Found]:
  """One line a picture."""
  print(f'Looking for image files below {request.root.name}/', flush=True)
  for number, (_, path) in enumerate(base.image_files(request.root), 1):
    parts = pathlib.PurePath(path).parts[:-1]
    split = parts[0].lower() if parts and parts[0].lower() in _SPLITS else ''
    classes = parts[1:] if split else parts
    report = (request.root / path).with_suffix('.txt')
    yield base.Line(
        source=request.root.name, line=number, report=str(report) if report.is_file() else '',
        values={'image': path, 'id': path, 'split': split,
                'labels': ['/'.join(classes)] if classes else []})


CORPUS = base.Corpus(
    name='folder', title='any folder of pictures, with reports in text files or classes as folders',
    layout=LAYOUT, read=read, texts=base.Texts.BESIDE)
