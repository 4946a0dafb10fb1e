"""What holds for every corpus: errors, help, tfds, damaged tables, counts."""

import errno
import gzip
import os
import pathlib
import subprocess
import sys
import tracemalloc

import pytest

import corpus_layouts as layouts
import corpus_runs as corpus
from plan_jax.data import corpora
from plan_jax.data import inspect
from plan_jax.data import prepare
from plan_jax.data.corpora import base
from plan_jax.data.corpora import tables
import tiny_dicom


def test_each_corpus_has_a_layout_and_a_test():
  tested = ''.join(
      path.read_text() for path in pathlib.Path(__file__).parent.glob('test_corpora*.py'))
  for name in corpora.CORPORA:
    assert hasattr(layouts, name) and f"corpus.made('{name}', tmp_path" in tested, name


@pytest.mark.parametrize('name', corpora.CORPORA)
def test_missing_folders_and_columns_are_named(name, tmp_path, capsys):
  assert corpus.run(name, tmp_path / 'nowhere') == 2
  error = capsys.readouterr().err
  assert 'nowhere is no directory' in error and corpora.CORPORA[name].layout in error
  (tmp_path / 'in').mkdir()
  assert corpus.run(name, tmp_path / 'in') == 2
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
    path.write_bytes(spoilt.encode() if plain else gzip.compress(spoilt.encode(), mtime=0))
  assert corpus.run(name, root) == 2
  error = capsys.readouterr().err
  assert 'lacks the column' in error and 'it has: first, second' in error


@pytest.mark.parametrize('name', corpora.CORPORA)
def test_help_says_what_must_be_there(name, capsys):
  with pytest.raises(SystemExit) as stop:
    prepare.main([name, '--help'])
  assert stop.value.code == 0
  printed = capsys.readouterr().out
  assert corpora.CORPORA[name].layout in printed and '--dry-run' in printed
  assert 'Exit status: 0 done; 1' in printed


@pytest.mark.parametrize('content, message', [
    (b'\x1f\x8b\x08\x00cut', 'cannot be read'),
    (gzip.compress(b'dicom_id,split\n' + b'a,train\n' * 9, mtime=0)[:-9], 'cannot be read'),
    (gzip.compress(b'dicom_id,split\na,train,more\n', mtime=0), 'line 2: more fields than the header has'),
    (gzip.compress(b'dicom_id,split\n"a,train\n', mtime=0), 'not CSV'),
    (gzip.compress(b'dicom_id,split\n\xff,train\n', mtime=0), 'not UTF-8'),
    (gzip.compress(b'', mtime=0), 'lacks the column dicom_id, split'),
    (gzip.compress(b'dicom_id,split, split\na,train,test\n', mtime=0),
     'has the column split more than once'),
])
def test_damaged_tables_are_one_line(tmp_path, capsys, content, message):
  root = tmp_path / 'in'
  layouts.mimic_cxr(root)
  (root / 'mimic-cxr-2.0.0-split.csv.gz').write_bytes(content)
  assert corpus.run('mimic_cxr', root) == 2
  error = capsys.readouterr().err
  assert message in error and 'split.csv.gz' in error and error.count('\n') == 1


def test_a_table_that_unpacks_to_far_more_is_refused_before(tmp_path, capsys, monkeypatch):
  root = tmp_path / 'in'
  layouts.mimic_cxr(root)
  table = root / 'mimic-cxr-2.0.0-split.csv.gz'
  table.write_bytes(gzip.compress(bytes(2**26), mtime=0))  # one line
  tracemalloc.start()
  try:
    assert corpus.run('mimic_cxr', root) == 2
    assert tracemalloc.get_traced_memory()[1] < 2**26
  finally:
    tracemalloc.stop()
  error = capsys.readouterr().err
  assert 'split.csv.gz has a line of more than 1 million' in error and error.count('\n') == 1
  monkeypatch.setattr(tables, '_RATIO_FROM', 2**16)
  table.write_bytes(gzip.compress(b'dicom_id,split\n' + b'\n' * 2**18, mtime=0))
  assert corpus.run('mimic_cxr', root) == 2
  error = capsys.readouterr().err
  assert 'split.csv.gz unpacks to more than 200 times its size' in error


def test_what_may_not_be_read_is_named(tmp_path, capsys, monkeypatch):
  def closed(path):  # root may read everything, so that permissions alone would not do
    if str(path) == str(place):
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return scan(path)

  root, scan = tmp_path / 'in', os.scandir
  place = root / 'train/pneumonia'
  layouts.folder(root)
  with monkeypatch.context() as patch:
    patch.setattr(os, 'scandir', closed)
    assert corpus.run('folder', root) == 0
  assert f'note: {place}: Permission denied; nothing in it is taken' in capsys.readouterr().out
  assert corpus.card(tmp_path)['rows']['records'] == 8
  monkeypatch.setattr(base, 'files', lambda root: closed(place))
  assert corpus.run('folder', root) == 2
  error = capsys.readouterr().err
  assert error == f'error: {place}: Permission denied; mend its permissions or those of its folder\n'


def test_a_folder_without_pictures_says_what_is_needed(tmp_path, capsys):
  (tmp_path / 'in').mkdir()
  assert corpus.run('folder', tmp_path / 'in') == 2
  error = capsys.readouterr().err
  assert 'holds nothing that folder reads' in error and corpora.CORPORA['folder'].layout in error


@pytest.mark.parametrize('options, message', [
    (['--preview', 'nowhere/sheet.png'], '--preview nowhere/sheet.png: its folder does not exist'),
    (['--preview', 'sheet.pdf'], '--preview sheet.pdf: name a file that ends in .png or .jpg'),
    (['--vocab', 'nowhere'], 'nowhere: cannot be read'),
    (['--out', '{root}'], 'is not empty and holds no records'),
    (['--out', '{root}/mimic-cxr-2.0.0-split.csv.gz'], 'is a file; give a directory'),
    (['--only-ids', 'nowhere'], 'list of ids nowhere cannot be read')])
def test_options_are_looked_at_before_the_tables_are_read(tmp_path, capsys, options, message):
  (tmp_path / 'in').mkdir()
  layouts.mimic_cxr(tmp_path / 'in')
  options = [part.format(root=tmp_path / 'in') for part in options]
  assert corpus.run('mimic_cxr', tmp_path / 'in', *options) == 2
  printed, error = capsys.readouterr()
  assert message in error and 'Reading' not in printed
  if '--out' in options:  # a dry run writes nothing there
    assert corpus.run('mimic_cxr', tmp_path / 'in', *options, '--dry-run') == 0


def test_an_unknown_view_is_answered_with_the_known_ones(tmp_path, capsys):
  with pytest.raises(SystemExit):
    corpus.run('mimic_cxr', tmp_path, '--views', 'side')
  assert "(choose from 'frontal', 'lateral', 'all')" in capsys.readouterr().err


def test_two_tables_of_one_kind_are_named(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.mimic_cxr(root)
  layouts.table(root / 'mimic-cxr-2.1.0-split.csv.gz', ('dicom_id', 'split'), [])
  assert corpus.run('mimic_cxr', root) == 2
  assert 'holds several' in capsys.readouterr().err


def test_tfds_reads_a_corpus(tmp_path):
  corpus.made('mimic_cxr', tmp_path)
  code = f'''
import tensorflow_datasets as tfds
train = tfds.builder_from_directory({str(tmp_path / 'out')!r}).as_data_source('train')
print(len(train), train[0]['image'].shape, train[0]['labels'][0].decode())
'''
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
  assert done.stdout.strip() == '8 (48, 40, 1) atelectasis', done.stderr


def test_inspect_finds_nothing_wrong(tmp_path, capsys):
  # Rows left out, annotated images without boxes, marks of all kinds:
  corpus.made('vindr', tmp_path)
  assert inspect.main([str(tmp_path / 'out')]) == 0
  printed = capsys.readouterr().out
  assert 'Rows left out' in printed and '  box_of_another_reader     6\n' in printed


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
      str(tmp_path / 'out'), '--size', '64', '--vocab-size', '300', '--workers', '1',
      *options]) == 0
  assert corpus.card(tmp_path)['rows'] == {**rows, 'left_out': {}}
  assert inspect.main([str(tmp_path / 'out')]) == 0


def test_dicom_of_every_shipped_syntax(tmp_path):
  """pydicom's own files: each becomes a record, or a reject that says why."""
  root = tmp_path / 'in'
  root.mkdir()
  paths = sorted(pathlib.Path(tiny_dicom.SHIPPED).glob('*.dcm'))
  for path in paths:
    (root / path.name).write_bytes(path.read_bytes())
    layouts.text(root / f'{path.stem}.txt', 'Impression: a picture of the chest.')
  assert corpus.run('folder', root) == 0
  card = corpus.card(tmp_path)
  assert card['rows']['in'] == len(paths) > 50 and card['rows']['records'] > 20
  assert set(card['rows']['rejected']) <= {
      'unreadable_image', 'duplicate_picture', 'oversized_image'}
