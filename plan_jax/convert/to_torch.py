"""Files for PyTorch and Hugging Face: towers by the names of their classes, heads, settings."""

from collections.abc import Mapping, Sequence
import json
import pathlib
import shutil
from typing import Any

import numpy as np

from plan_jax import checkpoint
from plan_jax import config as config_lib
from plan_jax import stages
from plan_jax.convert import files
from plan_jax.convert import layouts
from plan_jax.convert import tables
from plan_jax.data import tokenize
from plan_jax.losses import pair_scores
from plan_jax.models import bert
from plan_jax.models import plan as plan_model
from plan_jax.models import resnet
from plan_jax.models import vit
from plan_jax.objectives import matching
from plan_jax.objectives import mgca

_HEADS = ('image_global', 'image_local', 'text_global', 'text_local')
_JOINT = ('relation', 'log_temperature', 'prototype')
PARTS = {'text': 'text/model.safetensors', 'image': 'image/model.safetensors',
         'heads': 'heads.safetensors'}


def write(
    out: pathlib.Path, restored: checkpoint.Restored, ours: tables.Tensors, *, dtype: files.Dtype,
) -> None:
  """Writes towers, heads and the Python file that runs them.

  Args:
    out: a directory with `text` and `image` in it.
    restored: the checkpoint.
    ours: its arrays by path.
    dtype: of the weights; anything but fp32 rounds them.
  """
  config, vocabulary = restored.config, restored.vocabulary
  parts = tensors(config, ours)
  for part, name in PARTS.items():
    files.write(out / name, parts[part], dtype=dtype)
  named_otherwise = out / 'image' / 'torchvision.safetensors'
  named_otherwise.unlink(missing_ok=True)  # of an earlier export, whose tower may have been another
  if config.model.image in resnet.VARIANTS:
    files.write(named_otherwise,
                image_tensors(config.model.image, layouts.Layout.TORCHVISION, ours), dtype=dtype)
  for name, content in {
      'text/config.json': _text_config(config, len(vocabulary), dtype),
      'text/tokenizer_config.json': {
          'tokenizer_class': 'BertTokenizer', 'do_lower_case': not tokenize.is_cased(vocabulary),
          'model_max_length': config.data.max_pieces, 'pad_token': '[PAD]', 'unk_token': '[UNK]',
          'cls_token': '[CLS]', 'sep_token': '[SEP]', 'mask_token': '[MASK]'},
      'image/config.json': _image_config(config, dtype),
      'image/preprocessor_config.json': _processor(config),
  }.items():
    files.write_json(out / name, content)
  shutil.copyfile(pathlib.Path(__file__).with_name('plan_torch.py'), out / 'plan_torch.py')


def tensors(config: config_lib.Config, ours: tables.Tensors) -> dict[str, tables.Tensors]:
  """What `plan_torch.Plan` takes: the tensors of text, image and heads."""
  text = tables.write(layouts.text_rows(config.model.text), ours)
  width = text[layouts.TEXT_POSITIONS].shape[1]
  text[layouts.TOKEN_TYPES] = np.zeros((2, width), np.float32)  # they are in the positions
  return {
      'text': text, 'image': image_tensors(config.model.image, layouts.Layout.HUB, ours),
      'heads': tables.write(joint_rows(ours), ours)}


def joint_rows(paths: Mapping[str, Any]) -> list[layouts.Row]:
  """The table of what is in neither tower, as far as a model with these paths has it."""
  return [
      *layouts.head_rows(tuple(h for h in _HEADS if f'params/{h}/dense_1/kernel' in paths)),
      *layouts.joint_rows(tuple(name for name in _JOINT if f'params/{name}' in paths))]


def image_tensors(
    variant: config_lib.ImageVariant, layout: layouts.Layout, ours: tables.Tensors,
) -> tables.Tensors:
  """An image tower's tensors, its stem for three channels.

  The grey kernel is that of the first channel, those of the others are 0: for grey
  images, whose channels are equal, it is the same function bit for bit.
  """
  rows = layouts.image_rows(variant, layout)
  tensors, stem = tables.write(rows, ours), layouts.stem(rows)
  tensors[stem] = np.pad(tensors[stem], ((0, 0), (0, 2), (0, 0), (0, 0)))
  # PyTorch counts batches, for a rule that its models do not use, and misses the count.
  counts = {name.replace('running_var', 'num_batches_tracked'): np.zeros((), np.int64)
            for name in tensors if name.endswith('running_var')}
  return tensors | counts


def _text_config(config, vocab_size: int, dtype) -> dict[str, Any]:
  shape = bert.VARIANTS[config.model.text]
  return {
      'model_type': 'bert', 'architectures': ['BertModel'], 'vocab_size': vocab_size,
      'hidden_size': shape.width, 'num_hidden_layers': shape.depth,
      'num_attention_heads': shape.heads, 'intermediate_size': 4 * shape.width,
      'hidden_act': 'gelu', 'layer_norm_eps': 1e-12, 'pad_token_id': 0, 'type_vocab_size': 2,
      'max_position_embeddings': config.data.max_pieces,
      'hidden_dropout_prob': config.model.dropout,
      'attention_probs_dropout_prob': config.model.dropout, 'dtype': str(dtype)}


def _image_config(config, dtype) -> dict[str, Any]:
  variant = config.model.image
  if variant in vit.VARIANTS:
    shape = vit.VARIANTS[variant]
    return {
        'model_type': 'vit', 'architectures': ['ViTModel'], 'image_size': config.data.image_size,
        'patch_size': shape.patch, 'num_channels': 3, 'hidden_size': shape.width,
        'num_hidden_layers': shape.depth, 'num_attention_heads': shape.heads,
        'intermediate_size': 4 * shape.width, 'hidden_act': 'gelu', 'qkv_bias': True,
        'layer_norm_eps': config.model.vit_epsilon, 'hidden_dropout_prob': 0.0,
        'attention_probs_dropout_prob': 0.0, 'dtype': str(dtype)}
  shape = resnet.VARIANTS[variant]
  return {
      'model_type': 'resnet', 'architectures': ['ResNetModel'], 'num_channels': 3,
      'embedding_size': shape.stem, 'hidden_sizes': list(shape.widths),
      'depths': list(shape.depths), 'layer_type': str(shape.block.value), 'hidden_act': 'relu',
      'downsample_in_first_stage': False, 'downsample_in_bottleneck': False, 'dtype': str(dtype)}


def _processor(config) -> dict[str, Any]:
  """Of square pictures what the model sees; others lose their ends, where it would pad."""
  size = config.data.image_size
  return {
      'image_processor_type': 'CLIPImageProcessor', 'do_convert_rgb': True, 'do_resize': True,
      'size': {'shortest_edge': round(size * 256 / 224)}, 'resample': 2, 'do_center_crop': True,
      'crop_size': {'height': size, 'width': size}, 'do_rescale': True,
      'rescale_factor': 1 / 255, 'do_normalize': True, 'image_mean': [0.5] * 3,
      'image_std': [0.5] * 3}


def settings(config: config_lib.Config, vocabulary: Sequence[str]) -> dict[str, Any]:
  """What `plan_torch.py` reads; its regions are those of the schedule's last step."""
  objective, names = config.objective, config_lib.ObjectiveName
  stage = stages.schedule(config.stages, total_steps=config.train.steps).values(
      config.train.steps - 1)
  is_plan = objective.name in (names.PLAN, names.CONVIRT)
  is_vit = config.model.image in vit.VARIANTS
  return {
      'image': 'vit' if is_vit else 'resnet',
      'image_size': config.data.image_size,
      'image_heads': vit.VARIANTS[config.model.image].heads if is_vit else 0,
      'image_epsilon': config.model.vit_epsilon,
      'pixel_stage': config.model.pixel_stage,
      'pixel_head': ('image_local' if config.model.pixel_head is config_lib.PixelHead.LOCAL
                     else 'image_global'),
      'grid': list(plan_model.grid_shape(config.model, config.data.image_size)),
      'text_heads': bert.VARIANTS[config.model.text].heads,
      'text_epsilon': 1e-12,
      'max_pieces': config.data.max_pieces,
      'max_words': config.data.max_words,
      'lower': not tokenize.is_cased(vocabulary),
      'attend': str(objective.name) if objective.name in (names.GLORIA, names.MGCA) else 'salient',
      'raw_words': objective.name is names.GLORIA,
      'raw_pixels': objective.name in (names.GLORIA, names.SPARC),
      'relation': is_plan and config.model.relation is config_lib.Relation.LEARNED,
      'rounds': objective.rounds if is_plan else 1,
      'fixed': float(stage.sigma_fixed) if is_plan else 0.0,
      'per_cell': float(stage.sigma_per_cell) if is_plan else 1.0,
      'percentile': float(stage.sigma_percentile) if is_plan else 0.0,
      'gate_width': (
          objective.gate_width if is_plan and objective.gate is config_lib.Gate.SOFT else 0.0),
      'temperature': mgca.TOKEN_TEMPERATURE,
      'weigh_by_match': matching.matches_across_pairs(objective),
      'word_sharpness': pair_scores.WORD_SHARPNESS,
      'weigh_by_attention': objective.term_weights is config_lib.TermWeights.ATTENTION}
