"""A grid of runs (arms x seeds), and what their test figures say about each other.

An arm is a set of changes to one base config. Each run is a directory of
`plan_jax.train`; the comparison reads its `eval/metrics.json` and `eval/samples.npz`.
"""

import dataclasses
import json
import pathlib
from typing import Any, Mapping, Sequence

import numpy as np

from plan_jax import config as config_lib
from plan_jax import errors
from plan_jax.evals import bootstrap
from plan_jax.evals import grounding
from plan_jax.evals import paired
from plan_jax.evals import zero_shot

FIGURES = {  # name: (what it is, digits)
    'cnr': 'grounding CNR', 'miou': 'grounding mIoU', 'pointing': 'pointing game',
    'auroc': 'zero-shot macro AUROC', 'recall': 'retrieval R@5, mean of both directions'}


class AblationError(errors.UserError):
  """A grid that cannot be run or compared."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
  """One way to train: `changes` are settings by dotted key."""

  changes: Mapping[str, Any]
  about: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phantoms:
  """The corpus to draw where no records are given."""

  pairs: int
  seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
  """What `configs/ablation.py` returns.

  Attributes:
    base: config file that the arms change.
    common: changes of all arms.
    arms: by name, in the table's order.
    seeds: of training, each with every arm.
    reference: the arm that the others are compared with.
    baselines: arms that are methods of their own; the others are parts of the reference.
    phantoms: the corpus.
  """

  base: str
  arms: Mapping[str, Arm]
  seeds: Sequence[int]
  reference: str
  common: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  baselines: Sequence[str] = ()
  phantoms: Phantoms | None = None

  def __post_init__(self):
    for name in (self.reference, *self.baselines):
      if name not in self.arms:
        raise AblationError(f'{name!r} is no arm of the grid; it has: {", ".join(self.arms)}')

  def changes(self, arm: str, *, seed: int) -> dict[str, Any]:
    """All settings of a run that differ from the base."""
    return {**self.common, **self.arms[arm].changes, 'train.seed': seed}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """Everything the table says."""

  grid: Grid
  seeds: Mapping[str, Sequence[int]]  # finished ones of each arm
  maps: Mapping[str, str]  # kind of map and whether words count, of each arm
  summaries: Mapping[str, Mapping[str, paired.Summary]]  # by arm, then figure
  differences: Mapping[str, Mapping[str, paired.Difference]]  # reference minus arm
  content_hash: str
  split: str
  pairs: int

  def as_json(self) -> dict[str, Any]:
    return {
        'split': self.split, 'pairs': self.pairs, 'content_hash': self.content_hash,
        'reference': self.grid.reference,
        'arms': {
            arm: {
                'about': self.grid.arms[arm].about, 'changes': dict(self.grid.arms[arm].changes),
                'maps': self.maps[arm], 'seeds': list(self.seeds[arm]),
                'figures': {name: each.as_json() for name, each in figures.items()},
                'reference_minus_arm': {
                    name: each.as_json()
                    for name, each in self.differences.get(arm, {}).items()}}
            for arm, figures in self.summaries.items()}}


def run_directory(workdir: pathlib.Path, arm: str, *, seed: int) -> pathlib.Path:
  """Where a run lives."""
  return workdir / arm / f'seed-{seed}'


def is_done(run: pathlib.Path) -> bool:
  """Whether a run has its figures: metrics.json is written last, and whole."""
  return (run / 'eval' / 'metrics.json').exists()


def require_same(run: pathlib.Path, config: config_lib.Config, *, content_hash: str) -> None:
  """Checks that what is in a run's directory is what the grid asks for now.

  Raises:
    AblationError: other settings, or other records.
  """
  # Resolved, so that a setting which is newer than the run counts with its default.
  found = config_lib.to_dict(config_lib.resolve(
      json.loads((run / 'config.json').read_text('utf-8'))))
  wanted = config_lib.to_dict(config)
  mend = f'remove {run}, or choose another --workdir'
  for group, settings in wanted.items():
    for name, value in settings.items():
      if (group, name) != ('data', 'records') and found[group][name] != value:
        raise AblationError(f'{run} was made with config.{group}.{name} = '
                            f'{found[group][name]!r}, the grid now says {value!r}; {mend}')
  if is_done(run):
    made = json.loads((run / 'eval' / 'metrics.json').read_text('utf-8'))['data']['content_hash']
    if made != content_hash:
      raise AblationError(f'{run} was evaluated on other records ({made[:12]} and not '
                          f'{content_hash[:12]}); {mend}')


def compare(grid: Grid, workdir: pathlib.Path, *, replicates: int = bootstrap.REPLICATES,
            ) -> Comparison | None:
  """The comparison of the finished runs; None if the reference has none.

  A baseline is paired with the reference by the seeds that both have. Parts of the
  reference spread over seeds much as it does, so the spread of all of them is pooled, and
  all runs of the reference count.

  Raises:
    AblationError: runs evaluated on different samples.
  """
  runs: dict[str, dict[int, _Run]] = {}
  for arm in grid.arms:
    for seed in grid.seeds:
      directory = run_directory(workdir, arm, seed=seed)
      if is_done(directory):
        runs.setdefault(arm, {})[seed] = _read(directory, replicates=replicates)
  if grid.reference not in runs:
    return None
  about = {(run.content_hash, run.split, run.pairs): run.directory
           for by_seed in runs.values() for run in by_seed.values()}
  if len(about) > 1:
    first, second = list(about.values())[:2]
    raise AblationError(
        f'{first} and {second} were evaluated on different pairs ({list(about)[0]} and '
        f'{list(about)[1]}: hash, split, pairs); remove one and run it again')
  (content_hash, split, pairs), = about
  summaries, differences = {}, {}
  reference = runs[grid.reference]
  parts = [by_seed for arm, by_seed in runs.items() if arm not in grid.baselines]
  for arm, by_seed in runs.items():
    summaries[arm], differences[arm] = {}, {}
    for name in FIGURES:
      found, ours = (
          {seed: run.figures[name] for seed, run in group.items() if name in run.figures}
          for group in (by_seed, reference))
      if not found:
        continue
      n = next(run.samples[name] for run in by_seed.values() if name in run.samples)
      summaries[arm][name] = paired.summary(list(found.values()), n=n)
      both = [seed for seed in found if seed in ours]
      if arm in grid.baselines and both:
        differences[arm][name] = paired.difference(
            [ours[seed] for seed in both], [found[seed] for seed in both], n=n)
      elif arm not in (grid.reference, *grid.baselines) and ours:
        differences[arm][name] = paired.difference_of_means(
            list(ours.values()), list(found.values()), n=n,
            spread=paired.pooled_spread([
                [run.figures[name][0] for run in part.values() if name in run.figures]
                for part in parts]))
  return Comparison(
      grid=grid, seeds={arm: list(by_seed) for arm, by_seed in runs.items()},
      maps={arm: next(iter(by_seed.values())).maps for arm, by_seed in runs.items()},
      summaries=summaries, differences=differences, content_hash=content_hash, split=split,
      pairs=pairs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
  """One run's figures with their replicates."""

  directory: pathlib.Path
  content_hash: str
  split: str
  pairs: int
  maps: str
  figures: Mapping[str, paired.Run]
  samples: Mapping[str, int]


def _read(directory: pathlib.Path, *, replicates: int) -> _Run:
  results = json.loads((directory / 'eval' / 'metrics.json').read_text('utf-8'))
  figures, samples = {}, {}
  kind = results['grounding']['maps']
  with np.load(directory / 'eval' / 'samples.npz', allow_pickle=False) as values:
    patient, image = values['patient'], values['grounding_image']
    if len(image):
      scores = grounding.Scores(**{
          name: values[f'grounding_{kind}/{name}'] for name in ('cnr', 'iou', 'pointing')})
      times = bootstrap.resample(patient[image], replicates=replicates, seed=0)
      found = grounding.draws(scores, categories=list(values['grounding_category']), times=times)
      figures |= {name: found[name] for name in ('cnr', 'miou', 'pointing')}
      samples |= dict.fromkeys(('cnr', 'miou', 'pointing'), len(image))
    if 'zero_shot_scores' in values:
      kept = values['zero_shot_labelled']
      times = bootstrap.resample(patient[kept], replicates=replicates, seed=0)
      figures['auroc'] = _macro_auroc(
          values['zero_shot_scores'][kept], values['zero_shot_positive'][kept], times)
      samples['auroc'] = int(kept.sum())
    with_words = 'retrieval_words/image_to_text' in values
    part = 'retrieval_words' if with_words else 'retrieval'
    hits = np.mean([values[f'{part}/{way}'] <= 5 for way in ('image_to_text', 'text_to_image')], 0)
    times = bootstrap.resample(patient[values['reported']], replicates=replicates, seed=0)
    figures['recall'] = (float(hits.mean()), bootstrap.weighted_means(hits, times))
    samples['recall'] = len(hits)
  return _Run(
      directory=directory, content_hash=results['data']['content_hash'], split=results['split'],
      pairs=results['pairs'], maps=f'{kind}, words count' if with_words else kind,
      figures=figures, samples=samples)


def _macro_auroc(scores, is_positive, times) -> paired.Run:
  once = np.ones((1, len(scores)))
  columns = [(scores[:, k], is_positive[:, k]) for k in range(scores.shape[1])]
  points = np.array([zero_shot.aurocs(*column, once)[0] for column in columns])
  draws = np.stack([zero_shot.aurocs(*column, times) for column in columns], -1)
  return float(bootstrap.nan_mean(points)), bootstrap.nan_mean(draws)


def table(found: Comparison) -> str:
  """Markdown: arms with means, intervals, and the reference's lead over each."""
  grid = found.grid
  groups = [('Methods', [grid.reference, *grid.baselines]),
            (f'{grid.reference} with one part changed',
             [arm for arm in grid.arms if arm not in (grid.reference, *grid.baselines)])]
  lines = [f'{found.split} split, {found.pairs} pairs. Mean over seeds [95 % interval over samples '
           f'and seeds; of one seed: over samples]; below it, the lead of `{grid.reference}` over '
           'the arm: difference [interval], paired by sample, and over the methods by seed; the '
           'spread over seeds of the parts is pooled. Maps: the kind that speaks '
           'for the objective; retrieval and zero-shot by vectors, and by words where they count.',
           '']
  for title, arms in groups:
    arms = [arm for arm in arms if arm in found.summaries]
    if not arms:
      continue
    lines += [f'**{title}**', '',
              '| arm | maps, matching | seeds | ' + ' | '.join(FIGURES.values()) + ' |',
              '|---|---|---|' + '---|' * len(FIGURES)]
    for arm in arms:
      cells = [_cell(found, arm, name) for name in FIGURES]
      about = grid.arms[arm].about
      lines.append(f'| `{arm}`{" " + about if about else ""} | {found.maps[arm]} | '
                   f'{len(found.seeds[arm])} | '
                   + ' | '.join(cells) + ' |')
    lines.append('')
  return '\n'.join(lines)


def _cell(found: Comparison, arm: str, name: str) -> str:
  if name not in found.summaries[arm]:
    return ''
  figure = found.summaries[arm][name].figure
  if np.isnan(figure.value):
    return 'undefined'
  text = f'{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]'
  lead = found.differences.get(arm, {}).get(name)
  if lead:
    each = lead.figure
    text += f'<br>{each.value:+.3f} [{each.low:+.3f}, {each.high:+.3f}]'
  return text
