"""Every corpus: its published layout in small, through the command line, to records."""

import gzip
import json
import os
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

import corpus_layouts as layouts
from plan_jax import metrics
from plan_jax import train
from plan_jax.data import corpora
from plan_jax.data import inspect
from plan_jax.data import prepare
from plan_jax.data import records
from plan_jax.data.corpora import openi
import tiny
import tiny_dicom

_ROOT = pathlib.Path(__file__).parents[1]


def _run(name: str, root: pathlib.Path, *options: str) -> int:
  # A later --out among the options counts.
  return prepare.main([name, '--root', str(root), '--out', str(root.parent / 'out'),
                       '--workers', '1', '--vocab-size', '300', *options])


def _made(name: str, tmp_path: pathlib.Path, *options: str, layout=None, **arguments) -> dict:
  """Makes the layout and its records; returns the card, its counts checked."""
  root = tmp_path / 'in'
  root.mkdir()
  (layout or getattr(layouts, name))(root, **arguments)
  assert _run(name, root, *options) == 0
  return _card(tmp_path)


def _card(tmp_path: pathlib.Path) -> dict:
  card = records.read_card(tmp_path / 'out')
  rows = card['rows']
  assert rows['in'] == rows['records'] + rows['merged'] + sum(rows['rejected'].values()) + sum(
      rows['left_out'].values())
  listed = layouts.lines(tmp_path / 'out' / 'rejects.jsonl')
  assert len(listed) == sum(rows['rejected'].values())
  return card


def _all(tmp_path: pathlib.Path) -> dict[str, records.Example]:
  return {e.id: e for split in records.SPLITS for e in records.Records(tmp_path / 'out', split)}


# ---- mimic_cxr


@pytest.mark.parametrize('suffix', ['.jpg', '.dcm'])
def test_mimic_cxr(tmp_path, suffix):
  card = _made('mimic_cxr', tmp_path, suffix=suffix)
  assert card['rows'] == {
      'in': 24, 'records': 12, 'merged': 0, 'rejected': {}, 'left_out': {'view_lateral': 12}}
  assert card['splits'] == {'train': 8, 'val': 2, 'test': 2} and card['kind'] == 'mimic_cxr'
  assert card['text']['empty_share'] == 0 and card['labelled'] == 11
  assert str(tmp_path) not in json.dumps(card)
  found = _all(tmp_path)
  first = found['02aa804e-bde0afdd-112c0b34-7bc16630-0000ap']
  assert first.text == ('no acute process. the heart is of normal size in case 0. there is no '
                        'pleural effusion.')
  assert (first.patient, first.labels) == ('10000032', ('atelectasis',))
  assert found['02aa804e-bde0afdd-112c0b34-7bc16630-0001pa'].negatives == ('cardiomegaly',)
  assert found['02aa804e-bde0afdd-112c0b34-7bc16630-0002pa'].uncertain == ('consolidation',)


def test_mimic_cxr_with_every_fault(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.mimic_cxr(root)
  files = root / 'files/p10/p10000032'
  next((files / 's50414267').glob('*ap.jpg')).unlink()
  (files / 's50414268.txt').unlink()
  (root / 'files/p10/p10000033/s50414269.txt').write_text(' IMPRESSION:\n\n ___.\n')
  (root / 'files/p10/p10000033/s50414270.txt').write_bytes(b'IMPRESSION: \xff\xfe')
  next((root / 'files/p10/p10000034/s50414271').glob('*pa.jpg')).write_bytes(b'no picture')
  (root / 'mimic-cxr-2.0.0-split.csv.gz').unlink()
  layouts.table(root / 'mimic-cxr-2.0.0-split.csv.gz', layouts.MIMIC_SPLIT, [])
  assert _run('mimic_cxr', root) == 0
  printed = capsys.readouterr().out
  assert 'lacks 24 images' in printed and '2 images belong to studies without' in printed
  card = _card(tmp_path)
  assert card['rows']['rejected'] == {
      'empty_text': 1, 'missing_file': 2, 'unreadable_image': 1, 'unreadable_report': 1}
  rejects = {r['id'][-6:]: r for r in layouts.lines(tmp_path / 'out/rejects.jsonl')}
  assert 's50414268.txt (the report)' in rejects['0001pa']['detail']
  assert rejects['0001pa']['manifest'] == 'mimic-cxr-2.0.0-metadata.csv.gz'
  assert rejects['0001pa']['line'] == 4


def test_mimic_cxr_options(tmp_path, capsys):
  root, apart = tmp_path / 'in', tmp_path / 'apart'
  layouts.mimic_cxr(root)
  (apart / 'tables').mkdir(parents=True)
  for path in root.glob('*.csv.gz'):
    path.rename(apart / 'tables' / path.name)
  for path in root.glob('files/p10/*/*.txt'):
    layouts.text(apart / 'reports' / path.relative_to(root), path.read_text())
    path.unlink()
  options = ['--tables', str(apart / 'tables'), '--reports', str(apart / 'reports')]
  assert _run('mimic_cxr', root) == 2
  assert 'mimic-cxr-*-metadata.csv' in capsys.readouterr().err
  assert _run('mimic_cxr', root, *options, '--views', 'all', '--labeler', 'negbio',
              '--report-sections', 'impression') == 0
  card = _card(tmp_path)
  assert card['rows']['records'] == 24 and card['source']['labeler'] == 'negbio'
  assert {e.text for e in _all(tmp_path).values()} == {'no acute process.'}


def test_a_dry_run_writes_nothing(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.mimic_cxr(root)
  next((root / 'files/p10/p10000032/s50414267').glob('*ap.jpg')).unlink()
  assert _run('mimic_cxr', root, '--dry-run') == 0
  printed = capsys.readouterr().out
  assert 'images        11 (train 7, val 2, test 2), 11 with a report' in printed
  assert 'missing_file           1' in printed and 'view_lateral           12' in printed
  assert not (tmp_path / 'out').exists()
  assert _run('mimic_cxr', root, '--dry-run', '--strict') == 1


def test_limit_and_lists_of_ids(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.mimic_cxr(root)
  ids = tmp_path / 'ids.txt'
  ids.write_text('# an evaluation set\n02aa804e-bde0afdd-112c0b34-7bc16630-0000ap\nabsent\n')
  assert _run('mimic_cxr', root, '--exclude-ids', str(ids), '--limit', '7') == 0
  printed = capsys.readouterr().out
  assert '--exclude-ids: 1 of 2 ids name no image here' in printed and 'absent' not in printed
  card = _card(tmp_path)
  # The patient's two, of which one is listed:
  assert card['rows']['left_out'] == {'view_lateral': 12, 'excluded_id': 2, 'limit': 3}
  assert '10000032' not in {e.patient for e in _all(tmp_path).values()}
  only, rest = str(tmp_path / 'only'), str(tmp_path / 'rest')
  assert _run('mimic_cxr', root, '--out', only, '--only-ids', str(ids)) == 0
  assert records.read_card(tmp_path / 'only')['splits'] == {'train': 0, 'val': 0, 'test': 1}
  assert _run('mimic_cxr', root, '--out', rest, '--exclude-ids', only) == 0
  left_out = records.read_card(rest)['rows']['left_out']
  assert left_out == {'view_lateral': 12, 'excluded_id': 2}
  ids.write_text('\n')
  assert _run('mimic_cxr', root, '--exclude-ids', str(ids)) == 2
  assert 'is empty' in capsys.readouterr().err


def test_an_excluded_image_takes_its_patient_along_whatever_its_view(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.mimic_cxr(root)
  ids = tmp_path / 'ids.txt'
  ids.write_text('02aa804e-bde0afdd-112c0b34-7bc16630-0000lateral\n')
  assert _run('mimic_cxr', root, '--exclude-ids', str(ids)) == 0
  assert _card(tmp_path)['rows']['left_out'] == {'view_lateral': 12, 'excluded_id': 2}
  assert '10000032' not in {e.patient for e in _all(tmp_path).values()}
  assert 'name no image' not in capsys.readouterr().out


def test_a_list_that_leaves_nothing_is_an_error(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.mimic_cxr(root)
  ids = tmp_path / 'ids.txt'
  ids.write_text('10000032\n')  # a patient: --only-ids wants images
  assert _run('mimic_cxr', root, '--only-ids', str(ids)) == 2
  error = capsys.readouterr().err
  assert 'none of 12 images is left (rows left out: not_in_only_ids 12)' in error
  assert not (tmp_path / 'out').exists()


# ---- the others


@pytest.mark.parametrize('kind', ['png', 'kaggle', 'dicom'])
def test_openi(tmp_path, kind):
  card = _made('openi', tmp_path, kind=kind)
  assert card['rows'] == {'in': 25, 'records': 12, 'merged': 0, 'rejected': {'missing_column': 1},
                          'left_out': {'view_lateral': 12}}
  example = _all(tmp_path)['CXR2_IM-0002-1001']
  assert example.text == 'no acute disease. the heart of case 2 is normal. are clear.'
  assert (example.patient, example.labels) == ('CXR2', ('cardiomegaly',))


def test_openi_without_views(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.openi(root)
  (root / 'indiana_projections.csv').unlink()
  assert _run('openi', root) == 2
  assert '--views all' in capsys.readouterr().err
  (root / 'ecgen-radiology/1.xml').write_text('<eCitation>')
  assert _run('openi', root, '--views', 'all') == 0
  card = _card(tmp_path)
  assert card['rows']['records'] == 22
  assert card['rows']['rejected'] == {'missing_column': 1, 'unreadable_report': 1}


def test_openi_names_are_one_name():
  assert openi._key('CXR1_1_IM-0001-3001') == openi._key('1_IM-0001-3001') == '1_IM-0001-3001'
  assert openi._key('CXR100_IM-0002-1001') == openi._key('100_IM-0002-1001')


def test_chexpert_plus(tmp_path):
  card = _made('chexpert', tmp_path)
  assert card['splits'] == {'train': 8, 'val': 2, 'test': 1}
  assert card['rows']['left_out'] == {'view_lateral': 11} and card['text']['empty_share'] == 0
  found = _all(tmp_path)
  assert found['train/patient00001/study1/view1_frontal'].text == (
      'no acute process. no change. the lungs of case 1 are clear.')
  whole = found['train/patient00003/study1/view1_frontal'].text  # from its whole report
  assert whole.startswith('no acute process. the heart')
  assert found['train/patient00001/study1/view1_frontal'].negatives == ('cardiomegaly',)


def test_chexpert_alone_has_labels_only(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.chexpert(root, plus=False)
  assert _run('chexpert', root) == 2
  assert '--allow-empty-text' in capsys.readouterr().err
  assert _run('chexpert', root, '--allow-empty-text', '--views', 'lateral') == 0
  assert _card(tmp_path)['text']['empty_share'] == 1


def test_padchest(tmp_path):
  card = _made('padchest', tmp_path)
  assert card['rows']['records'] == 6
  assert card['rows']['left_out'] == {'view_lateral': 3, 'view_other': 3}
  example = _all(tmp_path)['216840111366964012768025509942010110150212424_00-002-039']
  assert example.text == 'sin hallazgos patologicos en el caso 0. senos costofrenicos libres.'
  assert example.labels == ('normal', 'pleural effusion')
  shown = cv2.imdecode(np.frombuffer(example.image, np.uint8), cv2.IMREAD_GRAYSCALE)
  assert np.corrcoef(shown.ravel(), layouts.pixels(0).ravel())[0, 1] > 0.99  # 16 bits came through


def test_padchest_labels_that_are_no_list(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.padchest(root)
  path = root / 'PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz'
  content = gzip.decompress(path.read_bytes()).decode()
  path.write_bytes(gzip.compress(content.replace("['normal', ", '[nan, ', 1).encode()))
  assert _run('padchest', root) == 0
  assert '1 images come from MONOCHROME1 files' in capsys.readouterr().out
  assert _card(tmp_path)['rows']['rejected'] == {'bad_value': 1}


def test_rocov2(tmp_path):
  card = _made('rocov2', tmp_path)
  assert card['splits'] == {'train': 8, 'val': 2, 'test': 2}
  example = _all(tmp_path)['ROCOv2_2023_train_000002']
  assert example.labels == ('plain x-ray', 'lung nodule')
  assert example.text == 'chest x-ray of case 1 shows a small nodule (arrow).'


def test_nih(tmp_path):
  card = _made('nih', tmp_path)
  assert card['rows'] == {
      'in': 15, 'records': 12, 'merged': 2, 'rejected': {'bad_box': 1}, 'left_out': {}}
  assert card['splits']['test'] == 2 and card['splits']['train'] + card['splits']['val'] == 10
  found = _all(tmp_path)
  heart = found['00000001_001']
  assert heart.labels == ('cardiomegaly', 'effusion') and heart.is_annotated
  np.testing.assert_allclose(
      heart.phrases[0].boxes * 1024, [[100.5, 120, 300.5, 280.5]], rtol=1e-6)
  assert not found['00000001_000'].is_annotated and found['00000001_000'].labels == ('no finding',)


def test_rsna(tmp_path):
  card = _made('rsna', tmp_path)
  assert card['rows'] == {'in': 11, 'records': 10, 'merged': 1, 'rejected': {}, 'left_out': {}}
  assert card['phrases']['boxes'] == 5 and card['annotated'] == 10
  found = list(_all(tmp_path).values())
  two = _all(tmp_path)['0004cfab-14fd-4e49-80ba-63a80b6b0000']
  np.testing.assert_allclose(np.concatenate([p.boxes for p in two.phrases]) * 1024, [
      [160, 128, 416, 512], [480, 128, 736, 512]])
  assert {e.labels for e in found if e.phrases} == {('pneumonia',)}
  assert {e.negatives for e in found if not e.phrases} == {('pneumonia',)}


def test_siim(tmp_path):
  card = _made('siim', tmp_path, '--size', '1024')
  assert card['rows']['records'] == 6 and card['phrases']['masks'] == 4
  assert card['annotated'] == 6
  example = _all(tmp_path)['1.2.276.0.7230010.3.1.4.8323329.300.1517875162.258081']
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
  assert _run('siim', root) == 0
  assert _card(tmp_path)['rows']['rejected'] == {
      'bad_annotation': 1, 'bad_mask': 1, 'missing_file': 1}


def test_vindr(tmp_path):
  card = _made('vindr', tmp_path)
  assert card['rows'] == {
      'in': 20, 'records': 9, 'merged': 4, 'rejected': {},
      'left_out': {'box_of_a_minority': 1, 'box_of_another_reader': 6}}
  assert card['splits']['test'] == 3 and card['phrases']['boxes'] == 4
  assert card['annotated'] == 9
  first = _all(tmp_path)['000434271f63a053c4128a0ba6350000']
  assert first.labels == ('cardiomegaly',)
  assert first.negatives == ('pleural effusion', 'pneumonia', 'no finding')


def test_an_image_that_lost_its_box_is_no_empty_one(tmp_path):
  root = tmp_path / 'in'
  layouts.vindr(root)
  path = root / 'annotations/annotations_test.csv'
  lines = path.read_text().splitlines()
  box = lines[1].split(',')
  for k, spoilt in enumerate(('60,20,8,60', '8,20,900,60')):  # seen in the table; in the picture
    path.write_text('\n'.join([lines[0], f'{box[0]},Cardiomegaly,{spoilt}', *lines[2:]]) + '\n')
    assert _run('vindr', root, '--out', str(tmp_path / str(k))) == 0
    assert records.read_card(tmp_path / str(k))['rows']['rejected'] == {'bad_box': 1}
    found = {e.id: e for e in records.Records(tmp_path / str(k), 'test')}
    assert [e.is_annotated for e in found.values()] == [False, True, True]


def test_vindr_box_of_an_unknown_image(tmp_path):
  root = tmp_path / 'in'
  layouts.vindr(root)
  with open(root / 'annotations/annotations_test.csv', 'a') as file:
    file.write('absent,Cardiomegaly,1,2,3,4\n')
  assert _run('vindr', root) == 0
  assert _card(tmp_path)['rows']['rejected'] == {'unknown_image': 1}


def test_ms_cxr(tmp_path):
  card = _made('ms_cxr', tmp_path)
  assert card['rows'] == {'in': 6, 'records': 4, 'merged': 2, 'rejected': {}, 'left_out': {}}
  assert card['splits'] == {'train': 0, 'val': 0, 'test': 4}
  example = _all(tmp_path)['687754ce-7420bfd3-0a19911f-a27a3916-0000']
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
  assert _run(name, root) == 0
  assert _card(tmp_path)['rows']['rejected'] == {'bad_box': 1}


def test_folder(tmp_path, capsys):
  card = _made('folder', tmp_path)
  assert card['splits'] == {'train': 8, 'val': 2, 'test': 2}
  example = _all(tmp_path)['train/pneumonia/1.png']
  assert (example.text, example.labels) == ('clear lungs in case number 1.', ('pneumonia',))


def test_files_that_are_no_pictures_are_counted(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.folder(root)
  for name in ('a.tif', 'b.tif', 'IM0001'):
    (root / 'train' / name).write_bytes(b'')
  assert _run('folder', root) == 0
  assert 'other files, not taken: .tif 2, without suffix 1' in capsys.readouterr().out


def test_linked_folders_are_entered_once(tmp_path):
  root = tmp_path / 'in'
  layouts.folder(root)
  (root / 'train/normal').rename(tmp_path / 'elsewhere')
  (root / 'train/normal').symlink_to(tmp_path / 'elsewhere')
  (root / 'val/round').symlink_to(root)  # no end, if it were followed
  assert _run('folder', root) == 0
  assert _card(tmp_path)['rows'] == {
      'in': 12, 'records': 12, 'merged': 0, 'rejected': {}, 'left_out': {}}


def test_folder_of_classes_alone(tmp_path, capsys):
  root = tmp_path / 'in'
  for k in range(6):
    layouts.picture(root / ('a', 'b')[k % 2] / f'{k}.jpg', k)
  assert _run('folder', root) == 2
  assert '--allow-empty-text' in capsys.readouterr().err
  assert _run('folder', root, '--allow-empty-text') == 0
  assert _card(tmp_path)['classes'] == ['a', 'b']


# ---- all of them


def test_each_corpus_has_a_layout_and_a_test():
  tested = pathlib.Path(__file__).read_text()
  for name in corpora.CORPORA:
    assert hasattr(layouts, name) and f"_made('{name}', tmp_path" in tested, name


@pytest.mark.parametrize('name', corpora.CORPORA)
def test_missing_folders_and_columns_are_named(name, tmp_path, capsys):
  assert _run(name, tmp_path / 'nowhere') == 2
  error = capsys.readouterr().err
  assert 'nowhere is no directory' in error and corpora.CORPORA[name].layout in error
  (tmp_path / 'in').mkdir()
  assert _run(name, tmp_path / 'in') == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ') and 'Traceback' not in error


@pytest.mark.parametrize('name', [n for n in corpora.CORPORA if n not in ('folder', 'openi')])
def test_tables_without_a_column_are_named(name, tmp_path, capsys):
  root = tmp_path / 'in'
  root.mkdir()
  getattr(layouts, name)(root)
  for path in [*root.rglob('*.csv'), *root.rglob('*.csv.gz')]:
    plain = path.suffix != '.gz'
    content = path.read_text() if plain else gzip.decompress(path.read_bytes()).decode()
    spoilt = 'first,second\n' + content.partition('\n')[2]
    path.write_bytes(spoilt.encode() if plain else gzip.compress(spoilt.encode()))
  assert _run(name, root) == 2
  error = capsys.readouterr().err
  assert 'lacks the column' in error and 'it has: first, second' in error


@pytest.mark.parametrize('name', corpora.CORPORA)
def test_help_says_what_must_be_there(name, capsys):
  with pytest.raises(SystemExit) as stop:
    prepare.main([name, '--help'])
  assert stop.value.code == 0
  printed = capsys.readouterr().out
  assert corpora.CORPORA[name].layout in printed and '--dry-run' in printed


def test_tfds_reads_a_corpus(tmp_path):
  _made('mimic_cxr', tmp_path)
  code = f'''
import tensorflow_datasets as tfds
train = tfds.builder_from_directory({str(tmp_path / 'out')!r}).as_data_source('train')
print(len(train), train[0]['image'].shape, train[0]['labels'][0].decode())
'''
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
  assert done.stdout.strip() == '8 (48, 40, 1) atelectasis', done.stderr


def test_a_corpus_trains(tmp_path):
  _made('mimic_cxr', tmp_path)
  settings = tiny.config(
      data={'records': str(tmp_path / 'out'), 'max_pieces': 48, 'max_words': 32},
      train={'steps': 2, 'batch_size': 8, 'eval_every': 2, 'eval_pairs': 2, 'log_every': 1,
             'checkpoint_every': 2},
      evaluation={'max_pairs': 2, 'pictures': 0}, objective={'name': 'convirt'})
  train.train(settings, tmp_path / 'run')
  losses = [row['loss'] for row in metrics.read(tmp_path / 'run/metrics.jsonl') if 'loss' in row]
  assert len(losses) == 2 and np.isfinite(losses).all()


def test_near_duplicates_across_splits_are_reported_or_dropped(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.folder(root)
  # Picture 0 of train, larger and darker:
  twin = cv2.resize(layouts.pixels(0), None, fx=1.5, fy=1.5)
  cv2.imwrite(str(root / 'test/normal/twin.jpg'), (twin * 0.8).astype(np.uint8))
  layouts.text(root / 'test/normal/twin.txt', 'The same lungs once more.')
  assert _run('folder', root) == 0
  card = _card(tmp_path)
  assert card['near_duplicates'] == {'max_distance': 32, 'pairs': 1, 'between': {'train-test': 1}}
  assert card['rows']['records'] == 13 and '1 pairs (train-test 1)' in capsys.readouterr().out
  [pair] = layouts.lines(tmp_path / 'out/near_duplicates.jsonl')
  assert pair['ids'] == ['train/normal/0.png', 'test/normal/twin.jpg']
  dropped = str(tmp_path / 'dropped')
  assert _run('folder', root, '--out', dropped, '--drop-near-duplicates') == 0
  card = records.read_card(tmp_path / 'dropped')
  assert card['rows']['rejected'] == {'near_duplicate': 1} and card['splits']['train'] == 7
  [reject] = layouts.lines(tmp_path / 'dropped/rejects.jsonl')
  assert reject['id'] == 'train/normal/0.png' and 'twin.jpg in test' in reject['detail']


def test_a_contact_sheet_of_boxes(tmp_path):
  _made('rsna', tmp_path, '--preview', str(tmp_path / 'sheet.png'))
  page = cv2.imread(str(tmp_path / 'sheet.png'))
  assert page.shape[1] == 6 * 166 and (page.max(axis=2) != page.min(axis=2)).any()


def test_inspect_finds_nothing_wrong(tmp_path):
  _made('vindr', tmp_path)  # rows left out, annotated images without boxes, marks of all kinds
  assert inspect.main([str(tmp_path / 'out')]) == 0


@pytest.mark.parametrize('content, message', [
    (b'\x1f\x8b\x08\x00cut', 'cannot be read'),
    (gzip.compress(b'dicom_id,split\n' + b'a,train\n' * 9)[:-9], 'cannot be read'),
    (gzip.compress(b'dicom_id,split\na,train,more\n'), 'line 2: more fields than the header has'),
    (gzip.compress(b'dicom_id,split\n"a,train\n'), 'not CSV'),
    (gzip.compress(b'dicom_id,split\n\xff,train\n'), 'not UTF-8'),
    (gzip.compress(b''), 'lacks the column dicom_id, split'),
])
def test_damaged_tables_are_one_line(tmp_path, capsys, content, message):
  root = tmp_path / 'in'
  layouts.mimic_cxr(root)
  (root / 'mimic-cxr-2.0.0-split.csv.gz').write_bytes(content)
  assert _run('mimic_cxr', root) == 2
  error = capsys.readouterr().err
  assert message in error and 'split.csv.gz' in error and error.count('\n') == 1


def test_two_tables_of_one_kind_are_named(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.mimic_cxr(root)
  layouts.table(root / 'mimic-cxr-2.1.0-split.csv.gz', ('dicom_id', 'split'), [])
  assert _run('mimic_cxr', root) == 2
  assert 'holds several' in capsys.readouterr().err


def test_short_lines_and_unknown_marks(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.chexpert(root)
  with open(root / 'test.csv', 'a') as file:
    file.write('CheXpert-v1.0/test/patient00099/study1/view1_frontal.jpg\n')  # no file, no marks
  assert _run('chexpert', root) == 0
  assert _card(tmp_path)['rows']['rejected'] == {'empty_text': 1}
  with open(root / 'test.csv', 'a') as file:
    file.write('CheXpert-v1.0/test/patient00098/study1/view1_frontal.jpg,F,68,Frontal,AP,yes\n')
  assert _run('chexpert', root) == 2
  assert "test.csv, line 5: Atelectasis is 'yes'" in capsys.readouterr().err


@pytest.mark.parametrize('manifests, options, rows', [
    (('cohen_cxr/image_text', 'cohen_cxr/localisation'), (),
     {'in': 438, 'records': 248, 'merged': 182, 'rejected': {'empty_text': 8}}),
    (('rocov2_sample/image_text',), ('--label-key', 'labels.names'),
     {'in': 700, 'records': 700, 'merged': 0, 'rejected': {}}),
    (('nih_cxr14/labels', 'nih_cxr14/localisation'), ('--allow-empty-text',),
     {'in': 1301, 'records': 1265, 'merged': 36, 'rejected': {}}),
    (('mednist_64/labels',), ('--allow-empty-text',),
     {'in': 1211, 'records': 1208, 'merged': 0, 'rejected': {'duplicate_picture': 3}}),
])
def test_counts_of_real_packs(tmp_path, manifests, options, rows):
  data = os.environ.get('PLAN_JAX_DATA')
  paths = [pathlib.Path(data or '') / f'{name}.jsonl' for name in manifests]
  if not data or not all(path.is_file() for path in paths):
    pytest.skip(f'PLAN_JAX_DATA with {", ".join(manifests)} is not set')
  assert prepare.main([
      'manifest', *(part for path in paths for part in ('--manifest', str(path))), '--out',
      str(tmp_path / 'out'), '--size', '64', '--vocab-size', '300', *options]) == 0
  assert _card(tmp_path)['rows'] == {**rows, 'left_out': {}}
  assert inspect.main([str(tmp_path / 'out')]) == 0


def test_dicom_of_every_shipped_syntax(tmp_path):
  """pydicom's own files: each becomes a record, or a reject that says why."""
  root = tmp_path / 'in'
  root.mkdir()
  paths = sorted(pathlib.Path(tiny_dicom.SHIPPED).glob('*.dcm'))
  for path in paths:
    (root / path.name).write_bytes(path.read_bytes())
    layouts.text(root / f'{path.stem}.txt', 'Impression: a picture of the chest.')
  assert _run('folder', root) == 0
  card = _card(tmp_path)
  assert card['rows']['in'] == len(paths) > 50 and card['rows']['records'] > 20
  assert set(card['rows']['rejected']) <= {
      'unreadable_image', 'duplicate_picture', 'oversized_image'}
