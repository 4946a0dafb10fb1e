"""Grounding: where in the image is what a phrase says? Draws the map beside the truth.

Needs what `bash launch/run.sh` leaves; for a run and images of your own change the two paths.
"""

# %%
import io

from matplotlib import patches
from matplotlib import pyplot as plt
from PIL import Image

import plan_jax
from plan_jax.data import records

model = plan_jax.load('runs/demo')
test = records.Records('runs/demo/records', 'test')
example = next(x for x in test if x.phrases)  # image.png would do as well

# %% One map a phrase, of the image's own size
figure, axes = plt.subplots(1, 1 + len(example.phrases), figsize=(4 * (1 + len(example.phrases)), 4))
image = Image.open(io.BytesIO(example.image))
for panel in axes:
  panel.imshow(image, cmap='gray')
  panel.axis('off')
for panel, phrase in zip(axes[1:], example.phrases):
  heat = model.ground(example.image, phrase.text)
  panel.imshow(heat, cmap='inferno', alpha=0.5)
  panel.set_title(phrase.text, wrap=True)
  for x0, y0, x1, y1 in phrase.boxes * [*image.size, *image.size]:
    panel.add_patch(patches.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color='cyan'))

# %%
figure.savefig('runs/demo/example_grounding.png', bbox_inches='tight')
print('runs/demo/example_grounding.png: the image, and each phrase with its map and true boxes')
