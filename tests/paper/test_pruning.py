"""What leaving masked units out saves."""

import json

import numpy as np
import pandas as pd
import pytest

from relu_sparsity.errors import UserError
from relu_sparsity.flops import forward_flops_per_token
from relu_sparsity.layout import Layout
from relu_sparsity.paper.catalog import PRUNING
from relu_sparsity.paper.pruning import write_pruning
from relu_sparsity.params import PruningParams

WHOLE = [32, 32]
KEPT = {"masked": [10, 20], "random_masked": [10, 20]}


@pytest.fixture
def layout(tmp_path, params, monkeypatch):
    """Two masked runs of two layers, trained at widths that are multiples of 8."""
    monkeypatch.chdir(tmp_path)
    layout = Layout("smoke")
    for run, kept in KEPT.items():
        for seed in params.runs[run].seeds:
            folder = layout.run(run, seed)
            folder.mkdir(parents=True)
            config = {
                "model": {"emb_dim": 16, "mlp_dims": WHOLE},
                "training": {"global_batch_size": 4, "seq_len": 8},
                "tokenizer": {"vocab_size": 300},
            }
            description = {"config": config, "trained_mlp_dims": [16, 24]}
            (folder / "run.json").write_text(json.dumps(description))
            layers = {f"layer{i}": np.arange(32) < count for i, count in enumerate(kept)}
            np.savez(layout.mask(run, seed), **layers)
    return layout


def measured(layout, run, seed, rates):
    path = layout.throughput(run, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("step,tokens_per_second\n" + "".join(f"1,{rate}\n" for rate in rates))


def test_shows_flops_and_speed_beside_the_parents(layout, params):
    params = params.model_copy(update={"pruning": PruningParams(show_speed=True)})
    for seed in params.runs["masked"].seeds:
        measured(layout, "baseline", seed, [320, 640, 6400])
        measured(layout, "masked", seed, [960])
    write_pruning(params, layout)
    csv, markdown, _ = layout.table(PRUNING)
    masked, random_masked = pd.read_csv(csv).to_dict("records")
    assert masked["run"] == "masked"
    assert masked["units_left"] == pytest.approx(100 * 30 / 64)
    assert masked["units_trained"] == pytest.approx(100 * 40 / 64)
    shape = {"emb_dim": 16, "seq_len": 8, "vocab_size": 300}
    dense = 3 * 32 * forward_flops_per_token(mlp_dims=WHOLE, **shape)
    compacted = 3 * 32 * forward_flops_per_token(mlp_dims=[16, 24], **shape)
    assert masked["step_flops_dense"] == pytest.approx(dense, rel=1e-5)
    assert masked["step_flops_compacted"] == pytest.approx(compacted, rel=1e-5)
    assert masked["flops_ratio"] == pytest.approx(compacted / dense, rel=1e-5)
    assert masked["steps_per_second_dense"] == 20
    assert masked["steps_per_second_compacted"] == 30
    assert masked["speedup"] == 1.5
    assert np.isnan(random_masked["speedup"]), "was not trained here"
    assert "nan" in markdown.read_text()


def test_without_speeds_it_is_the_same_each_time(layout, params):
    quiet = params.model_copy(update={"pruning": PruningParams(show_speed=False)})
    texts = []
    for rates in ([100], [200]):
        for seed in params.runs["masked"].seeds:
            measured(layout, "baseline", seed, rates)
        write_pruning(quiet, layout)
        texts.append([path.read_bytes() for path in layout.table(PRUNING)])
    assert texts[0] == texts[1]
    assert "speedup" not in pd.read_csv(layout.table(PRUNING)[0])


def test_names_what_is_missing(layout, params):
    path = layout.run("masked", params.runs["masked"].seeds[0]) / "run.json"
    path.write_text("{}")
    with pytest.raises(UserError, match=r"masked/seed\d/run.json: .* malformed: 'config'"):
        write_pruning(params, layout)
