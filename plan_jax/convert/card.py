"""The model card of an export: what it is, from what, how good, and what it is not for."""

from collections.abc import Mapping
import json
from typing import Any

from plan_jax import config as config_lib
from plan_jax.models import plan as plan_model

_LIBRARIES = {'torch': 'pytorch', 'stablehlo': 'jax', 'onnx': 'onnx'}
# As docs/convert.md prints it.
_CODE = {
    'torch': '''\
import sys; sys.path.insert(0, 'exported')
import numpy as np, plan_inputs, plan_torch
from PIL import Image

model, inputs = plan_torch.load(), plan_inputs.load()
frame, extent = inputs.frame(np.array(Image.open('a.png').convert('L')))
images = model.encode_images(frame[None], extent[None])       # .pooled, .pixels
pieces, piece_word, words = inputs.tokenize('small left pleural effusion')
texts = model.encode_texts(pieces[None], piece_word[None])    # .pooled, .words
score = images.pooled @ texts.pooled.T                        # cosine
heat = model.ground(images, texts)                            # [1 rows columns]
''',
    'onnx': '''\
import sys; sys.path.insert(0, 'exported')
import numpy as np, onnxruntime, plan_inputs
from PIL import Image

def load(name):
  session = onnxruntime.InferenceSession(f'exported/{name}.onnx')
  names = [x.name for x in session.get_outputs()]
  takes = {x.name for x in session.get_inputs()}
  return lambda **x: dict(zip(names, session.run(names, {k: x[k] for k in takes})))

see, read, ground, inputs = load('images'), load('texts'), load('ground'), plan_inputs.load()
frame, extent = inputs.frame(np.array(Image.open('a.png').convert('L')))
images = see(frames=frame[None], extent=extent[None])         # ['pooled'], ['pixels']
pieces, piece_word, words = inputs.tokenize('small left pleural effusion')
texts = read(pieces=pieces[None], piece_word=piece_word[None])
score = images['pooled'] @ texts['pooled'].T                  # cosine
heat = ground(**images | texts, text_pooled=texts['pooled'])['map_regions']
''',
    'stablehlo': '''\
import sys; sys.path.insert(0, 'exported')
import jax, jax.export, numpy as np, plan_inputs
from PIL import Image
from safetensors.flax import load_file

def load(name):
  with open(f'exported/{name}.stablehlo', 'rb') as file:
    return jax.jit(jax.export.deserialize(file.read()).call)

see, read, ground, inputs = load('images'), load('texts'), load('ground'), plan_inputs.load()
image_weights, text_weights = (load_file(f'exported/{x}.safetensors') for x in ('images', 'texts'))
frame, extent = inputs.frame(np.array(Image.open('a.png').convert('L')))
images = see(image_weights, frame[None], extent[None])        # ['pooled'], ['pixels']
pieces, piece_word, words = inputs.tokenize('small left pleural effusion')
texts = read(text_weights, pieces[None], piece_word[None])
score = images['pooled'] @ texts['pooled'].T                  # cosine
heat = ground(images, texts)['map_regions']
''',
}


def model_card(
    config: config_lib.Config, *, about: Mapping[str, Any], data: Mapping[str, Any] | None,
    dtype: str, form: str,
) -> str:
  """README.md of an export (Markdown with the hub's header).

  Args:
    config: of the run.
    about: what the checkpoint says of itself.
    data: `dataset.json` of its records, where they are still there.
    dtype: of the weights as written.
    form: 'torch', 'stablehlo' or 'onnx'.
  """
  metrics = about['metrics']
  lines = '\n'.join(f'| {name} | {value:.4f} |' for name, value in sorted(metrics.items()))
  figures = (f'| validation, at this step | value |\n|---|---|\n{lines}' if metrics else
             'This checkpoint was saved without validation: evaluate it before use.')
  model = config.model
  return f'''---
library_name: {_LIBRARIES[form]}
tags: [medical, vision-language, radiology]
---

# A plan_jax model: {model.image} and {model.text}

Image-report model trained with plan_jax (objective `{config.objective.name}`, stage
`{about['stage']}`, {about['examples_seen']} pairs seen). Weights are {dtype}.

## Use

{_use_torch(config) if form == 'torch' else _use_programs(config, form)}

## Intended use

Research on images and reports of the kind that it was trained on. **Not a medical device; not for
clinical decisions**, triage, or any use on patients without an evaluation and approval of its own.

## Data

{_records(about, data)}

The model sees {config.data.image_size} x {config.data.image_size} grey pixels, and of a report up to
{config.data.max_pieces} word pieces and {config.data.max_words} words. Weights can hold traces of training
data: treat them as the data's terms say.

## Figures

{figures}

## Limits

Reports say what their authors wrote, which is neither complete nor the truth. Other scanners,
populations, languages and diseases than those of the training data were not tested. Negations and
sides ("no", "left") are understood worse than findings. Maps show where the words' vectors match,
not where the disease is.

## Config

```json
{json.dumps(config_lib.to_dict(config), indent=1)}
```

Versions: {', '.join(f'{name} {version}' for name, version in about['versions'].items())}.
'''


def _records(about: Mapping[str, Any], data: Mapping[str, Any] | None) -> str:
  """What is known of the records: counts, and no text of a report."""
  content_hash = about['data_content_hash']
  if not content_hash:
    return 'None: this checkpoint was imported. See the cards of its towers.'
  if data is None or 'stored' not in data['images']:  # nor in cards of the first format
    return f'Records with content hash `{content_hash}` (their `dataset.json` is the data card).'
  rows, splits, stored = data['rows'], data['splits'], data['images']['stored']
  lines = [
      f'{rows["records"]} records of kind `{data["kind"]}`, content hash `{content_hash}`. From their '
      f'data card (`dataset.json`); images as stored, numbers are the smallest, median and largest:', '',
      '| what | |', '|-|-|',
      f'| rows read, rejected | {rows["in"]}, {sum(rows["rejected"].values())} |',
      f'| records of train, val, test | {", ".join(str(splits[name]) for name in splits)} |',
      *(f'| {side} of images, pixels | {_spread(stored[side])} |' for side in ('width', 'height')),
      f'| words of a report (median, largest) | {data["text"]["words"]["median"]:g}, '
      f'{data["text"]["words"]["max"]} |']
  if data['class_counts']:
    lines += ['', f'| class | {" | ".join(splits)} |', '|-' * (1 + len(splits)) + '|', *(
        f'| {name.replace("|", "/")} | {" | ".join(str(counts[split]) for split in splits)} |'
        for name, counts in data['class_counts'].items())]
  return '\n'.join(lines)


def _spread(values: Mapping[str, float]) -> str:
  return f'{values["min"]}, {values["median"]:g}, {values["max"]}'


def _use_torch(config: config_lib.Config) -> str:
  tower = 'ViTModel' if str(config.model.image).startswith('vit') else 'ResNetModel'
  return f'''`plan_torch.py` is the whole model in PyTorch (torch and safetensors), `plan_inputs.py` makes
what it reads (NumPy). Where `exported` is this directory:

```python
{_CODE['torch']}```

`text/` is a `BertModel` with its tokenizer, `image/` a `{tower}` with an image processor: the towers
alone, without the heads that bring both to one space of {config.model.joint_dim} dimensions. Towers of
`transformers` know no padding of images: for pictures that are not square they differ from
`plan_torch.py`, which leaves the padding out.'''


def _use_programs(config: config_lib.Config, form: str) -> str:
  size, d = config.data.image_size, config.model.joint_dim
  rows, columns = plan_model.grid_shape(config.model, size)
  p, t, s = rows * columns, config.data.max_words, config.data.max_pieces
  runs = {'onnx': 'onnxruntime', 'stablehlo': '`jax.export.deserialize`; the first argument is the '
          'weights, those of `images.safetensors` or `texts.safetensors`'}[form]
  features = {'onnx': 'what the others give: `pixels`, `pixel_norm`, `is_pixel`, `words`, '
              '`word_norm`, `is_word`, `attention`, and the texts\' `pooled` as `text_pooled`',
              'stablehlo': 'both dictionaries that the others give'}[form]
  lines = (
      ('program', 'takes', 'gives'), ('-', '-', '-'),
      (f'`images.{form}`', f'`frames` uint8 [b {size} {size}], `extent` int32 [b 4]',
       f'`pooled` [b {d}], `pixels` [b {p} {d}], `pixel_norm` and `is_pixel` [b {p}], `backbone`'),
      (f'`texts.{form}`', f'`pieces`, `piece_word` int32 [b s], s at most {s}',
       f'`pooled` [b {d}], `words` [b {t} {d}], `word_norm`, `is_word` and `attention` [b {t}], '
       '`backbone`'),
      (f'`ground.{form}`', features,
       f'`map_regions`, `map_words`, `map_pooled` [b {rows} {columns}]'))
  table = '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
  return f'''Three programs, run by {runs}.
They compute in float32, for any number b of images or texts; `plan_inputs.py` (NumPy) makes what
they read.

{table}

Numbers not said to be otherwise are float32. Where `exported` is this directory:

```python
{_CODE[form]}```'''
