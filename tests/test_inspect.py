"""The inspect command: sound records pass, each kind of damage is named, texts stay inside."""

import errno
import json
import os
import pathlib
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest

from plan_jax.data import check
from plan_jax.data import inspect
from plan_jax.data import prepare
from plan_jax.data import records
from plan_jax.data import rows
from plan_jax.data import writer


def _image(index: int, *, width: int = 40, height: int = 30) -> bytes:
  pixels = np.random.default_rng(index).integers(0, 256, (height, width), np.uint8)
  return cv2.imencode('.jpg', pixels)[1].tobytes()


def _mask(*, width: int = 40, height: int = 30, value: int = 255) -> bytes:
  pixels = np.zeros((height, width), np.uint8)
  pixels[5:12, 7:20] = value
  return cv2.imencode('.png', pixels, [cv2.IMWRITE_PNG_BILEVEL, 1])[1].tobytes()


def _phrase(*, box=(0.1, 0.2, 0.5, 0.6), mask: bytes = b'', text: str = 'secretphrase here',
            category: str = 'edema') -> records.Phrase:
  return records.Phrase(
      text=text, category=category, mask=mask,
      boxes=np.array([box] if box else [], np.float32).reshape(-1, 4))


def _example(index: int, **changes) -> records.Example:
  example = dict(
      id=f'idmark{index}', image=_image(index), text=f'Secretreport {index} of lungs.' if index
      else '', patient=f'patientmark{index}', split='test' if index % 5 == 4 else 'train',
      labels=('edema',) if index % 2 else (),
      phrases=(_phrase(mask=_mask()), _phrase()) if index % 3 == 0 else ())
  return records.Example(**(example | changes))


def _write(directory: pathlib.Path, faults: dict[int, dict] | None = None, *, count: int = 20):
  """Records of which those in `faults` are changed."""
  def make(index):
    example = _example(index, **(faults or {}).get(index, {}))
    return rows.Outcome(
        example=example, id=example.id, split=example.split, pixels=str(index),
        original=(400, 300), stored=(40, 30), sources=(('made', index),))

  writer.write(
      writer.Source(items=range(count), make=make, item_key=str, rows=count,
                    about={'kind': 'manifest', 'image_size': 40}),
      options=writer.Options(directory=directory, shard_rows=6, vocab_size=200))
  return directory


@pytest.fixture(name='sound', scope='module')
def _sound(tmp_path_factory):
  return _write(tmp_path_factory.mktemp('records') / 'sound')


def _copy(sound: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
  target.mkdir()
  for path in sound.iterdir():
    (target / path.name).write_bytes(path.read_bytes())
  return target


def _edit(directory: pathlib.Path, change) -> pathlib.Path:
  path = directory / 'dataset.json'
  card = json.loads(path.read_text())
  change(card)
  path.write_text(json.dumps(card))
  return directory


def _found(directory: pathlib.Path) -> list[str]:
  return [str(problem) for problem in check.check(directory).problems]


def test_sound_records_pass(sound, capsys):
  assert inspect.main([str(sound)]) == 0
  printed, progress = capsys.readouterr()
  assert 'No problem found.' in printed
  table = {line.split('  ')[1]: line.split()[-3:] for line in printed.splitlines()
           if line.startswith('  ')}
  assert table['records'] == ['16', '0', '4'] and table['masks'] == ['6', '0', '1']
  assert table['without text'] == ['6.2%', '–', '0.0%']
  assert table['with a mark for any class'] == ['50.0%', '–', '50.0%']
  assert 'marked uncertain' not in printed
  assert '20/20' in progress and '00:00<' in progress  # with the time left
  assert 'Secret' not in printed and 'patientmark' not in printed and 'idmark' not in printed


def test_marks_are_counted(tmp_path, capsys):
  faults = {2: {'uncertain': ('mass',), 'is_annotated': True}, 6: {'negatives': ('mass',)}}
  directory = _write(tmp_path / 'out', faults)
  assert inspect.main([str(directory)]) == 0
  lines = [line.split() for line in capsys.readouterr().out.splitlines()]
  assert ['with', 'a', 'mark', 'for', 'any', 'class', '62.5%', '–', '50.0%'] in lines
  assert ['looked', 'through', 'for', 'places', '6.2%', '–', '0.0%'] in lines
  start = lines.index(['Classes', 'marked', 'uncertain,', 'by', 'records'])
  assert lines[start + 2] == ['mass', '1', '(6.2%)', '0', '(–)', '0', '(0.0%)']


@pytest.mark.parametrize('area', [0.002, -0.002])  # the other is of a damaged box
def test_a_histogram_of_one_value_stays_near_it(area):
  measures = check.Measures()
  measures.box_areas.extend([area] * 3)
  [curve] = inspect._histograms({'train': measures})
  x, y = curve.series['train']
  assert abs(x - area).max() < 0.0005 and y.max() == 1


def test_the_command_as_the_docs_print_it(sound, tmp_path):
  done = subprocess.run(
      [sys.executable, '-m', 'plan_jax.data.inspect', str(sound), '--out', 'page.html'],
      capture_output=True, text=True, check=False, cwd=tmp_path,
      env={'PYTHONPATH': str(pathlib.Path(__file__).parents[1]), 'PATH': '/usr/bin:/bin'})
  assert (done.returncode, (tmp_path / 'page.html').is_file()) == (0, True), done.stderr


def test_phantoms_and_what_prepare_writes_pass(tmp_path):
  assert prepare.main(['phantom', '--pairs', '32', '--out', str(tmp_path / 'out'), '--workers',
                       '1', '--size', '64']) == 0
  assert _found(tmp_path / 'out') == []


@pytest.mark.parametrize('faults, expected', [
    ({3: {'image': b'\xff\xd8\xff\xe0nothing'}}, ['record 3 (idmark3): image: ']),
    ({3: {'image': _image(3)[:300]}}, ['record 3 (idmark3): image: ']),
    ({3: {'image': b''}}, ['record 3 (idmark3): image: ']),
    ({3: {'image': _image(3, width=60), 'phrases': ()}},
     ['record 3 (idmark3): image of 60 x 30 pixels where the card says at most 40',
      'images / stored']),
    ({3: {'id': 'idmark1'}}, ['record 3 (idmark1): has the same id as record 1 of ']),
    ({3: {'id': ''}}, ['record 3: has no id']),
    ({3: {'patient': ''}}, ['record 3 (idmark3): has no patient']),
    ({4: {'patient': 'patientmark3'}}, [
        "test.array_record-00000-of-00001, record 0 (idmark4): its patient is in split "
        "'train' too"]),
    ({3: {'phrases': (_phrase(box=(0.1, 0.2, 1.5, 0.6)),)}},
     ['phrase 0: box [0.1, 0.2, 1.5, 0.6] is not within 0..1']),
    ({3: {'phrases': (_phrase(box=(0.1, float('nan'), 0.5, 0.6)),)}}, ['is not within 0..1']),
    ({3: {'phrases': (_phrase(), _phrase(box=(0.5, 0.2, 0.5, 0.6)))}},
     ['phrase 1: box [0.5, 0.2, 0.5, 0.6] is empty']),
    ({3: {'phrases': (_phrase(box=None),)}}, ['phrase 0 has neither box nor mask']),
    ({3: {'phrases': (_phrase(text=''),)}}, ['phrase 0 has no text']),
    ({3: {'phrases': (_phrase(category=''),)}}, ['phrase 0 has no category']),
    ({3: {'phrases': (_phrase(mask=b'\x89PNG'),)}}, ['phrase 0: mask: ']),
    ({3: {'phrases': (_phrase(mask=_mask(width=20)),)}},
     ['phrase 0: mask of 20 x 30 pixels on an image of 40 x 30']),
    ({3: {'phrases': (_phrase(mask=_mask(value=0)),)}}, ['phrase 0: mask is empty']),
])
def test_faults_of_records(tmp_path, capsys, faults, expected):
  directory = _write(tmp_path / 'out', faults)
  found = _found(directory)
  assert len(found) == len(expected)
  for line, part in zip(found, expected):
    assert part in line and (line.startswith('plan_records-') or part == 'images / stored')
  assert inspect.main([str(directory)]) == bool(expected)
  printed = capsys.readouterr().out
  assert all(line in printed for line in found)
  assert 'secret' not in printed.lower() and 'patientmark' not in printed


@pytest.mark.parametrize('change, expected', [
    (lambda card: card.update(content_hash='0' * 64), 'content hash 0000000000000000, but the'),
    (lambda card: card['splits'].update(train=17),
     'splits / train: the card says 17, the records give'),
    (lambda card: card['text']['words'].update(max=9), 'text / words / max: the card says 9'),
    (lambda card: card['text'].update(empty_share=0), 'text / empty_share: the card says 0'),
    (lambda card: card['class_counts']['edema'].update(test=0), 'class_counts / edema / test: the'),
    (lambda card: card['phrases'].update(boxes=1), 'phrases / boxes: the card says 1'),
    (lambda card: card['images']['stored']['width']
     .update(max=1), 'images / stored / width / max: '),
    (lambda card: card['rows'].update(merged=5), '20 rows in, but 20 records, 5 joined, 0'),
    (lambda card: card.update(vocab_hash='0'), 'vocab.txt: is not the vocabulary'),
])
def test_counts_that_differ_from_the_card(sound, tmp_path, change, expected):
  [line] = _found(_edit(_copy(sound, tmp_path / 'copy'), change))
  assert expected in line


def test_labels_unknown_to_the_card(sound, tmp_path):
  found = _found(_edit(_copy(sound, tmp_path / 'copy'), lambda card: card.update(classes=['x'])))
  assert len(found) == 11  # the ten records with a label, and the card's list
  assert "record 1 (idmark1): label 'edema' is not among the classes" in found[0]
  assert 'classes: the card and the records differ in edema, x' in found[-1]


def test_damaged_files(sound, tmp_path):
  copy = _copy(sound, tmp_path / 'copy')
  first, second, third = records.shard_names('train', 3)
  data = bytearray((copy / first).read_bytes())
  data[data.index(_image(2)) + 60] ^= 1
  (copy / first).write_bytes(data)
  (copy / second).unlink()
  (copy / third).write_bytes((copy / third).read_bytes()[:500])
  (copy / 'plan_records-val.array_record-00000-of-00001').write_bytes(b'')
  (copy / 'vocab.txt').write_text('[PAD]\n')
  (copy / 'rejects.jsonl').write_text('{}\n')
  (copy / 'features.json').unlink()
  assert [re.sub(r' \(\w+\)$', '', line) for line in _found(copy)] == [
      'plan_records-val.array_record-00000-of-00001: is not in the card; remove it',
      'features.json: is missing; tfds cannot read the records',
      'rejects.jsonl: 1 lines where the card counts 0',
      'vocab.txt: is not the vocabulary whose hash is in the card',
      f'{first}, record 2: is damaged',
      f'{second}: is missing; prepare the records again.',
      f'{third}: is damaged; prepare the records again.',
      'dataset.json: its counts and content hash were not compared: records that could not be '
      'read: 11']
  (copy / 'vocab.txt').unlink()
  assert 'vocab.txt: cannot be read: No such file or directory' in _found(copy)


def test_shard_of_another_length(sound, tmp_path):
  copy = _copy(sound, tmp_path / 'copy')
  names = records.shard_names('train', 3)
  (copy / names[1]).write_bytes((copy / names[0]).read_bytes())
  found = _found(copy)
  assert f'{names[1]}: 6 records where the card counts 5' == found[0]
  assert f'{names[1]}, record 0 (idmark0): has the same id as record 0 of {names[0]}' in found
  assert any('content hash' in line for line in found)


@pytest.mark.parametrize('options, message', [
    (['nowhere'], "'nowhere' does not exist"),
    (['{sound}', '--out', 'x.txt'], 'name a file that ends in .html'),
    (['{sound}', '--out', '{folder}/dir.html'], 'is a directory; name a file'),
    (['{sound}', '--include-text'], '--include-text needs --out'),
    (['{sound}', '--against', '{folder}'], 'holds no finished records'),
])
def test_what_cannot_be_inspected(sound, tmp_path, capsys, options, message):
  (tmp_path / 'dir.html').mkdir()
  assert inspect.main([part.format(sound=sound, folder=tmp_path) for part in options]) == 2
  error = capsys.readouterr().err
  assert message in error and 'checking' not in error  # before records are read


def test_a_page_that_may_not_be_written(sound, tmp_path, capsys, monkeypatch):
  def forbidden(path, *_, **__):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

  monkeypatch.setattr(pathlib.Path, 'write_text', forbidden)
  page = tmp_path / 'page.html'
  assert inspect.main([str(sound), '--out', str(page)]) == 2
  assert f'error: {page}: Permission denied; mend its permissions' in capsys.readouterr().err


@pytest.mark.parametrize('change', [
    lambda card: card.pop('shards'), lambda card: card['shards'].pop('train'),
    lambda card: card.update(shards={'train': [], 'val': [], 'test': []}),
    lambda card: card['shards'].update(dev=[3]), lambda card: card['shards'].update(train=3),
    lambda card: card['rows'].pop('rejected'), lambda card: card.update(text=3)])
def test_card_that_cannot_be_used(sound, tmp_path, capsys, change):
  copy = _edit(_copy(sound, tmp_path / 'copy'), change)
  assert inspect.main([str(copy)]) == 2
  assert 'dataset.json lacks' in capsys.readouterr().err


def test_page_holds_texts_only_when_asked(sound, tmp_path):
  pages = {}
  for options in ((), ('--include-text',)):
    path = tmp_path / f'{len(options)}.html'
    assert inspect.main([str(sound), '--out', str(path), *options]) == 0
    pages[bool(options)] = path.read_text()
  for mark in ('Secretreport', 'secretphrase', 'idmark', 'patientmark', str(sound.parent)):
    assert mark not in pages[False]
  assert pages[True].count('Secretreport') == 19 and 'idmark3' in pages[True]
  assert 'patientmark' not in pages[True]
  for html in pages.values():
    assert html.startswith('<!DOCTYPE html>') and "script-src 'none'" in html
    assert html.count('<image href="data:image/jpeg;base64,') == 20
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)
    assert 'No problem found.' in html and '<script' not in html


def test_page_lists_problems_without_ids(tmp_path):
  directory = _write(tmp_path / 'out', {
      3: {'phrases': (_phrase(box=None),)}, 6: {'image': b'', 'phrases': ()}})
  assert inspect.main([str(directory), '--out', str(tmp_path / 'page.html')]) == 1
  html = (tmp_path / 'page.html').read_text()
  assert 'Problems found: 2.' in html and 'phrase 0 has neither box nor mask' in html
  assert 'idmark' not in html and html.count('<image href="data:image/jpeg') == 19


def test_many_problems_are_counted(tmp_path, capsys):
  directory = _write(tmp_path / 'out', {i: {'patient': ''} for i in range(40)}, count=40)
  assert inspect.main([str(directory)]) == 1
  printed = capsys.readouterr().out
  assert printed.count('has no patient') == 20
  assert 'and 20 more\n' in printed and 'problems: 40' in printed


def _elsewhere(directory: pathlib.Path, **changes) -> pathlib.Path:
  """Other records; `r3={...}` changes record 3."""
  return _write(directory, {k: {
      'id': f'other{k}', 'patient': f'another{k}', 'image': _image(100 + k),
      **changes.get(f'r{k}', {})} for k in range(20)})


def test_what_lies_in_another_directory_too(sound, tmp_path, capsys):
  pixels = cv2.imdecode(np.frombuffer(_image(3), np.uint8), cv2.IMREAD_GRAYSCALE)
  twin = cv2.imencode('.jpg', cv2.resize(pixels, None, fx=0.7, fy=0.7), [1, 70])[1].tobytes()
  other = _elsewhere(
      tmp_path / 'other', r0={'image': twin, 'phrases': ()}, r1={'patient': 'patientmark4'},
      r2={'id': 'idmark6'})
  page = tmp_path / 'page.html'
  assert inspect.main([str(sound), '--against', str(other), '--out', str(page)]) == 1
  printed = capsys.readouterr().out
  lines = [line.split() for line in printed.splitlines()]
  assert ['almost', 'the', 'same', 'picture', '1', '0', '0'] in lines
  assert ['the', 'same', 'id', '1', '0', '0'] in lines
  assert ['the', 'same', 'patient', '0', '0', '1'] in lines
  assert '  idmark3 (train) and other0 (train): ' in printed and 'problems: 3' in printed
  assert 'patientmark' not in printed
  html = page.read_text()
  assert 'Also in other' in html and 'idmark' not in html and 'other0' not in html
  apart = _elsewhere(tmp_path / 'apart')
  assert inspect.main([str(sound), '--against', str(apart)]) == 0
  assert 'No problem found.' in capsys.readouterr().out
  assert inspect.main([str(sound), '--against', str(sound)]) == 2
  assert 'that is the directory itself' in capsys.readouterr().err


def test_directories_of_one_name_are_told_apart(sound, tmp_path, capsys):
  mine, near, far = (tmp_path / place for place in ('x/a/records', 'x/b/records', 'y/a/records'))
  mine.parent.mkdir(parents=True)
  _copy(sound, mine)
  _elsewhere(near, r0={'id': 'idmark3'})
  _elsewhere(far, r0={'id': 'idmark3'}, r1={'id': 'idmark5'})
  page = tmp_path / 'page.html'
  assert inspect.main([str(mine), '--against', str(near), '--against', str(far), '--against',
                       str(near.parent / '../b/records'), '--out', str(page)]) == 1
  printed, html = capsys.readouterr().out, page.read_text()
  for shown in (printed, html):  # the one that is given twice is compared once
    for line in ('1 records with the same id as in b/records',
                 '2 records with the same id as in y/a/records'):
      assert shown.count(line) == 1
    assert 'Also in b/records' in shown and 'Also in y/a/records' in shown
  assert html.count('Records: x/a/records') == 2  # title and heading
  assert 'problems: 2' in printed and str(tmp_path) not in html
