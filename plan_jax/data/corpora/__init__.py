"""Published corpora: each module turns a published layout into rows that `prepare` takes."""

from plan_jax.data.corpora import chexpert
from plan_jax.data.corpora import folder
from plan_jax.data.corpora import mimic_cxr
from plan_jax.data.corpora import ms_cxr
from plan_jax.data.corpora import nih
from plan_jax.data.corpora import openi
from plan_jax.data.corpora import padchest
from plan_jax.data.corpora import rocov2
from plan_jax.data.corpora import rsna
from plan_jax.data.corpora import siim
from plan_jax.data.corpora import vindr

CORPORA = {module.CORPUS.name: module.CORPUS for module in (
    mimic_cxr, openi, chexpert, padchest, rocov2, vindr, ms_cxr, rsna, nih, siim, folder)}
