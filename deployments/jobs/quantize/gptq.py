"""GPTQ: rounds a weight matrix input by input, and adjusts the remaining inputs to compensate for the error of each rounding.

Source: Frantar et al. 2023, GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers (the blocked form, in the
inputs' own order).
"""

import torch

from deployments.jobs.quantize.schemes import Scheme

_DAMPING_FRACTION = 0.01
_BLOCK = 128


def quantized(weight: torch.Tensor, moments: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantizes a weight [outputs, inputs]. Returns integers [outputs, inputs] and scales [outputs, groups].

    `moments` is the sum of x x^T over the matrix's inputs x, [inputs, inputs].
    """
    outputs, inputs = weight.shape
    rest, group = weight.double().clone(), scheme.group or inputs
    factors = _factors(moments)
    integers, scales = torch.zeros_like(rest), torch.zeros(outputs, -(-inputs // group), dtype=torch.float64)
    per_output = scheme.scales(rest) if group >= inputs else None
    for start in range(0, inputs, _BLOCK):
        end = min(start + _BLOCK, inputs)
        errors = torch.zeros(outputs, end - start, dtype=torch.float64)
        for column in range(start, end):
            if column % group == 0:
                scales[:, column // group] = (scheme.scales(rest[:, column : column + group]) if per_output is None else per_output)[:, 0]
            scale = scales[:, column // group]
            integers[:, column] = scheme.to_integers(rest[:, column], scale)
            error = (rest[:, column] - integers[:, column] * scale) / factors[column, column]
            rest[:, column:end] -= error[:, None] * factors[column, column:end]
            errors[:, column - start] = error
        rest[:, end:] -= errors @ factors[start:end, end:]
    return integers, scales


def _factors(moments: torch.Tensor) -> torch.Tensor:
    """Returns the upper Cholesky factor of the inverse of the moments, which are damped so that it exists."""
    damped = moments.double().clone()
    diagonal = torch.diagonal(damped)
    diagonal[diagonal == 0] = 1.0
    diagonal += _DAMPING_FRACTION * diagonal.mean()
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
