"""Where figures go: each step once, and a line that tells the time left."""

import json

from plan_jax import metrics


def test_a_resumed_run_has_each_step_once(tmp_path):
  writer = metrics.Writer(tmp_path, start_step=0)
  for step in (1, 2, 3):
    writer.write(step, {'stage': 'discover', 'loss': float(step)})
  writer.close()
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 4, "lo')  # a kill in the middle of a line
  writer = metrics.Writer(tmp_path, start_step=2)
  writer.write(3, {'stage': 'refine', 'loss': 30.0})
  writer.close()
  rows = metrics.read(tmp_path / 'metrics.jsonl')
  assert [(row['step'], row['loss']) for row in rows] == [(1, 1.0), (2, 2.0), (3, 30.0)]
  assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == 3
  assert all(json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines())
  assert metrics.read(tmp_path / 'absent.jsonl') == []


def test_the_line_shows_rate_and_time_left(monkeypatch, capsys):
  clock = [0.0]
  monkeypatch.setattr(metrics.time, 'monotonic', lambda: clock[0])
  progress = metrics.Progress(total_steps=100, start_step=0, batch_size=8, quiet_s=0)
  clock[0] = 60.0  # compilation
  progress.update(10, stage='discover', losses={'loss': 1.0})
  clock[0] = 90.0  # 10 s of work and 20 s of validation
  progress.pause(20.0)
  speed = progress.update(20, stage='refine', losses={'loss': 2.0, 'loss_global': 1.5})
  line = capsys.readouterr().out.splitlines()[-1]
  assert speed == {'pairs_per_s': 8.0} and 'MFU' not in line
  assert line.startswith('refine') and 'step 20/100' in line and '8 pairs/s' in line
  assert 'global 1.500' in line and line.endswith('ETA 1:20')


def test_the_share_of_the_peak_is_shown_where_the_peak_is_known(monkeypatch, capsys):
  clock = [0.0]
  monkeypatch.setattr(metrics.time, 'monotonic', lambda: clock[0])
  progress = metrics.Progress(total_steps=100, start_step=0, batch_size=8, quiet_s=0)
  clock[0] = 5.0  # ten steps of half a second
  speed = progress.update(10, stage='discover', losses={}, peak_share_of_step=0.2)
  assert speed == {'pairs_per_s': 16.0, 'mfu': 0.4}
  assert '16 pairs/s  MFU 40%' in capsys.readouterr().out
