"""What is taken of a corpus: --limit, lists of ids, near-duplicates, --dry-run."""

import cv2
import numpy as np

import corpus_layouts as layouts
import corpus_runs as corpus
from plan_jax.data import records


def test_a_dry_run_writes_nothing(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.mimic_cxr(root)
  next((root / 'files/p10/p10000032/s50414267').glob('*ap.jpg')).unlink()
  assert corpus.run('mimic_cxr', root, '--dry-run') == 0
  printed = capsys.readouterr().out
  assert 'images        11 (train 7, val 2, test 2), 11 with a report' in printed
  assert 'missing_file           1' in printed and 'view_lateral           12' in printed
  assert not (tmp_path / 'out').exists()
  assert corpus.run('mimic_cxr', root, '--dry-run', '--strict') == 1


def test_limit_and_lists_of_ids(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.mimic_cxr(root)
  ids = tmp_path / 'ids.txt'
  ids.write_text('# an evaluation set\n02aa804e-bde0afdd-112c0b34-7bc16630-0000ap\nabsent\n')
  assert corpus.run('mimic_cxr', root, '--exclude-ids', str(ids), '--limit', '7') == 0
  printed = capsys.readouterr().out
  assert '--exclude-ids: 1 of 2 ids name no image here' in printed and 'absent' not in printed
  card = corpus.card(tmp_path)
  # The patient's two, of which one is listed:
  assert card['rows']['left_out'] == {'view_lateral': 12, 'excluded_id': 2, 'limit': 3}
  assert '10000032' not in {e.patient for e in corpus.examples(tmp_path).values()}
  only, rest = str(tmp_path / 'only'), str(tmp_path / 'rest')
  assert corpus.run('mimic_cxr', root, '--out', only, '--only-ids', str(ids)) == 0
  assert records.read_card(tmp_path / 'only')['splits'] == {'train': 0, 'val': 0, 'test': 1}
  assert corpus.run('mimic_cxr', root, '--out', rest, '--exclude-ids', only) == 0
  left_out = records.read_card(rest)['rows']['left_out']
  assert left_out == {'view_lateral': 12, 'excluded_id': 2}
  ids.write_text('\n')
  assert corpus.run('mimic_cxr', root, '--exclude-ids', str(ids)) == 2
  assert 'is empty' in capsys.readouterr().err


def test_an_excluded_image_takes_its_patient_along_whatever_its_view(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.mimic_cxr(root)
  ids = tmp_path / 'ids.txt'
  ids.write_text('02aa804e-bde0afdd-112c0b34-7bc16630-0000lateral\n')
  assert corpus.run('mimic_cxr', root, '--exclude-ids', str(ids)) == 0
  assert corpus.card(tmp_path)['rows']['left_out'] == {'view_lateral': 12, 'excluded_id': 2}
  assert '10000032' not in {e.patient for e in corpus.examples(tmp_path).values()}
  assert 'name no image' not in capsys.readouterr().out


def test_a_list_that_leaves_nothing_is_an_error(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.mimic_cxr(root)
  ids = tmp_path / 'ids.txt'
  ids.write_text('10000032\n')  # a patient: --only-ids wants images
  assert corpus.run('mimic_cxr', root, '--only-ids', str(ids)) == 2
  error = capsys.readouterr().err
  assert 'none of 12 images is left (rows left out: not_in_only_ids 12)' in error
  assert not (tmp_path / 'out').exists()


def test_near_duplicates_of_an_excluded_directory(tmp_path, capsys):
  root, apart = tmp_path / 'in', tmp_path / 'apart'
  layouts.folder(root)
  for k in (0, 1):  # both in train
    twin = (cv2.resize(layouts.pixels(k), None, fx=1.5, fy=1.5) * 0.8).astype(np.uint8)
    (apart / 'test').mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(apart / f'test/twin{k}.jpg'), twin)
  elsewhere = str(tmp_path / 'elsewhere')
  assert corpus.run('folder', apart, '--allow-empty-text', '--out', elsewhere) == 0
  ids = tmp_path / 'ids.txt'
  ids.write_text('train/pneumonia/1.png\n')
  options = ['--exclude-ids', elsewhere, '--exclude-ids', str(ids)]
  assert corpus.run('folder', root, *options) == 0
  card = corpus.card(tmp_path)
  assert card['rows']['records'] == 11 and card['rows']['left_out'] == {'excluded_id': 1}
  assert card['near_duplicates']['between'] == {'train-excluded': 1}
  assert card['source']['selection']['exclude_pictures']['count'] == 2
  assert f'Looking at the pictures of --exclude-ids {elsewhere}\n' in capsys.readouterr().out
  dropped = str(tmp_path / 'dropped')
  assert corpus.run('folder', root, *options, '--out', dropped, '--drop-near-duplicates') == 0
  [reject] = layouts.lines(tmp_path / 'dropped/rejects.jsonl')
  assert reject['id'] == 'train/normal/0.png' and 'twin0.jpg in excluded' in reject['detail']


def test_near_duplicates_across_splits_are_reported_or_dropped(tmp_path, capsys):
  root = tmp_path / 'in'
  layouts.folder(root)
  # Picture 0 of train, larger and darker:
  twin = cv2.resize(layouts.pixels(0), None, fx=1.5, fy=1.5)
  cv2.imwrite(str(root / 'test/normal/twin.jpg'), (twin * 0.8).astype(np.uint8))
  layouts.text(root / 'test/normal/twin.txt', 'The same lungs once more.')
  assert corpus.run('folder', root) == 0
  card = corpus.card(tmp_path)
  assert card['near_duplicates'] == {'max_distance': 32, 'pairs': 1, 'between': {'train-test': 1}}
  assert card['rows']['records'] == 13 and '1 pairs (train-test 1)' in capsys.readouterr().out
  [pair] = layouts.lines(tmp_path / 'out/near_duplicates.jsonl')
  assert pair['ids'] == ['train/normal/0.png', 'test/normal/twin.jpg']
  dropped = str(tmp_path / 'dropped')
  assert corpus.run('folder', root, '--out', dropped, '--drop-near-duplicates') == 0
  card = records.read_card(tmp_path / 'dropped')
  assert card['rows']['rejected'] == {'near_duplicate': 1} and card['splits']['train'] == 7
  [reject] = layouts.lines(tmp_path / 'dropped/rejects.jsonl')
  assert reject['id'] == 'train/normal/0.png' and 'twin.jpg in test' in reject['detail']
