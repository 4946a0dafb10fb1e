"""The scripts in examples/ run as they are, where a run has left what they need."""

from pathlib import Path
import runpy
import shutil
import sys

import numpy as np
from PIL import Image
import pytest

import tiny
from plan_jax import inference
from plan_jax.convert import __main__ as convert
from plan_jax.data import prepare
from plan_jax.data import records
from plan_jax.data import tokenize

EXAMPLES = Path(__file__).parents[1] / 'examples'


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A directory with runs/demo: phantoms, and a checkpoint of random weights."""
  path = tmp_path_factory.mktemp('home')
  run = path / 'runs' / 'demo'
  assert prepare.main(['phantom', '--pairs', '160', '--seed', '3', '--size', '64', '--workers', '1',
                       '--out', str(run / 'records')]) == 0
  tiny.save_checkpoint(
      run, vocabulary=tokenize.read_vocabulary(run / 'records' / 'vocab.txt'),
      settings=tiny.config(
          data={'records': str(run / 'records'), 'max_pieces': 32, 'max_words': 24}),
      draw=tiny.random_weights, content_hash=records.read_card(run / 'records')['content_hash'])
  return path


@pytest.fixture
def example(home, monkeypatch):
  """Runs one of them there; its variables."""
  monkeypatch.chdir(home)
  monkeypatch.setattr(sys, 'path', list(sys.path))
  monkeypatch.setenv('MPLBACKEND', 'agg')
  return lambda name: runpy.run_path(str(EXAMPLES / name))


def test_zero_shot(example, capsys):
  found = example('zero_shot.py')
  ones = [x.image for x, is_one in zip(found['test'], found['truth']) if is_one]
  assert 0 < len(ones) < len(found['test'])
  yes, no = np.split(found['model'].similarity(ones, found['reports']), 2, axis=1)
  np.testing.assert_allclose(
      found['scores'][np.array(found['truth'])], yes.mean(axis=1) - no.mean(axis=1), atol=1e-5)
  assert f'AUROC {found["auroc"]:.3f}' in capsys.readouterr().out


def test_grounding(example, home):
  found = example('grounding.py')
  image = np.asarray(Image.open(home / 'runs/demo/example_grounding.png').convert('RGB'))
  assert np.ptp(image.astype(int), axis=-1).max() > 50  # in colour: maps and boxes were drawn
  assert found['heat'].shape == found['image'].size[::-1] and np.ptp(found['heat']) > 0


def test_probe_in_pytorch(example, home, capsys):
  torch = pytest.importorskip('torch', reason='the example is for PyTorch')
  shutil.rmtree(home / 'exported', ignore_errors=True)
  assert convert.main(['export', '--checkpoint', str(home / 'runs/demo'), '--out',
                       str(home / 'exported')]) == 0
  card, data = (home / 'exported/README.md').read_text(), records.read_card(home / 'runs/demo/records')
  splits, counts = data['splits'], data['class_counts']['pleural effusion']
  assert f'| records of train, val, test | {", ".join(map(str, splits.values()))} |' in card
  assert f'| pleural effusion | {" | ".join(map(str, counts.values()))} |' in card
  try:
    found = example('probe_torch.py')
  finally:
    for name in ('plan_torch', 'plan_inputs'):
      sys.modules.pop(name, None)
  assert found['losses'][-1] < 0.7 * found['losses'][0]
  before = inference.load(home / 'runs/demo')._variables['params']['image_tower']
  kernel = found['model'].image.embedder.embedder.convolution.weight.detach()[:, 0]
  moved = torch.tensor(np.array(before['stem']['conv']['kernel']))[..., 0, :].permute(2, 0, 1) - kernel
  assert 0 < moved.abs().max() < 1e-2
  assert f'AUROC {found["tuned"]:.3f}' in capsys.readouterr().out
