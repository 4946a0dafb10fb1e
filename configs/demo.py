"""The demo: three stages on phantom radiographs, a few minutes on two CPU cores.

  bash launch/run.sh
"""

import ml_collections

from plan_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  """A small ResNet at 128 px and a two-layer BERT, from scratch."""
  config = config_lib.defaults()
  config.data.image_size = 128
  config.data.max_pieces = 72
  config.data.max_words = 56
  config.model.image = 'resnet_tiny'
  config.model.text = 'bert_tiny'
  config.model.dropout = 0.0
  config.objective.teacher = 'self'
  config.objective.block_mib = 2  # what fits the cache of a CPU core is fastest
  config.stages.focus.short_text_prob = 0.2
  config.optim.lr = 2e-3
  config.optim.b2 = 0.98
  config.optim.warmup = 0.05
  config.train.batch_size = 32
  config.train.steps = 700
  config.train.log_every = 10
  config.train.eval_every = 350
  config.train.eval_pairs = 192
  config.train.checkpoint_every = 100
  config.evaluation.prompts = 'configs/prompts/phantom.toml'
  return config
