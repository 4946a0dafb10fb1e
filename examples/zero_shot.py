"""Zero-shot classification: is there an effusion? Reports say what is meant by either answer.

Needs what `bash launch/run.sh` leaves; for a run and images of your own change the two paths.
"""

# %%
from sklearn import metrics

import plan_jax
from plan_jax.data import records

model = plan_jax.load('runs/demo')
test = list(records.Records('runs/demo/records', 'test'))

# %% Which of the two reports is each image nearer to?
yes = 'FINDINGS: Small left pleural effusion. IMPRESSION: Small left pleural effusion.'
no = 'FINDINGS: No pleural effusion. IMPRESSION: No pleural effusion.'
with_effusion, without = model.similarity([x.image for x in test], [yes, no]).T
scores = with_effusion - without

# %%
truth = ['pleural effusion' in x.labels for x in test]
auroc = metrics.roc_auc_score(truth, scores)
print(f'pleural effusion: AUROC {auroc:.3f} of {len(test)} images, {sum(truth)} with it')
