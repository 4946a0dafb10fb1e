"""The ablation grid: its runs, its comparisons, its errors."""

import json
import os
from pathlib import Path
import signal
import threading
import time

import cv2
import numpy as np
import pytest

from plan_jax import ablate
from plan_jax import ablation
from plan_jax import config as config_lib
from plan_jax.data import prepare
from plan_jax.evals import paired
from tests import quick_to_compile

ROOT = Path(__file__).parents[1]
IMAGES, PHRASES = 60, 120

GRID = '''
from plan_jax import ablation


def get_config():
  arm = ablation.Arm
  return ablation.Grid(
      base={base!r}, reference='sparc', baselines=('convirt',), seeds=(0, 1),
      common={{'data.image_size': 64, 'data.max_pieces': 24, 'data.max_words': 16,
               'model.joint_dim': 16, 'train.steps': 2, 'train.batch_size': 4,
               'train.eval_pairs': 4, 'evaluation.max_pairs': 8, 'evaluation.pictures': 0}},
      arms={{'sparc': arm(changes={{'objective.name': 'sparc'}}),
             'convirt': arm(changes={{
                 'objective.name': 'convirt', {key!r}: 4}})}})
'''


def grid(**changes) -> ablation.Grid:
  values = dict(
      base='configs/demo.py', reference='ours', baselines=('theirs',), seeds=(0, 1),
      arms={'ours': ablation.Arm(changes={'optim.lr': 1e-3}),
            'theirs': ablation.Arm(changes={'objective.name': 'gloria'}),
            'part': ablation.Arm(changes={'objective.gate': 'hard'}, about='(5) hard')})
  return ablation.Grid(**{**values, **changes})


def write_run(workdir, arm, seed, *, lift, pairs=IMAGES, maps='regions', words=True):
  """A finished run whose phrases score `lift` above those of a run with lift 0."""
  rng = np.random.default_rng(7)  # the same samples for all runs
  base = rng.normal(size=PHRASES)
  positive = rng.random((IMAGES, 2)) < 0.4
  noise = rng.normal(size=(IMAGES, 2))
  ranks = rng.integers(1, 12, IMAGES)
  samples = {
      'patient': np.arange(IMAGES) // 2, 'reported': np.arange(IMAGES),
      'grounding_image': np.repeat(np.arange(IMAGES), PHRASES // IMAGES),
      'grounding_category': np.array(['a', 'b'] * (PHRASES // 2)),
      'zero_shot_scores': noise + lift * positive, 'zero_shot_positive': positive,
      'zero_shot_labelled': np.arange(IMAGES) > 3}
  for kind in ('regions', 'words'):
    better = lift + 0.01 * seed + (kind == 'words')
    samples |= {f'grounding_{kind}/cnr': base + better,
                f'grounding_{kind}/iou': np.tile(base[:, None], 5) * 0.1 + better,
                f'grounding_{kind}/pointing': (base + better > 0).astype(float)}
  for way in ('image_to_text', 'text_to_image'):
    samples[f'retrieval/{way}'] = ranks
    if words:
      samples[f'retrieval_words/{way}'] = np.maximum(ranks - 3, 1)
  run = ablation.run_directory(workdir, arm, seed=seed)
  (run / 'eval').mkdir(parents=True)
  np.savez(run / 'eval' / 'samples.npz', **samples)
  (run / 'eval' / 'metrics.json').write_text(json.dumps(
      {'split': 'val', 'pairs': pairs, 'data': {'content_hash': 'abc'},
       'grounding': {'maps': maps}}))
  return base, samples


def test_comparison_pairs_seeds_and_samples(tmp_path):
  for seed in (0, 1):
    base, samples = write_run(tmp_path, 'ours', seed, lift=0.5)
    write_run(tmp_path, 'part', seed, lift=0.2)
  write_run(tmp_path, 'theirs', 1, lift=0.1, maps='words', words=False)
  found = ablation.compare(grid(), tmp_path, replicates=300)
  assert found.seeds == {'ours': [0, 1], 'theirs': [1], 'part': [0, 1]}
  ours = found.summaries['ours']['cnr']
  assert ours.figure.value == pytest.approx(base.mean() + 0.505)
  assert ours.deviation == pytest.approx(0.01 / np.sqrt(2)) and ours.figure.n == PHRASES
  assert ours.figure.low < ours.figure.value - 0.1  # the samples vary ...
  lead = found.differences['part']['cnr']
  assert lead.figure.value == pytest.approx(0.3)
  # ... their difference does not, and the runs do by .01 a seed: t of two degrees of freedom.
  half = 4.303 * np.sqrt(0.00005 * (1 / 2 + 1 / 2))
  assert lead.figure.high - 0.3 == pytest.approx(half, rel=1e-3)
  assert lead.relative == pytest.approx(0.3 / (base.mean() + 0.205))
  # The baseline speaks by its own kind of map, and only its seed is compared.
  assert found.differences['theirs']['cnr'].figure.value == pytest.approx(0.4 - 1.0)
  assert np.isnan(found.differences['theirs']['cnr'].p_value)
  # Retrieval by words where a run has it.
  ranks = samples['retrieval/image_to_text']
  assert found.summaries['ours']['recall'].figure.value == pytest.approx((ranks <= 8).mean())
  assert found.summaries['theirs']['recall'].figure.value == pytest.approx((ranks <= 5).mean())
  assert found.differences['part']['auroc'].figure.low > 0
  assert json.loads(json.dumps(found.as_json()))['arms']['part']['seeds'] == [0, 1]
  text = ablation.table(found)
  assert '`part` (5) hard | regions, words count | 2 |' in text and '| `theirs` | words | 1' in text
  assert '+0.300 [+0.270, +0.330]' in text
  assert text.index('`theirs`') < text.index('one part changed') < text.index('`part`')


def test_intervals_of_a_difference_cover_samples_and_seeds():
  rng = np.random.default_rng(0)
  draws = rng.normal(size=500) * 0.01
  same = [(1.0, 1.0 + draws), (1.0, 1.0 + draws)]
  apart = [(0.8, 0.8 + draws), (0.4, 0.4 + draws)]
  found = paired.difference(same, apart, n=9)
  assert found.figure.value == pytest.approx(0.4)
  # Samples do not matter here; the runs give a t interval of one degree of freedom.
  assert found.figure.high - 0.4 == pytest.approx(12.706 * 0.2, rel=1e-3)
  assert found.p_value == pytest.approx(0.2952, abs=1e-3)  # t = 2 on one degree of freedom
  single = paired.difference(same[:1], apart[:1], n=9)
  assert (single.figure.low, single.figure.high) == (pytest.approx(0.2), pytest.approx(0.2))
  with pytest.raises(ValueError, match='2 runs cannot be paired with 1'):
    paired.difference(same, apart[:1], n=9)


def test_intervals_cover_what_they_say():
  """Three runs of a figure whose true value is 0, with spread of samples and of runs."""
  rng = np.random.default_rng(0)
  inside = 0
  for _ in range(400):
    shared = rng.normal() * 0.5  # the samples at hand, the same for all runs
    values = shared + rng.normal(size=3)
    draws = values[:, None] + rng.normal(size=200) * 0.5
    found = paired.interval(values, draws, n=9)
    inside += found.low <= 0 <= found.high
  assert 0.92 < inside / 400 < 0.99


def test_spread_pooled_over_arms():
  rng = np.random.default_rng(0)
  spread = paired.pooled_spread([[1.0, 3.0], [5.0, 5.0, 8.0], [7.0]])
  assert spread.freedom == 3 and spread.variance == pytest.approx((2 + 6) / 3)
  assert paired.pooled_spread([[1.0], [2.0]]) is None and paired.pooled_spread([]) is None
  inside = 0
  for _ in range(300):  # six runs of the reference, one of an arm that is as good
    arms = [0.5 * rng.normal(size=n) for n in (6, 1, 2)]
    shared = rng.normal(size=99) * 0.2
    ours, theirs = ([(value, value + shared) for value in arms[k]] for k in (0, 1))
    found = paired.difference_of_means(
        ours, theirs, n=9, spread=paired.pooled_spread(arms))
    inside += found.figure.low <= 0 <= found.figure.high
    assert found.figure.value == pytest.approx(arms[0].mean() - arms[1][0])
  assert 0.91 < inside / 300 < 0.99
  alone = paired.difference_of_means(ours, theirs, n=9, spread=None)
  assert np.isnan(alone.p_value) and alone.figure.low == pytest.approx(alone.figure.value)


def test_runs_on_different_pairs_are_not_compared(tmp_path):
  write_run(tmp_path, 'ours', 0, lift=0.5)
  write_run(tmp_path, 'part', 0, lift=0.2, pairs=IMAGES - 1)
  with pytest.raises(ablation.AblationError, match='different pairs.*remove one'):
    ablation.compare(grid(), tmp_path)
  assert ablation.compare(grid(), tmp_path / 'empty') is None


def test_the_grid_of_the_project():
  found = ablate.load_grid(str(ROOT / 'configs' / 'ablation.py'))
  for arm in found.arms:
    ablate.resolve(found, arm, seed=0, split='test')
  assert len(found.seeds) >= 3 and set(found.baselines) == {'convirt', 'sparc', 'gloria', 'mgca'}
  for arm in found.arms:  # all the same but for what the arm is about
    assert not {key for key in found.arms[arm].changes if key.split('.')[0] in ('train', 'data')}


@pytest.mark.parametrize('change, message', [
    ({'reference': 'none'}, "'none' is no arm.*ours, theirs, part"),
    ({'arms': {'ours': ablation.Arm(changes={'optim.lrr': 1.0})}, 'baselines': ()},
     'optim.lrr: no such setting'),
    ({'arms': {'ours': ablation.Arm(changes={'objective.gate': 'round'})}, 'baselines': ()},
     "arm 'ours'.*objective.gate = 'round'"),
    ({'arms': {'ours': ablation.Arm(changes={'optim.lr': 'fast'})}, 'baselines': ()},
     "arm 'ours'.*optim.lr = 'fast'"),
    ({'base': 'configs/nowhere.py'}, 'configs/nowhere.py: no such Python file'),
])
def test_a_slip_in_the_grid_is_found_at_once(change, message, monkeypatch):
  monkeypatch.chdir(ROOT)
  with pytest.raises((ablation.AblationError, config_lib.ConfigError), match=message):
    ablate.resolve(grid(**change), 'ours', seed=0, split='val')


@pytest.fixture(scope='module')
def records(tmp_path_factory):
  out = tmp_path_factory.mktemp('records') / 'phantoms'
  assert prepare.main(['phantom', '--pairs', '64', '--seed', '3', '--size', '64', '--workers', '1',
                       '--out', str(out)]) == 0
  return out


def test_a_grid_runs_and_continues(tmp_path, records, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  monkeypatch.setenv('XLA_FLAGS', quick_to_compile.FLAGS)
  path = tmp_path / 'grid.py'
  workdir = tmp_path / 'runs'

  def command(*options):
    return ablate.main([f'--config={path}', f'--workdir={workdir}', f'--records={records}',
                        *options])

  path.write_text(GRID.format(base=str(ROOT / 'configs' / 'demo.py'), key='model.pixel_stag'))
  assert command() == 2
  assert 'did you mean config.model.pixel_stage' in capsys.readouterr().err
  path.write_text(GRID.format(base=str(ROOT / 'configs' / 'demo.py'), key='model.pixel_stage'))
  assert command('--arms=plan') == 2 and 'no arm; there are: sparc' in capsys.readouterr().err
  assert command('--seeds=4') == 2 and 'not in the grid' in capsys.readouterr().err

  assert command('--seeds=0', '--split=val') == 0
  text = capsys.readouterr().out
  assert '0 runs are done, 2 to do' in text and 'convirt, seed 0: done (2 of 2' in text
  found = json.loads((workdir / 'ablation.json').read_text())
  assert found['split'] == 'val' and set(found['arms']) == {'sparc', 'convirt'}
  assert set(found['arms']['convirt']['reference_minus_arm']) == {
      'cnr', 'miou', 'pointing', 'auroc', 'recall'}
  assert cv2.imread(str(workdir / 'ablation.png')) is not None
  written = (workdir / 'sparc' / 'seed-0' / 'eval' / 'metrics.json').stat().st_mtime_ns
  assert command('--seeds=0', '--split=val') == 0
  assert '2 runs are done, 0 to do' in capsys.readouterr().out
  assert (workdir / 'sparc' / 'seed-0' / 'eval' / 'metrics.json').stat().st_mtime_ns == written
  # What was made in another way is not taken for it.
  assert command('--seeds=0') == 2
  assert "config.evaluation.split = 'val', the grid now says 'test'" in capsys.readouterr().err
  path.write_text(path.read_text().replace("'train.steps': 2", "'train.steps': 3"))
  assert command('--seeds=0', '--split=val') == 2
  message = capsys.readouterr().err
  assert 'config.train.steps = 2, the grid now says 3; remove' in message


def test_a_run_that_fails_is_named(tmp_path, records, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  path = tmp_path / 'grid.py'
  grid_text = GRID.format(base=str(ROOT / 'configs' / 'demo.py'), key='model.pixel_stage')

  def error(records):
    assert ablate.main([f'--config={path}', f'--workdir={tmp_path / "runs"}',
                        f'--records={records}', '--seeds=0']) == 2
    return capsys.readouterr().err

  path.write_text(grid_text)
  assert "'nowhere' does not exist" in error('nowhere')
  path.write_text(grid_text.replace(
      "'train.steps': 2", "'train.steps': 2, 'evaluation.prompts': 'nowhere.toml'"))
  message = error(records)
  assert 'arm sparc, seed 0 failed with status 2' in message and 'nowhere.toml' in message
  assert 'log.txt' in message and 'run the same command again' in message


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_run_save(tmp_path, number):
  """The run is asked to stop, not killed; the grid then ends like after Ctrl-C."""
  script = (
      'import signal, sys, time\n'
      'def save(*_): sys.exit("saved; the same command continues")\n'
      'signal.signal(signal.SIGTERM, save)\n'
      'open(sys.argv[1], "w").close()\n'
      'time.sleep(30)\n')
  ready, log = tmp_path / 'ready', tmp_path / 'log.txt'

  def ask():
    while not ready.exists():
      time.sleep(0.02)
    os.kill(os.getpid(), number)

  handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
  thread = threading.Thread(target=ask)
  thread.start()
  with pytest.raises(KeyboardInterrupt):
    ablate._call(['-c', script, str(ready)], what='a run', log=log)
  thread.join()
  assert log.read_text() == 'saved; the same command continues\n'
  assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
