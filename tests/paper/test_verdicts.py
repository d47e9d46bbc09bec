import json
from dataclasses import replace

import numpy as np
import pytest
from paper_runs import layout_of

from relu_sparsity.layout import CLAIM_FORMATS
from relu_sparsity.paper.claims import CLAIMS
from relu_sparsity.paper.evidence import MeasuredResults
from relu_sparsity.paper.verdicts import (
    VERDICTS,
    claims_markdown,
    count_verdicts,
    decide_claims,
    write_claims,
)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_shallow_models_are_not_decidable_where_layers_are_compared(results, num_layers):
    for seeds in results.runs.values():
        for seed, history in seeds.items():
            model = history.config["model"] | {"mlp_dims": history.mlp_dims[:num_layers]}
            seeds[seed] = replace(
                history,
                config=history.config | {"model": model},
                unit_use={key: each[:, :num_layers] for key, each in history.unit_use.items()},
                units={step: each[:num_layers] for step, each in history.units.items()},
            )
    decisions = decide_claims(results)
    assert decisions[0].verdict == "not decidable"
    assert decisions[0].reason == (
        f"baseline has {num_layers} layers; what is claimed of layers needs 3"
    )
    assert decisions[8].reason == decisions[0].reason, "the order in which layers fall"
    # Claims about accuracies, all units, or each layer for itself.
    for number in (13, 14, 16, 17, 18, 21, 26):
        assert decisions[number - 1].verdict == "reproduced", decisions[number - 1].reason


@pytest.mark.parametrize("claim", CLAIMS, ids=[claim.number for claim in CLAIMS])
def test_a_missing_run_is_named(results, claim):
    for run in claim.runs:
        runs = {name: seeds for name, seeds in results.runs.items() if name != run}
        without = MeasuredResults(runs, results.params, results.results_dir)
        decision = decide_claims(without)[claim.number - 1]
        assert decision.verdict == "not decidable"
        assert decision.reason == f"there are no results of {run} at this scale"


def test_without_any_run_nothing_is_decided(tmp_path, params):
    write_claims(params, layout_of(tmp_path))
    counts = json.loads((tmp_path / "claims.json").read_text())["counts"]
    assert counts == {"reproduced": 0, "not reproduced": 0, "not decidable": 27}


def test_a_run_that_has_not_converged_decides_nothing_about_convergence(results):
    history = results.runs["baseline"][0]
    history.unit_use["batch_use"][history.steps >= 9500, 3] += 0.029
    assert not any("not converged" in each.reason for each in decide_claims(results))
    history.unit_use["batch_use"][history.steps >= 9500, 3] += 0.002
    undecided = [each for each in decide_claims(results) if each.verdict == "not decidable"]
    assert {each.claim.number for each in undecided} == {
        claim.number for claim in CLAIMS if claim.converged and "baseline" in claim.runs
    }
    assert all("baseline has not converged" in each.reason for each in undecided)
    assert all(each.evidence for each in undecided)


class TestFiles:
    def test_same_runs_same_bytes(self, results_dir, params):
        texts = []
        for _ in range(2):
            write_claims(params, layout_of(results_dir))
            texts.append([path.read_bytes() for path in layout_of(results_dir).claims])
        assert texts[0] == texts[1]
        assert len(texts[0]) == len(CLAIM_FORMATS)

    def test_json_has_everything(self, results_dir, params):
        write_claims(params, layout_of(results_dir))
        document = json.loads((results_dir / "claims.json").read_text())
        assert document["counts"] == {"reproduced": 27, "not reproduced": 0, "not decidable": 0}
        claim = document["claims"][0]
        assert claim["evidence"]["batch_use"] == [13.3, 79.3, 71.0, 73.0, 86.1, 95.6]
        assert claim["paper"]["batch_use"] == [13.3, 79.3, 71.0, 73.0, 86.1, 95.6]
        assert all(each["rule"] and each["verdict"] in VERDICTS for each in document["claims"])

    def test_markdown_has_a_line_and_a_section_for_each(self, results_dir, params):
        write_claims(params, layout_of(results_dir))
        text = (results_dir / "claims.md").read_text()
        rows = [line for line in text.splitlines() if line.startswith("| ")]
        assert len(rows) == 28
        assert {line.count("|") for line in rows} == {6}
        assert text.count("\n## ") == 27
        assert "*Here.* batch use: 13.3, 79.3, 71" in text

    def test_verdicts_are_counted(self, results):
        results.runs["lr_x2of3"][0].eval_loss[:] -= 0.1
        del results.runs["depth_14"]
        counts = count_verdicts(decide_claims(results))
        assert counts == {"reproduced": 24, "not reproduced": 1, "not decidable": 2}


def with_seeds(results, run, count):
    """Gives a run more seeds, all of them like its only one."""
    ((seed, history),) = results.runs[run].items()
    results.runs[run] = {
        seed + more: replace(
            history,
            seed=seed + more,
            unit_use={metric: values.copy() for metric, values in history.unit_use.items()},
        )
        for more in range(count)
    }


def test_one_seed_speaks_for_itself_and_three_for_training(results, tmp_path):
    assert {each.scope for each in decide_claims(results)} == {"for seed 0", "for seed 1"}
    assert "**reproduced** (for seed 0)" in claims_markdown(decide_claims(results), "test")
    for run in results.runs:
        ((seed, _),) = results.runs[run].items()
        with_seeds(results, run, 3)
        mask = results.results_dir / f"runs/{run}/seed{seed}/mask.npz"
        for each in results.runs[run] if mask.exists() else ():
            copied = tmp_path / f"runs/{run}/seed{each}/mask.npz"
            copied.parent.mkdir(parents=True)
            copied.write_bytes(mask.read_bytes())
    results = replace(results, results_dir=tmp_path)
    decisions = decide_claims(results)
    assert {each.verdict for each in decisions} == {"reproduced"}
    assert {each.scope for each in decisions} == {""}


def test_seeds_that_disagree_decide_nothing(results):
    with_seeds(results, "baseline", 3)
    odd = results.runs["baseline"][1]
    odd.unit_use["batch_use"][:, 0] = 0.9
    first = decide_claims(results)[0]
    assert first.verdict == "not decidable"
    assert first.reason == (
        "the seeds disagree: on their mean it holds, with seed 1 alone it does not hold"
    )


def test_a_seed_that_decides_nothing_does_not_agree(results):
    for run in ("baseline", "lr_x2of3", "lr_x1of3"):
        with_seeds(results, run, 3)
    full = results.runs["baseline"][2].unit_use["batch_use"]
    full[:, 0] = 0.995
    for run in ("lr_x2of3", "lr_x1of3"):
        for history in results.runs[run].values():
            history.unit_use["batch_use"][:, 0] = 0.996 if run == "lr_x2of3" else 0.997
    decision = decide_claims(results)[19]
    assert decision.verdict == "not decidable"
    assert decision.reason == (
        "the seeds disagree: on their mean it holds, with seed 2 alone it cannot be told"
    )


def test_runs_are_compared_on_the_seeds_that_they_share(results):
    """As in the tutorial: the baseline has three seeds, and other widths only one."""
    with_seeds(results, "baseline", 3)
    own = results.runs["baseline"][0].unit_use["batch_use"]
    # With its own seed the baseline uses more than half of the width, and on the mean less.
    own[:] = 0.95
    decision = decide_claims(results)[21]
    assert (decision.verdict, decision.scope) == ("not reproduced", "for seed 0")
    assert decision.evidence["batch_use"][0] == 95
    del results.runs["baseline"][0]
    decision = decide_claims(results)[21]
    assert decision.verdict == "not decidable"
    assert decision.reason == "baseline, width_x1of2, width_x1of4 share no seed"


def test_a_rate_that_is_better_by_less_than_the_margin_is_a_tie(results):
    margin = results.params.claims.learning_rate_margin
    noise = np.linspace(-0.001, 0.001, 40)
    base = results.runs["baseline"][0].eval_loss
    results.runs["lr_x2of3"][0].eval_loss[:] = base - margin / 2 + noise
    decision = decide_claims(results)[20]
    assert (decision.verdict, decision.reason) == (
        "not decidable", "the best learning rates are a tie",
    )  # fmt: skip
    results.runs["lr_x2of3"][0].eval_loss[:] = base - margin * 2 + noise
    assert decide_claims(results)[20].verdict == "not reproduced"
    results.runs["lr_x2of3"][0].eval_loss[:] = base + margin / 2 + noise
    assert decide_claims(results)[20].verdict == "not decidable"
    results.runs["lr_x2of3"][0].eval_loss[:] = base + margin * 2 + noise
    assert decide_claims(results)[20].verdict == "reproduced"


NGRAMS = {"unigram_loss": 6.0, "bigram_loss": 4.0}


def beside_ngrams(results, run, loss, step=None):
    """Sets a run's only seed beside n-grams, with one loss at all evaluations, or up to one."""
    ((seed, history),) = results.runs[run].items()
    history.eval_loss[: None if step is None else (history.eval_steps <= step).sum()] = loss
    results.runs[run][seed] = replace(history, ngram_losses=NGRAMS)


def test_a_model_that_has_not_learned_decides_nothing(results):
    before = {each.claim.number: each.verdict for each in decide_claims(results)}
    beside_ngrams(results, "baseline", 5.1)
    for each in decide_claims(results):
        rests_on_it = "baseline" in each.claim.runs and each.claim.number != 6
        assert each.verdict == ("not decidable" if rests_on_it else before[each.claim.number]), (
            each.claim.number
        )
        if rests_on_it:
            assert each.reason == (
                "this model has not learned: at the end the held-out loss of baseline seed 0 is "
                "5.10 nats, that of unigrams 6.00 and of bigrams 4.00; at most 5.00 is needed"
            )
            assert each.evidence, "the numbers are shown all the same"
    beside_ngrams(results, "baseline", 4.9)
    reasons = [each.reason for each in decide_claims(results)]
    assert not any("has not learned" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("number", "arm", "accuracy", "verdict"),
    [
        (16, "random_masked", -0.3, "reproduced"),
        (14, "masked", -0.3, "not reproduced"),
        (18, "round2", -0.3, "reproduced"),
        (21, "lr_x5of3", 0.0, "reproduced"),
    ],
)
def test_an_arm_that_fails_is_a_finding(results, number, arm, accuracy, verdict):
    for run in results.runs:
        beside_ngrams(results, run, 4.5)
    for run in ("lr_x1of3", "lr_x2of3", "lr_x5of3"):
        beside_ngrams(results, run, 4.6)
    ((_, history),) = results.runs[arm].items()
    late = history.eval_steps > 1000
    history.eval_loss[late] = 6.5
    history.eval_accuracy[late] += accuracy
    decision = decide_claims(results)[number - 1]
    assert (decision.verdict, decision.reason) == (verdict, "")
    beside_ngrams(results, decision.claim.runs[0], 5.5)
    assert "has not learned" in decide_claims(results)[number - 1].reason


def test_a_model_of_which_it_is_not_known_whether_it_learned_decides_nothing(results):
    ((seed, history),) = results.runs["baseline"].items()
    results.runs["baseline"][seed] = replace(history, ngram_losses={})
    decision = decide_claims(results)[0]
    assert decision.verdict == "not decidable"
    assert "whether baseline seed 0 has learned is not known" in decision.reason


def test_an_arm_that_branched_off_a_model_that_had_not_learned_decides_nothing(results):
    mask_step = results.runs["masked"][0].parent_step
    beside_ngrams(results, "masked", 4.5)
    assert "not learned" not in decide_claims(results)[14].reason
    beside_ngrams(results, "masked", 5.9, step=mask_step)
    assert f"at step {mask_step} the held-out loss of masked" in decide_claims(results)[14].reason


def test_what_a_scale_is_for_comes_first(results_dir, params):
    purpose = "This scale is for * tests only."
    claims = params.claims.model_copy(update={"purpose": purpose})
    write_claims(params.model_copy(update={"claims": claims}), layout_of(results_dir))
    assert (results_dir / "claims.md").read_text().splitlines()[2] == purpose
