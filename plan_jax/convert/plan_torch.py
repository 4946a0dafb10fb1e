"""An exported plan_jax model in PyTorch: vectors of images and reports, and grounding maps.

Needs torch and safetensors, and nothing else (`plan_inputs.py`: NumPy). Copy it where you like.

  import plan_inputs, plan_torch
  model = plan_torch.load('export')                 # the directory of this file
  inputs = plan_inputs.load('export')               # pictures and texts as the model reads them
  frame, extent = inputs.frame(grey)                # grey: uint8 [h w]; NumPy arrays
  images = model.encode_images(frame[None], extent[None])
  pieces, piece_word, words = inputs.tokenize('small left pleural effusion')
  texts = model.encode_texts(pieces[None], piece_word[None])
  score = images.pooled @ texts.pooled.T            # cosines
  heat = model.ground(images, texts)                # [1 rows columns]; larger is more likely

Axis letters: b samples, s word pieces, t words, p pixels (cells of the grid), d joint width.
Masks are True where something is real. Parameters keep the names that the files have, so
that `model.state_dict()` is text/, image/ and heads.safetensors under one roof.
"""

import dataclasses
import json
import os
import pathlib

from safetensors.torch import load_file
import torch
from torch import nn
import torch.nn.functional as F


@dataclasses.dataclass
class Images:
  """Unit vectors `pooled` [b d] and `pixels` [b p d] (zero in padding), the lengths that the
  pixels had, and which are real [b p]. `backbone` is the tower's pooled vector."""

  pooled: torch.Tensor
  pixels: torch.Tensor
  pixel_norm: torch.Tensor
  is_pixel: torch.Tensor
  backbone: torch.Tensor


@dataclasses.dataclass
class Texts:
  """Unit vectors `pooled` [b d] and `words` [b t d] (zero in padding), the lengths that the
  words had, which are real, and what [CLS] attends to [b t]. `backbone` as in `Images`."""

  pooled: torch.Tensor
  words: torch.Tensor
  word_norm: torch.Tensor
  is_word: torch.Tensor
  attention: torch.Tensor
  backbone: torch.Tensor


def load(directory=None, *, dtype=torch.float32) -> 'Plan':
  """The model of an export, by default that of the directory of this file, in eval mode."""
  directory = pathlib.Path(directory or os.path.dirname(os.path.abspath(__file__)))
  settings = json.loads((directory / 'plan.json').read_text(encoding='utf-8'))['settings']
  files = {'text': 'text/model.safetensors', 'image': 'image/model.safetensors',
           'heads': 'heads.safetensors'}
  tensors = {part: load_file(directory / name) for part, name in files.items()}
  return Plan(settings, tensors).to(dtype).eval()


def _tree(tensors) -> nn.Module:
  """Modules nested as the dotted names are; statistics of BatchNorm are buffers."""
  root = nn.Module()
  for name, tensor in tensors.items():
    *path, leaf = name.split('.')
    node = root
    for part in path:
      if part not in node._modules:
        node.add_module(part, nn.Module())
      node = node._modules[part]
    if tensor.is_floating_point() and not leaf.startswith('running_'):
      node.register_parameter(leaf, nn.Parameter(tensor))
    else:
      node.register_buffer(leaf, tensor)
  return root


def _numbered(module) -> list[nn.Module]:
  """The modules '0', '1', ... '10': files are sorted by name, which puts '10' before '2'."""
  return [module.get_submodule(str(i)) for i in range(len(module._modules))]


def _linear(x, layer):
  return F.linear(x, layer.weight, getattr(layer, 'bias', None))


def _layer_norm(x, layer, epsilon):
  return F.layer_norm(x.float(), x.shape[-1:], layer.weight.float(), layer.bias.float(),
                      epsilon).to(x.dtype)


def _batch_norm(x, layer, *, shape, epsilon=1e-5):
  """By running statistics; `shape` views [c] beside x."""
  factor = layer.weight.float() * torch.rsqrt(layer.running_var.float() + epsilon)
  x = (x.float() - layer.running_mean.float().view(shape)) * factor.view(shape)
  return (x + layer.bias.float().view(shape)).to(layer.weight.dtype)


def _unit(x):
  square = x.square().sum(-1, keepdim=True)
  return torch.where(square > 1e-12, x * torch.rsqrt(square.clamp_min(1e-12)), 0.0)


def _length(x):
  square = x.square().sum(-1)
  return torch.where(square < 1e-12, 0.0, square.sqrt())


def _cells(extent, size: int, stride: int):
  """Cells with a real pixel, [b n n]; extent (y0, x0, y1, x1), end exclusive."""
  first = torch.arange(-(-size // stride), device=extent.device) * stride

  def touches(start, end):
    start, end = start[:, None], end[:, None]
    return (first < end) & (first + stride > start) & (end > start)

  return (touches(extent[:, 0], extent[:, 2])[:, :, None]
          & touches(extent[:, 1], extent[:, 3])[:, None, :])


class Plan(nn.Module):
  """Both towers, the heads, and how words look at pixels."""

  def __init__(self, settings, tensors):
    super().__init__()
    self.settings = settings
    self.text, self.image, self.heads = (
        _tree(tensors[part]) for part in ('text', 'image', 'heads'))

  def encode_images(self, frames, extent) -> Images:
    """Vectors of frames.

    Args:
      frames: grey values 0..255 [b h h], as `plan_inputs` gives them; NumPy or torch.
      extent: (y0, x0, y1, x1) of the real pixels [b 4], end exclusive.
    """
    frames, extent = self._here(frames), self._here(extent)
    is_real = _cells(extent, frames.shape[-1], 1)
    grey = torch.where(is_real, (frames.float() / 255 - 0.5) / 0.5, 0.0)[:, None]
    see = self._vit if self.settings['image'] == 'vit' else self._resnet
    backbone, pixels, is_pixel = see(grey.to(self.heads.image_global.dense_1.weight.dtype), extent)
    pooled = self._head('image_global', backbone, is_pixel.any(-1))
    pixels = self._head(self.settings['pixel_head'], pixels, is_pixel)
    return Images(pooled=_unit(pooled), pixels=_unit(pixels), pixel_norm=_length(pixels),
                  is_pixel=is_pixel, backbone=backbone.float())

  def encode_texts(self, pieces, piece_word) -> Texts:
    """Vectors of texts; a word is the sum of its pieces.

    Args:
      pieces: ids [b s]: [CLS] pieces... [SEP], then 0.
      piece_word: the word of each piece [b s], or -1.
    """
    pieces, piece_word = self._here(pieces), self._here(piece_word)
    is_piece = pieces != 0
    hidden, first_row = self._bert(pieces, is_piece)
    hidden = hidden.float()
    count = self.settings['max_words']
    word_of = F.one_hot(piece_word.long() + 1, count + 1)[..., 1:].float()  # [b s t]
    words = torch.einsum('bst,bsc->btc', word_of, hidden)
    attention = torch.einsum('bst,bs->bt', word_of, first_row)
    is_word = word_of.bool().any(1)
    mean = (hidden * is_piece[..., None]).sum(1) / is_piece.sum(1).clamp_min(1)[:, None]
    backbone = hidden[:, 0] + mean
    pooled = self._head('text_global', backbone, torch.ones_like(pieces[:, 0], dtype=torch.bool))
    words = self._head('text_local', words, is_word)
    return Texts(pooled=_unit(pooled), words=_unit(words), word_norm=_length(words),
                 is_word=is_word, attention=attention * is_word, backbone=backbone)

  def word_maps(self, images: Images, texts: Texts, *, kind: str = 'regions'):
    """The map of each word of text b on image b [b t p], and the weights of the words [b t].

    `kind`: 'regions' (weights of the words' regions) or 'words' (similarities, 0..1).
    """
    settings = self.settings
    words = texts.words * texts.word_norm[..., None] if settings['raw_words'] else texts.words
    pixels = (images.pixels * images.pixel_norm[..., None] if settings['raw_pixels']
              else images.pixels)
    is_real = texts.is_word[:, :, None] & images.is_pixel[:, None]
    queries, looking = words, words
    for left in reversed(range(settings['rounds'])):
      if settings['relation']:
        queries = queries + queries @ self.heads.relation.float()
      similarity = queries @ pixels.mT
      weights = self._attend(similarity, texts.is_word, images.is_pixel)
      regions = _unit(weights @ pixels)
      if left:
        queries = looking = _unit(looking + regions)
    total = weights.sum(-1, keepdim=True)
    maps = (_min_max(similarity, images.is_pixel) if kind == 'words'
            else weights / torch.where(total > 0, total, 1.0))
    return torch.where(is_real, maps, 0.0), self._word_weights(words, regions, texts, kind)

  def ground(self, images: Images, texts: Texts, *, kind: str = 'regions'):
    """Where text b is in image b: [b rows columns], larger is more likely.

    `kind` as in `word_maps`, or 'pooled' (cosines with the text's vector). Padding has the
    map's minimum. Not smoothed: plan_jax adds a Gaussian of 1.5 cells by default.
    """
    if kind == 'pooled':
      maps = torch.einsum('bpd,bd->bp', images.pixels, texts.pooled)
    else:
      maps, weights = self.word_maps(images, texts, kind=kind)
      maps = torch.einsum('bt,btp->bp', weights, maps)
    low = torch.where(images.is_pixel, maps, torch.inf).amin(-1, keepdim=True)
    maps = torch.where(images.is_pixel, maps, torch.where(low.isfinite(), low, 0.0))
    return maps.unflatten(1, self.settings['grid'])

  def _here(self, x):
    """An array or tensor as a tensor where the model is."""
    return torch.as_tensor(x, device=self.heads.image_global.dense_1.weight.device)

  # Words and pixels.

  def _attend(self, similarity, is_word, is_pixel):
    """Not yet of sum 1; docs/method.md (4)-(6), and the baselines' own."""
    settings, is_real = self.settings, is_word[:, :, None] & is_pixel[:, None]
    match settings['attend']:
      case 'gloria':
        share = torch.where(is_word[..., None], similarity, -1e30).softmax(-2)
        weights = (4 * share).exp()
      case 'mgca':
        weights = torch.where(is_pixel[:, None], similarity / settings['temperature'],
                              -1e30).softmax(-1)
      case _:
        scaled = _min_max(similarity, is_pixel)
        sigma = self._threshold(scaled, is_pixel)
        weights = (scaled * ((scaled - sigma) / settings['gate_width']).sigmoid()
                   if settings['gate_width'] else torch.where(scaled >= sigma, scaled, 0.0))
        is_empty = weights.amax(-1, keepdim=True) <= 1e-6
        weights = torch.where(is_empty, 1.0, weights)
    return torch.where(is_real, weights, 0.0)

  def _threshold(self, scaled, is_pixel):
    settings, is_pixel = self.settings, is_pixel[:, None]
    count = is_pixel.sum(-1, keepdim=True)
    if not settings['percentile']:
      return settings['fixed'] + settings['per_cell'] / count.clamp_min(1)
    # The percentile of a row, to 1/256, by bisection.
    rank = (settings['percentile'] * (count - 1) + 1e-4).floor()
    low, high = torch.zeros_like(scaled[..., :1]), torch.ones_like(scaled[..., :1])
    for _ in range(8):
      middle = (low + high) / 2
      enough = ((scaled <= middle) & is_pixel).sum(-1, keepdim=True) > rank
      low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high

  def _word_weights(self, words, regions, texts, kind):
    is_word = texts.is_word
    count = is_word.sum(-1, keepdim=True)
    if kind == 'regions' and self.settings['weigh_by_match']:
      cosine = (_unit(words) * regions).sum(-1)
      shares = torch.where(is_word, self.settings['word_sharpness'] * cosine, -1e30).softmax(-1)
      return torch.where(is_word, shares, 0.0)
    uniform = is_word / count.clamp_min(1)
    if not self.settings['weigh_by_attention']:
      return uniform
    # Attention, clipped to its 10-90 % quantiles over the words.
    row = torch.where(is_word, texts.attention, torch.inf).sort(-1).values
    bounds = []
    for share in (0.1, 0.9):
      place = share * (count - 1).clamp_min(0)
      below = place.floor().long()
      above = (below + 1).minimum((count - 1).clamp_min(0))
      a, b = row.gather(-1, below), row.gather(-1, above)
      bounds.append(a + (b - a) * (place - below))
    clipped = torch.where(is_word, texts.attention.clamp(*bounds), 0.0)
    total = clipped.sum(-1, keepdim=True)
    return torch.where(total > 0, clipped / torch.where(total > 0, total, 1.0), uniform)

  # Towers and heads.

  def _head(self, name, x, is_real):
    head = self.heads.get_submodule(name)
    x = _linear(x.to(head.dense_1.weight.dtype), head.dense_1)
    x = F.relu(_batch_norm(x, head.norm, shape=(-1,)))
    return torch.where(is_real[..., None], _linear(x, head.dense_2).float(), 0.0)

  def _bert(self, pieces, is_piece):
    """Hidden states [b s c], and what [CLS] attends to in the last block [b s]."""
    embeddings, epsilon = self.text.embeddings, self.settings['text_epsilon']
    x = F.embedding(pieces.long(), embeddings.word_embeddings.weight)
    x = x + embeddings.position_embeddings.weight[:pieces.shape[1]]
    x = _layer_norm(
        x + embeddings.token_type_embeddings.weight[0], embeddings.LayerNorm, epsilon)
    for block in _numbered(self.text.encoder.layer):
      inner = getattr(block.attention, 'self')
      mixed, first_row = _mix(
          x, is_piece, inner.query, inner.key, inner.value, heads=self.settings['text_heads'])
      out = block.attention.output
      x = _layer_norm(x + _linear(mixed, out.dense), out.LayerNorm, epsilon)
      change = _linear(F.gelu(_linear(x, block.intermediate.dense)), block.output.dense)
      x = _layer_norm(x + change, block.output.LayerNorm, epsilon)
    return x, first_row

  def _vit(self, grey, extent):
    embeddings, epsilon = self.image.embeddings, self.settings['image_epsilon']
    patches = embeddings.patch_embeddings.projection
    stride = patches.weight.shape[-1]
    # Red, green and blue are the same grey: their weights add up.
    x = F.conv2d(grey, patches.weight.sum(1, keepdim=True), patches.bias, stride=stride)
    x = torch.cat([embeddings.cls_token.expand(x.shape[0], -1, -1), x.flatten(2).mT], 1)
    x = x + embeddings.position_embeddings
    is_patch = _cells(extent, grey.shape[-1], stride).flatten(1)
    is_token = F.pad(is_patch, (1, 0), value=True)
    for block in _numbered(self.image.encoder.layer):
      inner = block.attention.attention
      y = _layer_norm(x, block.layernorm_before, epsilon)
      mixed, _ = _mix(
          y, is_token, inner.query, inner.key, inner.value, heads=self.settings['image_heads'])
      x = x + _linear(mixed, block.attention.output.dense)
      y = _layer_norm(x, block.layernorm_after, epsilon)
      x = x + _linear(F.gelu(_linear(y, block.intermediate.dense)), block.output.dense)
    x = _layer_norm(x, self.image.layernorm, epsilon)
    return x[:, 0], x[:, 1:], is_patch

  def _resnet(self, grey, extent):
    size = grey.shape[-1]
    masks = [_cells(extent, size, stride)[:, None] for stride in (2, 4, 8, 16, 32)]
    stem = self.image.embedder.embedder
    x = _conv_norm(grey, stem, stride=2, weight=stem.convolution.weight.sum(1, keepdim=True))
    x = torch.where(masks[0], F.relu(x), 0.0)
    x = torch.where(masks[1], F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2), 0.0)
    for i, stage in enumerate(_numbered(self.image.encoder.stages)):
      mask_in, mask = masks[max(i, 1)], masks[i + 1]
      for j, block in enumerate(_numbered(stage.layers)):
        stride = 2 if i > 0 and j == 0 else 1
        x = _residual_block(x, block, stride, mask_in if j == 0 else mask, mask)
      if i + 1 == self.settings['pixel_stage']:
        pixels, is_pixel = x.flatten(2).mT, mask.flatten(1)
    pooled = x.float().sum((2, 3)) / masks[-1].sum((2, 3)).clamp_min(1)
    return pooled, pixels, is_pixel


def _mix(x, is_token, query, key, value, *, heads):
  """Mixed values [b s c], and the first token's attention, mean over heads [b s]."""
  query, key, value = (
      _linear(x, layer).unflatten(-1, (heads, -1)).transpose(1, 2) for layer in (query, key, value))
  logits = ((query * query.shape[-1]**-0.5) @ key.mT).float()
  logits = torch.where(is_token[:, None, None], logits, torch.finfo(torch.float32).min)
  weights = logits.softmax(-1)
  return (weights.to(x.dtype) @ value).transpose(1, 2).flatten(2), weights[:, :, 0].mean(1)


def _conv_norm(x, layer, *, stride, weight=None):
  weight = layer.convolution.weight if weight is None else weight
  x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
  return _batch_norm(x, layer.normalization, shape=(1, -1, 1, 1))


def _residual_block(x, block, stride, mask_in, mask):
  """Cells without image are zero before each convolution."""
  shortcut = (_conv_norm(x, block.shortcut, stride=stride) if hasattr(block, 'shortcut') else x)
  layers = _numbered(block.layer)
  strided = 0 if len(layers) == 2 else 1  # the 3x3 of a bottleneck (v1.5)
  for i, layer in enumerate(layers):
    x = _conv_norm(x, layer, stride=stride if i == strided else 1)
    if i + 1 < len(layers):
      x = torch.where(mask_in if i < strided else mask, F.relu(x), 0.0)
  return torch.where(mask, F.relu(x + shortcut), 0.0)


def _min_max(similarity, is_pixel):
  """Each row to 0..1 over its real pixels; constant rows and padding are 0."""
  is_pixel = is_pixel[:, None]
  low = torch.where(is_pixel, similarity, torch.inf).amin(-1, keepdim=True)
  high = torch.where(is_pixel, similarity, -torch.inf).amax(-1, keepdim=True)
  is_flat = ~(high - low > 1e-6)
  low, high = torch.where(is_flat, 0.0, low), torch.where(is_flat, 1.0, high)
  return torch.where(is_pixel & ~is_flat, (similarity - low) / (high - low), 0.0)
