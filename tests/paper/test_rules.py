from dataclasses import replace

import numpy as np
import pytest
from paper_runs import make_params, write_mask, write_paper_runs

from relu_sparsity.paper.claims import CLAIMS
from relu_sparsity.paper.evidence import MeasuredResults
from relu_sparsity.paper.history import load_runs
from relu_sparsity.paper.verdicts import decide_claims

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


@pytest.mark.parametrize("number", CLAIM_NUMBERS)
def test_runs_with_the_papers_numbers_reproduce_the_claim(results, number):
    decision = decide(results, number)
    assert decision.verdict == "reproduced", (decision.reason, decision.evidence)
    assert decision.evidence
    assert decision.reason == ""


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
    # Below half of its initial use, and not of the next lowest layer's.
    use(results, "baseline", "batch_use")[:, 0] = 0.4


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


def test_a_layer_that_starts_low_does_not_collapse(results):
    first = units(results, "baseline", "first")[0]
    first &= np.arange(first.size) < first.size // 5
    assert decide(results, 3).verdict == "not reproduced"


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

    def test_up_to_the_mask_step_nothing_counts(self, results):
        masked = results.runs["masked"]
        masked[0] = replace(masked[0], parent_step=1000)
        assert masked[0].eval_steps[:2].tolist() == [0, 1000]
        accuracy(results, "masked")[:2] -= 0.2
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

    def test_without_a_random_mask_nobody_knows_whether_it_takes_this_one(self, results):
        del results.runs["random_masked"]
        decision = decide(results, 14)
        assert decision.verdict == "not decidable"
        assert "no random mask of the same size" in decision.reason
        accuracy(results, "masked")[5] -= 0.02
        assert decide(results, 14).verdict == "not reproduced"

    @pytest.mark.parametrize(
        ("number", "arm", "others", "losses"),
        [
            (16, "random_masked", ("baseline", "masked"), (0.18, 0.02, 0.1)),
            (18, "round2", ("round1",), (0.09, 0.005, 0.03)),
        ],
    )
    def test_a_large_loss_that_may_be_chance_decides_nothing(
        self, tmp_path, number, arm, others, losses
    ):
        arms = (arm, *others)
        seeds = (1, 2, 3)
        with_parents = ("baseline", "masked", "random_masked", "round1", "round2")
        params = make_params(runs={run: {"seeds": list(seeds)} for run in with_parents})
        write_paper_runs(tmp_path, params)
        results = MeasuredResults(load_runs(tmp_path, dict.fromkeys(arms, seeds)), params, tmp_path)
        assert decide(results, number).verdict == "reproduced"
        for seed, loss in zip(seeds, losses, strict=True):
            for run in arms:
                results.runs[run][seed].eval_accuracy[:] = 0.4 - loss * (run == arm)
        decision = decide(results, number)
        assert decision.verdict == "not decidable"
        assert decision.reason == "the loss of accuracy is beyond the margin, and not significant"

    @pytest.mark.parametrize("number", [17, 18])
    def test_a_round_1_that_uses_everything_decides_nothing(self, results, number):
        for layer in units(results, "round1", "last"):
            layer[:] = True
        decision = decide(results, number)
        assert decision.verdict == "not decidable"
        assert "round 1 uses 100.0 %" in decision.reason


class TestOrderOfFalls:
    """Claims 9 and 10."""

    def test_a_layer_that_never_falls_is_the_last(self, results):
        use(results, "baseline", "token_use")[:, 0] = 0.5
        decision = decide(results, 9)
        assert decision.verdict == "reproduced"
        assert decision.evidence["drop_step"][0] == "never"

    def test_the_last_layer_must_not_be_the_last(self, results):
        use(results, "baseline", "token_use")[:, -1] = 0.5
        assert decide(results, 9).verdict == "not reproduced"

    def test_half_of_the_layers_tell_no_order(self, results):
        use(results, "baseline", "token_use")[:, :3] = 0.5
        decision = decide(results, 9)
        assert decision.verdict == "not decidable"
        assert "in 3 of 6 layers only" in decision.reason

    def test_a_median_of_layer_0_that_never_turns_is_no_turn(self, results):
        use(results, "baseline", "p50")[:, 0] = 0.5
        assert decide(results, 10).verdict == "not reproduced"


def test_units_that_come_back_have_not_turned_off(results):
    batch_use = use(results, "baseline", "batch_use")
    (history,) = results.runs["baseline"].values()
    in_warmup = (history.steps > 0) & (history.steps < 60)
    batch_use[in_warmup] -= 0.5
    decision = decide(results, 11)
    assert decision.verdict == "reproduced"
    assert decision.evidence["off_for_a_while_before"] > 40
    assert decision.evidence["off_then"] < 5
    batch_use[in_warmup | (history.steps == 80)] = 0.4
    assert decide(results, 11).verdict == "not reproduced"


@pytest.mark.parametrize("number", [7, 12])
def test_where_all_units_are_on_none_can_turn_on(results, number):
    for layer in units(results, "baseline", "first"):
        layer[:] = True
    decision = decide(results, number)
    assert decision.verdict == "not decidable"
    assert "none can turn on" in decision.reason
    units(results, "baseline", "first")[3][: 32768 // 20] = False
    assert decide(results, number).verdict == "not reproduced"


def test_a_first_layer_that_uses_everything_can_use_no_more(results):
    for run in ("baseline", "lr_x2of3", "lr_x1of3"):
        use(results, run, "batch_use")[:, 0] = 0.995
    decision = decide(results, 20)
    assert decision.verdict == "not decidable"
    assert decision.reason == "batch use of layer 0 is 99.5 %, and can rise no further"
    use(results, "lr_x1of3", "batch_use")[:] = 0.1
    assert decide(results, 20).verdict == "not reproduced", "use in all has to rise all the same"


@pytest.mark.parametrize(
    ("first_layer", "verdict"),
    [
        ((0.95, 1, 1), "not decidable"),
        ((0.95, 0.94, 1), "not reproduced"),
        ((0.95, 0.96, 1), "reproduced"),
        ((0.995, 0.99, 1), "not decidable"),
        ((0.995, 0.95, 1), "not reproduced"),
        ((0.985, 0.98, 1), "not reproduced"),
    ],
)
def test_use_that_could_rise_and_does_not_is_a_finding(results, first_layer, verdict):
    for run, share in zip(("baseline", "lr_x2of3", "lr_x1of3"), first_layer, strict=True):
        use(results, run, "batch_use")[:, 0] = share
    assert decide(results, 20).verdict == verdict


@pytest.mark.parametrize("number", [22, 23])
def test_where_every_unit_is_used_neither_width_nor_depth_can_raise_it(results, number):
    for run in results.runs:
        use(results, run, "batch_use")[:] = 1
    decision = decide(results, number)
    assert decision.verdict == "not decidable"
    assert decision.reason == "batch use is 100.0 %, and can rise no further"
    globals()[f"_break_{number}"](results)
    assert decide(results, number).verdict == "not reproduced"


def test_layers_that_tie_are_not_the_highest(results):
    use(results, "baseline", "batch_use")[:, 1:] = 1
    token_use = use(results, "baseline", "token_use")
    token_use[:] = [0.38, 0.54, 0.53, 0.42, 0.29, 0.26]
    assert decide(results, 5).verdict == "not reproduced"
    use(results, "baseline", "batch_use")[:, 1:4] = 0.99
    assert decide(results, 5).verdict == "reproduced"
    token_use[:, 3] = 0.29
    assert decide(results, 5).verdict == "not reproduced"


@pytest.mark.parametrize("number", [25, 27])
def test_dead_layers_do_not_make_a_claim_true(results, number):
    for history in results.runs["baseline"].values():
        for values in history.unit_use.values():
            values[:, 3:] = 0
    decision = decide(results, number)
    assert decision.verdict == "not decidable"
    assert decision.reason == "no unit of layer 3, 4, 5 is used"


def test_of_two_dead_layers_none_is_far_below_the_other(results):
    for run in ("baseline", "lr_x1of3", "lr_x2of3", "lr_x5of3"):
        use(results, run, "batch_use")[:] = [0, 0, 0.79, 0.7, 0.9, 0.95]
    assert [decide(results, number).verdict for number in (1, 3, 19)] == ["not reproduced"] * 3
    use(results, "baseline", "batch_use")[:, 1] = 0.01
    assert decide(results, 3).verdict == "reproduced"


def test_where_nothing_turns_off_no_layer_does_so_most(results):
    for layer, first in zip(
        units(results, "baseline", "last"), units(results, "baseline", "first"), strict=True
    ):
        layer[:] = first
    decision = decide(results, 8)
    assert decision.verdict == "not decidable"
    assert decision.reason == "no layer turns off more than 0.0 % of its units"


def test_half_of_nothing_is_no_collapse_of_a_middle_layer(results):
    use(results, "depth_14", "batch_use")[:, :9] = 0
    decision = decide(results, 24)
    assert decision.verdict == "not decidable"
    assert decision.reason == "no unit of half of the layers is used"


def with_depth(results, run, num_layers, token_use, batch_use):
    """Gives a run's only seed another depth, and the same use in all layers at all steps."""
    ((seed, history),) = results.runs[run].items()
    levels = dict.fromkeys(history.unit_use, batch_use) | {"token_use": token_use}
    model = history.config["model"] | {"num_layers": num_layers, "mlp_dims": [64] * num_layers}
    results.runs[run][seed] = replace(
        history,
        config=history.config | {"model": model},
        unit_use={
            metric: np.full((len(history.steps), num_layers), level)
            for metric, level in levels.items()
        },
    )


@pytest.mark.parametrize(
    ("by_depth", "verdict"),
    [
        ({10: (0.06, 0.60), 12: (0.06, 0.80), 14: (0.06, 0.79)}, "reproduced"),
        ({10: (0.07, 0.60), 12: (0.06, 0.70), 14: (0.05, 0.79)}, "not reproduced"),
    ],
)
def test_models_are_compared_in_the_order_of_their_depths(results, by_depth, verdict):
    """Here the scale's own depth, of the first run that the claim names, is the middle one."""
    for run, depth in (("width_x1of2", 12), ("depth_10", 10), ("depth_14", 14)):
        with_depth(results, run, depth, *by_depth[depth])
    decision = decide(results, 23)
    assert decision.verdict == verdict
    assert decision.evidence["runs"] == ["depth_10", "width_x1of2", "depth_14"]
    with_depth(results, "width_x1of2", 14, 0.06, 0.8)
    assert decide(results, 23).reason == (
        "the depths are not all different: width_x1of2 14, depth_10 10, depth_14 14 layers"
    )


def test_the_first_layer_is_not_in_the_middle_of_three(results):
    (history,) = results.runs["depth_14"].values()
    model = history.config["model"] | {"num_layers": 3, "mlp_dims": [64] * 3}
    shallow = replace(
        history,
        config=history.config | {"model": model},
        unit_use={
            metric: np.tile([0.1, 0.8, 0.8], (len(history.steps), 1)) for metric in history.unit_use
        },
    )
    results.runs["depth_14"] = {0: shallow}
    decision = decide(results, 24)
    assert decision.verdict == "not reproduced"
    assert decision.evidence["lowest_middle_layer"] == 1


def test_seven_percent_of_the_steps_have_to_be_past_the_warm_up(tmp_path):
    params = make_params(optimizer={"peak_lr": 3e-3, "warmup_steps": 500})
    write_paper_runs(tmp_path, params)
    results = MeasuredResults(load_runs(tmp_path, {"baseline": (0,)}), params, tmp_path)
    decision = decide(results, 26)
    assert decision.verdict == "not decidable"
    assert "1.6 warm-ups (step 800)" in decision.reason


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


def _share(layer, percent):
    layer[:] = np.arange(layer.size) < layer.size * percent / 100


def _edge_3(results, share):
    use(results, "baseline", "batch_use")[:, 0] = share * 0.71


def _edge_8(results, share):
    for layer, (first, last) in enumerate(
        zip(units(results, "baseline", "first"), units(results, "baseline", "last"), strict=True)
    ):
        first[:] = True
        _share(last, 100 - (40 if layer == 0 else 40 * share))


def _edge_10(results, factor):
    column = use(results, "baseline", "p50")[:, 0]
    (history,) = results.runs["baseline"].values()
    column[history.steps >= 9000] = factor * column.min()


def _edge_11(results, share):
    batch_use = use(results, "baseline", "batch_use")
    (history,) = results.runs["baseline"].values()
    batch_use[:] = 1.0
    batch_use[history.steps >= 80] = 1 - 0.2 * share
    batch_use[history.steps > 80] = 0.8


def _edge_13(results, percent):
    for first, last in zip(
        units(results, "baseline", "first"), units(results, "baseline", "last"), strict=True
    ):
        _share(first, 100 - percent)
        last[:] = first


def _edge_15(results, share):
    write_mask(results.results_dir / "runs/masked/seed0/mask.npz", [32768] * 6, share)


def _edge_17(results, points):
    (first,), (second,) = (results.runs[run].values() for run in ("round1", "round2"))
    share = 100 * first.units[first.num_steps - 1][2].mean()
    _share(second.units[second.num_steps - 1][2], share + points)


def _edge_19(results, exceptions):
    for number, run in enumerate(("baseline", "lr_x2of3", "lr_x1of3", "lr_x5of3")):
        last_two = [0.9, 0.8] if number < exceptions else [0.8, 0.9]
        use(results, run, "batch_use")[:] = [0.1, 0.5, 0.5, 0.5, *last_two]


def _edge_25(results, share):
    use(results, "baseline", "p90")[:, -2:] = share


def _edge_27(results, ratios):
    use(results, "baseline", "token_use")[:] = np.divide(ratios, 20) * use(
        results, "baseline", "sequence_use"
    )


@pytest.mark.parametrize(
    ("number", "within", "beyond"),
    [
        (3, 0.499, 0.501),  # COLLAPSE, of the next lowest layer
        (8, 0.499, 0.501),  # of what layer 0 turns off
        (10, 1.51, 1.49),
        (11, 0.24, 0.26),
        (13, 2.6, 2.4),
        (13, 7.4, 7.6),
        (15, 0.205, 0.195),
        (15, 0.395, 0.405),
        (17, 4.9, 5.1),  # ROUND_TOLERANCE
        (19, 1, 2),
        (25, 0.099, 0.101),
        (27, (6, 3, 4, 5, 1, 2), (6, 2, 5, 4, 3, 1)),  # TREND: -0.71, -0.66
    ],
)
def test_a_threshold_is_where_the_rule_says(results, tmp_path, number, within, beyond):
    results = replace(results, results_dir=tmp_path)
    for run in ("masked", "random_masked"):
        write_mask(tmp_path / "runs" / run / "seed0" / "mask.npz", [32768] * 6, 0.3)
    for value, verdict in ((within, "reproduced"), (beyond, "not reproduced")):
        globals()[f"_edge_{number}"](results, value)
        decision = decide(results, number)
        assert decision.verdict == verdict, (decision.reason, decision.evidence)


@pytest.mark.parametrize(("share", "decided"), [(0.205, True), (0.195, False)])
def test_a_mask_of_a_fifth_of_the_units_is_enough(results, tmp_path, share, decided):
    for run in ("masked", "random_masked"):
        write_mask(tmp_path / "runs" / run / "seed0" / "mask.npz", [32768] * 6, share)
    decision = decide(replace(results, results_dir=tmp_path), 16)
    assert decision.verdict == ("reproduced" if decided else "not decidable")


def test_a_mask_that_takes_no_more_than_a_random_one_decides_nothing(results):
    for run in ("masked", "random_masked"):
        accuracy(results, run)[:] = accuracy(results, "baseline")
    decision = decide(results, 14)
    assert decision.verdict == "not decidable"
    assert decision.reason.startswith("a random mask of the same size is equivalent too")


def test_one_of_many_evaluations_that_differs_by_chance_is_no_difference(results):
    """p is 0.02, and there are ten of them."""
    accuracy(results, "masked")[:] = accuracy(results, "baseline")
    spread = np.linspace(-1, 1, 40)
    accuracy(results, "masked")[5] += -0.02 + 0.0527 * spread / spread.std(ddof=1)
    decision = decide(results, 14)
    assert decision.verdict == "not decidable"
    assert "neither equivalence nor a difference" in decision.reason


def test_a_rate_that_is_worse_by_chance_is_a_tie(results):
    base = results.runs["baseline"][0].eval_loss
    results.runs["lr_x2of3"][0].eval_loss[:] = base + 0.05 + np.linspace(-1, 1, 40)
    decision = decide(results, 21)
    assert decision.evidence["lr_x2of3_loss_minus_baseline"] > decision.evidence["margin"]
    assert decision.verdict == "not decidable"


@pytest.mark.parametrize(
    ("number", "name", "value", "verdict"),
    [
        (1, "learned_share", 5.0, "not decidable"),
        (14, "equivalence_margin", 1e-9, "not decidable"),
        (14, "significance_level", 1e-300, "not decidable"),
        (16, "collapse_margin", 0.2, "not reproduced"),
        (18, "round2_margin", 0.03, "not reproduced"),
        (21, "learning_rate_margin", 0.2, "not decidable"),
    ],
)
def test_margins_are_those_of_the_parameters(results, number, name, value, verdict):
    assert decide(results, number).verdict == "reproduced"
    claims = results.params.claims.model_copy(update={name: value})
    results = replace(results, params=results.params.model_copy(update={"claims": claims}))
    assert decide(results, number).verdict == verdict
