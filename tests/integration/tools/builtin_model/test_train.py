"""Training: a resumed run equals an uninterrupted one, and the fast loss equals the reference loss."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPTNeoXForCausalLM

from tools.builtin_model.checkpoint import Progress, load_checkpoint, save_checkpoint
from tools.builtin_model.data.packing import DataPosition, Streams
from tools.builtin_model.fast_forward import fast_loss
from tools.builtin_model.model import built_in_config, new_model, next_token_loss
from tools.builtin_model.schedule import Budget, Schedule
from tools.builtin_model.train import Trainer, TrainOptions, run_training, start_trainer

OPTIONS = TrainOptions(batch_tokens=128, micro_batch_tokens=64, matmul_dtype=torch.float32)
SCHEDULE = Schedule(context_stages=((0.0, 32), (0.5, 64)), decay_from_fraction=0.5)
BUDGET = Budget(steps=4)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Uses one thread, so that sums have one order and runs can be compared exactly."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def streams() -> Streams:
    rng = np.random.default_rng(0)
    everything, annealing = (rng.integers(0, 4096, 8 * 2048).astype(np.uint16) for _ in range(2))
    return Streams(everything, annealing)


def stop_after(trainer: Trainer, steps: int) -> bool:
    return trainer.progress.steps >= steps


def test_run_training_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, streams: Streams) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = start_trainer(tmp_path / "whole" / "checkpoint.pt", OPTIONS, SCHEDULE)
    assert run_training(whole, streams, BUDGET, tmp_path / "whole", lambda: False)
    first = start_trainer(tmp_path / "parts" / "checkpoint.pt", OPTIONS, SCHEDULE)
    assert not run_training(first, streams, BUDGET, tmp_path / "parts", lambda: stop_after(first, 3))
    second = start_trainer(tmp_path / "parts" / "checkpoint.pt", OPTIONS, SCHEDULE)
    assert second.progress == first.progress
    assert run_training(second, streams, BUDGET, tmp_path / "parts", lambda: False)
    assert replace(second.progress, elapsed_s=0.0) == replace(whole.progress, elapsed_s=0.0)
    assert second.progress.annealing_position != DataPosition()
    expected, found = whole.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_run_training_repeated_text_lowers_the_loss(streams: Streams) -> None:
    repeated = Streams(np.tile(np.arange(2, 10, dtype=np.uint16), 256 * 8), streams.annealing)
    model = new_model(0)
    with ThreadPoolExecutor(2) as workers:
        trainer = Trainer(model, torch.optim.AdamW(model.parameters()), Progress(), OPTIONS, SCHEDULE, workers)
        losses = [trainer.step(repeated, 0.3) for _ in range(8)]
    assert losses[-1] < losses[0] - 2.0


def test_save_checkpoint_interrupted_write_keeps_the_previous_one(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    model = new_model(1)
    save_checkpoint(path, model, torch.optim.AdamW(model.parameters()), Progress(steps=5))
    path.with_suffix(".partial").write_bytes(b"half a checkpoint")
    assert load_checkpoint(path, new_model(2)).steps == 5


def test_fast_loss_equals_the_reference_in_value_and_gradient() -> None:
    model = perturbed_model()
    tokens = torch.randint(0, 4096, (2, 48), generator=torch.Generator().manual_seed(0))
    reference = next_token_loss(model, tokens)
    reference.backward()
    expected = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    fast = fast_loss(model, tokens, torch.float32)
    fast.backward()
    assert fast.item() == pytest.approx(reference.item(), abs=1e-5)
    for weight, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(weight.grad, gradient, atol=1e-6, rtol=1e-3)


def perturbed_model() -> GPTNeoXForCausalLM:
    """Returns a model whose norms and biases are not neutral, so that an error in folding them is detected."""
    model = new_model(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return model


def test_built_in_config_widths_allow_tensor_parallelism_and_group_quantization() -> None:
    config = built_in_config()
    assert config.num_attention_heads % 2 == 0
    for width in (config.vocab_size, config.hidden_size, config.intermediate_size):
        assert width % 2 == 0
        assert width % 128 == 0


def test_train_options_indivisible_micro_batches_are_rejected() -> None:
    with pytest.raises(ValueError, match="must divide"):
        TrainOptions(batch_tokens=100, micro_batch_tokens=64)
