import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.jobs.quantize.gptq import quantized
from deployments.jobs.quantize.schemes import SCHEMES, Scheme


def opened(numbers: torch.Tensor, scales: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """What the numbers stand for."""
    inputs = numbers.shape[1]
    return numbers * scales.repeat_interleave(scheme.group or inputs, dim=1)[:, :inputs]


def correlated(rng: torch.Generator, samples: int, inputs: int) -> torch.Tensor:
    """Inputs that tell of each other, as a model's do."""
    return torch.randn(samples, inputs // 4, generator=rng) @ torch.randn(inputs // 4, inputs, generator=rng)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1_000), name=st.sampled_from(sorted(SCHEMES)))
def test_rounding_against_inputs_changes_outputs_less_than_rounding_to_the_nearest(seed: int, name: str) -> None:
    rng, scheme = torch.Generator().manual_seed(seed), SCHEMES[name]
    weight, inputs = torch.randn(16, 256, generator=rng), correlated(rng, 512, 256)
    numbers, scales = quantized(weight, inputs.t() @ inputs, scheme)
    assert numbers.min() >= -scheme.largest - 1
    assert numbers.max() <= scheme.largest
    parts = weight.double().split(scheme.group or 256, dim=1)
    nearest = torch.cat([scheme.rounded(part, scheme.scales(part)) * scheme.scales(part) for part in parts], dim=1)
    truth = inputs.double() @ weight.double().t()
    ours = (inputs.double() @ opened(numbers, scales, scheme).t() - truth).norm()
    assert ours < (inputs.double() @ nearest.t() - truth).norm()


def test_weights_that_can_be_stored_are_stored_as_they_are() -> None:
    scheme, rng = SCHEMES["w4a16"], torch.Generator().manual_seed(0)
    numbers = torch.randint(-7, 8, (16, 256), generator=rng).double()
    numbers[:, ::128] = 7
    weight = opened(numbers, torch.full((16, 2), 0.5, dtype=torch.float64), scheme)
    found, scales = quantized(weight, torch.eye(256), scheme)
    assert torch.allclose(opened(found, scales, scheme), weight)


def test_inputs_that_never_come_do_no_harm() -> None:
    moments = torch.zeros(256, 256)
    moments[0, 0] = 1.0
    numbers, scales = quantized(torch.ones(16, 256), moments, SCHEMES["w4a16"])
    assert torch.isfinite(opened(numbers, scales, SCHEMES["w4a16"])).all()


def test_packed_numbers_are_those_that_were_packed() -> None:
    scheme = SCHEMES["w4a16"]
    numbers = torch.arange(-8, 8).repeat(4, 16).double()
    kept = scheme.stored(numbers, torch.ones(4, 2), torch.float16)
    shape = torch.Size(kept["weight_shape"].tolist())
    assert torch.equal(unpack_from_int32(kept["weight_packed"], 4, shape).double(), numbers)
    assert kept["weight_packed"].shape == (4, 32)
