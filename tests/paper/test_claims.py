import json
from dataclasses import replace

import numpy as np
import pytest
from docutils.core import publish_doctree
from paper_runs import make_params, write_mask, write_paper_runs

from relu_sparsity.paper.catalog import CLAIM_FORMATS
from relu_sparsity.paper.claims import (
    CLAIMS,
    VERDICTS,
    claims_rst,
    count_verdicts,
    decide_claims,
    write_claims,
)
from relu_sparsity.paper.evidence import MeasuredResults
from relu_sparsity.paper.history import load_runs

CLAIM_NUMBERS = [claim.number for claim in CLAIMS]


def decide(results, number):
    """The decision on one claim."""
    return decide_claims(results)[number - 1]


def use(results, run, metric):
    """The curve of a run's only seed, to be changed."""
    (history,) = results.runs[run].values()
    return history.unit_use[metric]


def units(results, run, when):
    """The units of a run's only seed at the first or the last step, to be changed."""
    (history,) = results.runs[run].values()
    return history.units[0 if when == "first" else history.num_steps - 1]


def accuracy(results, run):
    """The held-out accuracy of a run's only seed, to be changed."""
    (history,) = results.runs[run].values()
    return history.eval_accuracy


def test_the_claims_are_the_papers():
    assert list(range(1, 28)) == CLAIM_NUMBERS
    assert len({claim.decide for claim in CLAIMS}) == 27
    assert all(claim.rule.endswith(".") and claim.statement.endswith(".") for claim in CLAIMS)


@pytest.mark.parametrize("number", CLAIM_NUMBERS)
def test_runs_with_the_papers_numbers_reproduce_the_claim(results, number):
    decision = decide(results, number)
    assert decision.verdict == "reproduced", (decision.reason, decision.evidence)
    assert decision.evidence
    assert decision.reason == ""


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
    # A claim about accuracies asks for no layers.
    assert decisions[20].verdict == "reproduced"


def test_the_rules_hold_on_the_published_tables(results):
    decisions = decide_claims(results)
    in_tables = {each.claim.number: each.holds_in_paper for each in decisions}
    decidable = {1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 17, 19, 20, 25, 27}
    assert {number for number, verdict in in_tables.items() if verdict} == decidable
    assert {in_tables[number] for number in decidable} == {"reproduced"}
    assert decisions[3].paper["pearson"] == pytest.approx(-0.054, abs=1e-3)
    assert decisions[3].paper["text_pearson"] == -0.15


def _break_1(results):
    use(results, "baseline", "batch_use")[:, 0] = 0.99


def _break_2(results):
    use(results, "baseline", "batch_use")[:, 5] = 0.8


def _break_3(results):
    use(results, "baseline", "batch_use")[:, 0] = 0.5


def _break_4(results):
    use(results, "baseline", "token_use")[:] = use(results, "baseline", "batch_use") / 10


def _break_5(results):
    use(results, "baseline", "token_use")[:, 4] = 0.05


def _break_6(results):
    first = units(results, "baseline", "first")
    first[2], first[3] = first[3], first[2]


def _break_7(results):
    units(results, "baseline", "last")[5] &= units(results, "baseline", "first")[5]


def _break_8(results):
    units(results, "baseline", "last")[1][:] = False


def _break_9(results):
    token_use = use(results, "baseline", "token_use")
    token_use[:] = token_use[:, [5, 4, 3, 2, 1, 0]]


def _break_10(results):
    p50 = use(results, "baseline", "p50")
    np.minimum.accumulate(p50[:, 0], out=p50[:, 0])


def _break_11(results):
    batch_use = use(results, "baseline", "batch_use")
    batch_use[1:] = batch_use[-1]


def _break_12(results):
    last = units(results, "baseline", "last")
    for layer, on in enumerate(units(results, "baseline", "first")):
        last[layer] &= on


def _break_13(results):
    for layer in units(results, "baseline", "last"):
        layer[:] = True


def _break_14(results):
    accuracy(results, "masked")[5] -= 0.02


def _break_15(results):
    write_mask(results.results_dir / "runs/masked/seed0/mask.npz", [32768] * 6, 0.1)


def _break_16(results):
    accuracy(results, "random_masked")[:] = accuracy(results, "baseline")


def _break_17(results):
    units(results, "round2", "last")[0][:] = True


def _break_18(results):
    accuracy(results, "round2")[:] = accuracy(results, "round1")


def _break_19(results):
    use(results, "lr_x5of3", "batch_use")[:, 0] = 0.6


def _break_20(results):
    use(results, "lr_x1of3", "batch_use")[:, 0] = 0.1


def _break_21(results):
    results.runs["lr_x2of3"][0].eval_loss[:] -= 0.1


def _break_22(results):
    use(results, "width_x1of4", "token_use")[:] = 0.01


def _break_23(results):
    use(results, "depth_14", "batch_use")[:] = 0.1


def _break_24(results):
    use(results, "depth_14", "batch_use")[:, 6] = 0.9


def _break_25(results):
    use(results, "baseline", "p65")[:, 1] = 0.1


def _break_26(results):
    use(results, "baseline", "batch_use")[60:120, 2] += 0.1


def _break_27(results):
    use(results, "baseline", "sequence_use")[:, 0] = 0.05


@pytest.mark.parametrize("number", CLAIM_NUMBERS)
def test_a_broken_claim_is_not_reproduced(results, number, tmp_path):
    results = MeasuredResults(results.runs, results.params, tmp_path)
    for run in ("masked", "random_masked"):
        write_mask(tmp_path / "runs" / run / "seed0" / "mask.npz", [32768] * 6, 0.3)
    globals()[f"_break_{number}"](results)
    decision = decide(results, number)
    assert decision.verdict == "not reproduced", (decision.reason, decision.evidence)
    assert decision.evidence


@pytest.mark.parametrize("claim", CLAIMS, ids=CLAIM_NUMBERS)
def test_a_missing_run_is_named(results, claim):
    for run in claim.runs:
        runs = {name: seeds for name, seeds in results.runs.items() if name != run}
        decision = decide(MeasuredResults(runs, results.params, results.results_dir), claim.number)
        assert decision.verdict == "not decidable"
        assert run in decision.reason


def test_without_any_run_nothing_is_decided(tmp_path, params):
    write_claims(tmp_path, params)
    counts = json.loads((tmp_path / "claims.json").read_text())["counts"]
    assert counts == {"reproduced": 0, "not reproduced": 0, "not decidable": 27}


def test_a_run_that_has_not_converged_decides_nothing_about_convergence(results):
    history = results.runs["baseline"][0]
    history.unit_use["batch_use"][history.steps >= 9500, 3] += 0.05
    undecided = [each for each in decide_claims(results) if each.verdict == "not decidable"]
    assert {each.claim.number for each in undecided} == {
        claim.number for claim in CLAIMS if claim.converged and "baseline" in claim.runs
    }
    assert all("baseline has not converged" in each.reason for each in undecided)
    assert all(each.evidence for each in undecided)


class TestEquivalence:
    """Claim 14, and its relatives 16 and 18."""

    def test_equal_arms_are_equivalent(self, results):
        accuracy(results, "masked")[:] = accuracy(results, "baseline")
        decision = decide(results, 14)
        assert decision.verdict == "reproduced"
        assert decision.evidence["largest_p_equivalent"] == 0

    def test_other_held_out_sequences_are_no_pairs(self, results):
        history = results.runs["masked"][0]
        object.__setattr__(history, "eval_accuracy", history.eval_accuracy[:, :35])
        decision = decide(results, 14)
        assert decision.verdict == "not decidable"
        assert "other held-out sequences" in decision.reason

    def test_no_significant_difference_is_not_enough(self, results):
        noise = np.random.default_rng(0).normal(0, 0.1, accuracy(results, "masked").shape)
        accuracy(results, "masked")[:] += noise - noise.mean(axis=1, keepdims=True)
        decision = decide(results, 14)
        assert decision.verdict == "not decidable"
        assert "neither" in decision.reason

    def test_a_small_difference_within_the_margin_is_equivalent(self, results):
        accuracy(results, "masked")[1:] -= 0.002
        assert decide(results, 14).verdict == "reproduced"

    def test_before_the_mask_step_nothing_counts(self, results):
        accuracy(results, "masked")[0] -= 0.2
        assert decide(results, 14).verdict == "reproduced"

    def test_too_little_data(self, results):
        for (history,) in (results.runs[run].values() for run in ("baseline", "masked")):
            object.__setattr__(history, "eval_accuracy", history.eval_accuracy[:, :10])
        decision = decide(results, 14)
        assert decision.verdict == "not decidable"
        assert "too little data" in decision.reason

    def test_seeds_are_the_pairs_where_there_are_three(self, tmp_path):
        arms = ("baseline", "masked", "random_masked")
        params = make_params(runs={run: {"seeds": [0, 1, 2]} for run in arms})
        write_paper_runs(tmp_path, params)
        runs = load_runs(tmp_path, dict.fromkeys(arms, (0, 1, 2)))
        results = MeasuredResults(runs, params, tmp_path)
        for number in (14, 16):
            decision = decide(results, number)
            assert decision.verdict == "reproduced"
            assert decision.evidence["pairs"] == "3 seeds"

    @pytest.mark.parametrize("number", [14, 16])
    def test_a_small_mask_decides_nothing(self, results, tmp_path, number):
        for run in ("masked", "random_masked"):
            write_mask(tmp_path / "runs" / run / "seed0" / "mask.npz", [32768] * 6, 0.05)
        decision = decide(MeasuredResults(results.runs, results.params, tmp_path), number)
        assert decision.verdict == "not decidable"
        assert "5.0 % of the units" in decision.reason

    def test_a_significant_but_small_loss_is_no_collapse(self, results):
        accuracy(results, "random_masked")[:] = accuracy(results, "masked") - 0.003
        accuracy(results, "baseline")[:] = accuracy(results, "masked")
        decision = decide(results, 16)
        assert decision.verdict == "not reproduced"
        assert decision.evidence["p_against_baseline"] < 0.05

    @pytest.mark.parametrize("number", [17, 18])
    def test_a_round_1_that_uses_everything_decides_nothing(self, results, number):
        for layer in units(results, "round1", "last"):
            layer[:] = True
        decision = decide(results, number)
        assert decision.verdict == "not decidable"
        assert "round 1 uses 100.0 %" in decision.reason


def test_a_layer_that_never_drops_leaves_the_order_undecided(results):
    use(results, "baseline", "token_use")[:, 2] = 0.5
    decision = decide(results, 9)
    assert decision.verdict == "not decidable"
    assert "layer(s) 2" in decision.reason


def test_a_tie_of_learning_rates_is_undecided(results):
    results.runs["lr_x2of3"][0].eval_loss[:] = results.runs["baseline"][0].eval_loss
    decision = decide(results, 21)
    assert (decision.verdict, decision.reason) == (
        "not decidable",
        "the best learning rates are a tie",
    )


def test_a_coarse_history_leaves_the_start_undecided(results):
    (history,) = results.runs["baseline"].values()
    coarse = slice(None, None, 4)
    object.__setattr__(history, "steps", history.steps[coarse])
    for metric in history.unit_use:
        history.unit_use[metric] = history.unit_use[metric][coarse]
    decision = decide(results, 11)
    assert decision.verdict == "not decidable"
    assert "1 measured steps up to 80" in decision.reason


def test_few_deaths_leave_their_time_undecided(results):
    use(results, "baseline", "batch_use")[:] = 0.9
    assert "too few to tell" in decide(results, 11).reason


class TestFiles:
    def test_same_runs_same_bytes(self, results_dir, params):
        first = {path.name: path.read_bytes() for path in write_claims(results_dir, params)}
        second = {path.name: path.read_bytes() for path in write_claims(results_dir, params)}
        assert first == second
        assert set(first) == {f"claims.{suffix}" for suffix in CLAIM_FORMATS}

    def test_json_has_everything(self, results_dir, params):
        write_claims(results_dir, params)
        document = json.loads((results_dir / "claims.json").read_text())
        assert document["counts"] == {"reproduced": 27, "not reproduced": 0, "not decidable": 0}
        claim = document["claims"][0]
        assert claim["evidence"]["batch_use"] == [13.3, 79.3, 71.0, 73.0, 86.1, 95.6]
        assert claim["paper"]["batch_use"] == [13.3, 79.3, 71.0, 73.0, 86.1, 95.6]
        assert all(each["rule"] and each["verdict"] in VERDICTS for each in document["claims"])

    def test_markdown_has_a_line_and_a_section_for_each(self, results_dir, params):
        write_claims(results_dir, params)
        text = (results_dir / "claims.md").read_text()
        rows = [line for line in text.splitlines() if line.startswith("| ")]
        assert len(rows) == 28
        assert {line.count("|") for line in rows} == {6}
        assert text.count("\n## ") == 27

    def test_restructured_text_is_one_table(self, results):
        decisions = decide_claims(results)
        tree = publish_doctree(
            claims_rst(decisions), settings_overrides={"report_level": 1, "halt_level": 2}
        )
        (table,) = tree.findall(lambda node: node.tagname == "tgroup")
        rows = list(table.findall(lambda node: node.tagname == "row"))
        assert len(rows) == 28
        assert {len(row.children) for row in rows} == {5}
        assert "batch_use: 13.3, 79.3" in rows[1].astext()
        assert "{{" not in claims_rst(decisions)

    def test_verdicts_are_counted(self, results):
        _break_21(results)
        del results.runs["depth_14"]
        counts = count_verdicts(decide_claims(results))
        assert counts == {"reproduced": 24, "not reproduced": 1, "not decidable": 2}
