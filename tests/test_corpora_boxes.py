"""Evaluation sets with boxes and masks: their published layouts in small, to records."""

import cv2
import numpy as np
import pytest

import corpus_layouts as layouts
import corpus_runs as corpus
from plan_jax.data import records
from plan_jax.data import sheet


def test_nih(tmp_path):
  card = corpus.made('nih', tmp_path)
  assert card['rows'] == {
      'in': 15, 'records': 12, 'merged': 2, 'rejected': {'bad_box': 1}, 'left_out': {}}
  assert card['splits']['test'] == 2 and card['splits']['train'] + card['splits']['val'] == 10
  found = corpus.examples(tmp_path)
  heart = found['00000001_001']
  assert heart.labels == ('cardiomegaly', 'effusion') and heart.is_annotated
  np.testing.assert_allclose(
      heart.phrases[0].boxes * 1024, [[100.5, 120, 300.5, 280.5]], rtol=1e-6)
  [place] = found['00000002_001'].phrases  # labels call it infiltration
  assert (place.category, place.text) == ('infiltration', 'infiltrate')
  assert not found['00000001_000'].is_annotated and found['00000001_000'].labels == ('no finding',)


@pytest.mark.parametrize('name, content, message', [
    ('test_list.txt', b'\xff00000001_000.png\n', 'is no list that can be read (UnicodeDecodeError)'),
    ('test_list.txt.gz', b'00000001_000.png\n', 'is no list that can be read (BadGzipFile)'),
    ('test_list.txt', b'images/00000001_000.png\n', 'names no image of Data_Entry_2017.csv'),
])
def test_nih_lists_that_give_no_split(tmp_path, capsys, name, content, message):
  root = tmp_path / 'in'
  layouts.table(root / 'Data_Entry_2017.csv', ('Image Index', 'Finding Labels', 'Patient ID'),
                [('00000001_000.png', 'No Finding', 1)])
  (root / name).write_bytes(content)
  assert corpus.run('nih', root) == 2
  error = capsys.readouterr().err
  assert message in error and name in error and error.count('\n') == 1


def test_rsna(tmp_path):
  card = corpus.made('rsna', tmp_path)
  assert card['rows'] == {'in': 11, 'records': 10, 'merged': 1, 'rejected': {}, 'left_out': {}}
  assert card['phrases']['boxes'] == 5 and card['annotated'] == 10
  found = list(corpus.examples(tmp_path).values())
  two = corpus.examples(tmp_path)['0004cfab-14fd-4e49-80ba-63a80b6b0000']
  np.testing.assert_allclose(np.concatenate([p.boxes for p in two.phrases]) * 1024, [
      [160, 128, 416, 512], [480, 128, 736, 512]])
  assert {e.labels for e in found if e.phrases} == {('pneumonia',)}
  assert {e.negatives for e in found if not e.phrases} == {('pneumonia',)}


def test_siim(tmp_path):
  card = corpus.made('siim', tmp_path, '--size', '1024')
  assert card['rows']['records'] == 6 and card['phrases']['masks'] == 4
  assert card['annotated'] == 6
  example = corpus.examples(tmp_path)['1.2.276.0.7230010.3.1.4.8323329.300.1517875162.258081']
  masks = [cv2.imdecode(np.frombuffer(p.mask, np.uint8), cv2.IMREAD_GRAYSCALE) > 0
           for p in example.phrases]
  want = np.zeros((1024, 1024), bool)
  want[100:140, 200:203] = True  # down the columns, as the published decoder reads them
  np.testing.assert_array_equal(masks[0], want)
  np.testing.assert_array_equal(masks[1], np.roll(want, 50, axis=1))
  np.testing.assert_allclose(example.phrases[0].boxes * 1024, [[200, 100, 203, 140]], rtol=1e-5)


def test_siim_faults(tmp_path):
  root = tmp_path / 'in'
  layouts.siim(root)
  with open(root / 'train-rle.csv', 'a') as file:
    file.write('1.2.276.0.7230010.3.1.4.8323329.305.1517875162.258081,12 x\n')
    file.write('1.2.276.0.7230010.3.1.4.8323329.304.1517875162.258081,1048570 9\n')
    file.write('absent,-1\n')
  assert corpus.run('siim', root) == 0
  assert corpus.card(tmp_path)['rows']['rejected'] == {
      'bad_annotation': 1, 'bad_mask': 1, 'missing_file': 1}


def test_vindr(tmp_path):
  card = corpus.made('vindr', tmp_path)
  assert card['rows'] == {
      'in': 20, 'records': 9, 'merged': 4, 'rejected': {},
      'left_out': {'box_of_a_minority': 1, 'box_of_another_reader': 6}}
  assert card['splits']['test'] == 3 and card['phrases']['boxes'] == 4
  assert card['annotated'] == 9
  first = corpus.examples(tmp_path)['000434271f63a053c4128a0ba6350000']
  assert first.labels == ('cardiomegaly',)
  assert first.negatives == ('pleural effusion', 'pneumonia', 'other diseases', 'no finding')
  consensus = corpus.examples(tmp_path)['008b3176ad8c4aeb8dc1a7bd5cf00000']
  assert consensus.labels == ('cardiomegaly', 'other diseases')  # the name that training has


def test_an_image_that_lost_its_box_is_no_empty_one(tmp_path):
  root = tmp_path / 'in'
  layouts.vindr(root)
  path = root / 'annotations/annotations_test.csv'
  lines = path.read_text().splitlines()
  box = lines[1].split(',')
  for k, spoilt in enumerate(('60,20,8,60', '8,20,900,60')):  # seen in the table; in the picture
    path.write_text('\n'.join([lines[0], f'{box[0]},Cardiomegaly,{spoilt}', *lines[2:]]) + '\n')
    assert corpus.run('vindr', root, '--out', str(tmp_path / str(k))) == 0
    assert records.read_card(tmp_path / str(k))['rows']['rejected'] == {'bad_box': 1}
    found = {e.id: e for e in records.Records(tmp_path / str(k), 'test')}
    assert [e.is_annotated for e in found.values()] == [False, True, True]


def test_vindr_box_of_an_unknown_image(tmp_path):
  root = tmp_path / 'in'
  layouts.vindr(root)
  with open(root / 'annotations/annotations_test.csv', 'a') as file:
    file.write('absent,Cardiomegaly,1,2,3,4\n')
  assert corpus.run('vindr', root) == 0
  assert corpus.card(tmp_path)['rows']['rejected'] == {'unknown_image': 1}


def test_ms_cxr(tmp_path):
  card = corpus.made('ms_cxr', tmp_path)
  assert card['rows'] == {'in': 6, 'records': 4, 'merged': 2, 'rejected': {}, 'left_out': {}}
  assert card['splits'] == {'train': 0, 'val': 0, 'test': 4}
  example = corpus.examples(tmp_path)['687754ce-7420bfd3-0a19911f-a27a3916-0000']
  assert (example.patient, example.labels) == ('10032725', ('cardiomegaly', 'pleural effusion'))
  assert [p.text for p in example.phrases] == [
      'moderate cardiomegaly 0', 'left effusion', 'left effusion']
  np.testing.assert_allclose(
      example.phrases[0].boxes, [[8 / 64, 20 / 80, 32 / 64, 50 / 80]], rtol=1e-6)


@pytest.mark.parametrize('name, pattern', [
    ('ms_cxr', 'files/p10/*/*/*0001.jpg'), ('nih', 'images_002/images/00000001_001.png'),
    ('rsna', 'stage_2_train_images/*0001.dcm')])
def test_boxes_on_resized_pictures_are_refused(tmp_path, name, pattern):
  root = tmp_path / 'in'
  root.mkdir()
  getattr(layouts, name)(root)
  if name == 'nih':  # which has a bad box already
    path = root / 'BBox_List_2017.csv'
    path.write_text(''.join(path.read_text().splitlines(keepends=True)[:-1]))
  [path] = root.glob(pattern)
  layouts.picture(path, 1, width=512, height=512)  # boxes count in pixels of the original
  assert corpus.run(name, root) == 0
  assert corpus.card(tmp_path)['rows']['rejected'] == {'bad_box': 1}


def test_a_contact_sheet_of_boxes(tmp_path, capfd):
  corpus.made('rsna', tmp_path, '--preview', str(tmp_path / 'sheet.png'))
  page = cv2.imread(str(tmp_path / 'sheet.png'))
  assert page.shape[1] == 6 * 166 and (page.max(axis=2) != page.min(axis=2)).any()
  assert 'unsupported' not in capfd.readouterr().err  # OpenCV, of quality for a PNG


def test_a_sheet_says_how_many_classes_it_does_not_show():
  red, white = (0, 0, 255), (255, 255, 255)
  assert sheet._captions({'a': red, 'b': red}, ('b', 'c', 'd')) == [
      ('a', red), ('b', red), ('c', white), ('d', white)]
  assert sheet._captions({'a': red, 'b': red}, ('c', 'd', 'e')) == [
      ('a', red), ('b', red), ('c', white), ('and 2 more', white)]
