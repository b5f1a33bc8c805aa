"""The planned memory of a model equals the size of its checkpoint and what vLLM reports."""

import json
import math
import re
import urllib.request
from pathlib import Path

import pytest
from safetensors import safe_open

from cluster.planning.plan import NEOX_20B
from neox_serve.model.memory import kv_bytes_per_token, parameters, weight_bytes
from neox_serve.model.model_files import read_facts
from tests.clusters import CommandCluster
from tests.e2e.engine.vllm_weights import vllm_weight_bytes

pytestmark = pytest.mark.e2e

FOLDER = Path(__file__).parents[3] / "neox_serve" / "builtin_model"
FLOAT32_BYTES = 4


def test_planned_weights_equal_the_checkpoint() -> None:
    elements = 0
    for path in FOLDER.glob("*.safetensors"):
        with safe_open(path, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                shape = tensors.get_slice(name).get_shape()
                elements += math.prod(shape)
    facts = read_facts(FOLDER)
    assert parameters(facts) == elements
    assert weight_bytes(facts, element_bytes=FLOAT32_BYTES) == elements * FLOAT32_BYTES


def test_planned_weights_equal_those_of_vllms_models(tmp_path: Path) -> None:
    config = {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        "num_hidden_layers": NEOX_20B.layers,
        "num_attention_heads": NEOX_20B.heads,
        "hidden_size": NEOX_20B.hidden_size,
        "intermediate_size": NEOX_20B.intermediate_size,
        "vocab_size": NEOX_20B.vocabulary_size,
        "max_position_embeddings": NEOX_20B.positions,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert vllm_weight_bytes((FOLDER, "float32"), (tmp_path, "float16")) == [
        weight_bytes(read_facts(FOLDER), element_bytes=FLOAT32_BYTES),
        weight_bytes(NEOX_20B),
    ]


def test_planned_kv_tokens_equal_what_vllm_reports(real_cluster: CommandCluster) -> None:
    page = urllib.request.urlopen(f"http://127.0.0.1:{real_cluster.settings.metrics.port}/metrics", timeout=10).read().decode()
    lines = [line for line in page.splitlines() if line.startswith("vllm:cache_config_info{") and 'pool="generation"' in line]
    assert lines, "vLLM does not report its cache"
    reported = dict(re.findall(r'(\w+)="([^"]*)"', lines[0]))
    block_tokens, blocks = int(reported["block_size"]), int(reported["num_gpu_blocks"])
    room_bytes = real_cluster.settings.generation.engine.kv_cache_gib * (1 << 30)
    planned = int(room_bytes // (kv_bytes_per_token(read_facts(FOLDER), FLOAT32_BYTES) * block_tokens))
    assert blocks == planned
