"""PLAN (reconstructed) against baselines on a small real corpus.

  python -m plan_jax.ablate --config=configs/ablation_real.py --records=DIR --workdir=DIR

Same towers, data, steps and seeds for all.
"""

from plan_jax import ablation


def get_config() -> ablation.Grid:
  """The towers of `configs/real_small.py`, in 600 steps."""
  arm = ablation.Arm
  return ablation.Grid(
      base='configs/real_small.py',
      common={
          'train.steps': 600,
          'train.eval_every': 600,
          'train.checkpoint_every': 600,
          'evaluation.pictures': 0,
      },
      reference='plan',
      baselines=('convirt', 'sparc', 'gloria', 'mgca'),
      seeds=(0, 1, 2),
      arms={
          'plan': arm(changes={}),
          # What was trained on pooled vectors is asked for maps through their head.
          'convirt': arm(changes={
              'objective.name': 'convirt', 'model.pixel_head': 'global', 'model.pixel_stage': 4}),
          'sparc': arm(changes={'objective.name': 'sparc'}),
          'gloria': arm(changes={'objective.name': 'gloria', 'model.temperature': 0.1}),
          'mgca': arm(changes={'objective.name': 'mgca'}),
      })
