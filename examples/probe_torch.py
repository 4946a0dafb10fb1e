"""PyTorch: a linear probe on an exported image tower, then both fine-tuned. The model runs without JAX.

Needs what `bash launch/run.sh` leaves, and its export:
  python -m plan_jax.convert export --checkpoint runs/demo --out exported
"""

# %%
import io
import sys

import numpy as np
from PIL import Image
from sklearn import metrics
import torch

from plan_jax.data import records

sys.path.insert(0, 'exported')
import plan_inputs  # pylint: disable=wrong-import-position
import plan_torch  # pylint: disable=wrong-import-position

torch.manual_seed(0)
model, inputs = plan_torch.load('exported'), plan_inputs.load('exported')


# %% Frames that the model sees, and whether there is an effusion
def read(split, count):
  examples = [x for _, x in zip(range(count), records.Records('runs/demo/records', split))]
  greys = [np.array(Image.open(io.BytesIO(x.image)).convert('L')) for x in examples]
  frames, extents = map(np.stack, zip(*map(inputs.frame, greys)))
  truth = torch.tensor([float('pleural effusion' in x.labels) for x in examples])
  return torch.from_numpy(frames), torch.from_numpy(extents), truth


train, test = read('train', 400), read('test', 400)


def features(frames, extents):
  return model.encode_images(frames, extents).backbone


def auroc(probe, split):
  with torch.no_grad():
    return metrics.roc_auc_score(split[2], probe(features(*split[:2]))[:, 0])


# %% The tower frozen, a linear layer trained
with torch.no_grad():
  seen = features(*train[:2])
probe = torch.nn.Sequential(
    torch.nn.BatchNorm1d(seen.shape[1]), torch.nn.Linear(seen.shape[1], 1))
optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-2, weight_decay=0.1)
loss_of = torch.nn.BCEWithLogitsLoss()
losses = []
for _ in range(100):
  loss = loss_of(probe(seen)[:, 0], train[2])
  optimizer.zero_grad()
  loss.backward()
  optimizer.step()
  losses.append(loss.item())
probe.eval()
frozen = auroc(probe, test)
print(f'linear probe: loss {losses[0]:.3f} to {losses[-1]:.3f}, test AUROC {frozen:.3f}')

# %% Tower and layer together: parameters of the export are ordinary ones
optimizer = torch.optim.AdamW([*model.image.parameters(), *probe.parameters()], lr=1e-4)
for batch in torch.randperm(len(train[2])).split(32)[:20]:
  frames, extents, truth = (x[batch] for x in train)
  loss = loss_of(probe(features(frames, extents))[:, 0], truth)
  optimizer.zero_grad()
  loss.backward()
  optimizer.step()
tuned = auroc(probe, test)
print(f'fine-tuned for one epoch at most: test AUROC {tuned:.3f}')
