"""The paper's 27 claims, and the rule that decides each.

A rule is a function of the results. Rules that need no more than Tables 1-5 can also be run on
the published numbers, which tests the rules, and the paper against itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from relu_sparsity.paper.catalog import DEPTHS, LEARNING_RATES, WIDTHS
from relu_sparsity.paper.evidence import (
    MeasuredResults,
    Results,
    UndecidableError,
    holm,
    p_below,
    p_differs,
    p_equivalent,
    rank_correlation,
)
from relu_sparsity.paper.extract import LayerValues, over_all_units

# The thresholds that the paper's words are read as. Percentages are of a layer's units.
DRIFT = 3.0
"""At most this many points lie between the two halves of the convergence window."""
COLLAPSE = 0.5
"""A layer collapses below this share of its initial use and of the next lowest layer's."""
FAR_BELOW = 0.75
"""A layer is far below the others below this share of the next lowest."""
TREND = -0.7
"""A rank correlation at most this low is a fall with depth."""
ROUND_TOLERANCE = 5.0
"""Points between the rounds of Table 4 in a layer; the paper's own largest is 4.7."""
MIN_MASKED = 20.0
"""With fewer percent of all units masked, harm or its absence says nothing about 30 %."""


@dataclass(frozen=True)
class Finding:
    """What a rule found: whether the claim holds, and the numbers."""

    holds: bool
    evidence: dict[str, Any]
    undecided: str = ""


@dataclass(frozen=True)
class Claim:
    """One claim of the paper.

    Attributes:
      number: Its number here.
      source: Where the paper makes it.
      statement: What it says.
      rule: What decides it.
      decide: The rule as a function of the results.
      runs: The runs that it needs.
      converged: Whether these runs must have converged.
      in_tables: Whether the rule can be run on Tables 1-5.
      remark: What is to know beside the verdict.
    """

    number: int
    source: str
    statement: str
    rule: str
    decide: Callable[[Any], Finding]
    runs: tuple[str, ...] = ("baseline",)
    converged: bool = True
    in_tables: bool = False
    remark: str = ""


# --- Rules on values per layer: Tables 1-5 -----------------------------------------------------


def _lowest_first_layer(results: Results) -> Finding:
    use = results.layers("baseline", "batch_use")
    return Finding(bool(use[0] < use[1:].min()), {"batch_use": use})


def _highest_last_layer(results: Results) -> Finding:
    use = results.layers("baseline", "batch_use")
    return Finding(bool(use[-1] > use[:-1].max()), {"batch_use": use})


def _first_layer_collapses(results: Results) -> Finding:
    use = results.layers("baseline", "batch_use")
    start = results.layers("baseline", "on_at_start")[0]
    lowest_other = use[1:].min()
    holds = use[0] <= COLLAPSE * lowest_other and use[0] <= COLLAPSE * start
    return Finding(
        bool(holds),
        {"layer0": use[0], "layer0_at_start": start, "next_lowest_layer": lowest_other},
    )


def _token_and_batch_anticorrelate(results: Results) -> Finding:
    token, batch = (results.layers("baseline", each) for each in ("token_use", "batch_use"))
    if np.ptp(token) == 0 or np.ptp(batch) == 0:
        raise UndecidableError("all layers have the same use, so there is no correlation")
    pearson, spearman = stats.pearsonr(token, batch)[0], rank_correlation(token, batch)
    return Finding(pearson < 0 and spearman < 0, {"pearson": pearson, "spearman": spearman})


def _lowest_per_token_are_highest_per_batch(results: Results) -> Finding:
    token, batch = (results.layers("baseline", each) for each in ("token_use", "batch_use"))
    lowest, highest = np.sort(np.argsort(token)[:2]), np.sort(np.argsort(batch)[-2:])
    return Finding(
        bool((lowest == highest).all()),
        {"lowest_per_token": lowest, "highest_per_batch": highest},
    )


def _on_at_start_falls(results: Results) -> Finding:
    on = results.layers("baseline", "on_at_start")
    return Finding(bool((np.diff(on) < 0).all()), {"on_at_start": on})


def _turned_on_rises(results: Results) -> Finding:
    turned_on = results.layers("baseline", "turned_on")
    return Finding(bool((np.diff(turned_on) > 0).all()), {"turned_on": turned_on})


def _first_layer_turns_off_most(results: Results) -> Finding:
    turned_off = results.layers("baseline", "turned_off")
    return Finding(bool(turned_off[0] >= 2 * turned_off[1:].max()), {"turned_off": turned_off})


def _some_gain_some_lose(results: Results) -> Finding:
    change = results.layers("baseline", "final_use") - results.layers("baseline", "on_at_start")
    return Finding(bool(change.max() >= 1 and change.min() <= -1), {"change": change})


def _never_on(results: Results) -> Finding:
    on, turned_on = (results.layers("baseline", each) for each in ("on_at_start", "turned_on"))
    never = 100 - on - turned_on
    mean = never.mean()
    return Finding(bool(2.5 <= mean <= 7.5), {"never_on": never, "mean": mean})


def _rounds_use_same_fraction(results: Results) -> Finding:
    first, second = (results.layers(run, "final_use") for run in ("round1", "round2"))
    largest = np.abs(first - second).max()
    return Finding(
        bool(largest <= ROUND_TOLERANCE),
        {"round1": first, "round2": second, "largest_difference": largest},
        _nothing_removed(results),
    )


def _learning_rates_keep_the_order(results: Results) -> Finding:
    use = {run: results.layers(run, "batch_use") for run in LEARNING_RATES}
    far_lowest = all(each[0] <= FAR_BELOW * each[1:].min() for each in use.values())
    top_two = all(each[-2:].min() > each[:-2].max() for each in use.values())
    exceptions = [run for run, each in use.items() if each[-1] <= each[:-1].max()]
    return Finding(
        far_lowest and top_two and len(exceptions) <= 1,
        {**use, "last_layer_not_highest": exceptions},
    )


def _use_rises_as_rate_falls(results: Results) -> Finding:
    falling = ("baseline", "lr_x2of3", "lr_x1of3")
    total = np.array([results.total(run, "batch_use") for run in falling])
    first = np.array([results.layers(run, "batch_use")[0] for run in falling])
    holds = (np.diff(total) > 0).all() and (np.diff(first) > 0).all()
    return Finding(bool(holds), {"runs": falling, "total": total, "layer0": first})


def _first_layer_units_are_frequent(results: Results) -> Finding:
    p65, p90 = (results.layers("baseline", each) for each in ("p65", "p90"))
    holds = p65[0] >= 5 * p65[1:].max() and p90[-2:].max() <= 10
    return Finding(bool(holds), {"p65": p65, "p90_of_last_two_layers": p90[-2:]})


def _ratios_fall_with_depth(results: Results) -> Finding:
    evidence: dict[str, Any] = {}
    holds = True
    for metric in ("token_over_sequence", "sequence_over_batch"):
        ratio = results.layers("baseline", metric)
        trend = rank_correlation(np.arange(len(ratio)), ratio)
        holds = holds and ratio[0] > ratio[1:].max() and trend <= TREND
        evidence |= {metric: ratio, f"{metric}_trend": trend}
    return Finding(bool(holds), evidence)


# --- Rules on histories, masks and other experiments -------------------------------------------


def _drop_steps(results: MeasuredResults, metric: str) -> tuple[LayerValues, dict[str, Any], bool]:
    """For each layer, the first step at which a metric is below half its initial value."""
    steps, values = results.curve("baseline", metric)
    dropped = values < values[0] / 2
    layers = np.flatnonzero(~dropped.any(axis=0))
    if layers.size:
        raise UndecidableError(
            f"{metric} never falls below half its initial value in layer(s) {_listed(layers)}"
        )
    drop = steps[dropped.argmax(axis=0)]
    if np.ptp(drop) == 0:
        raise UndecidableError(f"{metric} falls in all layers between the same two measurements")
    trend = rank_correlation(np.arange(len(drop)), drop)
    in_order = bool(drop[-1] == drop.min() and trend <= TREND)
    return drop, {"drop_step": drop, "rank_correlation": trend}, in_order


def _token_use_drops_from_the_top(results: MeasuredResults) -> Finding:
    _, evidence, in_order = _drop_steps(results, "token_use")
    return Finding(in_order, evidence)


def _median_drops_from_the_top(results: MeasuredResults) -> Finding:
    _, evidence, in_order = _drop_steps(results, "p50")
    _, values = results.curve("baseline", "p50")
    end, lowest = results.layers("baseline", "p50"), values.min(axis=0)
    rises = np.flatnonzero((end >= 1.5 * lowest) & (end - lowest >= 1))
    evidence |= {"lowest": lowest, "end": end, "layers_that_rise": rises}
    return Finding(in_order and rises.tolist() == [0], evidence)


def _units_turn_off_late(results: MeasuredResults) -> Finding:
    steps, values = results.curve("baseline", "batch_use")
    total = over_all_units(values, results.seeds("baseline")[0])
    until = 1.6 * results.params.runs["baseline"].config.optimizer.warmup_steps
    early = (steps > 0) & (steps <= until)
    if early.sum() < 3:
        raise UndecidableError(
            f"the history has {early.sum()} measured steps up to {until:g}; at least 3 are needed"
        )
    off_early, off_in_all = total[0] - total[early].min(), total[0] - total.min()
    evidence = {"until_step": until, "off_by_then": off_early, "off_at_most": off_in_all}
    if off_in_all < 10:
        few = "fewer than 10 % of the units ever turn off, too few to tell when they do"
        return Finding(False, evidence, few)
    return Finding(bool(off_early <= 0.25 * off_in_all), evidence)


def _masked_is_equivalent(results: MeasuredResults) -> Finding:
    margin, alpha = results.params.claims.equivalence_margin, results.alpha
    pairs = results.pairs("masked", "baseline", "accuracy")
    after = pairs.steps > _mask_step(results, "masked")
    if after.sum() < 2:
        raise UndecidableError("there are fewer than two evaluations after the mask step")
    differences = pairs.differences[after]
    equivalence = np.array([p_equivalent(each, margin) for each in differences])
    differ = np.minimum(1, np.array([p_differs(each) for each in differences]) * len(differences))
    means = differences.mean(axis=1)
    worst = int(np.abs(means).argmax())
    evidence = {
        "masked_units": results.masked("masked"),
        "pairs": pairs.unit,
        "evaluations": len(differences),
        "margin": margin,
        "difference_at_end": means[-1],
        "p_equivalent_at_end": equivalence[-1],
        "largest_difference": means[worst],
        "largest_p_equivalent": equivalence.max(),
    }
    undecided = _too_few_masked(results, "masked")
    holds = bool(equivalence.max() < alpha)
    if not holds and not ((np.abs(means) > margin) & (differ < alpha)).any():
        undecided = undecided or (
            "neither equivalence nor a difference beyond the margin is significant"
        )
    random = _random_mask_difference(results)
    if random is not None:
        evidence["random_mask_difference_at_end"] = random.mean()
        if holds and p_equivalent(random, margin) < alpha:
            undecided = undecided or (
                "a random mask of the same size is equivalent too: here accuracy hardly depends "
                "on so many units, whichever they are"
            )
    return Finding(holds, evidence, undecided)


def _random_mask_difference(results: MeasuredResults) -> Float[np.ndarray, " pairs"] | None:
    """Accuracy at the end, random mask minus none; None where there is no such run."""
    try:
        return results.pairs("random_masked", "baseline", "accuracy").differences[-1]
    except UndecidableError:
        return None


def _share_off_at_mask_step(results: MeasuredResults) -> Finding:
    off = results.masked("masked")
    evidence = {"units_off": off, "mask_step": _mask_step(results, "masked")}
    return Finding(bool(20 <= off <= 40), evidence)


def _random_mask_collapses(results: MeasuredResults) -> Finding:
    margin, holds = results.params.claims.collapse_margin, True
    evidence: dict[str, Any] = {
        "masked_units": results.masked("random_masked"),
        "margin": margin,
    }
    for other in ("baseline", "masked"):
        pairs = results.pairs("random_masked", other, "accuracy")
        end = pairs.differences[-1]
        p = p_below(end)
        holds = holds and bool(end.mean() <= -margin and p < results.alpha)
        evidence |= {f"against_{other}": end.mean(), f"p_against_{other}": p, "pairs": pairs.unit}
    return Finding(holds, evidence, _too_few_masked(results, "random_masked"))


def _round2_is_worse(results: MeasuredResults) -> Finding:
    margin = results.params.claims.round2_margin
    pairs = results.pairs("round2", "round1", "accuracy")
    end = pairs.differences[-1]
    p = p_below(end)
    return Finding(
        bool(end.mean() <= -margin and p < results.alpha),
        {"difference": end.mean(), "p": p, "margin": margin, "pairs": pairs.unit},
        _nothing_removed(results),
    )


def _base_rate_is_best(results: MeasuredResults) -> Finding:
    evidence: dict[str, Any] = {}
    others = LEARNING_RATES[1:]
    gains, p_values = [], []
    for run in others:
        pairs = results.pairs(run, "baseline", "loss")
        gains.append(pairs.differences[-1].mean())
        p_values.append(p_differs(pairs.differences[-1]))
        evidence[f"{run}_loss_minus_baseline"] = gains[-1]
        evidence["pairs"] = pairs.unit
    significant = holm(p_values, results.alpha)
    evidence["p"] = p_values
    better = [
        run for run, gain, sure in zip(others, gains, significant, strict=True) if gain < 0 and sure
    ]
    holds = min(gains) > 0 and all(significant)
    tied = "" if holds or better else "the best learning rates are a tie"
    return Finding(bool(holds), evidence, tied)


def _wider_is_sparser(results: MeasuredResults) -> Finding:
    use = {
        metric: np.array([results.total(run, metric) for run in WIDTHS])
        for metric in ("token_use", "batch_use")
    }
    holds = all((np.diff(each) > 0).all() for each in use.values())
    return Finding(bool(holds), {"runs": WIDTHS, **use})


def _deeper_uses_more_per_batch(results: MeasuredResults) -> Finding:
    token, batch = (
        np.array([results.total(run, metric) for run in DEPTHS])
        for metric in ("token_use", "batch_use")
    )
    one_way = (np.diff(token) > 0).all() or (np.diff(token) < 0).all()
    trend = bool(one_way and np.ptp(token) >= 0.2 * token.mean())
    holds = batch[-1] > batch[0] and not trend
    evidence = {"runs": DEPTHS, "token_use": token, "batch_use": batch, "token_use_trend": trend}
    return Finding(bool(holds), evidence)


def _middle_layer_like_the_first(results: MeasuredResults) -> Finding:
    use = results.layers("depth_14", "batch_use")
    quarter = len(use) // 4
    middle = np.arange(quarter, len(use) - quarter)
    lowest = int(middle[use[middle].argmin()])
    limit = COLLAPSE * np.median(use)
    return Finding(
        bool(use[lowest] <= limit and use[0] <= limit),
        {"batch_use": use, "lowest_middle_layer": lowest, "half_of_median": limit},
    )


def _stable_after_early_steps(results: MeasuredResults) -> Finding:
    steps, values = results.curve("baseline", "batch_use")
    num_steps = results.seeds("baseline")[0].num_steps
    # Windows are counted from the end, so that the last one is the converged state itself.
    age = (num_steps - 1 - steps) // results.window("baseline")
    after = steps >= 0.07 * num_steps
    converged = results.layers("baseline", "batch_use")
    change = max(
        np.abs(values[after & (age == each)].mean(axis=0) - converged).max()
        for each in np.unique(age[after])
    )
    evidence = {"from_step": float(np.ceil(0.07 * num_steps)), "largest_change": change}
    return Finding(bool(change <= 5), evidence)


def _mask_step(results: MeasuredResults, run: str) -> int:
    step = results.seeds(run)[0].parent_step
    if step is None:
        raise UndecidableError(f"{run} does not branch off another run at a step")
    return step


def _too_few_masked(results: MeasuredResults, run: str) -> str:
    masked = results.masked(run)
    if masked >= MIN_MASKED:
        return ""
    return f"the mask holds {masked:.1f} % of the units; at least {MIN_MASKED:g} % are needed"


def _nothing_removed(results: Results) -> str:
    used = results.layers("round1", "final_use").mean()
    if used <= 90:
        return ""
    return f"round 1 uses {used:.1f} % of its units, so round 2 is hardly any narrower"


def _listed(values: Any) -> str:
    return ", ".join(map(str, values))


# --- The claims --------------------------------------------------------------------------------

_ROUNDS = ("round1", "round2")

CLAIMS = (
    Claim(
        1,
        "section 3",
        "Layer 0 uses the fewest of its units per batch.",
        "Batch use at convergence is lower in layer 0 than in every other layer.",
        _lowest_first_layer,
        in_tables=True,
    ),
    Claim(
        2,
        "section 3",
        "The last layer uses the most of its units per batch.",
        "Batch use at convergence is higher in the last layer than in every other layer.",
        _highest_last_layer,
        in_tables=True,
    ),
    Claim(
        3,
        "section 3, Figure 1",
        "Layer 0 collapses: it ends with far fewer units in use than any other layer.",
        "Layer 0's batch use at convergence is at most half of the next lowest layer's, and at "
        "most half of the share of its units that was on at batch 0.",
        _first_layer_collapses,
        in_tables=True,
    ),
    Claim(
        4,
        "section 3",
        "Use per token and use per batch anticorrelate across layers.",
        "Pearson's and Spearman's correlation of the two at convergence are both negative.",
        _token_and_batch_anticorrelate,
        in_tables=True,
        remark="The paper's -0.15 does not follow from its Table 1.",
    ),
    Claim(
        5,
        "sections 1, 4.3",
        "The layers that use the fewest units per token use the most per batch.",
        "The two layers with the lowest token use at convergence are the two with the highest "
        "batch use.",
        _lowest_per_token_are_highest_per_batch,
        in_tables=True,
    ),
    Claim(
        6,
        "section 3.1",
        "At initialization, higher layers use fewer of their units.",
        "The share of units on at batch 0 falls from each layer to the next.",
        _on_at_start_falls,
        converged=False,
        in_tables=True,
    ),
    Claim(
        7,
        "section 3.1, Table 2",
        "Higher layers turn on more of the units that were off at the start.",
        "The share of units off at batch 0 and on at the end rises from each layer to the next.",
        _turned_on_rises,
        in_tables=True,
    ),
    Claim(
        8,
        "Table 2",
        "Layer 0 turns off by far the most units.",
        "The share of units on at batch 0 and off at the end is in layer 0 at least twice that "
        "of any other layer.",
        _first_layer_turns_off_most,
        in_tables=True,
    ),
    Claim(
        9,
        "section 3.2, Figure 2a",
        "Use per token drops first in the last layer, then in the one below, and so on down.",
        "For each layer, the first step at which token use is below half its value at step 0: "
        "no layer's is before the last layer's, and its rank correlation with the layer is at "
        f"most {TREND:g}. Not decidable where a layer never falls so low.",
        _token_use_drops_from_the_top,
        converged=False,
    ),
    Claim(
        10,
        "section 3.2, Figure 2b",
        "The median use frequency drops in the same order, and layer 0 alone turns and rises.",
        "As for claim 9, with p50; and layer 0, and no other layer, ends at 1.5 times its lowest "
        "value or more, and at least 1 point above it.",
        _median_drops_from_the_top,
    ),
    Claim(
        11,
        "section 4.2, Figure 1",
        "Hardly any unit turns off in the first 1.6 warm-ups, a great many do afterwards.",
        "Up to 1.6 times the warm-up, batch use over all layers falls by at most a quarter of its "
        "whole fall from step 0 to its lowest. Not decidable with fewer than 3 measured steps up "
        "to then, or where fewer than 10 % of the units ever turn off.",
        _units_turn_off_late,
        converged=False,
    ),
    Claim(
        12,
        "section 1, Table 2",
        "Some layers gain units over training while others lose them.",
        "From batch 0 to the end, at least one layer gains 1 % of its units and at least one "
        "loses 1 %.",
        _some_gain_some_lose,
        in_tables=True,
    ),
    Claim(
        13,
        "section 1",
        "About 5 % of the units are off at initialization and never turn on.",
        "The share of units off at batch 0 and at the end, averaged over layers, is between 2.5 "
        "and 7.5 %.",
        _never_on,
        in_tables=True,
        remark="Table 2 gives 4.1 %. Units that turn on and off again in between count as never "
        "on, in the paper's table as here.",
    ),
    Claim(
        14,
        "section 4.1.1",
        "Keeping the unused units at zero from the mask step on changes accuracy by nothing "
        "detectable, all the way to the end.",
        "Masked minus unmasked held-out accuracy, paired: two one-sided tests (TOST) show at "
        "every evaluation after the mask step that the mean is within the equivalence margin; "
        "the largest p counts, so no correction is needed. Not reproduced where a mean beyond "
        "the margin differs from zero significantly (Bonferroni over evaluations); not decidable "
        f"otherwise, with less than {MIN_MASKED:g} % of the units masked, or where a random mask "
        "of the same size is equivalent at the end too.",
        _masked_is_equivalent,
        runs=("baseline", "masked"),
        converged=False,
    ),
    Claim(
        15,
        "section 4.1.1",
        "About 30 % of all units are off at the mask step.",
        "The mask holds between 20 and 40 % of the units of all layers.",
        _share_off_at_mask_step,
        runs=("masked",),
        converged=False,
    ),
    Claim(
        16,
        "section 4.1.1",
        "A random mask of the same size makes performance collapse.",
        "Held-out accuracy at the end is lower with the random mask than without and than with "
        "the mask of unused units, each by at least the collapse margin, and by a paired one-sided "
        f"t-test. Not decidable with less than {MIN_MASKED:g} % of the units masked.",
        _random_mask_collapses,
        runs=("baseline", "masked", "random_masked"),
        converged=False,
    ),
    Claim(
        17,
        "section 4.4, Table 4",
        "Round 2 uses about the same fraction of each layer's units as round 1.",
        f"The final use of no layer differs by more than {ROUND_TOLERANCE:g} points between the "
        "rounds. Not decidable where round 1 uses more than 90 % of its units.",
        _rounds_use_same_fraction,
        runs=_ROUNDS,
        in_tables=True,
    ),
    Claim(
        18,
        "section 4.4",
        "Round 2 performs substantially worse than round 1.",
        "Held-out accuracy at the end is lower by at least the round-2 margin, and by a paired "
        "one-sided t-test. Not decidable where round 1 uses more than 90 % of its units.",
        _round2_is_worse,
        runs=_ROUNDS,
        converged=False,
    ),
    Claim(
        19,
        "section 5.1, Table 5",
        "At every learning rate layer 0 is far the lowest and the top two layers are the highest, "
        "the last one the very highest but for one rate.",
        f"At every rate layer 0's batch use is at most {FAR_BELOW:g} of the next lowest layer's "
        "and the last two layers are above all others; the last is the highest at all rates but "
        "one, at most.",
        _learning_rates_keep_the_order,
        runs=LEARNING_RATES,
        in_tables=True,
    ),
    Claim(
        20,
        "section 5.1, Table 5",
        "Batch use, in all and in layer 0, rises as the peak learning rate falls.",
        "Both rise from the base rate to 2/3 of it, and from there to 1/3.",
        _use_rises_as_rate_falls,
        runs=LEARNING_RATES[:3],
        in_tables=True,
    ),
    Claim(
        21,
        "section 5.1",
        "The base learning rate performs best.",
        "Held-out loss at the end is lower than at every other rate, by paired two-sided t-tests "
        "with Holm's correction. Not reproduced where another rate is significantly better; a "
        "tie is not decidable.",
        _base_rate_is_best,
        runs=LEARNING_RATES,
        converged=False,
    ),
    Claim(
        22,
        "section 5.2, Figure 3",
        "Wider models use a smaller fraction of their units, per token and per batch.",
        "Both, over all layers, rise from the full width to a half, and from there to a quarter.",
        _wider_is_sparser,
        runs=WIDTHS,
    ),
    Claim(
        23,
        "section 5.3, Figure 4",
        "Deeper models tend to use more units per batch, with no clear trend per token.",
        "Batch use over all layers is higher at the largest depth than at the smallest; token use "
        "does not move one way only by 20 % of its mean or more.",
        _deeper_uses_more_per_batch,
        runs=DEPTHS,
    ),
    Claim(
        24,
        "section 5.3, Figure 4",
        "In the 14-layer model a middle layer behaves like layer 0.",
        "Batch use of layer 0 and of a layer in the middle half is at most half of the median.",
        _middle_layer_like_the_first,
        runs=("depth_14",),
    ),
    Claim(
        25,
        "section 4.3, Table 3",
        "Layer 0's units are used on far more tokens; those of the last two layers on few.",
        "p65 of layer 0 is at least 5 times that of any other layer, and p90 of the last two "
        "layers is at most 10 % of the tokens.",
        _first_layer_units_are_frequent,
        in_tables=True,
    ),
    Claim(
        26,
        "section 2.1, A.1",
        "Batch use is stable after 7 % of training.",
        "From 7 % of the steps on, the mean over every convergence window's length of steps is "
        "within 5 points of the mean at convergence, in every layer.",
        _stable_after_early_steps,
        converged=False,
    ),
    Claim(
        27,
        "Table 1",
        "The token/sequence and sequence/batch ratios are highest in layer 0, and fall with depth.",
        "Both are highest in layer 0, and their rank correlations with the layer are at most "
        f"{TREND:g}.",
        _ratios_fall_with_depth,
        in_tables=True,
    ),
)
