"""A run from pretrained towers through the training command: begun, frozen, continued, refused."""

import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

torch = pytest.importorskip('torch', reason='the pretrained towers are of PyTorch')

import transformers  # noqa: E402

from test_towers import _randomise  # noqa: E402
from plan_jax import config as config_lib  # noqa: E402
from plan_jax import errors  # noqa: E402
from plan_jax import train  # noqa: E402
from plan_jax.convert import files  # noqa: E402
from plan_jax.convert import layouts  # noqa: E402
from plan_jax.convert import tables  # noqa: E402
from plan_jax.data import tokenize  # noqa: E402
from tests import quick_to_compile  # noqa: E402
from tests import small_pairs  # noqa: E402

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 4
UNFIT = 'embeddings.LayerNorm.bias'  # of another shape in the text tower
PIECES = 16


@pytest.fixture(scope='module')
def given(tmp_path_factory):
  """Directories of transformers with random towers, and records of the text tower's vocabulary."""
  root = tmp_path_factory.mktemp('given')
  vocabulary = tokenize.train_vocabulary(['small left pleural effusion', 'no pneumothorax'] * 3,
                                         size=120)
  bert = _randomise(transformers.BertModel(transformers.BertConfig(
      vocab_size=len(vocabulary), hidden_size=128, num_hidden_layers=2, num_attention_heads=2,
      intermediate_size=512, max_position_embeddings=20)))
  bert.save_pretrained(root / 'bert')
  (root / 'bert' / 'vocab.txt').write_text('\n'.join(vocabulary) + '\n')
  weights = root / 'bert' / 'model.safetensors'
  files.write(weights, {**files.read(weights), UNFIT: np.zeros(7, np.float32)},
              dtype=files.Dtype.FLOAT32)
  resnet = _randomise(transformers.ResNetModel(transformers.ResNetConfig(
      embedding_size=16, hidden_sizes=[32, 64, 128, 256], depths=[1] * 4, layer_type='basic')))
  resnet.save_pretrained(root / 'resnet')
  transformers.ViTImageProcessor(
      image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(root / 'resnet')
  rows = small_pairs.manifest(root, *(  # none to validate and evaluate with, which takes its time
      {'image': small_pairs.save(root / f'{i}.png', small_pairs.picture(i)).name,
       'text': f'effusion {i}', 'split': 'train'} for i in range(16)))
  assert small_pairs.run(rows, root / 'records', '--vocab', str(root / 'bert')) == 0
  return root


def settings(given, **init):
  """Those of the runs, as nested dicts."""
  return {
      'data': {'records': str(given / 'records'), 'image_size': 32, 'max_pieces': PIECES,
               'max_words': 12},
      'model': {'image': 'resnet_tiny', 'text': 'bert_tiny', 'joint_dim': 16},
      'init': {'text': str(given / 'bert'), 'image': str(given / 'resnet'), **init},
      # The first step of a warm-up has learning rate 0: what it leaves is what the run began with.
      'optim': {'lr': 1e-2, 'warmup': 0.5, 'image': {'freeze': True}},
      'objective': {'name': 'convirt'},  # compiles soonest
      'train': {'steps': STEPS, 'batch_size': 8, 'checkpoint_every': 1, 'keep_newest': STEPS}}


def command(given, workdir, **init):
  def options(values, prefix):
    for key, value in values.items():
      yield from (options(value, f'{prefix}.{key}') if isinstance(value, dict)
                  else [f'{prefix}.{key}={value}'])
  return [sys.executable, '-m', 'plan_jax.train', '--config=configs/base.py',
          f'--workdir={workdir}', *options(settings(given, **init), '--config')]


@pytest.fixture(scope='module')
def started(given, tmp_path_factory):
  """A run's workdir, what it printed, its state after 1, 2 and all steps, continued from 2."""
  workdir, compiled = (tmp_path_factory.mktemp(name) for name in ('run', 'compiled'))
  environment = {**os.environ, 'XLA_FLAGS': quick_to_compile.FLAGS,
                 'JAX_COMPILATION_CACHE_DIR': str(compiled),
                 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.5'}

  def run():
    done = subprocess.run(command(given, workdir, unfit='fresh'), cwd=ROOT, env=environment,
                          capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout

  printed = run()
  states = {step: saved(workdir, step) for step in (1, 2, STEPS)}
  for step in range(3, STEPS + 1):
    shutil.rmtree(workdir / 'checkpoints' / str(step))
  for name in ('bert', 'resnet'):
    (given / name).rename(given / f'{name}-gone')
  try:
    assert 'continuing from step 2' in run()
  finally:
    for name in ('bert', 'resnet'):
      (given / f'{name}-gone').rename(given / name)
  return printed, states, saved(workdir, STEPS)


def saved(workdir, step):
  """All arrays of a checkpoint by path, as numpy."""
  where = workdir / 'checkpoints' / str(step)
  return {path: np.asarray(x) for item in ('model', 'train')
          for path, x in tables.paths(ocp.PyTreeCheckpointer().restore(where / item))}


def tower(arrays, name):
  return {path: x for path, x in arrays.items()
          if path.startswith((f'params/{name}', f'batch_stats/{name}'))}


def expected(given, arrays):
  """The towers by the tables, of weights of three channels that saw what ours see."""
  text, image = files.read(given / 'bert'), files.read(given / 'resnet')
  text[layouts.TEXT_POSITIONS] = (
      text[layouts.TEXT_POSITIONS][:PIECES] + text[layouts.TOKEN_TYPES][0])
  image['embedder.embedder.convolution.weight'] = (
      image['embedder.embedder.convolution.weight'].sum(1, keepdims=True))
  found = {}
  for rows, tensors in ((layouts.text_rows(config_lib.TextVariant.BERT_TINY), text),
                        (layouts.image_rows(config_lib.ImageVariant.RESNET_TINY,
                                            layouts.Layout.HUB), image)):
    found |= tables.read(
        rows, tensors, shapes={path: x.shape for path, x in arrays.items()}).arrays
  return found


def test_step_0_has_these_weights_and_what_does_not_fit_is_fresh(given, started):
  printed, states, _ = started
  assert f'of another shape: {UNFIT} for params/text_tower/norm/bias' in printed
  first, weights = states[1], expected(given, states[1])
  towers = {**tower(first, 'text_tower'), **tower(first, 'image_tower')}
  assert towers.keys() - weights.keys() == {'params/text_tower/norm/bias'}
  assert not first['params/text_tower/norm/bias'].any()  # as it is drawn
  for path, weight in weights.items():
    np.testing.assert_allclose(first[path], weight, rtol=1e-6, atol=1e-6, err_msg=path)
  assert any(not np.array_equal(x, states[STEPS][path])
             for path, x in tower(first, 'text_tower').items())


def test_a_resume_reads_the_checkpoint_and_not_the_weights(started):
  _, states, continued = started  # their directories were gone
  assert states[STEPS].keys() == continued.keys()
  for path, x in states[STEPS].items():
    np.testing.assert_array_equal(x, continued[path], err_msg=path)


def test_a_frozen_tower_stays_bit_for_bit(started):
  _, states, continued = started
  first = tower(states[1], 'image_tower')
  assert {path.partition('/')[0] for path in first} == {'params', 'batch_stats'}
  for last in (states[STEPS], continued):
    for path, x in first.items():
      assert x.tobytes() == last[path].tobytes(), path


@pytest.mark.parametrize('case, message', [
    ('unfit', f'bert: does not fit config.model.text = bert_tiny; of another shape: {UNFIT} for '
     r'params/text_tower/norm/bias: .*--config.init.unfit=fresh'),
    ('vocabulary', 'another vocabulary than the records; prepare them with --vocab .*other'),
    ('nothing', 'config.init.text = .*nowhere: is not here'),
])
def test_what_cannot_start_a_run_is_refused(given, tmp_path, case, message):
  other = tmp_path / 'other'
  if case == 'vocabulary':
    shutil.copytree(given / 'bert', other)
    lines = (other / 'vocab.txt').read_text().splitlines()
    (other / 'vocab.txt').write_text('\n'.join([*lines[:-2], lines[-1], lines[-2]]) + '\n')
  text = {'unfit': given / 'bert', 'vocabulary': other / 'model.safetensors',
          'nothing': tmp_path / 'nowhere'}[case]
  with pytest.raises(errors.UserError, match=message):
    train.train(config_lib.resolve(settings(given, text=str(text))), tmp_path / 'run')
  assert not list((tmp_path / 'run').glob('checkpoints/*'))
