"""A folder of pictures: classes are subfolders, reports are text files of the same name."""

import collections
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
  number, others = 0, collections.Counter()
  for path in base.files(request.root):
    suffix = pathlib.PurePath(path).suffix.lower()
    if suffix not in base.IMAGE_SUFFIXES:
      if suffix != '.txt':
        others[suffix or 'without suffix'] += 1
      continue
    number += 1
    parts = pathlib.PurePath(path).parts[:-1]
    split = parts[0].lower() if parts and parts[0].lower() in _SPLITS else ''
    classes = parts[1:] if split else parts
    report = (request.root / path).with_suffix('.txt')
    yield base.Line(
        source=request.root.name, line=number, report=str(report) if report.is_file() else '',
        values={'image': path, 'id': path, 'split': split,
                'labels': ['/'.join(classes)] if classes else []})
  if others:
    counts = ', '.join(f'{suffix} {count}' for suffix, count in sorted(others.items()))
    yield f'other files, not taken: {counts}; pictures are {", ".join(base.IMAGE_SUFFIXES)}'


CORPUS = base.Corpus(
    name='folder', title='any folder of pictures, with reports in text files or classes as folders',
    layout=LAYOUT, read=read, texts=base.Texts.BESIDE)
