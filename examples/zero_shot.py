"""Zero-shot classification: is there an effusion? Reports say what is meant by either answer.

Needs what `bash launch/run.sh` leaves; for a run and images of your own change the two paths.
"""

# %%
from sklearn import metrics

import plan_jax
from plan_jax.data import records

model = plan_jax.load('runs/demo')
test = list(records.Records('runs/demo/records', 'test'))

# %% Which reports is each image nearer to? Several wordings: one would ask for its side and size too.
yes = ['There is a moderate right pleural effusion.', 'A small left pleural effusion.',
       'Large bilateral pleural effusions are present.']
no = ['No pleural effusion.', 'The costophrenic angles are sharp.',
      'There is no evidence of pleural fluid.']
reports = [f'FINDINGS: {x} IMPRESSION: {x}' for x in yes + no]
nearness = model.similarity([x.image for x in test], reports)
scores = nearness[:, :len(yes)].mean(axis=1) - nearness[:, len(yes):].mean(axis=1)

# %%
truth = ['pleural effusion' in x.labels for x in test]
auroc = metrics.roc_auc_score(truth, scores)
print(f'pleural effusion: AUROC {auroc:.3f} of {len(test)} images, {sum(truth)} with it')
