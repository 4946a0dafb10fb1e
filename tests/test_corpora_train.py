"""Records of every corpus train: a step on those with reports, heads on the evaluation sets."""

import cv2
import jax
import numpy as np
import pytest

import corpus_runs as corpus
from plan_jax import mesh as mesh_lib
from plan_jax import optim
from plan_jax import stages
from plan_jax import step as step_lib
from plan_jax.data import augment
from plan_jax.data import corpora
from plan_jax.data import pipeline
from plan_jax.data import records
from plan_jax.data import tokenize
from plan_jax.data.corpora import base
from plan_jax.evals import linear_probe
from plan_jax.tasks import examples as examples_lib
from plan_jax.tasks import targets
import tiny

_BATCH = 4


def test_every_corpus_with_reports_trains(tmp_path):
  names = [name for name, found in corpora.CORPORA.items() if found.texts is not base.Texts.NONE]
  assert len(names) == 6
  for name in names:
    (tmp_path / name).mkdir()
    corpus.made(name, tmp_path / name)
  settings = tiny.config(train={'batch_size': _BATCH}, objective={'name': 'convirt'})
  vocabulary = tokenize.read_vocabulary(records.vocabulary_path(tmp_path / 'mimic_cxr/out'))
  tokenizer = tokenize.Tokenizer(
      vocabulary, max_pieces=settings.data.max_pieces, max_words=settings.data.max_words)
  mesh = mesh_lib.make_mesh(jax.devices()[:1])
  model = step_lib.build_model(settings, vocab_size=len(vocabulary))
  optimizer = optim.make_optimizer(settings.optim, total_steps=settings.train.steps)
  state = jax.device_put(
      tiny.random_state(model, optimizer, settings=settings),
      step_lib.state_shardings(model, optimizer, config=settings, mesh=mesh))
  train_step = step_lib.make_train_step(model, optimizer, config=settings, mesh=mesh)
  stage = stages.schedule(settings.stages, total_steps=settings.train.steps).values(0)
  losses = {}
  for name in names:
    batch = next(pipeline.batches(
        records.Records(tmp_path / name / 'out', 'train'), tokenizer=tokenizer,
        settings=settings.data, batch_size=_BATCH, seed=0, start_step=0))
    assert (batch.word_form >= 0).sum(axis=1).min() > 0, name  # no report is empty
    state, metrics = train_step(state, jax.device_put(batch, mesh_lib.split(mesh)), stage)
    losses[name] = float(metrics['loss'])
  assert np.isfinite(list(losses.values())).all() and len(set(losses.values())) == 6, losses
  assert int(state.skipped) == 0


@pytest.mark.parametrize('name, places', [
    ('vindr', 'boxes'), ('rsna', 'boxes'), ('nih', 'boxes'), ('siim', 'masks'),
    ('ms_cxr', 'phrases')])
def test_heads_learn_from_evaluation_sets(tmp_path, name, places):
  """What the heads of `evaluate` take from records is there: labels that differ, and places."""
  corpus.made(name, tmp_path)
  examples = list(corpus.examples(tmp_path).values())
  classes = sorted(set().union(*map(targets.classes_of, examples)))
  is_positive = np.array([[c in targets.classes_of(e) for c in classes] for e in examples])
  thumbnails = [cv2.resize(augment.decode_image(e.image), (4, 4), interpolation=cv2.INTER_AREA)
                for e in examples]
  data = linear_probe.Split(
      features=np.reshape(thumbnails, (len(examples), -1)), is_positive=is_positive)
  fits = linear_probe.fit(data, data, data, strengths=(1.0,))
  assert sum(fit is not None for fit in fits) == (is_positive.any(0) & ~is_positive.all(0)).sum() > 0
  found = targets.categories(examples)
  if places == 'boxes':
    truths = [targets.boxes(e, classes=found) for e in examples if targets.is_annotated(e)]
    assert any(len(truth.boxes) for truth in truths)
    # Images without findings make false alarms cost; NIH's boxes come without such images.
    assert name == 'nih' or not all(len(truth.boxes) for truth in truths)
  elif places == 'masks':
    inside = [targets.masks(e, classes=found).mean() for e in examples]
    assert 0 < max(inside) < 0.1 and min(inside) == 0
  else:
    assert sum(len(list(examples_lib.phrase_targets(e, row=0))) for e in examples) >= 5


def test_no_corpus_is_left_out():
  assert {name for name, found in corpora.CORPORA.items() if found.texts is base.Texts.NONE} == {
      'vindr', 'rsna', 'nih', 'siim', 'ms_cxr'}
