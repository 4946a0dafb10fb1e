"""The evaluate command: every task on a tiny model, its files, its page, its errors."""

import functools
import html
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import tiny
from plan_jax import evaluate
from plan_jax.data import prepare
from plan_jax.data import records as records_lib
from plan_jax.data import tokenize
from plan_jax.tasks import heads

ROOT = Path(__file__).parents[1]
FIGURE = {'value', 'low', 'high', 'n'}


@pytest.fixture(scope='module')
def records(tmp_path_factory):
  out = tmp_path_factory.mktemp('records') / 'phantoms'
  assert prepare.main(['phantom', '--pairs', '160', '--seed', '3', '--size', '80', '--workers', '1',
                       '--out', str(out)]) == 0
  return out


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory, records):
  directory = tmp_path_factory.mktemp('run')
  vocabulary = tokenize.read_vocabulary(records_lib.vocabulary_path(records))
  settings = tiny.config(data={'image_size': 64, 'max_pieces': 48, 'max_words': 32})
  tiny.save_checkpoint(directory, vocabulary=vocabulary, settings=settings)
  return directory


@pytest.fixture(scope='module')
def command(checkpoint, records):
  def run(out, *options):
    return evaluate.main([
        '--checkpoint', str(checkpoint), '--records', str(records), '--out', str(out), *options])
  return run


def figures(node):
  """All figures at any depth."""
  if isinstance(node, dict):
    if set(node) >= FIGURE:
      yield node
    for child in node.values():
      yield from figures(child)


@pytest.fixture(scope='module')
def everything(tmp_path_factory, command):
  """All six tasks, the heads trained for a moment only."""
  out = tmp_path_factory.mktemp('out')
  short = functools.partial(heads.fit_lib.Settings, steps=6, checks=2)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(heads.fit_lib, 'Settings', short)
    assert command(
        out, '--tasks', 'zero_shot,grounding,retrieval,linear_probe,detection,segmentation',
        '--prompts', str(ROOT / 'configs' / 'prompts' / 'phantom.toml'), '--train-pairs', '60',
        '--include-text') == 0
  return out


def test_every_task_has_its_part(everything):
  got = json.loads((everything / 'metrics.json').read_text())
  protocols = {part: node['protocol'] for part, node in got.items()
               if isinstance(node, dict) and 'protocol' in node}
  assert protocols == {
      'zero_shot': 'zero_shot/prompt_ensemble_auroc_words',
      'zero_shot_decisions': 'zero_shot/threshold_of_best_f1_on_validation',
      'grounding': 'grounding/ms_cxr',
      'grounding_words': 'grounding/ms_cxr',
      'grounding_pooled': 'grounding/ms_cxr',
      'grounding_centre': 'grounding/ms_cxr',
      'grounding_ceiling': 'grounding/ms_cxr',
      'grounding_margin': 'grounding/ms_cxr_margin',
      'retrieval': 'retrieval/instance_identical_reports_are_hits',
      'retrieval_words': 'retrieval/instance_identical_reports_are_hits_words',
      'class_retrieval': 'retrieval/class_precision',
      'class_retrieval_words': 'retrieval/class_precision_words',
      'linear_probe': 'linear_probe/frozen_pooled_logistic',
      'detection': 'detection/map_40_75',
      'detection_mgca_skips_empty': 'detection/map_40_75_mgca_skips_empty',
      'segmentation': 'segmentation/dice_at_half_positive_images'}
  assert set(got['linear_probe']['shares']) == set(got['segmentation']['shares']) == {
      '0.01', '0.1', '1'}
  assert got['segmentation']['shares']['1']['labelled'] == 60
  assert got['data']['kind'] == 'phantom' and len(got['data']['content_hash']) > 8
  found = list(figures(got))
  assert len(found) > 150
  for each in found:
    if each['value'] is not None and each['low'] is not None:
      assert each['low'] - 1e-6 <= each['high'] and each['n'] > 0


def test_samples_are_the_values_behind_the_figures(everything):
  got = json.loads((everything / 'metrics.json').read_text())
  with np.load(everything / 'samples.npz', allow_pickle=False) as samples:
    pointing = samples['grounding_regions/pointing']
    category = samples['grounding_category']
    hits = samples['retrieval_words/text_to_image'] <= 5
    assert np.isfinite(samples['zero_shot_scores']).all()
  mean = np.mean([np.nanmean(pointing[category == name]) for name in set(category)])
  assert mean == pytest.approx(got['grounding']['pointing']['value'], abs=1e-5)
  assert hits.mean() == pytest.approx(got['retrieval_words']['text_to_image']['r@5']['value'])


def test_texts_are_on_the_page_only_if_asked_for(everything, command, records, tmp_path):
  with_text = (everything / 'report.html').read_text()
  assert command(tmp_path / 'out', '--tasks', 'grounding,retrieval') == 0
  without = (tmp_path / 'out' / 'report.html').read_text()
  test = records_lib.Records(records, 'test')
  texts = {phrase.text for example in map(test.__getitem__, range(len(test)))
           for phrase in example.phrases} | {test[i].text for i in range(len(test))}
  shown = [text for text in texts if html.escape(text, quote=False) in with_text]
  assert len(shown) > 10
  assert not [text for text in texts if text in without or html.escape(text) in without]
  assert 'Phantom results' in without and '--include-text' in without
  assert json.loads((tmp_path / 'out' / 'metrics.json').read_text())['zero_shot'] is None


@pytest.mark.parametrize('options, message', [
    (('--tasks', 'grouding'), "'grouding' is not a valid Task; choose from zero_shot, grounding"),
    (('--tasks', 'zero_shot'), 'zero_shot in --tasks and --prompts go together'),
    (('--tasks', 'grounding', '--prompts', 'x.toml'), 'go together'),
    (('--tasks', 'detection', '--split', 'val'), 'detection learn from the train and val splits'),
    (('--max-pairs', '0'), '--max-pairs must be at least 1'),
])
def test_bad_arguments_are_named(command, tmp_path, options, message, capsys):
  with pytest.raises(SystemExit) as status:
    command(tmp_path, *options)
  assert status.value.code == 2 and message in capsys.readouterr().err


def test_what_cannot_be_evaluated_is_named(command, checkpoint, records, tmp_path, capsys):
  def error(*options):
    assert evaluate.main(list(map(str, options))) == 2
    return capsys.readouterr().err

  base = ('--checkpoint', checkpoint, '--records', records)
  assert 'cannot be written' in error(*base, '--out', '/proc/nowhere')
  assert 'holds no checkpoint' in error(
      '--checkpoint', tmp_path, '--records', records, '--out', tmp_path)
  assert "'none' does not exist" in error(
      '--checkpoint', checkpoint, '--records', 'none', '--out', tmp_path)


def test_heads_without_anything_to_learn_from(command, checkpoint, tmp_path, capsys):
  """Said before the images are encoded, not after."""
  rng = np.random.default_rng(0)
  for i in range(9):
    cv2.imwrite(str(tmp_path / f'{i}.png'), rng.integers(0, 256, (48, 48), np.uint8))
  splits = ['train'] * 5 + ['val'] * 2 + ['test'] * 2
  rows = [{'image': f'{i}.png', 'text': f'clear lungs {i}', 'split': split, 'patient': f'p{i}'}
          for i, split in enumerate(splits)]
  (tmp_path / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  assert prepare.main(['manifest', '--manifest', str(tmp_path / 'rows.jsonl'),
                       '--out', str(tmp_path / 'records')]) == 0
  for task, missing in (('linear_probe', 'has labels'), ('detection', 'has a box'),
                        ('segmentation', 'has a mask')):
    assert evaluate.main(['--checkpoint', str(checkpoint), '--records', str(tmp_path / 'records'),
                          '--out', str(tmp_path / 'out'), '--tasks', f'grounding,{task}']) == 2
    captured = capsys.readouterr()
    assert f'{task}: no' in captured.err and missing in captured.err
    assert 'images:' not in captured.out
