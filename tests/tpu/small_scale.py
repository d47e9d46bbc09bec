"""A scale whose models compile in seconds."""

import importlib.util
from pathlib import Path

import pytest

from relu_sparsity.params_file import parse_params

# .ci/run installs it; `make test` alone does not, which takes 684 MB that nothing else needs.
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed; `make tpu-check` installs it, in .venv/libtpu",
)


def small_params(**model):
    """Two layers, of matrix products that outweigh all else."""
    document = {
        "scale": "small",
        "defaults": {
            "tokenizer": {"vocab_size": 512},
            "model": {"num_layers": 2, "emb_dim": 128, "num_heads": 2, "mlp_dim": 1024} | model,
            "training": {"seq_len": 32, "per_device_batch_size": 2, "global_batch_size": 16},
        },
        "scales": {"small": {"model": {"dtype": "bfloat16", "remat": True}}},
        "runs": {"baseline": {}, "slow": {"optimizer": {"peak_lr": 1e-3}}},
        "branches": {"masked": {"parent": "baseline", "intervention": "mask_unused"}},
    }
    return parse_params(document, Path("params.yaml"))
