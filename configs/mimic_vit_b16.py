"""PLAN (reconstructed), ViT-B/16 + BERT-base, on MIMIC-CXR-sized corpora, on accelerators.

  bash launch/run.sh --config=configs/mimic_vit_b16.py --workdir=DIR --config.data.records=DIR
"""

import ml_collections

from plan_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  """ViT-B/16 at 224 px, BERT-base, global batch 1024."""
  config = config_lib.defaults()
  config.data.workers = 4  # a host; docs/performance.md says what each reads
  config.model.image = 'vit_b16'
  config.model.remat = 'dots'  # 64 pairs a chip fit into 16 GiB with it alone (docs/scale.md)
  config.train.batch_size = 1024
  config.train.steps = 20_000
  config.optim.lr = 1e-4
  config.optim.warmup = 0.1
  return config
