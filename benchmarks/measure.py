"""Cases of a benchmark, each in a fresh process, in turn; and how their figures are told.

A script gives `main` its cases (small dicts of plain values) and a function that measures
one. Every round runs all cases once, so that what disturbs the machine for a while
disturbs all of them; ratios are taken within a round. Cases with `'once': True` take too
long for that: they run in the first round only.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, Callable, Sequence

Case = dict[str, Any]
Result = dict[str, Any]

DOCS = pathlib.Path(__file__).parent.parent / 'docs'
_PACKAGES = ('jax', 'flax', 'grain', 'torch', 'transformers', 'onnxruntime')


def main(
    script: str, description: str, *, cases: Callable[[bool], Sequence[Case]],
    measure: Callable[[Case], Result], show: Callable[[list[tuple[Case, list[Result]]]], str],
    draw: Callable[[list[tuple[Case, list[Result]]], pathlib.Path], None] | None = None,
    rounds: int = 3, results: pathlib.Path = DOCS / 'performance', needs: Sequence[str] = (),
) -> None:
  """Command line of a benchmark.

  Args:
    script: its `__file__`; results are called by its name.
    description: for --help.
    cases: all of them, or, given True, a few tiny ones that show that the script works.
    measure: figures of one case; runs in a process of its own. `{'skipped': why}` where it
      cannot run.
    show: the table.
    draw: writes a figure to the path.
    rounds: how often each case runs.
    results: where figures go by default.
    needs: packages beyond requirements.txt; looked for before the first case.
  """
  parser = options_parser(description, rounds=rounds, results=results)
  parser.add_argument('--case', type=json.loads, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.case is not None:
    print(json.dumps(measure(options.case)))
    return
  missing = [name for name in needs if importlib.util.find_spec(name) is None]
  if missing:
    parser.error(f'not installed: {", ".join(missing)}; pip install {" ".join(missing)}')

  name = pathlib.Path(script).stem
  with contextlib.ExitStack() as stack:
    out = options.out
    if out is None:  # tiny figures do not go where the documentation keeps its own
      out = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) if options.quick else results
    out.mkdir(parents=True, exist_ok=True)
    found = _rounds(script, cases(options.quick), rounds=options.rounds, path=out / f'{name}.json')
    if draw is not None:
      draw(found, out / f'{name}.png')
  has_once = any(case.get('once') for case, _ in found)
  print(f'{name}: {machine()}; {options.rounds} runs of each, in turn'
        + (', long cases once' if has_once and options.rounds > 1 else '') + '\n')
  print(show(found) + '\n')


def options_parser(
    description: str, *, rounds: int | None = None, results: pathlib.Path = DOCS / 'performance',
) -> argparse.ArgumentParser:
  """What a benchmark and the command for all of them take."""
  parser = argparse.ArgumentParser(
      description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--rounds', type=int, default=rounds, help='runs of each case')
  parser.add_argument('--quick', action='store_true', help='tiny sizes: does it work?')
  parser.add_argument(
      '--out', type=pathlib.Path, help='where figures (JSON) and plot go (default: '
      f'docs/{results.name}; with --quick nowhere)')
  return parser


def _rounds(script: str, wanted: Sequence[Case], *, rounds: int, path: pathlib.Path):
  """Cases with the results of each, written to `path` after every run: the next may fail."""
  found = [(case, []) for case in wanted]
  began, done = time.monotonic(), 0
  total = sum(1 if case.get('once') else rounds for case in wanted)
  for number in range(rounds):
    for case, of_case in found:
      if number and case.get('once'):
        continue
      of_case.append(_run(script, case))
      done += 1
      path.write_text(json.dumps({
          'machine': machine(), 'rounds': rounds,
          'cases': [{'case': case, 'results': of_case} for case, of_case in found]}, indent=1) + '\n')
      left = (time.monotonic() - began) / done * (total - done)
      print(f'{done} of {total}, ETA {left / 60:.1f} min: {_name(case)}', file=sys.stderr, flush=True)
  return found


def machine() -> str:
  """Processor, cores and versions, in one line."""
  versions = ', '.join(f'{name} {_version(name)}' for name in _PACKAGES)
  return (f'{len(os.sched_getaffinity(0))} cores of {_processor()}, '
          f'Python {platform.python_version()}, {versions}')


def median(results: Sequence[Result], key: str) -> float | None:
  """Of the runs that have the figure; None if none has."""
  values = [result[key] for result in results if result.get(key) is not None]
  return statistics.median(values) if values else None


def spread(results: Sequence[Result], key: str, *, unit: float = 1.0) -> str:
  """Median (least to most), for a table; one run alone stands so; '-' if no run has the figure."""
  return _spread([result[key] / unit for result in results if result.get(key) is not None], _short)


def ratio(above: Sequence[Result], below: Sequence[Result], key: str) -> str:
  """Median (least to most) of above / below, run by run; '-' where one has no figure, or 0 below."""
  pairs = [a[key] / b[key] for a, b in zip(above, below, strict=True)
           if a.get(key) is not None and b.get(key)]
  return _spread(pairs, '{:.2f}'.format)


def _spread(values: Sequence[float], text: Callable[[float], str]) -> str:
  if not values:
    return '-'
  if len(values) == 1:
    return text(values[0])
  return f'{text(statistics.median(values))} ({text(min(values))} to {text(max(values))})'


def _short(value: float) -> str:
  return f'{value:.3g}' if abs(value) < 1000 else f'{value:,.0f}'


def reset_peak() -> None:
  """Starts the peak of `peak_mib` anew."""
  pathlib.Path('/proc/self/clear_refs').write_text('5')


def peak_mib() -> float:
  """The most memory of this process that was resident since `reset_peak`."""
  return _status('VmHWM')


def resident_mib() -> float:
  """Memory of this process that is resident now."""
  return _status('VmRSS')


def free_mib() -> float:
  """Memory that the machine can give."""
  for line in pathlib.Path('/proc/meminfo').read_text().splitlines():
    if line.startswith('MemAvailable:'):
      return int(line.split()[1]) / 1024
  raise RuntimeError('/proc/meminfo has no MemAvailable')


def timed(run: Callable[[], Any], *, least: int, seconds: float) -> list[float]:
  """Seconds of each call: `least` calls, and more until `seconds` are over."""
  took = []
  while len(took) < least or sum(took) < seconds:
    began = time.perf_counter()
    run()
    took.append(time.perf_counter() - began)
  return took


def _run(script: str, case: Case) -> Result:
  done = subprocess.run(
      [sys.executable, script, '--case', json.dumps(case)], capture_output=True, text=True)
  if done.returncode < 0:  # by a signal: the kernel's, for memory
    return {'skipped': f'killed by signal {-done.returncode}'}
  if done.returncode:
    raise RuntimeError(f'{_name(case)} failed:\n{done.stderr}')
  return json.loads(done.stdout.splitlines()[-1])


def _name(case: Case) -> str:
  return ' '.join(f'{key}={value}' for key, value in case.items())


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return 'absent'


def _processor() -> str:
  for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
    if line.startswith('model name'):
      return line.split(':', 1)[1].strip()
  return platform.machine()


def _status(key: str) -> float:
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith(key + ':'):
      return int(line.split()[1]) / 1024
  raise RuntimeError(f'/proc/self/status has no {key}')
