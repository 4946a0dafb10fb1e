"""The ablation grid: PLAN (reconstructed) against baselines, and part by part.

  python -m plan_jax.ablate --config=configs/ablation.py

Same towers, data, steps and seeds for all; the phantoms are drawn with a seed of their
own. A run takes about six minutes on two CPU cores.
"""

from plan_jax import ablation


def get_config() -> ablation.Grid:
  """The demo's towers in 800 steps on phantoms of another seed; six seeds of training."""
  arm = ablation.Arm
  return ablation.Grid(
      base='configs/demo.py',
      common={
          'train.steps': 800,
          'train.eval_every': 800,
          'evaluation.pictures': 0,
      },
      reference='plan',
      baselines=('convirt', 'sparc', 'gloria', 'mgca'),
      seeds=(0, 1, 2, 3, 4, 5),
      phantoms=ablation.Phantoms(pairs=13000, seed=6),
      arms={
          'plan': arm(changes={}),
          # What was trained on pooled vectors is asked for maps through their head.
          'convirt': arm(changes={
              'objective.name': 'convirt', 'model.pixel_head': 'global', 'model.pixel_stage': 4}),
          'sparc': arm(changes={'objective.name': 'sparc'}),
          'gloria': arm(changes={'objective.name': 'gloria', 'model.temperature': 0.1}),
          'mgca': arm(changes={'objective.name': 'mgca'}),
          'no-cross-pair': arm(about='(9) off, (7) on', changes={
              'objective.negatives': 'pair', 'objective.word_region_weight': 1.0}),
          'drawn-words': arm(about='16 words a report in (9), drawn by (11)', changes={
              'objective.cross_pair_words': 16}),
          'no-soft-gate': arm(about='(5) hard', changes={'objective.gate': 'hard'}),
          'no-stages': arm(about='last stage only', changes={
              'stages.discover.share': 0.0, 'stages.refine.share': 0.0,
              'stages.focus.share': 1.0}),
          'no-sharpening': arm(about='first stage only', changes={
              'stages.discover.share': 1.0, 'stages.refine.share': 0.0,
              'stages.focus.share': 0.0}),
          'no-refinement': arm(about='(14) off', changes={'objective.refine_weight': 0.0}),
          'no-reliability': arm(about='(15) off', changes={
              'stages.refine.reliability': False, 'stages.focus.reliability': False}),
          'no-term-filter': arm(about='(11), (12) off', changes={'objective.term_filter': False}),
          'no-term-weights': arm(about='(10) uniform', changes={
              'objective.term_weights': 'uniform'}),
          'no-learned-relation': arm(about='(3) cosine', changes={'model.relation': 'cosine'}),
          'ema-teacher': arm(about='(13) by EMA', changes={'objective.teacher': 'ema'}),
          'two-rounds': arm(about='(17b) on', changes={'objective.rounds': 2}),
          'with-word-region': arm(about='(7) on', changes={'objective.word_region_weight': 1.0}),
          'with-pixel-word': arm(about='(8) on', changes={'objective.pixel_word_weight': 1.0}),
      })
