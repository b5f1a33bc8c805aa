"""The built-in checkpoint: its size, and how well it predicts Python code that it was not trained on."""

import sysconfig
from pathlib import Path

from neox_serve.model.model_files import BUILTIN, locate
from tests.bench.view import View


def size_mib() -> float:
    """Returns the size of all files of the model folder, in MiB."""
    return sum(path.stat().st_size for path in locate(BUILTIN, None).iterdir()) / 2**20


def bits_per_byte_over_xz(view: View) -> float:
    """Returns the model's bits per byte on the held-out modules relative to those of `xz -9e`."""
    import torch
    from transformers import AutoTokenizer, GPTNeoXForCausalLM

    from tools.builtin_model.data.corpus import heldout_documents
    from tools.builtin_model.evaluate import score_document, total_bits_per_byte, xz_bits_per_byte

    folder = locate(BUILTIN, None)
    model = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    documents = heldout_documents(Path(sysconfig.get_paths()["stdlib"]))
    scores = []
    with view.progress("built-in model: held-out modules", len(documents)) as on_progress:
        for document in documents:
            scores.append(score_document(model, tokenizer, document.path, document.text))
            on_progress(len(scores))
    ours, xz = total_bits_per_byte(scores), xz_bits_per_byte([document.text for document in documents])
    view.say(f"Held-out Python: {ours:.3f} bits per byte; xz -9e: {xz:.3f}")
    return ours / xz
