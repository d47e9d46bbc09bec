from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from paper_runs import write_mask
from scipy import stats

from relu_sparsity.paper.evidence import (
    PublishedResults,
    UndecidableError,
    holm,
    of_documents,
    p_below,
    p_differs,
    p_equivalent,
    rank_correlation,
)

differences = arrays(int, st.integers(3, 20), elements=st.integers(-2000, 2000))


@given(differences)
def test_equivalence_is_the_confidence_interval_within_the_margin(values):
    """TOST at 5 % and the 90 % confidence interval are the same decision."""
    assume(np.ptp(values) > 0)
    values = values / 1e5
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    distance = min(0.005 - interval.high, interval.low + 0.005)
    assume(abs(distance) > 1e-9)
    assert (p_equivalent(values, 0.005) < 0.05) == (distance > 0)


def test_equal_arms_are_equivalent():
    assert p_equivalent(np.zeros(5), 0.005) == 0
    assert p_equivalent(np.full(5, 0.004), 0.005) == 0
    assert p_equivalent(np.full(5, 0.006), 0.005) == 1


def test_no_significant_difference_is_not_equivalence():
    noisy = np.array([-0.05, 0.05, 0.02, -0.02])
    assert p_differs(noisy) == 1
    assert p_equivalent(noisy, 0.005) > 0.4


def test_paired_tests_are_those_of_scipy():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, (2, 30))
    below = stats.ttest_rel(first, second, alternative="less").pvalue
    assert p_below(first - second) == pytest.approx(below)
    assert p_differs(first - second) == pytest.approx(stats.ttest_rel(first, second).pvalue)
    assert (p_below(np.full(3, -1.0)), p_below(np.zeros(3)), p_differs(np.ones(3))) == (0, 1, 0)


def test_holm_steps_down():
    assert holm([0.01, 0.04, 0.03], 0.05) == [True, False, False]
    assert holm([0.03, 0.01, 0.02], 0.05) == [True, True, True]
    assert holm([0.02, 0.9, 0.001], 0.05) == [True, False, True]
    assert holm([0.02, 0.03, 0.04], 0.05) == [False, False, False]


def test_rank_correlation():
    assert rank_correlation([0, 1, 2], [9, 4, 1]) == pytest.approx(-1)
    assert rank_correlation([0, 1, 2], [5, 5, 5]) == 0


def test_published_tables():
    results = PublishedResults()
    assert results.layers("baseline", "p65")[0] == 31.3
    assert results.total("lr_x1of3", "batch_use") == 77.2
    with pytest.raises(UndecidableError, match="no table of batch_use of depth_14"):
        results.layers("depth_14", "batch_use")


def test_the_standard_error_over_documents_is_robust_to_clusters():
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(12), rng.integers(1, 6, 12))
    values = rng.normal(size=(2, documents.size)) + rng.normal(size=12)[documents]
    by_document = of_documents(values, documents.tolist())
    np.testing.assert_allclose(by_document.mean(axis=1), values.mean(axis=1))
    for row, of_row in zip(values, by_document, strict=True):
        # The sandwich estimate of the intercept's variance, with the usual small-sample factor.
        residuals = [np.sum((row - row.mean())[documents == each]) for each in range(12)]
        expected = np.sqrt(np.sum(np.square(residuals)) * 12 / 11) / documents.size
        np.testing.assert_allclose(of_row.std(ddof=1) / np.sqrt(12), expected)
    np.testing.assert_array_equal(of_documents(values, []), values)


class TestPairs:
    def test_few_seeds_are_paired_by_document(self, results):
        pairs = results.pairs("random_masked", "baseline", "accuracy")
        assert pairs.unit == "40 held-out documents, seed 0"
        assert pairs.differences.shape == (11, 40)
        arms = [results.runs[run][0].eval_accuracy for run in ("random_masked", "baseline")]
        np.testing.assert_array_equal(pairs.differences, arms[0] - arms[1])

    def test_three_seeds_are_paired_by_seed(self, results):
        for run, more in (("masked", 0.3), ("baseline", 0.1)):
            only = results.runs[run][0]
            results.runs[run] = {
                seed: replace(only, eval_loss=only.eval_loss + more * seed) for seed in range(4)
            }
        del results.runs["masked"][3]
        pairs = results.pairs("masked", "baseline", "loss")
        assert pairs.unit == "3 seeds"
        arms = [
            [results.runs[run][seed].eval_loss.mean(axis=1) for seed in range(3)]
            for run in ("masked", "baseline")
        ]
        np.testing.assert_allclose(pairs.differences.T, np.subtract(*arms), atol=1e-9)

    def test_sequences_of_one_document_count_once(self, results):
        before = results.pairs("masked", "baseline", "loss")
        for run in ("masked", "baseline"):
            history = results.runs[run][0]
            # As if every sequence had been held out twice: that is no more evidence.
            results.runs[run][0] = replace(
                history,
                eval_loss=np.repeat(history.eval_loss, 2, axis=1),
                heldout_documents=np.repeat(np.arange(40), 2).tolist(),
            )
        results.runs["masked"][0].eval_loss[:, ::2] += 0.25
        pairs = results.pairs("masked", "baseline", "loss")
        assert pairs.unit == "40 held-out documents, seed 0"
        np.testing.assert_allclose(pairs.differences, before.differences + 0.125, atol=1e-6)

    def test_too_few_sequences(self, results):
        object.__setattr__(
            results.runs["masked"][0], "eval_loss", results.runs["masked"][0].eval_loss[:, :20]
        )
        object.__setattr__(
            results.runs["baseline"][0], "eval_loss", results.runs["baseline"][0].eval_loss[:, :20]
        )
        with pytest.raises(UndecidableError, match="too little data"):
            results.pairs("masked", "baseline", "loss")

    def test_no_shared_seed(self, results):
        with pytest.raises(UndecidableError, match="share no seed"):
            results.pairs("round1", "baseline", "loss")

    def test_only_evaluations_that_both_have(self, results):
        history = results.runs["masked"][0]
        history.eval_steps[3] = 3001
        pairs = results.pairs("masked", "baseline", "loss")
        assert 3000 not in pairs.steps
        assert len(pairs.steps) == len(pairs.differences) == 10


def test_drift_is_between_the_halves_of_the_window(results):
    assert results.drift("baseline") == pytest.approx(0, abs=1e-6)
    history = results.runs["baseline"][0]
    history.unit_use["batch_use"][history.steps >= 9500, 2] += 0.05
    assert results.drift("baseline") == pytest.approx(5, abs=0.2)


def test_a_run_has_the_convergence_window_of_its_own(results):
    run = results.params.runs["width_x1of2"]
    metrics = run.config.metrics.model_copy(update={"convergence_window": 10000})
    config = run.config.model_copy(update={"metrics": metrics})
    runs = results.params.runs | {"width_x1of2": run.model_copy(update={"config": config})}
    results = replace(results, params=results.params.model_copy(update={"runs": runs}))
    history = results.runs["width_x1of2"][0]
    np.testing.assert_allclose(
        results.layers("width_x1of2", "batch_use"),
        100 * history.unit_use["batch_use"].mean(axis=0),
    )


def test_what_masks_hold_is_a_mean_over_seeds(results, tmp_path):
    results.runs["masked"][1] = results.runs["masked"][0]
    for seed, off in ((0, 0.3), (1, 0.1)):
        write_mask(tmp_path / f"runs/masked/seed{seed}/mask.npz", [32768] * 6, off)
    assert replace(results, results_dir=tmp_path).masked("masked") == pytest.approx(20, abs=0.01)
