"""PLAN (reconstructed), ResNet-50 + BERT-base, on MIMIC-CXR-sized corpora, on accelerators.

  bash launch/run.sh --config=configs/mimic_resnet50.py --workdir=DIR --config.data.records=DIR
"""

import ml_collections

from plan_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  """ResNet-50 at 224 px (pixels: the 14x14 map), BERT-base, global batch 1024."""
  config = config_lib.defaults()
  config.data.workers = 4  # a host; docs/performance.md says what each reads
  config.model.image = 'resnet50'
  config.model.remat = 'dots'
  config.train.batch_size = 1024
  config.train.steps = 20_000
  config.optim.lr = 1e-4
  config.optim.warmup = 0.1
  return config
