"""The benchmarks run, at tiny sizes, and tell what they found."""

import importlib
import json
from pathlib import Path
import shutil
import subprocess
import sys

import pytest

from plan_jax import config
from plan_jax.data import records as records_lib
from plan_jax.data import tokenize

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'


@pytest.fixture
def script(monkeypatch):
  """Imports one of them."""
  monkeypatch.syspath_prepend(str(BENCHMARKS))
  return importlib.import_module


def measured(script, wanted=lambda case: True):
  """The quick cases that are `wanted`, with a run each."""
  return [(case, [script.run(case)]) for case in script.cases(True) if wanted(case)]


def test_word_pixel(script, tmp_path):
  pytest.importorskip('torch', reason='one of the forms is a PyTorch loop')
  word_pixel = script('word_pixel')
  found = measured(word_pixel)
  ours, *others = (results[0]['loss'] for _, results in found)
  assert others == pytest.approx(3 * [ours], rel=1e-5)
  table = word_pixel.show(found)
  assert len(table.splitlines()) == 3 and '| 8 | 32 | ragged |' in table
  word_pixel.draw(found, tmp_path / 'word_pixel.png')
  assert (tmp_path / 'word_pixel.png').stat().st_size > 1000
  found[1][1][0]['loss'] *= 1.01
  with pytest.raises(AssertionError, match='the losses differ'):
    word_pixel.show(found)


def test_large_batch(script):
  large_batch = script('large_batch')
  (case, (found,)), = measured(large_batch, lambda case: case['chunks'] == 4)
  assert 0 < found['planned_mib'] < found['peak_mib'] and found['seconds'] > 0
  assert '| self | 4 |' in large_batch.show([(case, [found])])


def test_devices(script, tmp_path):
  devices = script('devices')
  found = measured(devices, lambda case: case['what'] == 'loss')
  by = {(case['how'], case['devices']): results[0] for case, results in found}
  assert by['ring', 1]['sent_mib'] == 0  # nothing to send around
  words = 4 * 2 * 97 * 128 / 2**20  # MiB of a device's words
  permuted = by['ring', 2]['sent_by_kind']['collective-permute']
  assert 3 * 2 * words <= permuted < 3.2 * 2 * words  # forward once around, backward with gradients
  assert by['blockwise', 2]['sent_by_kind']['all-gather'] == pytest.approx(words, rel=0.02)
  assert '| loss | ring | 2 | 4 |' in devices.show(found)
  steps = [({**case, 'what': 'step', 'how': {'ring': 'fsdp', 'blockwise': 'replicated'}[case['how']]},
            2 * results) for case, results in found]
  devices.draw(found + steps, tmp_path / 'devices.png')
  assert (tmp_path / 'devices.png').stat().st_size > 1000


def test_reading(script, tmp_path):
  reading = script('reading')
  pytest.importorskip('torch', reason='ours is compared with its DataLoader')
  found = measured(reading, lambda case: not case['by'].endswith('with workers'))
  assert all(result['rate'] > 0 for _, results in found for result in results)
  found = [  # as if those with workers had run as well
      ({**case, 'by': by}, results) for case, results in found
      for by in (case['by'], f"{case['by']} with workers")]
  table = reading.show(found).splitlines()
  assert len(table) == 4 and '| 64 px | cached |' in table[2] and '| 64 px | fresh |' in table[3]
  reading.draw(found, tmp_path / 'reading.png')
  assert (tmp_path / 'reading.png').stat().st_size > 1000


def test_the_loader_gives_tensors_of_the_same_records(script):
  reading = script('reading')
  torch = pytest.importorskip('torch', reason='it is PyTorch\'s')
  records = records_lib.Records(reading._records(64, 160), 'train')
  settings = config.Data()
  tokenizer = tokenize.Tokenizer(
      tokenize.read_vocabulary(records_lib.vocabulary_path(records.directory)),
      max_pieces=settings.max_pieces, max_words=settings.max_words)
  ours, theirs = (next(reading._BATCHES[by](records, tokenizer, settings)) for by in ('ours', 'loader'))
  for name, array in vars(ours).items():
    tensor = getattr(theirs, name)
    assert isinstance(tensor, torch.Tensor) and tensor.numpy().dtype == array.dtype
    assert tuple(tensor.shape) == array.shape
  fresh, cached = (reading._Corpus(records, tokens=tokens) for tokens in ('fresh', 'cached'))
  assert fresh[0].text != fresh[0].text and fresh[0].text.startswith(records[0].text)
  assert cached[len(records) + 1].id == records[1].id


def test_deployed(script, tmp_path, monkeypatch):
  """Two of the four forms; tests/test_convert_programs.py exports the others."""
  pytest.importorskip('torch', reason='one of the forms')
  monkeypatch.delitem(sys.modules, 'plan_torch', raising=False)
  deployed = script('deployed')
  monkeypatch.setattr(deployed, '_HOME', tmp_path)
  (ours, results), (_, theirs) = measured(deployed, lambda case: case['by'] in ('plan_jax', 'torch'))
  assert results[0]['off'] == 0 and 0 < theirs[0]['off'] < 1e-5
  assert theirs[0]['ms_16'] > 0 and theirs[0]['mib'] > 14  # the word pieces' table alone is that
  table = deployed.show([({**ours, 'by': by}, theirs) for by in deployed._BY])
  assert len(table.splitlines()) == 6 and '| bert_tiny | onnx |' in table
  monkeypatch.delitem(sys.modules, 'plan_torch')


def test_the_page_of_scale_shows_what_is_kept(script):
  scale = script('scale')
  docs = BENCHMARKS.parent / 'docs'
  kept = json.loads((docs / 'scale' / 'scale.json').read_text())['cases']
  assert [case['case'] for case in kept] == scale.cases(False)
  table = scale.show([(case['case'], case['results']) for case in kept])
  assert table in (docs / 'scale.md').read_text()


@pytest.mark.parametrize('name', ['word_pixel', 'devices', 'reading', 'towers', 'large_batch'])
def test_the_page_of_performance_shows_what_is_kept(script, name):
  docs = BENCHMARKS.parent / 'docs'
  kept = json.loads((docs / 'performance' / f'{name}.json').read_text())['cases']
  table = script(name).show([(case['case'], case['results']) for case in kept])
  assert table in (docs / 'performance.md').read_text()


def test_cases_run_in_processes_of_their_own_and_are_kept(script, tmp_path):
  measure = script('measure')
  path = tmp_path / 'twice.py'
  path.write_text(f"""
import os, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import measure

def run(case):
  if case['n'] == 3:
    os.kill(os.getpid(), 9)
  return {{'seconds': case['n'] * 2.0, 'process': os.getpid()}}

measure.main(__file__, 'doubles', cases=lambda quick: [{{'n': n}} for n in (1, 2, 3)], measure=run,
             show=lambda found: measure.ratio(found[1][1], found[0][1], 'seconds'))
""")
  done = subprocess.run([sys.executable, path, '--rounds', '2', '--out', tmp_path / 'out'],
                        capture_output=True, text=True, check=True)
  assert '6 of 6' in done.stderr and done.stdout.splitlines()[-2] == '2.00 (2.00 to 2.00)'
  kept = json.loads((tmp_path / 'out' / 'twice.json').read_text())
  assert len({result['process'] for case in kept['cases'][:2] for result in case['results']}) == 4
  assert kept['cases'][2]['results'] == [{'skipped': 'killed by signal 9'}] * 2
  assert measure.spread([{'x': 1.0}, {'x': 3.0}, {}], 'x') == '2 (1 to 3)'
  assert measure.ratio([{'x': 1.0}, {}], [{'x': 2.0}, {'x': 1.0}], 'x') == '0.50'
  assert measure.spread([{'x': 12345.6}], 'x') == '12,346'
  assert measure.ratio([{'x': 1.0}], [{'x': 0.0}], 'x') == '-'
  assert measure._version('no_such_package') == 'absent'


_TINY = """
import measure

measure.main(__file__, 'tiny', cases=lambda quick: [{'of': quick}, {'of': quick, 'once': True}],
             measure=lambda case: {'seconds': 1.0}, show=lambda found: str([len(x) for _, x in found]),
             draw=lambda found, path: path.write_bytes(b'plot'), needs=NEEDS,
             results=__import__('pathlib').Path(__file__).parent / 'docs')
"""


def test_one_command_runs_all(tmp_path):
  for name in ('__main__', 'measure'):
    shutil.copy(BENCHMARKS / f'{name}.py', tmp_path)
  for name in ('word_pixel', 'devices', 'reading', 'towers', 'large_batch'):
    assert (BENCHMARKS / f'{name}.py').is_file()
    (tmp_path / f'{name}.py').write_text(_TINY.replace('NEEDS', '()'))
  (tmp_path / 'towers.py').write_text(_TINY.replace('NEEDS', "('no_such_package',)"))
  before = {path.name for path in tmp_path.iterdir()}

  def run(*options):
    return subprocess.run([sys.executable, tmp_path, *options], capture_output=True, text=True)

  done = run('--quick', '--rounds', '2')
  assert done.stdout.count('[2, 1]') == 4 and done.stdout.count('2 runs of each') == 4
  assert '3 of 3' in done.stderr and 'reading: 3 of 5' in done.stderr
  assert 'not installed: no_such_package' in done.stderr
  assert done.returncode == 1 and done.stderr.endswith('failed: towers\n')
  assert {path.name for path in tmp_path.iterdir()} - before <= {'__pycache__'}  # nothing is kept

  (tmp_path / 'towers.py').write_text(_TINY.replace('NEEDS', '()'))
  assert run('--rounds', '1', '--out', tmp_path / 'out').returncode == 0
  assert json.loads((tmp_path / 'out/towers.json').read_text())['cases'][1] == {
      'case': {'of': False, 'once': True}, 'results': [{'seconds': 1.0}]}
  assert (tmp_path / 'out/large_batch.png').read_bytes() == b'plot'
  assert not (tmp_path / 'docs').exists()
  assert run('--round-trips').returncode == 2


def test_prepare_memory(script, tmp_path, capsys):
  memory = script('prepare_memory')
  assert memory._write(tmp_path, 16) > 0
  memory._run(tmp_path, 16, kill_at=None)  # one part: no workers
  printed = capsys.readouterr().out
  assert 'from 0 to 16 pictures' in printed
  rows = [line.split() for line in printed.splitlines()[3:]]
  assert 20 < max(int(row[-2]) for row in rows) < 1000  # MiB, once it has imported numpy
  assert (tmp_path / 'out/dataset.json').is_file()


@pytest.mark.parametrize('options, first', [([], 1), (['--formats'], 0)])
def test_prepare_speed(script, capsys, monkeypatch, options, first):
  speed = script('prepare_speed')
  monkeypatch.setattr(speed, '_HEIGHT', 300)
  monkeypatch.setattr(speed, '_WIDTH', 250)
  monkeypatch.setattr(sys, 'argv', ['prepare_speed.py', '--pictures', '2', *options])
  speed.main()
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 4 + first
  assert all('pictures/s of CPU time' in line for line in lines[first:])
