"""The tables: how transformers, torchvision and timm name what our towers have."""

from collections.abc import Iterable
import dataclasses
import enum

from plan_jax import config
from plan_jax.convert import tables
from plan_jax.models import bert
from plan_jax.models import resnet
from plan_jax.models import vit

Row = tables.Row
TEXT, IMAGE = 'params/text_tower', 'params/image_tower'


class Layout(enum.StrEnum):
  """Whose names tensors have. `hub` is transformers as its checkpoints are on the hub."""

  HUB = 'hub'
  TORCHVISION = 'torchvision'  # ResNets of timm too
  TIMM = 'timm'


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Block:
  """Names of a transformer block's layers; three names of query, key, value or a joint one."""

  query_key_value: tuple[str, ...]
  out: str
  norm_1: str
  norm_2: str
  dense_1: str
  dense_2: str


_BERT = _Block(
    query_key_value=tuple(f'attention.self.{name}' for name in ('query', 'key', 'value')),
    out='attention.output.dense', norm_1='attention.output.LayerNorm', norm_2='output.LayerNorm',
    dense_1='intermediate.dense', dense_2='output.dense')
_VIT = {
    Layout.HUB: _Block(
        query_key_value=tuple(f'attention.attention.{name}' for name in ('query', 'key', 'value')),
        out='attention.output.dense', norm_1='layernorm_before', norm_2='layernorm_after',
        dense_1='intermediate.dense', dense_2='output.dense'),
    Layout.TORCHVISION: _Block(
        query_key_value=('self_attention.in_proj',), out='self_attention.out_proj',
        norm_1='ln_1', norm_2='ln_2', dense_1='mlp.0', dense_2='mlp.3'),
    Layout.TIMM: _Block(
        query_key_value=('attn.qkv',), out='attn.proj', norm_1='norm1', norm_2='norm2',
        dense_1='mlp.fc1', dense_2='mlp.fc2'),
}
# [CLS], positions, patch projection, a block, the last norm.
_VIT_OUTER = {
    Layout.HUB: ('embeddings.cls_token', 'embeddings.position_embeddings',
                 'embeddings.patch_embeddings.projection', 'encoder.layer.{}', 'layernorm'),
    Layout.TORCHVISION: ('class_token', 'encoder.pos_embedding', 'conv_proj',
                         'encoder.layers.encoder_layer_{}', 'encoder.ln'),
    Layout.TIMM: ('cls_token', 'pos_embed', 'patch_embed.proj', 'blocks.{}', 'norm'),
}


def text_rows(variant: config.TextVariant) -> list[Row]:
  """A BertModel without pooler. Its token types are in our positions, see `TOKEN_TYPES`."""
  rows = [
      Row(ours=f'{TEXT}/piece_embedding/embedding', theirs='embeddings.word_embeddings.weight',
          transform=tables.SAME),
      Row(ours=f'{TEXT}/position_embedding', theirs=TEXT_POSITIONS, transform=tables.SAME),
      *tables.norm(f'{TEXT}/norm', 'embeddings.LayerNorm')]
  for i in range(bert.VARIANTS[variant].depth):
    rows += _block_rows(TEXT, i, f'encoder.layer.{i}', _BERT)
  return rows


TEXT_POSITIONS = 'embeddings.position_embeddings.weight'
TOKEN_TYPES = 'embeddings.token_type_embeddings.weight'


def image_rows(variant: config.ImageVariant, layout: Layout) -> list[Row]:
  """A ViTModel or ResNetModel without pooler or classifier."""
  if variant in vit.VARIANTS:
    return _vit_rows(vit.VARIANTS[variant], layout)
  return _resnet_rows(resnet.VARIANTS[variant], layout)


def image_positions(layout: Layout) -> str:
  """The name of a ViT's position embeddings."""
  return _VIT_OUTER[layout][1]


def stem(rows: Iterable[Row]) -> str:
  """Their name of the weight that reads the image, of an image tower's table."""
  return next(row.theirs for row in rows if row.ours in (
      f'{IMAGE}/patch_embedding/kernel', f'{IMAGE}/stem/conv/kernel'))


def head_rows(names: tuple[str, ...]) -> list[Row]:
  """The heads `image_global`, ... as Sequential-like PyTorch names; no program has these."""
  rows = []
  for head in names:
    rows += [
        Row(ours=f'params/{head}/dense_1/kernel', theirs=f'{head}.dense_1.weight',
            transform=tables.DENSE),
        *tables.batch_norm(f'{head}/norm', f'{head}.norm'),
        *tables.dense(f'params/{head}/dense_2', f'{head}.dense_2')]
  return rows


def joint_rows(names: tuple[str, ...]) -> list[Row]:
  """Arrays of the joint space (`relation`, ...) under their own names."""
  return [Row(ours=f'params/{name}', theirs=name, transform=tables.SAME) for name in names]


def _block_rows(tower: str, i: int, prefix: str, names: _Block) -> list[Row]:
  path, rows = f'{tower}/stack/blocks', []
  for part, ours in enumerate(('query', 'key', 'value')):
    joint = len(names.query_key_value) == 1
    theirs = names.query_key_value[0 if joint else part]
    rows += tables.dense(
        f'{path}/attention/{ours}', f'{prefix}.{theirs}', block=i, bias=tables.VECTOR,
        part=part if joint else None, joined=theirs.endswith('in_proj'))
  return rows + [
      *tables.dense(f'{path}/attention/out', f'{prefix}.{names.out}', block=i,
                    weight=tables.MERGE),
      *tables.norm(f'{path}/norm_1', f'{prefix}.{names.norm_1}', block=i),
      *tables.norm(f'{path}/norm_2', f'{prefix}.{names.norm_2}', block=i),
      *tables.dense(f'{path}/mlp/dense_1', f'{prefix}.{names.dense_1}', block=i),
      *tables.dense(f'{path}/mlp/dense_2', f'{prefix}.{names.dense_2}', block=i)]


def _vit_rows(shape: vit.Shape, layout: Layout) -> list[Row]:
  cls, positions, patches, block, last = _VIT_OUTER[layout]
  rows = [
      Row(ours=f'{IMAGE}/cls', theirs=cls, transform=tables.CLS),
      Row(ours=f'{IMAGE}/position_embedding', theirs=positions, transform=tables.POSITIONS),
      *tables.dense(f'{IMAGE}/patch_embedding', patches, weight=tables.CONV)]
  for i in range(shape.depth):
    rows += _block_rows(IMAGE, i, block.format(i), _VIT[layout])
  return rows + tables.norm(f'{IMAGE}/norm', last)


def _resnet_rows(shape: resnet.Shape, layout: Layout) -> list[Row]:
  is_hub = layout is Layout.HUB
  stem_names = (('embedder.embedder.convolution', 'embedder.embedder.normalization') if is_hub
                else ('conv1', 'bn1'))
  rows = _conv_rows('stem', *stem_names)
  convs = 2 if shape.block is resnet.BlockKind.BASIC else 3
  width = shape.stem
  for stage, (out, depth) in enumerate(zip(shape.widths, shape.depths)):
    for block in range(depth):
      path = f'stage_{stage + 1}/block_{block}'
      theirs = f'encoder.stages.{stage}.layers.{block}' if is_hub else f'layer{stage + 1}.{block}'
      if block == 0 and (width != out or stage > 0):
        rows += _conv_rows(f'{path}/shortcut', *(
            (f'{theirs}.shortcut.convolution', f'{theirs}.shortcut.normalization') if is_hub
            else (f'{theirs}.downsample.0', f'{theirs}.downsample.1')))
      for i in range(convs):
        rows += _conv_rows(f'{path}/conv_{i + 1}', *(
            (f'{theirs}.layer.{i}.convolution', f'{theirs}.layer.{i}.normalization') if is_hub
            else (f'{theirs}.conv{i + 1}', f'{theirs}.bn{i + 1}')))
    width = out
  return rows


def _conv_rows(path: str, conv: str, norm: str) -> list[Row]:
  return [Row(ours=f'{IMAGE}/{path}/conv/kernel', theirs=f'{conv}.weight', transform=tables.CONV),
          *tables.batch_norm(f'image_tower/{path}/norm', norm)]
