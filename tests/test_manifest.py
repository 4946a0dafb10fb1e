"""Manifests: columns, sections, labels, annotations, joining, splits, rejects."""

import json
import math

import pytest

from plan_jax.data import columns
from plan_jax.data import items
from plan_jax.data import manifest
from plan_jax.data import rows

Reason = rows.Reason


def _write(path, *lines):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text('\n'.join(
      line if isinstance(line, str) else json.dumps(line) for line in lines) + '\n', 'utf-8')
  return str(path)


def _read(*paths, **options):
  contents = manifest.read_manifests(paths, **options)
  used = sum(len(item.rows) for item in contents.items)
  assert used + len(contents.rejects) == contents.rows
  return contents


def _reasons(contents):
  return [(reject.line, reject.reason) for reject in contents.rejects]


def test_text_and_sections(tmp_path):
  path = _write(
      tmp_path / 'm.jsonl',
      {'image': '0.jpg', 'text': 'Clear\n lungs.', 'findings': 'not used'},
      {'image': '1.jpg', 'findings': 'Clear.', 'impression': 'Normal.'},
      {'image': '2.jpg', 'findings': None, 'impression': 'Normal.'},
      {'image': '3.jpg', 'text': '', 'findings': 'Clear.', 'impression': math.nan})
  items = _read(path).items
  assert [item.rows[0].text for item in items] == [
      'Clear lungs.', 'Clear. Normal.', 'Normal.', 'Clear.']
  assert [item.id for item in items] == ['0.jpg', '1.jpg', '2.jpg', '3.jpg']
  assert items[0].image == str((tmp_path / '0.jpg').resolve())


def test_csv_equals_jsonl(tmp_path):
  one = _write(
      tmp_path / 'm.jsonl',
      {'image': 'a.png', 'text': 'Line one, "quoted" line two.', 'patient': '7', 'split': 'dev',
       'labels': ['edema', 'no finding'],
       'annotations': [{'phrase': 'oedema', 'label': 'Edema', 'box': [0, 1, 2, 3]}]})
  two = _write(
      tmp_path / 'n.csv', 'image,text,patient,split,labels,annotations',
      'a.png,"Line one, ""quoted""', 'line two.",7,Validation,Edema|No Finding,"[{""phrase"": '
      '""oedema"", ""label"": ""Edema"", ""box"": [0, 1, 2, 3]}]"')
  first, second = _read(one).items[0].rows[0], _read(two).items[0].rows[0]
  assert first.annotations[0] == rows.Annotation(
      phrase='oedema', category='edema', boxes=((0, 1, 2, 3),), mask='')
  for name in ('text', 'patient', 'split', 'labels', 'annotations', 'image'):
    assert getattr(first, name) == getattr(second, name), name
  assert first.split == 'val'


def test_csv_line_numbers_follow_quoted_newlines(tmp_path):
  path = _write(
      tmp_path / 'm.csv', 'image,text', 'a.png,"one', 'two"', 'b.png,"."', 'c.png,x,extra',
      ',lost')
  assert _reasons(_read(path)) == [
      (5, Reason.INVALID_LINE), (6, Reason.MISSING_COLUMN), (4, Reason.EMPTY_TEXT)]


def test_rejected_lines_carry_number_and_reason_but_no_text(tmp_path):
  path = _write(
      tmp_path / 'm.jsonl',
      {'image': '0.jpg', 'text': 'secret words'},
      '{"image": "1.jpg", "text": "secret',
      '["secret"]',
      '',
      {'text': 'secret'},
      {'image': '2.jpg', 'text': '...'},
      {'image': 3, 'text': 'secret'},
      {'image': '4.jpg', 'text': 'secret', 'split': 'holdout'},
      {'image': '5.jpg', 'text': ['secret']},
      {'image': '6.jpg', 'text': 'secret', 'labels': {'a': 'secret'}, 'annotations': 'secret'},
      {'image': '7.jpg', 'text': 'secret', 'labels': 3},
      {'image': '8.jpg', 'text': 'secret', 'annotations': [{'phrase': 'x'}]},
      {'image': '9.jpg', 'text': 'secret', 'annotations': [{'box': [0, 0, 1, 1]}]},
      {'image': '10.jpg', 'text': 'secret', 'annotations': [{'phrase': 'x', 'box': [2, 0, 1, 1]}]},
      {'image': '11.jpg', 'text': 'secret',
       'annotations': [{'phrase': 'x', 'box': [0, 0, math.nan, 1]}]},
      {'image': '12.jpg', 'text': 'secret', 'annotations': [{'phrase': 'x', 'boxes': 7}]})
  contents = _read(path)
  assert [item.id for item in contents.items] == ['0.jpg']
  assert sorted(_reasons(contents)) == [
      (2, Reason.INVALID_LINE), (3, Reason.INVALID_LINE), (5, Reason.MISSING_COLUMN),
      (6, Reason.EMPTY_TEXT), (7, Reason.BAD_VALUE), (8, Reason.BAD_VALUE),
      (9, Reason.BAD_VALUE), (10, Reason.BAD_ANNOTATION), (11, Reason.BAD_VALUE),
      (12, Reason.BAD_ANNOTATION), (13, Reason.BAD_ANNOTATION), (14, Reason.BAD_BOX),
      (15, Reason.BAD_BOX), (16, Reason.BAD_BOX)]
  assert 'secret' not in ''.join(reject.detail + reject.id for reject in contents.rejects)


def test_bytes_that_are_not_utf8(tmp_path):
  path = tmp_path / 'm.jsonl'
  path.write_bytes(b'{"image": "a.jpg", "text": "ok"}\n{"image": "b.jpg", "text": "\xff"}\n')
  assert _reasons(_read(str(path))) == [(2, Reason.INVALID_LINE)]
  table = tmp_path / 'm.csv'
  table.write_bytes(b'image,text\na.jpg,ok\nb.jpg,\xff\n')
  with pytest.raises(manifest.ManifestError, match='not UTF-8 .line 3'):
    _read(str(table))


def test_lone_surrogates_become_valid_text(tmp_path):
  path = _write(tmp_path / 'm.jsonl', '{"image": "a.jpg", "text": "mass \\ud800 here"}')
  assert _read(path).items[0].rows[0].text == 'mass ? here'


@pytest.mark.parametrize('row, keys, expected', [
    ({'label': 'Normal'}, (), ('normal',)),
    ({'labels': ['Edema', 'edema', 'Mass']}, (), ('edema', 'mass')),
    ({'labels': 'Edema|Mass'}, (), ('edema', 'mass')),
    ({'labels': {'edema': 1, 'mass': 0, 'nodule': -1.0, 'cyst': None}}, (), ('edema',)),
    ({'labels': {'finding': 'Pneumonia'}}, ('labels.finding',), ('pneumonia',)),
    ({'label': 'pneumonia', 'kind': 'virus'}, ('label', 'kind'), ('pneumonia', 'virus')),
    ({'label': 'normal', 'kind': None}, ('label', 'kind'), ('normal',)),
    ({}, (), ()),
])
def test_labels(tmp_path, row, keys, expected):
  path = _write(tmp_path / 'm.jsonl', {'image': 'a.jpg', 'text': 'words', **row})
  contents = _read(path, keys=columns.Keys(labels=keys))
  assert contents.items[0].rows[0].labels == expected


def test_marks_of_a_mapping(tmp_path):
  path = _write(
      tmp_path / 'm.jsonl',
      {'image': 'a.jpg', 'text': 'x',
       'labels': {'Edema': 1, 'Mass': 0.0, 'Nodule': -1, 'Cyst': None, 'Rib': math.nan}},
      {'image': 'a.jpg', 'labels': {'Mass': 1, 'Nodule': 0, 'Hernia': 0}},
      {'image': 'b.jpg', 'text': 'x', 'labels': {'age': 57}})
  contents = _read(path)
  first, second = contents.items[0].rows
  assert (first.labels, first.negatives, first.uncertain) == (('edema',), ('mass',), ('nodule',))
  joined = rows.marks([first, second])  # present before uncertain before absent
  assert (joined.labels, joined.negatives, joined.uncertain) == (
      ('edema', 'mass'), ('hernia',), ('nodule',))
  assert _reasons(contents) == [(3, Reason.BAD_VALUE)]
  assert '57 is no mark' in contents.rejects[0].detail


def test_an_empty_list_of_annotations_says_that_someone_looked(tmp_path):
  path = _write(
      tmp_path / 'm.csv', 'image,text,annotations', 'a.png,x,[]', 'b.png,x,')
  assert [item.rows[0].is_annotated for item in _read(path).items] == [True, False]


def test_mapping_of_labels_is_pointed_out(tmp_path):
  path = _write(
      tmp_path / 'm.jsonl', {'image': 'a.jpg', 'text': 'x', 'labels': {'finding': 'A', 'age': '3'}})
  assert 'labels.age, labels.finding' in _read(path).notes[0]


def test_rows_of_one_image_are_joined(tmp_path):
  pairs = _write(
      tmp_path / 'pairs.jsonl', {'image': 'i/a.jpg', 'text': 'one', 'labels': ['x']},
      {'image': 'i/b.jpg', 'text': 'two'})
  places = _write(
      tmp_path / 'deeper' / 'places.jsonl',
      {'image': '../i/a.jpg', 'labels': ['y'],
       'annotations': [{'phrase': 'p', 'box': [0, 0, 1, 1]}]},
      {'image': '../i/a.jpg', 'annotations': [{'phrase': 'q', 'box': [0, 0, 1, 1]}]},
      {'image': '../i/c.jpg', 'annotations': [{'phrase': 'p', 'box': [0, 0, 1, 1]}]})
  for order in ((pairs, places), (places, pairs)):
    contents = _read(*order)
    joined = {item.id: item for item in contents.items}
    assert sorted(joined) == ['i/a.jpg', 'i/b.jpg']
    assert [row.text for row in joined['i/a.jpg'].rows] == ['one', '', '']
    assert [a.phrase for row in joined['i/a.jpg'].rows for a in row.annotations] == ['p', 'q']
    assert _reasons(contents) == [(3, Reason.EMPTY_TEXT)]
  assert len(_read(pairs, places, allow_empty_text=True).items) == 3


def test_repeats_and_contradictions_are_rejected(tmp_path):
  path = _write(
      tmp_path / 'm.jsonl',
      {'image': 'a.jpg', 'text': 'one', 'patient': 'p', 'split': 'train'},
      {'image': 'a.jpg', 'text': 'one'},
      {'image': './a.jpg', 'text': 'other'},
      {'image': 'a.jpg', 'patient': 'q'},
      {'image': 'a.jpg', 'split': 'test', 'labels': ['new']},
      {'image': 'b.jpg', 'text': 'two', 'id': 'same'},
      {'image': 'c.jpg', 'text': 'three', 'id': 'same'})
  assert _reasons(_read(path)) == [
      (2, Reason.DUPLICATE_PICTURE), (3, Reason.DUPLICATE_PICTURE), (4, Reason.CONFLICT),
      (5, Reason.PATIENT_IN_TWO_SPLITS), (7, Reason.DUPLICATE_ID)]


def test_patient_stays_in_one_split(tmp_path):
  path = _write(
      tmp_path / 'm.jsonl',
      {'image': '0.jpg', 'text': 'x', 'patient': 'p'},
      {'image': '1.jpg', 'text': 'x', 'patient': 'p', 'split': 'test'},
      {'image': '2.jpg', 'text': 'x', 'patient': 'p', 'split': 'train'},
      {'image': '3.jpg', 'text': 'x', 'patient': 'p', 'split': 'test'})
  contents = _read(path)
  assert [item.split for item in contents.items] == ['test', 'test', 'test']
  assert _reasons(contents) == [(3, Reason.PATIENT_IN_TWO_SPLITS)]


def test_split_by_hash_is_90_5_5_and_fixed(tmp_path):
  splits = [items.split_of(f'patient {i}') for i in range(4000)]
  assert 0.88 < splits.count('train') / 4000 < 0.92
  assert 0.04 < splits.count('val') / 4000 < 0.06
  assert splits[:6] == [items.split_of(f'patient {i}') for i in range(6)]
  path = _write(tmp_path / 'm.jsonl', *(
      {'image': f'{i}.jpg', 'text': 'x', 'patient': f'{i // 4}'} for i in range(80)))
  by_patient = {}
  for item in _read(path).items:
    by_patient.setdefault(item.patient, set()).add(item.split)
  assert all(len(found) == 1 for found in by_patient.values())


@pytest.mark.parametrize('row, keys, message', [
    ({'img': 'a', 'text': 'x'}, {}, "no image column 'image'.*img, text.*--image-key"),
    ({'image': 'a', 'report': 'x'}, {}, 'no text column.*image, report.*--text-key'),
    ({'image': 'a', 'text': 'x'}, {'text': 'report'}, "no text column 'report'.*image, text"),
    ({'image': 'a', 'text': 'x'}, {'labels': ('finding',)}, '--label-key finding: no row'),
])
def test_missing_columns_name_what_was_found(tmp_path, row, keys, message):
  path = _write(tmp_path / 'm.jsonl', row)
  with pytest.raises(manifest.ManifestError, match=message):
    _read(path, keys=columns.Keys(**keys))


def test_text_column_missing_in_an_unrelated_manifest(tmp_path):
  good = _write(tmp_path / 'g.jsonl', {'image': 'a', 'text': 'x'})
  bad = _write(tmp_path / 'b.jsonl', {'image': 'b', 'caption': 'x', 'labels': ['y']})
  with pytest.raises(manifest.ManifestError, match='b.jsonl has no text column.*caption'):
    _read(good, bad)


@pytest.mark.parametrize('name, content, message', [
    ('m.json', '{}', "unknown kind of manifest '.json'.*jsonl"),
    ('m.jsonl', '', 'has no rows'),
    ('m.csv', 'image,text\n', 'has no rows'),
    ('m.jsonl', '[{"image": "a"}]', 'one JSON array'),
    ('m.csv', 'image,text\na.jpg,"never closed\nb.jpg,x\n', 'line 2: not CSV'),
    ('m.csv', 'image,"text\na.jpg,x\n', 'line 1: not CSV'),
    ('m.csv', 'image,text,label,label\na.jpg,x,1,0\n', 'has the column label more than once'),
])
def test_unusable_manifests(tmp_path, name, content, message):
  (tmp_path / name).write_text(content)
  with pytest.raises(manifest.ManifestError, match=message):
    _read(str(tmp_path / name))


def test_absent_manifest_and_equal_names(tmp_path):
  with pytest.raises(manifest.ManifestError, match='none.jsonl: No such file'):
    _read(str(tmp_path / 'none.jsonl'))
  path = _write(tmp_path / 'm.jsonl', {'image': 'a', 'text': 'x'})
  with pytest.raises(manifest.ManifestError, match='two manifests are called'):
    _read(path, path)


def test_names_hold_no_path_of_the_machine(tmp_path):
  path = _write(tmp_path / 'm.jsonl', {'image': 'a', 'text': '.'}, {'image': 'b', 'text': 'x'})
  contents = _read(path)
  assert contents.rejects[0].manifest == f'{tmp_path.name}/m.jsonl'
  assert str(tmp_path) not in repr(contents.rejects)


@pytest.mark.parametrize('fault', [
    {'annotations': [{'label': 'edema', 'box': [9, 9, 1, 1]}]},
    {'annotations': [{'label': 'edema'}]},
    {'annotations': [{'label': 'edema', 'box': [0, 0, 9, 9]}], 'width': 'x', 'height': 9}])
def test_an_image_whose_row_without_id_lost_its_box_is_no_empty_one(tmp_path, fault):
  """Neither row has an id, and the two manifests write the path in different ways."""
  rows_path = _write(tmp_path / 'a/rows.jsonl', *(
      {'image': f'{k}.png', 'text': 'Clear lungs.', 'annotations': []} for k in (0, 1)))
  boxes_path = _write(tmp_path / 'b/boxes.jsonl', {'image': '../a/0.png', **fault})
  contents = _read(rows_path, boxes_path)
  assert len(contents.rejects) == 1
  assert [item.rows[0].is_annotated for item in contents.items] == [False, True]
