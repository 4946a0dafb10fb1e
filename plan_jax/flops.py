"""Floating point operations of a program, and what share of the hardware's peak they use.

Matrix products and convolutions are counted from the traced program, a loop as often as it
runs: XLA's own count takes the body of a loop once. Everything else (norms, softmax, gates)
is left out, as is usual for model FLOPs.
"""

import math
from typing import Any, Callable, Iterable

import jax
from jax.extend import core

# Dense bf16 TFLOP/s of a chip, from the makers' data sheets, by the start of `device_kind`; the
# first that fits: cards of one name with less power come before the largest.
_PEAK_TFLOPS = {
    'TPU v4': 275, 'TPU v5 lite': 197, 'TPU v5e': 197, 'TPU v5p': 459, 'TPU v5': 459,
    'TPU v6 lite': 918, 'TPU v6e': 918, 'NVIDIA A100': 312, 'NVIDIA H100 PCIe': 756,
    'NVIDIA H100 NVL': 835, 'NVIDIA H100': 989, 'NVIDIA H200 NVL': 835, 'NVIDIA H200': 989,
    'NVIDIA B200': 2250}


def peak(device: jax.Device) -> float | None:
  """FLOP/s of a device in bf16; None where it is not known (CPUs, other GPUs)."""
  for kind, tflops in _PEAK_TFLOPS.items():
    if device.device_kind.startswith(kind):
      return tflops * 1e12
  return None


def count(
    function: Callable[..., Any], *args: Any, branch: Callable[[Iterable[int]], int] = max,
) -> int:
  """FLOPs of the matrix products and convolutions of `function(*args)`.

  Arguments may be `jax.ShapeDtypeStruct`s. A `while` loop, whose length nobody knows, counts once.

  Args:
    function: that is traced, not run.
    *args: what it takes.
    branch: which side of a branch counts: `max` the dearest, `min` the cheapest.
  """
  return _count(jax.make_jaxpr(function)(*args).jaxpr, branch)


def _count(jaxpr: core.Jaxpr, branch) -> int:
  return sum(_count_equation(equation, branch) for equation in jaxpr.eqns)


def _count_equation(equation: core.JaxprEqn, branch) -> int:
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[k] for k in contracted)
  if name == 'conv_general_dilated':
    kernel = equation.invars[1].aval.shape
    output_feature = params['dimension_numbers'].rhs_spec[0]
    positions = math.prod(equation.outvars[0].aval.shape)
    # A dilated input (backward of a stride) is mostly zeros, which nobody multiplies.
    return (2 * positions * math.prod(kernel) // kernel[output_feature]
            // math.prod(params['lhs_dilation']))
  if name == 'cond':
    return branch(_count(side.jaxpr, branch) for side in params['branches'])
  times = {'scan': lambda: params['length'], 'shard_map': lambda: params['mesh'].size}
  inner = sum(_count(sub, branch) for sub in core.jaxprs_in_params(params))
  return inner * times.get(name, lambda: 1)()
