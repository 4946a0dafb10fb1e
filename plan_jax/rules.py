"""The rules that settings must keep to run: ranges, and what goes together."""

import dataclasses
import enum
from typing import Any


def broken(config: Any) -> list[str]:
  """What is wrong with a `config.Config`: one message for each rule, [] if nothing is."""
  found = []

  def require(ok: bool, key: str, rule: str):
    if not ok:
      value = config
      for part in key.split('.'):
        value = getattr(value, part)
      shown = str(value) if isinstance(value, enum.StrEnum) else repr(value)
      found.append(f'config.{key} = {shown}: {rule}')

  data, model, objective, train = config.data, config.model, config.objective, config.train
  require(data.image_size > 0 and data.image_size % 32 == 0, 'data.image_size',
          'must be a positive multiple of 32, the coarsest stride of the towers')
  require(3 <= data.max_pieces <= 512, 'data.max_pieces',
          'must lie in 3..512: [CLS], [SEP] and at least one piece; BERT has 512 positions')
  require(data.max_words >= 1, 'data.max_words', 'must be at least 1')
  require(data.workers >= 0, 'data.workers', 'must be 0, for threads alone, or the number of processes')
  require(data.threads >= 1, 'data.threads', 'must be at least 1')
  require(0 < data.augment.min_area <= 1, 'data.augment.min_area', 'must lie in (0, 1]')
  require(model.pixel_stage in (2, 3, 4), 'model.pixel_stage', 'must be 2, 3 or 4')
  is_vit = str(model.image).startswith('vit')
  require(model.pixel_head == 'local' or is_vit or model.pixel_stage == 4,
          'model.pixel_stage', "must be 4 with model.pixel_head = 'global', which reads the last map")
  require(0 <= model.dropout < 1, 'model.dropout', 'must lie in [0, 1)')
  require(model.joint_dim >= 1, 'model.joint_dim', 'must be at least 1')
  require(model.vit_epsilon > 0, 'model.vit_epsilon', 'must be positive')
  require(model.temperature > 0, 'model.temperature', 'must be positive')
  require(objective.gate_width > 0, 'objective.gate_width', 'must be positive')
  require(objective.local_temperature > 0, 'objective.local_temperature', 'must be positive')
  require(0 <= objective.ema_decay < 1, 'objective.ema_decay', 'must lie in [0, 1)')
  require(objective.rounds >= 1, 'objective.rounds', 'must be at least 1')
  require(objective.reliability_images >= 1, 'objective.reliability_images', 'must be at least 1')
  require(objective.block_mib >= 1, 'objective.block_mib', 'must be at least 1')
  require(objective.name != 'gloria' or objective.negatives != 'pair', 'objective.negatives',
          "must be 'device' or 'global' with objective.name = 'gloria', whose words have no other "
          "negatives; 'convirt' is GLoRIA's global term alone")
  require(objective.algorithm != 'fused' or objective.rounds == 1, 'objective.algorithm',
          f"looks once, not objective.rounds = {objective.rounds} times; use 'auto'")
  for key in ('brightness', 'contrast', 'rotate_degrees'):
    require(getattr(data.augment, key) >= 0, f'data.augment.{key}', 'must not be negative')
  require(objective.cross_pair_words >= 0, 'objective.cross_pair_words', 'must not be negative')
  for key in ('word_region_weight', 'pixel_word_weight', 'cross_pair_weight', 'refine_weight',
              'target_blur'):
    require(getattr(objective, key) >= 0, f'objective.{key}', 'must not be negative')
  for key in ('lr', 'clip_norm'):
    require(getattr(config.optim, key) > 0, f'optim.{key}', 'must be positive')
  for key in ('b1', 'b2'):
    require(0 <= getattr(config.optim, key) < 1, f'optim.{key}', 'must lie in [0, 1)')
  for key in ('end_lr', 'weight_decay'):
    require(getattr(config.optim, key) >= 0, f'optim.{key}', 'must not be negative')
  require(train.seed >= 0, 'train.seed', 'must not be negative')
  require(config.evaluation.max_pairs >= 1, 'evaluation.max_pairs', 'must be at least 1')
  require(config.evaluation.pictures >= 0, 'evaluation.pictures', 'must not be negative')
  require(0 <= config.optim.warmup < 1, 'optim.warmup', 'is a share of all steps, in [0, 1)')
  for tower in ('image', 'text'):
    pace, key = getattr(config.optim, tower), f'optim.{tower}'
    require(pace.lr_scale > 0, f'{key}.lr_scale',
            f'must be positive; config.{key}.freeze=True keeps a tower as it is')
    require(0 < pace.layer_decay <= 1, f'{key}.layer_decay', 'must lie in (0, 1]')
    require(0 <= pace.warmup < 1, f'{key}.warmup', 'is a share of all steps, in [0, 1)')
    require(not pace.freeze or pace == dataclasses.replace(type(pace)(), freeze=True),
            f'{key}.freeze', 'leaves no place for lr_scale, layer_decay or warmup; choose')
  require(train.chunks == 1 or is_vit or config.optim.image.freeze, 'train.chunks',
          "must be 1 with a ResNet that learns, whose BatchNorm would see part by part; use a "
          "ViT, freeze it (optim.image.freeze), or model.remat = 'blocks' to save memory")
  require(train.batch_size % max(train.chunks, 1) == 0, 'train.chunks',
          'must divide train.batch_size')
  for key in ('steps', 'batch_size', 'chunks', 'log_every', 'eval_every', 'eval_pairs', 'checkpoint_every',
              'keep_newest'):
    require(getattr(train, key) >= 1, f'train.{key}', 'must be at least 1')
  shares = 0.0
  for field in dataclasses.fields(config.stages):
    stage, key = getattr(config.stages, field.name), f'stages.{field.name}'
    require(0 <= stage.share <= 1, f'{key}.share', 'must lie in 0..1')
    require(0 <= stage.sigma <= 1, f'{key}.sigma', 'must lie in 0..1')
    require(0 < stage.keep <= 1, f'{key}.keep', 'must lie in (0, 1]')
    require(stage.gamma > 0, f'{key}.gamma', 'must be positive')
    for name in ('refine_start', 'refine_end', 'pixel_word'):
      require(getattr(stage, name) >= 0, f'{key}.{name}', 'must not be negative')
    require(0 <= stage.short_text_prob <= 1, f'{key}.short_text_prob', 'must lie in 0..1')
    shares += stage.share
  if abs(shares - 1) > 1e-6:
    found.append(f'config.stages.*.share: the shares sum to {shares:g}; they must sum to 1')
  return found
