r"""The full-size training steps, compiled for TPU slices: 4096 to 65536 pairs, three scopes of negatives.

  pip install -e '.[compile_check]'
  python benchmarks/scale.py

Nothing runs on a TPU; each case is one `python -m plan_jax.compile_check`, 64 pairs a chip.
Hours on two cores.
"""

import json
import pathlib
import subprocess
import sys

import measure

_ROOT = pathlib.Path(__file__).parent.parent
_MODELS = {'ViT-B/16': 'mimic_vit_b16', 'ResNet-50': 'mimic_resnet50'}
_SLICES = {4096: 'v5e:8x8', 16384: 'v5e:16x16', 65536: 'v5p:8x8x16'}
_NEGATIVES = ('pair', 'device', 'global')
_CONTRAST = 'word-pixel scores of all pairs (9)'


def cases(quick: bool) -> list[measure.Case]:
  if quick:
    small = ['--config.objective.name=convirt', '--config.objective.teacher=self',
             '--config.model.image=resnet_tiny', '--config.model.text=bert_tiny']
    return [{'model': 'ResNet-50', 'topology': 'v5e:2x2', 'batch': 8, 'options': small}]
  grid = [
      {'model': model, 'topology': topology, 'batch': batch, 'negatives': negatives, 'remat': 'dots'}
      for model in _MODELS for batch, topology in _SLICES.items() for negatives in _NEGATIVES]
  refused = [
      {'model': 'ViT-B/16', 'topology': _SLICES[16384], 'batch': 16384, 'negatives': negatives,
       'remat': 'none'} for negatives in ('pair', 'global')]
  return grid + refused


def run(case: measure.Case) -> measure.Result:
  options = case.get('options') or [
      f'--config.objective.negatives={case["negatives"]}', f'--config.model.remat={case["remat"]}']
  done = subprocess.run(
      [sys.executable, '-m', 'plan_jax.compile_check', '--json',
       f'--config={_ROOT / "configs" / _MODELS[case["model"]]}.py',
       f'--topology={case["topology"]}', f'--batch={case["batch"]}', *options],
      cwd=_ROOT, capture_output=True, text=True)
  if done.returncode not in (0, 1):  # 1: it does not fit
    raise RuntimeError(done.stderr)
  return json.loads(done.stdout)


def show(found) -> str:
  lines = ['| model | batch | slice | negatives | remat | GiB a chip | arithmetic / memory / '
           "collectives, ms | at best, ms | XLA's own, ms | of it (9), ms |",
           '|---|---|---|---|---|---|---|---|---|---|']
  for case, (result,) in found:
    has_times = result['compiler_ms'] is not None
    lines.append('| ' + ' | '.join([
        case['model'], str(case['batch']), case['topology'], case.get('negatives', '-'),
        case.get('remat', '-'), _memory(result),
        ' / '.join(f'{result[f"{what}_ms"]:.0f}' for what in ('arithmetic', 'memory', 'collectives'))
        if has_times else '-',
        _at_best(result) if has_times else '-',
        f'{result["compiler_ms"]:.0f}' if has_times else '-',
        f'{result["parts"].get(_CONTRAST, (0, 0))[1]:.0f}' if has_times else '-']) + ' |')
  return '\n'.join(lines)


def _memory(result: measure.Result) -> str:
  held = f'{result["hbm_gib"]:.1f} of {result["chip_hbm_gib"]:.4g}'
  return held if result['fits'] else f'**{held}: does not fit**'


def _at_best(result: measure.Result) -> str:
  name = max(('arithmetic', 'memory', 'collectives'), key=lambda what: result[f'{what}_ms'])
  return f'{result["step_ms_estimate"]:.0f} ({name})'


def draw(found, path: pathlib.Path) -> None:
  from matplotlib import pyplot
  from matplotlib import ticker

  figure, axes = pyplot.subplots(
      1, len(_MODELS), figsize=(10, 4.4), sharey=True, layout='constrained')
  for axis, model in zip(axes, _MODELS, strict=True):
    for place, (negatives, colour) in enumerate(zip(_NEGATIVES, ('#4477aa', '#66ccee', '#ee6677'))):
      of_scope = {case['batch']: result for case, (result,) in found if case['model'] == model
                  and case.get('negatives') == negatives and case.get('remat') == 'dots'}
      for column, batch in enumerate(_SLICES):
        if batch not in of_scope or of_scope[batch]['compiler_ms'] is None:
          continue
        result, x = of_scope[batch], column + 0.27 * (place - 1)
        axis.bar(x, result['compiler_ms'], 0.24, color=colour, alpha=0.3)
        axis.bar(x, result['step_ms_estimate'], 0.24, color=colour,
                 label=negatives if column == 0 else None)
    axis.set(title=f'{model} + BERT-base', yscale='log', xlim=(-0.5, len(_SLICES) - 0.5),
             xticks=range(len(_SLICES)),
             xticklabels=[f'{batch}\n{topology}' for batch, topology in _SLICES.items()])
    axis.yaxis.set_major_formatter(ticker.ScalarFormatter())
    axis.grid(axis='y', alpha=0.3)
  axes[0].set_ylabel('a step, ms')
  figure.legend(*axes[0].get_legend_handles_labels(), title='negatives', ncols=3,
                loc='outside lower center')
  figure.suptitle("Compiled, not run: at best (full colour), and XLA's own pessimistic count (pale)")
  figure.savefig(path, dpi=120)


if __name__ == '__main__':
  measure.main(__file__, __doc__, cases=cases, measure=run, show=show, draw=draw, rounds=1,
               results=measure.DOCS / 'scale')
