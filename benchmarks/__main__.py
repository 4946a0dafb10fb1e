r"""All benchmarks of docs/performance.md, one after the other, in processes of their own.

  python benchmarks

Hours on two cores, which should have nothing else to do; `--quick` takes minutes. What fails
is named at the end, the others run all the same.
"""

import pathlib
import subprocess
import sys
import time

import measure

_NAMES = ('word_pixel', 'devices', 'reading', 'towers', 'large_batch')


def main() -> None:
  measure.options_parser(__doc__).parse_args()  # a wrong option stops here
  began, failed = time.monotonic(), []
  for number, name in enumerate(_NAMES, 1):
    minutes = (time.monotonic() - began) / 60
    print(f'{name}: {number} of {len(_NAMES)}, after {minutes:.0f} min', file=sys.stderr, flush=True)
    script = pathlib.Path(__file__).with_name(f'{name}.py')
    if subprocess.run([sys.executable, script, *sys.argv[1:]]).returncode:
      failed.append(name)
  if failed:
    sys.exit(f'failed: {", ".join(failed)}')


if __name__ == '__main__':
  main()
