"""The demo: three stages on phantom radiographs, a quarter of an hour on two CPU cores.

  bash launch/run.sh
"""

import ml_collections

from plan_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  """A ResNet-10 of half width at 128 px and a two-layer BERT, from scratch."""
  config = config_lib.defaults()
  config.data.image_size = 128
  config.data.max_pieces = 72
  config.data.max_words = 40  # of 35 in the median; the end of long reports is lost to (9)
  config.model.image = 'resnet_tiny'
  config.model.text = 'bert_tiny'
  config.model.pixel_stage = 2  # 16x16 cells, each of which sees a part of the image only
  config.model.dropout = 0.0
  config.model.joint_dim = 64
  config.objective.teacher = 'self'
  config.stages.discover.share = 0.1  # wide regions teach cells to speak for the whole image
  config.stages.refine.share = 0.2
  config.stages.focus.share = 0.7
  config.stages.focus.sigma = 0.93
  config.stages.focus.short_text_prob = 0.2
  config.optim.lr = 2e-3
  config.optim.b2 = 0.98
  config.optim.warmup = 0.05
  config.train.batch_size = 32
  config.train.steps = 1000
  config.train.log_every = 10
  config.train.eval_every = 500
  config.train.eval_pairs = 192
  config.train.checkpoint_every = 100
  config.evaluation.prompts = 'configs/prompts/phantom.toml'
  return config
