"""NIH ChestX-ray14: labels mined from reports (which are not published), and some boxes.

Source: Wang et al., CVPR 2017; nihcc.app.box.com/v/ChestXray-NIHCC.
"""

from typing import Iterator

from plan_jax.data.corpora import base
from plan_jax.data.corpora import tables

_SAME_CLASS = {'Infiltrate': 'Infiltration'}  # of the boxes' table, and of the labels'
_SIDE = 1024  # pixels of every picture, which boxes count in; copies of 224 pixels go around

LAYOUT = """\
  Data_Entry_2017.csv (or Data_Entry_2017_v2020.csv; elsewhere: --tables)
  test_list.txt (or test_list_NIH.txt)         the official split, beside that table
  BBox_List_2017.csv (or BBox_List_2017_*.csv) boxes of 8 findings in 880 images, if it is there
  images_001/images/00000001_000.png ...       in any folders below --root"""


def read(request: base.Request) -> Iterator[base.Found]:
  """One line an image, then one a box."""
  path = tables.find(request.tables, 'Data_Entry_2017.csv', 'Data_Entry_2017_v2020.csv',
                     needed_for='images and labels')
  test_path = tables.find(request.tables, 'test_list.txt', 'test_list_NIH.txt',
                          needed_for='the official split')
  test, found = set(tables.read_words(test_path)), 0
  files = base.index(request.root)
  for line, values in tables.read(path, needs=('Image Index', 'Finding Labels', 'Patient ID')):
    name = values['Image Index']
    found += name in test
    yield base.Line(
        source=path.name, line=line,
        values={
            'image': _image(name, files),
            'id': name.rpartition('.')[0],
            'patient': values['Patient ID'],
            'split': 'test' if name in test else base.train_or_val(values['Patient ID']),
            'labels': values['Finding Labels'],  # separated by |, "No Finding" for none
        })
  if not found:
    raise base.CorpusError(
        f'{test_path} names no image of {path.name}; it must list names such as 00000013_005.png: '
        'download it again')
  path = tables.find_optional(request.tables, 'BBox_List_2017.csv', 'BBox_List_2017_*.csv')
  if path is None:
    yield 'no BBox_List_2017.csv: the records have no boxes'
    return
  # The header is "Image Index,Finding Label,Bbox [x,y,w,h],,,": a name with commas in it.
  for line, values in tables.read(
      path, needs=('Image Index', 'Finding Label', 'Bbox [x', 'y', 'w', 'h]')):
    label = values['Finding Label']
    yield base.Line(
        source=path.name, line=line,
        values={
            'image': _image(values['Image Index'], files),
            'id': values['Image Index'].rpartition('.')[0],
            'width': _SIDE, 'height': _SIDE,
            'annotations': [{
                'label': _SAME_CLASS.get(label, label), 'phrase': label.lower(),
                'box': base.box(*(values[name] for name in ('Bbox [x', 'y', 'w', 'h]')))}],
        })


def _image(name: str, files: dict[str, str]) -> str:
  return files.get(name.rpartition('.')[0], name)


CORPUS = base.Corpus(
    name='nih', title='NIH ChestX-ray14: 112,120 chest radiographs with labels, 984 boxes',
    layout=LAYOUT, read=read, texts=base.Texts.NONE)
