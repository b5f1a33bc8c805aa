"""GPTQ: rounds a weight input by input, and lets the inputs that are still to come make up for what each rounding has changed.

Source: Frantar et al. 2023, GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers (the blocked form, in the
inputs' own order).
"""

import torch

from deployments.jobs.quantize.schemes import Scheme

_DAMPING_FRACTION = 0.01
_BLOCK = 128


def quantized(weight: torch.Tensor, moments: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers [outputs, inputs] and scales [outputs, groups]. moments: of the inputs, the sum of x x^T, [inputs, inputs]."""
    outputs, inputs = weight.shape
    rest, group = weight.double().clone(), scheme.group or inputs
    factors = _factors(moments)
    numbers, scales = torch.zeros_like(rest), torch.zeros(outputs, -(-inputs // group), dtype=torch.float64)
    whole = scheme.scales(rest) if group >= inputs else None
    for start in range(0, inputs, _BLOCK):
        end = min(start + _BLOCK, inputs)
        errors = torch.zeros(outputs, end - start, dtype=torch.float64)
        for place in range(start, end):
            if place % group == 0:
                scales[:, place // group] = (scheme.scales(rest[:, place : place + group]) if whole is None else whole)[:, 0]
            scale = scales[:, place // group]
            numbers[:, place] = scheme.rounded(rest[:, place], scale)
            error = (rest[:, place] - numbers[:, place] * scale) / factors[place, place]
            rest[:, place:end] -= error[:, None] * factors[place, place:end]
            errors[:, place - start] = error
        rest[:, end:] -= errors @ factors[start:end, end:]
    return numbers, scales


def _factors(moments: torch.Tensor) -> torch.Tensor:
    """Upper Cholesky factor of the inverse of the moments, which are damped so that there is one."""
    damped = moments.double().clone()
    diagonal = torch.diagonal(damped)
    diagonal[diagonal == 0] = 1.0
    diagonal += _DAMPING_FRACTION * diagonal.mean()
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
