import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.jobs.quantize.gptq import quantized
from deployments.jobs.quantize.schemes import SCHEMES, Scheme


def dequantized(integers: torch.Tensor, scales: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Returns the weight that integers and scales represent."""
    inputs = integers.shape[1]
    return integers * scales.repeat_interleave(scheme.group or inputs, dim=1)[:, :inputs]


def correlated(rng: torch.Generator, samples: int, inputs: int) -> torch.Tensor:
    """Returns correlated inputs, like those of a model."""
    return torch.randn(samples, inputs // 4, generator=rng) @ torch.randn(inputs // 4, inputs, generator=rng)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1_000), name=st.sampled_from(sorted(SCHEMES)))
def test_gptq_changes_outputs_less_than_rounding_to_nearest(seed: int, name: str) -> None:
    rng, scheme = torch.Generator().manual_seed(seed), SCHEMES[name]
    weight, inputs = torch.randn(16, 256, generator=rng), correlated(rng, 512, 256)
    integers, scales = quantized(weight, inputs.t() @ inputs, scheme)
    assert integers.min() >= -scheme.largest - 1
    assert integers.max() <= scheme.largest
    parts = weight.double().split(scheme.group or 256, dim=1)
    nearest = torch.cat([scheme.to_integers(part, scheme.scales(part)) * scheme.scales(part) for part in parts], dim=1)
    truth = inputs.double() @ weight.double().t()
    ours = (inputs.double() @ dequantized(integers, scales, scheme).t() - truth).norm()
    assert ours < (inputs.double() @ nearest.t() - truth).norm()


def test_gptq_preserves_weights_that_are_representable() -> None:
    scheme, rng = SCHEMES["w4a16"], torch.Generator().manual_seed(0)
    integers = torch.randint(-7, 8, (16, 256), generator=rng).double()
    integers[:, ::128] = 7
    weight = dequantized(integers, torch.full((16, 2), 0.5, dtype=torch.float64), scheme)
    found, scales = quantized(weight, torch.eye(256), scheme)
    assert torch.allclose(dequantized(found, scales, scheme), weight)


def test_gptq_with_inputs_that_are_always_zero_is_finite() -> None:
    moments = torch.zeros(256, 256)
    moments[0, 0] = 1.0
    integers, scales = quantized(torch.ones(16, 256), moments, SCHEMES["w4a16"])
    assert torch.isfinite(dequantized(integers, scales, SCHEMES["w4a16"])).all()


def test_packed_integers_are_unpacked_unchanged() -> None:
    scheme = SCHEMES["w4a16"]
    integers = torch.arange(-8, 8).repeat(4, 16).double()
    tensors = scheme.to_tensors(integers, torch.ones(4, 2), torch.float16)
    shape = torch.Size(tensors["weight_shape"].tolist())
    assert torch.equal(unpack_from_int32(tensors["weight_packed"], 4, shape).double(), integers)
    assert tensors["weight_packed"].shape == (4, 32)
