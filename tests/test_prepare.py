"""The prepare command line: pictures, places, rejects, and what bad input prints."""

import io
import json
import os
import pathlib
import time
import zlib

import cv2
import numpy as np
from PIL import Image
import pytest

from plan_jax.data import prepare
from plan_jax.data import records
import small_pairs as pack


def test_pairs_become_records(tmp_path, capsys):
  out = tmp_path / 'out'
  assert pack.run(pack.pairs(tmp_path / 'in', 20), out, '--shard-rows', '10') == 0
  printed = capsys.readouterr().out
  assert 'records       20 (train 18, val 0, test 2)' in printed and str(out) in printed
  train = records.Records(out, 'train')
  assert (len(train), train[3].id, train[3].patient) == (18, '3.png', 'p3')
  assert (train[2].labels, train[3].labels) == ((), ('odd',))
  assert train[3].text == 'Report number 3 of lungs.'
  card = records.read_card(out)
  assert card['rows'] == {
      'in': 20, 'records': 20, 'merged': 0, 'rejected': {}, 'left_out': {}}
  assert card['shards'] == {'train': [9, 9], 'val': [], 'test': [2]}
  assert card['text'] == {'words': {'median': 5, 'p95': 5, 'max': 5}, 'empty_share': 0}
  assert card['images']['stored']['width'] == {'min': 48, 'median': 48, 'max': 48}
  assert str(tmp_path) not in json.dumps(card)
  assert sorted(path.name for path in out.iterdir()) == sorted([
      'dataset.json', 'dataset_info.json', 'features.json', 'near_duplicates.jsonl', 'rejects.jsonl',
      'sheet.jpg', 'vocab.txt',
      *records.shard_names('train', 2), *records.shard_names('test', 1)])


def test_pictures_are_resized_by_area_and_never_up(tmp_path):
  source = tmp_path / 'in'
  large = np.kron(pack.picture(0, width=30, height=20) // 4 * 2 + 60, np.ones((4, 4), np.uint8))
  pack.save(source / 'large.png', large.astype(np.uint8))
  pack.save(source / 'small.png', np.full((5, 9), 70, np.uint8))
  manifest = pack.manifest(
      source, {'image': 'large.png', 'text': 'a', 'split': 'train'},
      {'image': 'small.png', 'text': 'b', 'split': 'train'})
  assert pack.run(manifest, tmp_path / 'out', '--size', '30') == 0
  big, small = records.Records(tmp_path / 'out', 'train')
  assert pack.pixels(big.image).shape == (20, 30) and pack.pixels(small.image).shape == (5, 9)
  assert np.abs(pack.pixels(big.image).astype(int) - large[::4, ::4]).max() <= 12  # JPEG at 95
  assert Image.open(io.BytesIO(big.image)).format == 'JPEG'


def test_every_kind_of_picture_becomes_grey(tmp_path):
  source = tmp_path / 'in'
  ramp = np.tile(np.linspace(0, 255, 48).astype(np.uint8), (32, 1))
  deep = ramp.astype(np.uint16) * 16 + 100
  pack.save(source / 'grey.png', ramp)
  pack.save(source / 'colour.png', np.stack([ramp] * 3, -1)[:-1])
  pack.save(source / 'alpha.png', np.dstack([ramp] * 3 + [np.full_like(ramp, 255)])[:-2])
  cv2.imwrite(str(source / 'deep.png'), deep[:-3])
  Image.fromarray(ramp[:-4]).convert('P').save(source / 'palette.png')
  Image.fromarray(ramp[:-5]).save(source / 'grey.jpg', quality=95)
  names = ['grey.png', 'colour.png', 'alpha.png', 'deep.png', 'palette.png', 'grey.jpg']
  manifest = pack.manifest(source, *({'image': n, 'text': 'x', 'split': 'train'} for n in names))
  assert pack.run(manifest, tmp_path / 'out') == 0
  for example in records.Records(tmp_path / 'out', 'train'):
    pixels = pack.pixels(example.image)
    assert pixels.dtype == np.uint8 and pixels.ndim == 2
    assert np.abs(pixels.astype(int) - ramp[:len(pixels)]).max() <= 8, example.id


def test_boxes_and_masks_follow_the_picture(tmp_path):
  source = tmp_path / 'in'
  pack.save(source / 'a.png', pack.picture(0, width=80, height=40))
  mask = np.zeros((40, 80), bool)
  mask[10:30, 20:60] = True
  thin = np.zeros((40, 80), bool)
  thin[:, 33] = True
  pack.save(source / 'masks' / 'm.png', mask)
  pack.save(source / 'masks' / 't.png', thin)
  manifest = pack.manifest(source, {
      'image': 'a.png', 'text': 'x', 'split': 'train', 'width': 80, 'height': 40, 'annotations': [
          {'phrase': 'Left lung', 'label': 'Lung', 'box': [8, 4, 81, 40]},
          {'phrase': 'mass', 'mask': 'masks/m.png', 'box': [0, 0, 80, 40],
           'component_boxes': [[20, 10, 60, 30], [0, 0, 8, 8]]},
          {'label': 'Tube', 'mask': 'masks/t.png'}]})
  assert pack.run(manifest, tmp_path / 'out', '--size', '20') == 0
  lung, mass, tube = records.Records(tmp_path / 'out', 'train')[0].phrases
  assert (lung.text, lung.category, lung.mask) == ('Left lung', 'lung', b'')
  np.testing.assert_allclose(lung.boxes, [[0.1, 0.1, 1, 1]], rtol=1e-6)
  np.testing.assert_allclose(mass.boxes, [[0.25, 0.25, 0.75, 0.75], [0, 0, 0.1, 0.2]], rtol=1e-6)
  stored = pack.pixels(mass.mask)
  assert stored.dtype == bool and stored.shape == (10, 20)
  np.testing.assert_array_equal(stored[5] > 0, (np.arange(20) >= 5) & (np.arange(20) < 15))
  assert pack.pixels(tube.mask)[:, 8].all() and pack.pixels(tube.mask).sum() == 10
  np.testing.assert_allclose(tube.boxes, [[33 / 80, 0, 34 / 80, 1]], rtol=1e-6)


def _bomb(path: pathlib.Path, side: int):
  """A PNG that says it has side x side pixels, in a few bytes."""
  def chunk(kind: bytes, data: bytes) -> bytes:
    return (len(data).to_bytes(4, 'big') + kind + data
            + zlib.crc32(kind + data).to_bytes(4, 'big'))

  header = side.to_bytes(4, 'big') * 2 + bytes([8, 0, 0, 0, 0])
  path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header)
                   + chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b''))


def test_bad_pictures_are_rejected_one_by_one(tmp_path, capsys):
  source = tmp_path / 'in'
  pack.save(source / 'good.png', pack.picture(0))
  pack.save(source / 'again.png', pack.picture(0))
  Image.fromarray(pack.picture(1, width=300, height=300)).save(source / 'cut.jpg', quality=90)
  data = (source / 'cut.jpg').read_bytes()
  (source / 'cut.jpg').write_bytes(data[:len(data) // 2])
  data = (source / 'good.png').read_bytes()
  (source / 'cut.png').write_bytes(data[:len(data) - 300])
  (source / 'text.jpg').write_text('no picture')
  (source / 'empty.jpg').write_bytes(b'')
  _bomb(source / 'bomb.png', 20_000)
  _bomb(source / 'large.png', 10_001)
  names = ['good.png', 'again.png', 'cut.jpg', 'cut.png', 'text.jpg', 'empty.jpg', 'bomb.png',
           'large.png', 'absent.png', '.']
  manifest = pack.manifest(source, *(
      {'image': name, 'text': 'secret report', 'id': f'row-{name}'} for name in names))
  start = time.monotonic()
  assert pack.run(manifest, tmp_path / 'out') == 0
  assert time.monotonic() - start < 20
  found = {reject['id']: reject['reason'] for reject in pack.rejects(tmp_path / 'out')}
  assert found == {
      'row-again.png': 'duplicate_picture', 'row-cut.jpg': 'unreadable_image',
      'row-cut.png': 'unreadable_image', 'row-text.jpg': 'unreadable_image',
      'row-empty.jpg': 'unreadable_image', 'row-bomb.png': 'oversized_image',
      'row-large.png': 'oversized_image', 'row-absent.png': 'missing_file',
      'row-.': 'missing_file'}
  details = {reject['id']: reject['detail'] for reject in pack.rejects(tmp_path / 'out')}
  assert details['row-again.png'] == 'the same picture as row-good.png'
  assert details['row-bomb.png'] == 'bomb.png: more than 100 megapixels'
  assert '10001 x 10001 pixels' in details['row-large.png']
  assert 'truncated' in details['row-cut.jpg']
  written = (tmp_path / 'out' / 'rejects.jsonl').read_text()
  assert str(tmp_path) not in written and 'secret' not in written
  printed = capsys.readouterr().out
  assert 'rejected      9' in printed and 'unreadable_image       4' in printed
  assert records.read_card(tmp_path / 'out')['rows'] == {
      'in': 10, 'records': 1, 'merged': 0, 'left_out': {}, 'rejected': {
          'duplicate_picture': 1, 'missing_file': 2, 'oversized_image': 2, 'unreadable_image': 4}}


@pytest.mark.parametrize('annotation, size, reason, detail', [
    ({'phrase': 'p', 'box': [0, 0, 60, 10]}, {}, 'bad_box', 'leaves the picture of 48 x 32'),
    ({'phrase': 'p', 'box': [0, 0, 9, 9]}, {'width': 96, 'height': 64}, 'bad_box', '96 x 64'),
    ({'phrase': 'p', 'mask': 'small.png'}, {}, 'bad_mask', 'small.png has 9 x 9 pixels'),
    ({'phrase': 'p', 'mask': 'black.png'}, {}, 'bad_mask', 'black.png is empty'),
    ({'phrase': 'p', 'mask': 'none.png'}, {}, 'bad_mask', 'no file none.png'),
])
def test_bad_place_costs_its_row_not_the_pair(tmp_path, annotation, size, reason, detail):
  source = tmp_path / 'in'
  pack.save(source / 'a.png', pack.picture(0))
  pack.save(source / 'small.png', np.ones((9, 9), bool))
  pack.save(source / 'black.png', np.zeros((32, 48), bool))
  manifest = pack.manifest(
      source, {'image': 'a.png', 'text': 'x', 'split': 'train'},
      {'image': 'a.png', 'annotations': [annotation], **size})
  assert pack.run(manifest, tmp_path / 'out') == 0
  [reject] = pack.rejects(tmp_path / 'out')
  assert (reject['line'], reject['reason']) == (2, reason) and detail in reject['detail']
  assert records.Records(tmp_path / 'out', 'train')[0].phrases == ()


def test_strict_makes_rejects_an_error(tmp_path, capsys):
  source = tmp_path / 'in'
  pack.save(source / 'a.png', pack.picture(0))
  manifest = pack.manifest(source, {'image': 'a.png', 'text': 'x'}, {'image': 'b.png', 'text': 'x'})
  out = tmp_path / 'out'
  assert pack.run(manifest, out, '--strict') == 1
  error = capsys.readouterr().err
  assert 'rejected rows: 1' in error and '--image-root' in error
  assert 'line 2 (b.png): missing_file' in error
  assert not (out / 'dataset.json').exists() and len(pack.rejects(out)) == 1
  assert pack.run(manifest, out) == 0  # the parts serve
  assert pack.run(manifest, out, '--strict') == 1
  pack.save(source / 'b.png', pack.picture(1))
  assert pack.run(manifest, tmp_path / 'new', '--strict') == 0


def test_nothing_left_is_an_error(tmp_path, capsys):
  manifest = pack.manifest(tmp_path / 'in', {'image': 'a.png', 'text': 'x'})
  assert pack.run(manifest, tmp_path / 'out') == 1
  assert 'no row is left' in capsys.readouterr().err


def test_labels_without_reports(tmp_path, capsys):
  pack.save(tmp_path / 'in' / 'a.png', pack.picture(0))
  manifest = pack.manifest(
      tmp_path / 'in', {'image': 'a.png', 'label': 'Pneumonia', 'kind': 'Virus', 'split': 'test'})
  assert pack.run(manifest, tmp_path / 'out') == 2
  assert '--allow-empty-text' in capsys.readouterr().err
  assert pack.run(manifest, tmp_path / 'out', '--allow-empty-text', '--label-key', 'label',
              '--label-key', 'kind') == 0
  assert records.Records(tmp_path / 'out', 'test')[0].labels == ('pneumonia', 'virus')
  card = records.read_card(tmp_path / 'out')
  assert (card['vocab_size'], card['text']['empty_share']) == (0, 1)


def test_given_vocabulary_is_stored(tmp_path):
  vocabulary = tmp_path / 'vocab.txt'
  vocabulary.write_text('[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nlungs\n')
  manifest = pack.pairs(tmp_path / 'in', 3)
  assert pack.run(manifest, tmp_path / 'out', '--vocab', str(vocabulary)) == 0
  assert records.vocabulary_path(tmp_path / 'out').read_bytes() == vocabulary.read_bytes()
  assert records.read_card(tmp_path / 'out')['vocab_size'] == 6


@pytest.mark.parametrize('options, message', [
    (['--vocab', '/nowhere/vocab.txt'], '/nowhere/vocab.txt'),
    (['--vocab-size', '10'], 'ask for at least'),
    (['--label-key', 'colour'], '--label-key colour: no row has a label there'),
    (['--image-key', 'path'], "no image column 'path'"),
    (['--text-key', 'path'], "no text column 'path'"),
    (['--manifest', '/nowhere/rows.jsonl'], 'cannot read manifest /nowhere/rows.jsonl'),
])
def test_wrong_options_are_named(tmp_path, capsys, options, message):
  assert pack.run(pack.pairs(tmp_path / 'in', 3), tmp_path / 'out', *options) == 2
  error = capsys.readouterr().err
  assert message in error and 'Traceback' not in error


@pytest.mark.parametrize('options', [
    ['--size', '0'], ['--workers', 'many'], ['--shard-rows', '-1'], ['--bogus']])
def test_wrong_numbers_are_named(tmp_path, capsys, options):
  with pytest.raises(SystemExit) as stop:
    pack.run('rows.jsonl', tmp_path / 'out', *options)
  assert stop.value.code == 2
  assert options[0] in capsys.readouterr().err


def test_phantoms(tmp_path, capsys):
  command = ['phantom', '--pairs', '20', '--size', '64', '--workers', '1', '--vocab-size', '400']
  assert prepare.main([*command, '--out', str(tmp_path / 'a')]) == 0
  assert prepare.main([*command, '--out', str(tmp_path / 'b'), '--seed', '1', '--preview',
                       str(tmp_path / 'sheet.png')]) == 0
  a, b = records.read_card(tmp_path / 'a'), records.read_card(tmp_path / 'b')
  assert a['splits'] == {'train': 14, 'val': 2, 'test': 4}
  assert a['content_hash'] != b['content_hash'] and a['phrases']['masks'] > 0
  assert Image.open(tmp_path / 'sheet.png').size[0] > 64
  assert records.Records(tmp_path / 'a', 'test')[0].id == 'phantom-0-0'
  capsys.readouterr()
  for option, value in (
      ('--seed', '-1'), ('--size', '9'), ('--preview', '/nowhere/x.png')):
    assert prepare.main([
        'phantom', '--pairs', '2', '--out', str(tmp_path / 'c'), option, value]) == 2
    assert f'{option} {value}' in capsys.readouterr().err


def test_real_collections_go_through_together(tmp_path):
  root = os.environ.get('PLAN_JAX_DATA')
  if not root:
    pytest.skip('PLAN_JAX_DATA is not set')
  manifests = [pathlib.Path(root) / name / 'image_text.jsonl'
               for name in ('cohen_cxr', 'rocov2_sample')]
  for manifest in manifests:
    if not manifest.is_file():
      pytest.skip(f'{manifest.parent.name} is not in PLAN_JAX_DATA')
  out = tmp_path / 'out'
  assert pack.run(manifests[0], out, '--manifest', str(manifests[1]), '--size', '64') == 0
  rows = sum(len(manifest.read_text().splitlines()) for manifest in manifests)
  counts = records.read_card(out)['rows']
  assert counts['in'] == rows == counts['records'] + sum(counts['rejected'].values())
  assert counts['records'] > 0.95 * rows
