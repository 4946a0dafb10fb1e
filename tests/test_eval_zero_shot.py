"""The zero-shot command: table, file, and exit status 2 with a named fault."""

import json
import os
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

import plan_jax
import tiny
from plan_jax import errors
from plan_jax import eval_zero_shot
from plan_jax.data import prepare
from plan_jax.data import tokenize

PROMPTS = '''
[normal]
positive = ["clear lungs"]
negative = ["opacity"]
[bacteria]
positive = ["{left|right} opacity"]
'''


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A run's directory with one checkpoint of random weights."""
  directory = tmp_path_factory.mktemp('run')
  vocabulary = tokenize.train_vocabulary(['clear lungs', 'left right opacity'] * 3, size=200)
  tiny.save_checkpoint(directory, vocabulary=vocabulary, settings=tiny.config())
  return directory


@pytest.fixture
def data(tmp_path):
  """A manifest of 24 images, two label columns as in Kermany's set, and a prompt file."""
  rng = np.random.default_rng(0)
  rows = []
  for i in range(24):
    # Plain enough that JPEG changes them much less than they differ.
    image = np.full((40, 40), rng.integers(40, 80), np.uint8)
    cv2.circle(image, rng.integers(8, 32, 2).tolist(), int(rng.integers(4, 16)),
               int(rng.integers(100, 250)), -1)
    cv2.imwrite(str(tmp_path / f'{i}.png'), image)
    rows.append({
        'image': f'{i}.png', 'patient': f'p{i // 2}', 'split': 'train' if i < 4 else 'test',
        'label': 'Normal' if i % 3 else 'pneumonia',
        'kind': None if i % 3 else 'bacteria' if i % 2 else 'virus'})
  (tmp_path / 'labels.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  (tmp_path / 'prompts.toml').write_text(PROMPTS)
  return tmp_path


def _arguments(workdir, data, **changes):
  values = {
      '--checkpoint': workdir, '--manifest': data / 'labels.jsonl', '--label-key': 'kind,label',
      '--prompts': data / 'prompts.toml', '--out': data / 'out', **changes}
  return [str(part) for item in values.items() if item[1] is not None for part in item]


def test_manifest_table_and_file(workdir, data, capsys):
  assert eval_zero_shot.main(_arguments(workdir, data)) == 0
  result = json.loads((data / 'out' / 'zero_shot.json').read_text())
  assert set(result['macro_auroc']) == {'value', 'low', 'high', 'n'}
  assert result['macro_auroc']['n'] == 20 and result['split'] == 'test'
  assert result['classes']['normal']['positives'] == 14
  assert result['classes']['bacteria']['positives'] == 3
  assert result['labels_without_prompts'] == ['pneumonia', 'virus']
  screen = capsys.readouterr().out
  assert 'macro mean' in screen and 'labels without prompts: pneumonia, virus' in screen
  auroc = result['classes']['bacteria']
  assert f'{auroc["value"]:.3f} [{auroc["low"]:.3f}, {auroc["high"]:.3f}]' in screen


def test_records_and_manifest_agree(workdir, data):
  """The same images through records give the same figures (stored as JPEG: nearly)."""
  assert prepare.main([
      'manifest', '--manifest', str(data / 'labels.jsonl'), '--label-key', 'kind',
      '--label-key', 'label', '--allow-empty-text', '--out', str(data / 'records'),
      '--vocab', str(_vocabulary(data)), '--workers', '1']) == 0
  assert eval_zero_shot.main(_arguments(
      workdir, data, **{'--manifest': None, '--label-key': None,
                        '--records': data / 'records'})) == 0
  by_records = json.loads((data / 'out' / 'zero_shot.json').read_text())
  assert eval_zero_shot.main(_arguments(workdir, data)) == 0
  by_manifest = json.loads((data / 'out' / 'zero_shot.json').read_text())
  for name, found in by_manifest['classes'].items():
    other = by_records['classes'][name]
    assert (found['n'], found['positives']) == (other['n'], other['positives'])
    assert found['value'] == pytest.approx(other['value'], abs=0.15)


def _vocabulary(data):
  path = data / 'vocab.txt'
  path.write_text('\n'.join(tokenize.train_vocabulary(['clear lungs'] * 3, size=200)))
  return path


def test_manifest_without_splits_uses_every_row(workdir, data):
  rows = [json.loads(line) for line in (data / 'labels.jsonl').read_text().splitlines()]
  for row in rows:
    del row['split'], row['patient']
  (data / 'labels.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  source = eval_zero_shot.from_manifest(
      str(data / 'labels.jsonl'), label_keys=['label'], split='')
  assert len(source.images) == 24 and source.split == 'all'
  with pytest.raises(eval_zero_shot.EvalError, match='no column `split`'):
    eval_zero_shot.from_manifest(str(data / 'labels.jsonl'), label_keys=['label'], split='val')


def _break(case, data):
  """Breaks one thing; returns changed arguments and what the message must hold."""
  if case == 'checkpoint':
    return {'--checkpoint': data / 'nowhere'}, ['nowhere', 'no such directory']
  if case == 'not a checkpoint':
    return {'--checkpoint': data}, ['holds no checkpoint']
  if case == 'prompt class':
    (data / 'prompts.toml').write_text(PROMPTS + '[gout]\npositive = ["gout"]\n')
    return {}, ['[gout]', 'bacteria, normal, pneumonia, virus']
  if case == 'toml':
    (data / 'prompts.toml').write_text('[normal\n')
    return {}, ['prompts.toml', 'not valid TOML']
  if case == 'empty list':
    (data / 'prompts.toml').write_text('[normal]\npositive = []\n')
    return {}, ['[normal] positive = []']
  if case == 'missing image':
    (data / '7.png').unlink()
    return {}, ['line 8', '7.png']
  if case == 'damaged image':
    (data / '7.png').write_bytes((data / '7.png').read_bytes()[:60])
    return {}, ['7.png']
  if case == 'label key':
    return {'--label-key': 'diagnosis'}, ['diagnosis']
  if case == 'manifest':
    return {'--manifest': data / 'absent.csv'}, ['absent.csv']
  if case == 'records':
    return {'--manifest': None, '--label-key': None, '--records': data}, ['dataset.json']
  if case == 'split':
    return {'--split': 'val'}, ["'val'", 'no images']
  (data / 'file').write_text('')
  return {'--out': data / 'file' / 'out'}, ['--out', 'cannot be written']


@pytest.mark.parametrize('case', [
    'checkpoint', 'not a checkpoint', 'prompt class', 'toml', 'empty list', 'missing image',
    'damaged image', 'label key', 'manifest', 'records', 'split', 'out'])
def test_faults_end_with_status_2_and_name_the_thing(workdir, data, capsys, case):
  changes, words = _break(case, data)
  assert eval_zero_shot.main(_arguments(workdir, data, **changes)) == 2
  message = capsys.readouterr().err.splitlines()[-1]
  assert message.startswith('error: ')
  for word in words:
    assert word in message


@pytest.mark.parametrize('changes, message', [
    ({'--label-key': None}, 'needs --label-key'),
    ({'--records': 'r'}, 'not allowed with'),
    ({'--manifest': None, '--records': 'r'}, 'belongs to --manifest'),
    ({'--split': 'dev'}, 'invalid choice'),
])
def test_wrong_arguments(data, capsys, changes, message):
  with pytest.raises(SystemExit) as raised:
    eval_zero_shot.main(_arguments('w', data, **changes))
  assert raised.value.code == 2
  assert message in capsys.readouterr().err


def test_as_a_command_it_starts_no_other_platform(workdir, data):
  """JAX_PLATFORMS names one that does not exist: the command must not ask for it."""
  environment = {**os.environ, 'JAX_PLATFORMS': 'no_such_accelerator', 'XLA_FLAGS': ''}
  done = subprocess.run(
      [sys.executable, '-m', 'plan_jax.eval_zero_shot', *_arguments(workdir, data)],
      capture_output=True, text=True, env=environment, check=False,
      cwd=pathlib.Path(__file__).parents[1])
  assert done.returncode == 0, done.stderr
  assert 'macro mean' in done.stdout
  assert 'Traceback' not in done.stderr


def test_load_gives_the_model_of_a_checkpoint(workdir, data):
  model = plan_jax.load(workdir)
  assert model.similarity([data / '0.png', data / '1.png'], ['clear lungs']).shape == (2, 1)
  assert model.ground(data / '0.png', 'left opacity').shape == (40, 40)
  with pytest.raises(errors.UserError, match='nowhere'):
    plan_jax.load(workdir / 'nowhere')
