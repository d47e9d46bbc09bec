import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paper_runs import layout_of

from relu_sparsity.paper.extract import (
    LAYER_METRICS,
    extract_metrics,
    over_all_units,
    write_metrics,
)
from relu_sparsity.paper.history import RunHistory

BASELINE = "runs/baseline/seed0"


def test_metrics_of_a_run(results_dir):
    metrics = extract_metrics(results_dir / BASELINE, 1000)
    assert metrics["total_batch_use"] == pytest.approx(69.7, abs=0.05)
    assert metrics["accuracy"] == pytest.approx(0.4, abs=0.02)
    assert metrics["layer0"]["batch_use"] == pytest.approx(13.3)
    assert metrics["layer5"]["turned_on"] == pytest.approx(12.2, abs=0.01)
    assert [name for name in metrics if name.startswith("layer")] == [f"layer{k}" for k in range(6)]


def test_total_is_weighted_by_units(results_dir):
    metrics = extract_metrics(results_dir / "runs/round2/seed1", 1000)
    dims = [7455, 24807, 22743, 24478, 27926, 32200]
    use = [metrics[f"layer{k}"]["batch_use"] for k in range(6)]
    assert metrics["total_batch_use"] == pytest.approx(np.dot(use, dims) / sum(dims), rel=1e-5)


def test_written_twice_it_is_the_same(results_dir, tmp_path, params):
    layout = layout_of(tmp_path)
    shutil.copytree(results_dir / BASELINE, layout.run("baseline", 0))
    texts = []
    for _ in range(2):
        write_metrics(params, layout, "baseline", 0)
        texts.append((layout.run("baseline", 0) / "metrics.json").read_text())
    assert texts[0] == texts[1]
    assert json.loads(texts[0]) == extract_metrics(results_dir / BASELINE, 1000)


@given(
    st.lists(
        st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20),
        min_size=1,
        max_size=4,
    )
)
def test_units_turn_on_and_off(layers):
    """Table 2's columns add up, whatever the units do."""
    dims = [len(layer) for layer in layers]
    none = np.empty((0, len(layers)))
    history = RunHistory(
        run="any",
        seed=0,
        config={"model": {"mlp_dims": dims}, "training": {"num_steps": 5}},
        parent_step=None,
        steps=np.empty(0, int),
        unit_use={},
        eval_steps=np.empty(0, int),
        eval_loss=none,
        eval_accuracy=none,
        units={
            step: [np.array([unit[k] for unit in layer]) for layer in layers]
            for k, step in enumerate((0, 4))
        },
    )
    on, gained, lost, final, used = (
        LAYER_METRICS[name](history, 1)
        for name in ("on_at_start", "turned_on", "turned_off", "final_use", "units_used")
    )
    np.testing.assert_allclose(on + gained - lost, final, atol=1e-9)
    np.testing.assert_allclose(used, final * dims / 100)
    assert over_all_units(final, history) == pytest.approx(100 * used.sum() / sum(dims))
    expected = [100 * np.mean([not before and after for before, after in each]) for each in layers]
    np.testing.assert_allclose(gained, expected)
