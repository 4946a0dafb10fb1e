r"""A training step, and image vectors, of equal models: ours and `transformers` in PyTorch.

  python benchmarks/towers.py

train  one step of image tower, BERT-base, heads and global contrast (ConVIRT), with AdamW:
       `plan_jax.step` as `train` calls it, against PyTorch, eager and by torch.compile.
       fp32, 16 pairs, 224 pixels, 97 word pieces, dropout .1 in the text tower.
embed  vectors of 64 pictures, as eval_zero_shot asks for them: `inference.Model`, against
       the same frames through PyTorch in batches of as many, one after the other.
What is compiled is compiled before the clock starts. Both sides get their arrays in large pages,
as launch/run.sh has it.
"""

import dataclasses
import os
import pathlib
import statistics

import numpy as np

import measure

_VOCABULARY = 28996
_STEPS = 4  # after one that is not counted
_BY = ('ours', 'eager', 'compile')


def cases(quick: bool) -> list[measure.Case]:
  towers = ('vit_ti16',) if quick else ('vit_s16', 'resnet50')
  sizes = {'image_size': 32, 'pieces': 12, 'batch': 2, 'text': 'bert_tiny'} if quick else {
      'image_size': 224, 'pieces': 97, 'batch': 16, 'text': 'bert_base'}
  train = [
      {'task': 'train', 'image': image, 'by': by, **sizes}
      for image in towers for by in (_BY[:2] if quick else _BY)]
  embed = [
      {'task': 'embed', 'image': image, 'by': by, **sizes}
      for image in towers for by in _BY[:2]]
  return train + embed


def run(case: measure.Case) -> measure.Result:
  if case['task'] == 'embed':
    step = _embed_ours(case) if case['by'] == 'ours' else _embed_torch(case)
  else:
    step = _train_ours(case) if case['by'] == 'ours' else _train_torch(case)
  step()
  measure.reset_peak()
  took = measure.timed(step, least=_STEPS, seconds=0)
  return {'seconds': statistics.median(took), 'mib': measure.peak_mib()}


def _config(case):
  from plan_jax import config as config_lib

  return config_lib.resolve({
      'data': {'image_size': case['image_size'], 'max_pieces': case['pieces'], 'max_words': 64},
      'model': {'image': case['image'], 'text': case['text']},
      'objective': {'name': 'convirt'},
      'train': {'batch_size': case['batch'], 'steps': 100}})


def _inputs(case):
  """Images and pieces, every report full."""
  rng = np.random.default_rng(0)
  size, batch, length = case['image_size'], case['batch'], case['pieces']
  return (rng.integers(0, 256, (batch, size, size), np.uint8),
          rng.integers(5, _VOCABULARY, (batch, length)).astype(np.int32))


def _train_ours(case):
  import jax

  from plan_jax import mesh as mesh_lib
  from plan_jax import optim
  from plan_jax import stages
  from plan_jax import step as step_lib

  config = _config(case)
  mesh = mesh_lib.make_mesh(jax.devices()[:1])
  model = step_lib.build_model(config, vocab_size=_VOCABULARY)
  optimizer = optim.make_optimizer(config.optim, total_steps=config.train.steps)
  state = jax.jit(lambda: step_lib.init_state(model, optimizer, config=config))()
  train_step = step_lib.make_train_step(model, optimizer, config=config, mesh=mesh)
  stage = stages.schedule(config.stages, total_steps=config.train.steps).values(0)
  image, pieces = _inputs(case)
  batch = dataclasses.replace(
      step_lib.empty_batch(config.data, size=case['batch']), image=image, pieces=pieces)

  def step():
    nonlocal state
    state, values = train_step(state, batch, stage)
    return float(values['loss'])

  return step


def _embed_ours(case):
  import jax

  from plan_jax import inference
  from plan_jax import step as step_lib

  config = _config(case)
  tower = step_lib.build_model(config, vocab_size=_VOCABULARY)
  variables = jax.jit(lambda: tower.init(
      jax.random.PRNGKey(0), step_lib.empty_batch(config.data, size=2), train=False))()
  words = [f'word{k}' for k in range(_VOCABULARY - 5)]
  model = inference.Model(
      config, ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *words], variables,
      batch_size=case['batch'])
  pictures = _pictures(case)
  return lambda: model.embed_images(pictures)


def _pictures(case):
  rng = np.random.default_rng(1)
  side = case['image_size']
  return list(rng.integers(0, 256, (4 * case['batch'], side, side + side // 8), np.uint8))


def _torch_towers(case):
  """Image tower, text tower and two heads, of the same sizes as ours."""
  import torch
  import transformers

  depth, width, heads = {
      'vit_ti16': (12, 192, 3), 'vit_s16': (12, 384, 6), 'vit_b16': (12, 768, 12),
      'resnet50': (0, 2048, 0)}[case['image']]
  if case['image'] == 'resnet50':
    image = transformers.ResNetModel(transformers.ResNetConfig(num_channels=1))
  else:
    image = transformers.ViTModel(transformers.ViTConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
        intermediate_size=4 * width, num_channels=1, image_size=case['image_size']),
        add_pooling_layer=False)
  text_width, text_depth, text_heads = {
      'bert_tiny': (128, 2, 2), 'bert_base': (768, 12, 12)}[case['text']]
  text = transformers.BertModel(transformers.BertConfig(
      vocab_size=_VOCABULARY, hidden_size=text_width, num_hidden_layers=text_depth,
      num_attention_heads=text_heads, intermediate_size=4 * text_width), add_pooling_layer=False)

  def head(width):
    return torch.nn.Sequential(
        torch.nn.Linear(width, width, bias=False), torch.nn.BatchNorm1d(width),
        torch.nn.ReLU(), torch.nn.Linear(width, 128))

  class Towers(torch.nn.Module):
    """Pooled unit vectors of images (uint8) and of reports."""

    def __init__(self):
      super().__init__()
      self.image, self.text = image, text
      self.image_head, self.text_head = head(width), head(text_width)

    def see(self, pixels):
      found = self.image((pixels[:, None].float() / 255 - 0.5) / 0.5)
      if case['image'] == 'resnet50':
        pooled = found.pooler_output[:, :, 0, 0]
      else:
        pooled = found.last_hidden_state[:, 0]
      return torch.nn.functional.normalize(self.image_head(pooled), dim=-1)

    def read(self, pieces):
      hidden = self.text(pieces, attention_mask=(pieces != 0).long()).last_hidden_state
      return torch.nn.functional.normalize(
          self.text_head(hidden[:, 0] + hidden.mean(1)), dim=-1)

    def forward(self, pixels, pieces):
      logits = self.see(pixels) @ self.read(pieces).T / 0.07
      target = torch.arange(len(logits))
      contrast = torch.nn.functional.cross_entropy
      return (contrast(logits, target) + contrast(logits.T, target)) / 2

  return Towers()


def _train_torch(case):
  import torch

  model = _torch_towers(case).train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.05, fused=True)
  run_model = torch.compile(model) if case['by'] == 'compile' else model
  image, pieces = map(torch.tensor, _inputs(case))

  def step():
    optimizer.zero_grad()
    loss = run_model(image, pieces.long())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()

  return step


def _embed_torch(case):
  import torch

  from plan_jax.data import augment

  model = _torch_towers(case).eval()
  pictures, size, batch = _pictures(case), case['image_size'], case['batch']

  @torch.inference_mode()
  def step():
    frames = [augment.eval_frame(picture, size=size)[0] for picture in pictures]
    return [model.see(torch.from_numpy(np.stack(frames[k:k + batch])))
            for k in range(0, len(frames), batch)]

  return step


def show(found) -> str:
  lines = ['| task | image tower | ours, s | eager, s | compile, s | eager / ours | '
           'compile / ours | ours, MiB | eager, MiB |', '|---|---|---|---|---|---|---|---|---|']
  by_model = {}
  for case, results in found:
    by_model.setdefault((case['task'], case['image']), {})[case['by']] = results
  for (task, image), of in by_model.items():
    compiled = of.get('compile', [{}] * len(of['ours']))
    lines.append('| ' + ' | '.join([
        task, image, *(measure.spread(x, 'seconds') for x in (of['ours'], of['eager'], compiled)),
        measure.ratio(of['eager'], of['ours'], 'seconds'),
        measure.ratio(compiled, of['ours'], 'seconds'),
        measure.spread(of['ours'], 'mib'), measure.spread(of['eager'], 'mib')]) + ' |')
  return '\n'.join(lines)


def draw(found, path: pathlib.Path) -> None:
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), layout='constrained')
  for axis, task, label in zip(
      axes, ('train', 'embed'), ('a training step', 'vectors of 64 pictures'), strict=True):
    images = sorted({case['image'] for case, _ in found if case['task'] == task})
    for k, by in enumerate(_BY):
      points = [
          (images.index(case['image']) + 0.25 * (k - 1), measure.median(results, 'seconds'))
          for case, results in found if case['task'] == task and case['by'] == by]
      if points:
        axis.bar(*zip(*points, strict=True), width=0.25,
                 label={'ours': 'plan_jax', 'eager': 'PyTorch, eager',
                        'compile': 'PyTorch, compiled'}[by])
    axis.set(xticks=range(len(images)), xticklabels=images, ylabel='seconds', title=label)
  axes[0].legend(frameon=False)
  figure.savefig(path, dpi=120)


if __name__ == '__main__':
  os.environ.setdefault('GLIBC_TUNABLES', 'glibc.malloc.hugetlb=1')  # of the cases' processes
  measure.main(__file__, __doc__, cases=cases, measure=run, show=show, draw=draw,
               needs=('torch',))
