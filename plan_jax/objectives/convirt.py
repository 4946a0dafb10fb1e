"""ConVIRT: the global term alone, the first baseline."""

from plan_jax import shapes
from plan_jax.losses import contrastive


def convirt_loss(outputs: shapes.Outputs) -> shapes.Terms:
  """Symmetric InfoNCE of pooled images and reports.

  Source: method (2); arXiv 2010.00747 (which weights the two directions 3:1 and uses
  tau 0.1; here they are averaged, with the model's temperature).
  """
  loss = contrastive.global_loss(
      outputs.image.pooled, outputs.text.pooled, temperature=outputs.temperature)
  return shapes.Terms(
      total=loss, parts={'global': loss}, diagnostics={'temperature': outputs.temperature})
