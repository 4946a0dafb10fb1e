"""A small real run: some hundred radiographs and figures with their captions, on a CPU.

  bash launch/run.sh --config=configs/real_small.py --workdir=DIR --config.data.records=DIR
"""

import ml_collections

from plan_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  """A ResNet-10 of half width at 160 px and a two-layer BERT, under 30 minutes on two cores."""
  config = config_lib.defaults()
  config.data.image_size = 160
  config.data.max_pieces = 112
  config.data.max_words = 56
  config.data.augment.min_area = 0.6
  config.data.augment.rotate_degrees = 10.0
  config.model.image = 'resnet_tiny'
  config.model.text = 'bert_tiny'
  config.model.pixel_stage = 2  # 20x20 cells
  config.model.joint_dim = 64
  config.objective.teacher = 'self'
  config.stages.discover.share = 0.1
  config.stages.refine.share = 0.2
  config.stages.focus.share = 0.7
  config.stages.focus.sigma = 0.93
  config.optim.lr = 1e-3
  config.optim.b2 = 0.98
  config.optim.warmup = 0.1
  config.train.batch_size = 32
  config.train.steps = 1500
  config.train.log_every = 10
  config.train.eval_every = 150
  config.train.eval_pairs = 47
  config.train.checkpoint_every = 50
  return config
