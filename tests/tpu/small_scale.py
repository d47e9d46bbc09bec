"""A scale whose models compile in seconds."""

from pathlib import Path

from relu_sparsity.params_file import parse_params


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
