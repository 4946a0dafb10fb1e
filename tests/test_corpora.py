"""Corpora with reports: their published layouts in small, through the command line, to records."""

import gzip
import json

import cv2
import numpy as np
import pytest

import corpus_layouts as layouts
import corpus_runs as corpus
from plan_jax.data.corpora import openi


@pytest.mark.parametrize('suffix', ['.jpg', '.dcm'])
def test_mimic_cxr(tmp_path, suffix):
  card = corpus.made('mimic_cxr', tmp_path, suffix=suffix)
  assert card['rows'] == {
      'in': 24, 'records': 12, 'merged': 0, 'rejected': {}, 'left_out': {'view_lateral': 12}}
  assert card['splits'] == {'train': 8, 'val': 2, 'test': 2} and card['kind'] == 'mimic_cxr'
  assert card['text']['empty_share'] == 0 and card['labelled'] == 11
  assert str(tmp_path) not in json.dumps(card)
  found = corpus.examples(tmp_path)
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
  assert corpus.run('mimic_cxr', root) == 0
  printed = capsys.readouterr().out
  assert 'lacks 24 images' in printed and '2 images belong to studies without' in printed
  card = corpus.card(tmp_path)
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
  assert corpus.run('mimic_cxr', root) == 2
  assert 'mimic-cxr-*-metadata.csv' in capsys.readouterr().err
  assert corpus.run('mimic_cxr', root, *options, '--views', 'all', '--labeler', 'negbio',
              '--report-sections', 'impression') == 0
  card = corpus.card(tmp_path)
  assert card['rows']['records'] == 24 and card['source']['labeler'] == 'negbio'
  assert {e.text for e in corpus.examples(tmp_path).values()} == {'no acute process.'}


def test_mimic_cxr_without_reports_has_labels_only(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.mimic_cxr(root)
  for path in root.rglob('s*.txt'):
    path.unlink()
  assert corpus.run('mimic_cxr', root) == 2
  error = capsys.readouterr().err
  assert 'no image has a report' in error and '--allow-empty-text' in error
  assert corpus.run('mimic_cxr', root, '--allow-empty-text', '--reports', str(tmp_path)) == 2
  assert 'holds no report such as files/p10/p10000032/s50414267.txt' in capsys.readouterr().err
  assert corpus.run('mimic_cxr', root, '--allow-empty-text') == 0
  card = corpus.card(tmp_path)
  assert card['rows']['records'] == 12 and card['rows']['rejected'] == {}
  assert card['text']['empty_share'] == 1 and card['labelled'] == 11
  assert 'the records have no reports' in capsys.readouterr().out


@pytest.mark.parametrize('name, table', [
    ('mimic_cxr', 'mimic-cxr-2.0.0-chexpert.csv.gz'), ('chexpert', 'train.csv')])
def test_columns_that_are_no_classes_are_named_and_not_taken(tmp_path, capsys, name, table):
  root = tmp_path / 'in'
  getattr(layouts, name)(root)
  path = root / table
  is_plain = path.suffix != '.gz'
  head, *rest = (path.read_text() if is_plain else gzip.decompress(path.read_bytes()).decode()
                 ).splitlines()
  # As pandas writes it: an index, and a class under another name.
  head = f'Unnamed: 0,{head.replace("Lung Opacity", "Airspace Opacity")}'
  content = '\n'.join([head, *(f'{k},{line}' for k, line in enumerate(rest))]) + '\n'
  path.write_bytes(content.encode() if is_plain else gzip.compress(content.encode()))
  assert corpus.run(name, root) == 0
  printed = capsys.readouterr().out
  assert f'{table}: columns not taken, for they are no classes: Unnamed: 0, Airspace' in printed
  assert f'{table} lacks classes, which count as not mentioned: Lung Opacity' in printed
  assert not {'unnamed: 0', 'airspace opacity'} & set(corpus.card(tmp_path)['classes'])
  content = content.replace(head, ','.join(f'x{k}' if part in layouts.CHEXPERT else part
                                           for k, part in enumerate(head.split(','))))
  path.write_bytes(content.encode() if is_plain else gzip.compress(content.encode()))
  assert corpus.run(name, root, '--out', str(tmp_path / 'other')) == 2
  assert 'has no column of a class; it has: Unnamed: 0, ' in capsys.readouterr().err


@pytest.mark.parametrize('kind', ['png', 'kaggle', 'dicom'])
def test_openi(tmp_path, kind):
  card = corpus.made('openi', tmp_path, kind=kind)
  assert card['rows'] == {'in': 25, 'records': 12, 'merged': 0, 'rejected': {'missing_column': 1},
                          'left_out': {'view_lateral': 12}}
  example = corpus.examples(tmp_path)['CXR2_IM-0002-1001']
  assert example.text == 'no acute disease. the heart of case 2 is normal. are clear.'
  assert (example.patient, example.labels) == ('CXR2', ('cardiomegaly',))


def test_openi_without_views(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.openi(root)
  (root / 'indiana_projections.csv').unlink()
  assert corpus.run('openi', root) == 2
  assert '--views all' in capsys.readouterr().err
  (root / 'ecgen-radiology/1.xml').write_text('<eCitation>')
  assert corpus.run('openi', root, '--views', 'all') == 0
  card = corpus.card(tmp_path)
  assert card['rows']['records'] == 22
  assert card['rows']['rejected'] == {'missing_column': 1, 'unreadable_report': 1}


def test_openi_names_are_one_name():
  assert openi._key('CXR1_1_IM-0001-3001') == openi._key('1_IM-0001-3001') == '1_IM-0001-3001'
  assert openi._key('CXR100_IM-0002-1001') == openi._key('100_IM-0002-1001')


def test_chexpert_plus(tmp_path):
  card = corpus.made('chexpert', tmp_path)
  assert card['splits'] == {'train': 8, 'val': 2, 'test': 1}
  assert card['rows']['left_out'] == {'view_lateral': 11} and card['text']['empty_share'] == 0
  found = corpus.examples(tmp_path)
  assert found['train/patient00001/study1/view1_frontal'].text == (
      'no acute process. no change. the lungs of case 1 are clear.')
  whole = found['train/patient00003/study1/view1_frontal'].text  # from its whole report
  assert whole.startswith('no acute process. the heart')
  assert found['train/patient00001/study1/view1_frontal'].negatives == ('cardiomegaly',)


def test_chexpert_alone_has_labels_only(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.chexpert(root, plus=False)
  assert corpus.run('chexpert', root) == 2
  assert '--allow-empty-text' in capsys.readouterr().err
  assert corpus.run('chexpert', root, '--allow-empty-text', '--views', 'lateral') == 0
  assert corpus.card(tmp_path)['text']['empty_share'] == 1


def test_short_lines_and_unknown_marks(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.chexpert(root)
  with open(root / 'test.csv', 'a') as file:
    file.write('CheXpert-v1.0/test/patient00099/study1/view1_frontal.jpg\n')  # no file, no marks
  assert corpus.run('chexpert', root) == 0
  assert corpus.card(tmp_path)['rows']['rejected'] == {'empty_text': 1}
  with open(root / 'test.csv', 'a') as file:
    file.write('CheXpert-v1.0/test/patient00098/study1/view1_frontal.jpg,F,68,Frontal,AP,yes\n')
  assert corpus.run('chexpert', root) == 2
  assert "test.csv, line 5: Atelectasis is 'yes'" in capsys.readouterr().err


def test_padchest(tmp_path):
  card = corpus.made('padchest', tmp_path)
  assert card['rows']['records'] == 6
  assert card['rows']['left_out'] == {'view_lateral': 3, 'view_other': 3}
  found = corpus.examples(tmp_path)
  example = found['216840111366964012768025509942010110150212424_00-002-039']
  assert example.text == 'sin hallazg patolog en el cas 0. sen costofren libr.'
  assert example.labels == ('normal', 'pleural effusion')
  for k in (0, 4):  # 16 bits came through, and the right way round where they are MONOCHROME1
    image = found[f'216840111366964012768025509942010110150212424_{k:02d}-002-039'].image
    shown = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert np.corrcoef(shown.ravel(), layouts.pixels(k).ravel())[0, 1] > 0.99


def test_padchest_labels_that_are_no_list(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.padchest(root)
  path = root / 'PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz'
  content = gzip.decompress(path.read_bytes()).decode()
  path.write_bytes(gzip.compress(content.replace("['normal', ", '[nan, ', 1).encode()))
  assert corpus.run('padchest', root) == 0
  assert '1 images come from MONOCHROME1 files, whose' in capsys.readouterr().out
  assert corpus.card(tmp_path)['rows']['rejected'] == {'bad_value': 1}


def test_rocov2(tmp_path):
  card = corpus.made('rocov2', tmp_path)
  assert card['splits'] == {'train': 8, 'val': 2, 'test': 2}
  example = corpus.examples(tmp_path)['ROCOv2_2023_train_000002']
  assert example.labels == ('plain x-ray', 'lung nodule')
  assert example.text == 'chest x-ray of case 1 shows a small nodule (arrow).'


def test_folder(tmp_path, capsys):
  card = corpus.made('folder', tmp_path)
  assert card['splits'] == {'train': 8, 'val': 2, 'test': 2}
  example = corpus.examples(tmp_path)['train/pneumonia/1.png']
  assert (example.text, example.labels) == ('clear lungs in case number 1.', ('pneumonia',))


def test_reports_as_editors_on_windows_write_them(tmp_path):
  root = tmp_path / 'in'
  layouts.folder(root)
  (root / 'train/normal/0.txt').write_bytes('\ufeffIMPRESSION: Clear lungs now.\r\n'.encode())
  (root / 'train/normal/2.txt').write_bytes('Léger épanchement à droite.'.encode('latin-1'))
  assert corpus.run('folder', root) == 0
  assert corpus.examples(tmp_path)['train/normal/0.png'].text == 'clear lungs now.'
  [reject] = layouts.lines(tmp_path / 'out/rejects.jsonl')
  assert (reject['reason'], reject['detail']) == ('unreadable_report', '2.txt is not UTF-8 text')


def test_files_that_are_no_pictures_are_counted(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.folder(root)
  for name in ('a.tif', 'b.tif', 'IM0001'):
    (root / 'train' / name).write_bytes(b'')
  assert corpus.run('folder', root) == 0
  assert 'other files, not taken: .tif 2, without suffix 1' in capsys.readouterr().out


def test_records_within_a_corpus_are_none_of_its_pictures(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.folder(root)
  within = ['--out', str(root / 'records'), '--allow-empty-text']
  assert corpus.run('folder', root, *within) == 0
  assert (root / 'records/sheet.jpg').is_file()
  assert corpus.run('folder', root, *within) == 0
  assert 'holds exactly these records already' in capsys.readouterr().out
  assert corpus.run('folder', root, '--allow-empty-text') == 0
  assert corpus.card(tmp_path)['rows']['in'] == 12


def test_linked_folders_are_entered_once(tmp_path):
  root = tmp_path / 'in'
  layouts.folder(root)
  (root / 'train/normal').rename(tmp_path / 'elsewhere')
  (root / 'train/normal').symlink_to(tmp_path / 'elsewhere')
  (root / 'val/round').symlink_to(root)  # no end, if it were followed
  assert corpus.run('folder', root) == 0
  assert corpus.card(tmp_path)['rows'] == {
      'in': 12, 'records': 12, 'merged': 0, 'rejected': {}, 'left_out': {}}


def test_folder_of_classes_alone(tmp_path, capsys):
  root = tmp_path / 'in'
  for k in range(6):
    layouts.picture(root / ('a', 'b')[k % 2] / f'{k}.jpg', k)
  assert corpus.run('folder', root) == 2
  assert '--allow-empty-text' in capsys.readouterr().err
  assert corpus.run('folder', root, '--allow-empty-text') == 0
  assert corpus.card(tmp_path)['classes'] == ['a', 'b']


def test_empty_reports_say_what_to_do(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.folder(root)
  for path in root.rglob('*.txt'):
    path.write_text('INDICATION: cough.')
  assert corpus.run('folder', root) == 1
  error = capsys.readouterr().err
  assert 'rejected rows: 12; no row is left' in error and 'cough' not in error
  assert 'docs/data-reports.md; --allow-empty-text keeps images without any' in error
