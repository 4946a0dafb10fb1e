"""The model card of an export: what it is, from what, how good, and what it is not for."""

from collections.abc import Mapping
import json
from typing import Any

from plan_jax import config as config_lib


def model_card(config: config_lib.Config, *, about: Mapping[str, Any], dtype: str) -> str:
  """README.md of an export (Markdown with the hub's header).

  Args:
    config: of the run.
    about: what the checkpoint says of itself.
    dtype: of the weights as written.
  """
  metrics = about['metrics']
  lines = '\n'.join(f'| {name} | {value:.4f} |' for name, value in sorted(metrics.items()))
  figures = (f'| validation, at this step | value |\n|---|---|\n{lines}' if metrics else
             'This checkpoint was saved without validation: evaluate it before use.')
  model, data = config.model, config.data
  return f'''---
library_name: pytorch
tags: [medical, vision-language, radiology]
---

# A plan_jax model: {model.image} and {model.text}

Image-report model trained with plan_jax (objective `{config.objective.name}`, stage
`{about['stage']}`, {about['examples_seen']} pairs seen). Weights are {dtype}.

## Use

`plan_torch.py` in this directory is the whole model in PyTorch and shows how to use it: pooled,
word and pixel vectors, grounding maps, the frame that the model sees, and its tokenizer.
`text/` is a `BertModel` with its tokenizer, `image/` a
`{'ViTModel' if str(model.image).startswith('vit') else 'ResNetModel'}` with an image processor:
the towers alone, without the heads that bring both to one space of {model.joint_dim} dimensions.
Towers of `transformers` know no padding of images: for pictures that are not square they differ
from `plan_torch.py`, which leaves the padding out.

## Intended use

Research on images and reports of the kind that it was trained on. **Not a medical device; not for
clinical decisions**, triage, or any use on patients without an evaluation and approval of its own.

## Data

Records with content hash `{about['data_content_hash']}` (their `dataset.json` is the data card).
Images {data.image_size} x {data.image_size} grey; reports up to {data.max_pieces} word pieces and
{data.max_words} words. Weights can hold traces of training data: treat them as the data's terms say.

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
