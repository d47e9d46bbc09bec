"""The rules that decide the paper's claims.

A rule is a function of the results. Rules that need no more than Tables 1-5 can also be run on
the published numbers, which tests the rules, and the paper against itself.
"""

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
EARLY_WARMUPS = 1.6
"""Up to so many warm-ups hardly any unit turns off: section 4.2's 8,000 steps of 5,000."""
AT_LIMIT = 1.0
"""Points from 0 or 100 % within which a claimed gain cannot show: there is no room for it."""


@dataclass(frozen=True)
class Finding:
    """What a rule found: whether the claim holds, and the numbers."""

    holds: bool
    evidence: dict[str, Any]
    undecided: str = ""


# --- Rules on values per layer: Tables 1-5 -----------------------------------------------------


def lowest_first_layer(results: Results) -> Finding:
    use = results.layers("baseline", "batch_use")
    return Finding(bool(use[0] < use[1:].min()), {"batch_use": use})


def highest_last_layer(results: Results) -> Finding:
    use = results.layers("baseline", "batch_use")
    return Finding(bool(use[-1] > use[:-1].max()), {"batch_use": use})


def first_layer_collapses(results: Results) -> Finding:
    use = results.layers("baseline", "batch_use")
    start = results.layers("baseline", "on_at_start")[0]
    lowest_other = use[1:].min()
    holds = use[0] <= COLLAPSE * lowest_other and use[0] <= COLLAPSE * start
    return Finding(
        bool(holds),
        {"batch_use": use, "layer0_at_start": start, "next_lowest_layer": lowest_other},
    )


def token_and_batch_anticorrelate(results: Results) -> Finding:
    token, batch = (results.layers("baseline", each) for each in ("token_use", "batch_use"))
    if np.ptp(token) == 0 or np.ptp(batch) == 0:
        raise UndecidableError("all layers have the same use, so there is no correlation")
    pearson, spearman = stats.pearsonr(token, batch)[0], rank_correlation(token, batch)
    evidence = {"token_use": token, "batch_use": batch, "pearson": pearson, "spearman": spearman}
    return Finding(pearson < 0 and spearman < 0, evidence)


def lowest_per_token_are_highest_per_batch(results: Results) -> Finding:
    token, batch = (results.layers("baseline", each) for each in ("token_use", "batch_use"))
    lowest, highest = np.sort(np.argsort(token)[:2]), np.sort(np.argsort(batch)[-2:])
    return Finding(
        bool((lowest == highest).all()),
        {
            "token_use": token,
            "batch_use": batch,
            "lowest_per_token": lowest,
            "highest_per_batch": highest,
        },
    )


def on_at_start_falls(results: Results) -> Finding:
    on = results.layers("baseline", "on_at_start")
    return Finding(bool((np.diff(on) < 0).all()), {"on_at_start": on})


def turned_on_rises(results: Results) -> Finding:
    on, turned_on = (results.layers("baseline", each) for each in ("on_at_start", "turned_on"))
    return Finding(
        bool((np.diff(turned_on) > 0).all()), {"turned_on": turned_on}, _none_to_turn_on(on)
    )


def first_layer_turns_off_most(results: Results) -> Finding:
    turned_off = results.layers("baseline", "turned_off")
    return Finding(bool(turned_off[0] >= 2 * turned_off[1:].max()), {"turned_off": turned_off})


def some_gain_some_lose(results: Results) -> Finding:
    final, on = (results.layers("baseline", each) for each in ("final_use", "on_at_start"))
    change = final - on
    holds = change.max() >= AT_LIMIT and change.min() <= -AT_LIMIT
    return Finding(bool(holds), {"change": change}, _none_to_turn_on(on))


def never_on(results: Results) -> Finding:
    on, turned_on = (results.layers("baseline", each) for each in ("on_at_start", "turned_on"))
    never = 100 - on - turned_on
    mean = never.mean()
    return Finding(bool(2.5 <= mean <= 7.5), {"never_on": never, "mean": mean})


def rounds_use_same_fraction(results: Results) -> Finding:
    first, second = (results.layers(run, "final_use") for run in ("round1", "round2"))
    largest = np.abs(first - second).max()
    return Finding(
        bool(largest <= ROUND_TOLERANCE),
        {"round1": first, "round2": second, "largest_difference": largest},
        _nothing_removed(results),
    )


def learning_rates_keep_the_order(results: Results) -> Finding:
    use = {run: results.layers(run, "batch_use") for run in LEARNING_RATES}
    far_lowest = all(each[0] <= FAR_BELOW * each[1:].min() for each in use.values())
    top_two = all(each[-2:].min() > each[:-2].max() for each in use.values())
    exceptions = [run for run, each in use.items() if each[-1] <= each[:-1].max()]
    return Finding(
        far_lowest and top_two and len(exceptions) <= 1,
        {**use, "last_layer_not_highest": exceptions},
    )


def use_rises_as_rate_falls(results: Results) -> Finding:
    falling = ("baseline", "lr_x2of3", "lr_x1of3")
    total = np.array([results.total(run, "batch_use") for run in falling])
    first = np.array([results.layers(run, "batch_use")[0] for run in falling])
    holds = (np.diff(total) > 0).all() and (np.diff(first) > 0).all()
    full = first[0] > 100 - AT_LIMIT and (np.diff(total) > 0).all()
    return Finding(
        bool(holds),
        {"runs": falling, "total": total, "layer0": first},
        f"layer 0 uses {first[0]:.1f} % at the base rate, so it can use no more" if full else "",
    )


def first_layer_units_are_frequent(results: Results) -> Finding:
    p65, p90 = (results.layers("baseline", each) for each in ("p65", "p90"))
    holds = p65[0] >= 5 * p65[1:].max() and p90[-2:].max() <= 10
    return Finding(bool(holds), {"p65": p65, "p90_of_last_two_layers": p90[-2:]})


def ratios_fall_with_depth(results: Results) -> Finding:
    evidence: dict[str, Any] = {}
    holds = True
    for metric in ("token_over_sequence", "sequence_over_batch"):
        ratio = results.layers("baseline", metric)
        trend = rank_correlation(np.arange(len(ratio)), ratio)
        holds = holds and ratio[0] > ratio[1:].max() and trend <= TREND
        evidence |= {metric: ratio, f"{metric}_trend": trend}
    return Finding(bool(holds), evidence)


# --- Rules on histories, masks and other experiments -------------------------------------------


def _drop_steps(results: MeasuredResults, metric: str) -> tuple[dict[str, Any], bool]:
    """For each layer, the first step at which a metric is below half its initial value."""
    steps, values = results.curve("baseline", metric)
    dropped = values < values[0] / 2
    ever = dropped.any(axis=0)
    if 2 * ever.sum() <= len(ever):
        raise UndecidableError(
            f"{metric} falls below half its initial value in {ever.sum()} of {len(ever)} layers "
            "only; more than half of them are needed to tell their order"
        )
    # A layer that never falls so low is after all that do.
    drop = np.where(ever, steps[dropped.argmax(axis=0)], np.inf)
    if ever.all() and np.ptp(drop) == 0:
        raise UndecidableError(f"{metric} falls in all layers between the same two measurements")
    order = stats.rankdata(drop)
    trend = rank_correlation(np.arange(len(order)), order)
    told = [float(step) if fell else "never" for step, fell in zip(drop, ever, strict=True)]
    in_order = bool(order[-1] == order.min() and trend <= TREND)
    return {"drop_step": told, "rank_correlation": trend}, in_order


def token_use_drops_from_the_top(results: MeasuredResults) -> Finding:
    evidence, in_order = _drop_steps(results, "token_use")
    return Finding(in_order, evidence)


def median_drops_from_the_top(results: MeasuredResults) -> Finding:
    evidence, in_order = _drop_steps(results, "p50")
    _, values = results.curve("baseline", "p50")
    end, lowest = results.layers("baseline", "p50"), values.min(axis=0)
    rises = np.flatnonzero((end >= 1.5 * lowest) & (end - lowest >= 1))
    evidence |= {"lowest": lowest, "end": end, "layers_that_rise": rises}
    return Finding(in_order and rises.tolist() == [0], evidence)


def units_turn_off_late(results: MeasuredResults) -> Finding:
    steps, values = results.curve("baseline", "batch_use")
    total = over_all_units(values, results.seeds("baseline")[0])
    until = _early_steps(results)
    early = total[(steps > 0) & (steps <= until)]
    if early.size < 3:
        raise UndecidableError(
            f"the history has {early.size} measured steps up to {until:g}; at least 3 are needed"
        )
    # Units that are off for a while and on again have not turned off: Figure 1 shows who is off
    # by step 8,000, and Table 2 counts nobody that comes back.
    off_early, off_in_all = total[0] - early[-1], total[0] - total.min()
    evidence = {
        "until_step": until,
        "off_then": off_early,
        "off_for_a_while_before": total[0] - early.min(),
        "off_at_most": off_in_all,
    }
    if off_in_all < 10:
        few = "fewer than 10 % of the units ever turn off, too few to tell when they do"
        return Finding(False, evidence, few)
    return Finding(bool(off_early <= 0.25 * off_in_all), evidence)


def masked_is_equivalent(results: MeasuredResults) -> Finding:
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


def share_off_at_mask_step(results: MeasuredResults) -> Finding:
    off = results.masked("masked")
    evidence = {"units_off": off, "mask_step": _mask_step(results, "masked")}
    return Finding(bool(20 <= off <= 40), evidence)


def random_mask_collapses(results: MeasuredResults) -> Finding:
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


def round2_is_worse(results: MeasuredResults) -> Finding:
    margin = results.params.claims.round2_margin
    pairs = results.pairs("round2", "round1", "accuracy")
    end = pairs.differences[-1]
    p = p_below(end)
    return Finding(
        bool(end.mean() <= -margin and p < results.alpha),
        {"difference": end.mean(), "p": p, "margin": margin, "pairs": pairs.unit},
        _nothing_removed(results),
    )


def base_rate_is_best(results: MeasuredResults) -> Finding:
    margin = results.params.claims.learning_rate_margin
    evidence: dict[str, Any] = {"margin": margin}
    others = LEARNING_RATES[1:]
    gains, p_values = [], []
    for run in others:
        pairs = results.pairs(run, "baseline", "loss")
        gains.append(pairs.differences[-1].mean())
        p_values.append(p_differs(pairs.differences[-1]))
        evidence[f"{run}_loss_minus_baseline"] = gains[-1]
        evidence |= {f"{run}_p": p_values[-1], "pairs": pairs.unit}
    significant = holm(p_values, results.alpha)
    better = [
        run
        for run, gain, sure in zip(others, gains, significant, strict=True)
        if gain <= -margin and sure
    ]
    holds = min(gains) >= margin and all(significant)
    tied = "" if holds or better else "the best learning rates are a tie"
    return Finding(bool(holds), evidence, tied)


def wider_is_sparser(results: MeasuredResults) -> Finding:
    use = {
        metric: np.array([results.total(run, metric) for run in WIDTHS])
        for metric in ("token_use", "batch_use")
    }
    holds = all((np.diff(each) > 0).all() for each in use.values())
    return Finding(bool(holds), {"runs": WIDTHS, **use})


def deeper_uses_more_per_batch(results: MeasuredResults) -> Finding:
    token, batch = (
        np.array([results.total(run, metric) for run in DEPTHS])
        for metric in ("token_use", "batch_use")
    )
    one_way = (np.diff(token) > 0).all() or (np.diff(token) < 0).all()
    trend = bool(one_way and np.ptp(token) >= 0.2 * token.mean())
    holds = batch[-1] > batch[0] and not trend
    evidence = {"runs": DEPTHS, "token_use": token, "batch_use": batch, "token_use_trend": trend}
    return Finding(bool(holds), evidence)


def middle_layer_like_the_first(results: MeasuredResults) -> Finding:
    use = results.layers("depth_14", "batch_use")
    quarter = len(use) // 4
    middle = np.arange(quarter, len(use) - quarter)
    lowest = int(middle[use[middle].argmin()])
    limit = COLLAPSE * np.median(use)
    return Finding(
        bool(use[lowest] <= limit and use[0] <= limit),
        {"batch_use": use, "lowest_middle_layer": lowest, "half_of_median": limit},
    )


def stable_after_early_steps(results: MeasuredResults) -> Finding:
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
    until, early = _early_steps(results), ""
    if 0.07 * num_steps < until:
        early = (
            f"7 % of the steps end before {EARLY_WARMUPS:g} warm-ups (step {until:g}), up to which "
            "hardly any unit turns off"
        )
    return Finding(bool(change <= 5), evidence, early)


def _early_steps(results: MeasuredResults) -> float:
    return EARLY_WARMUPS * results.params.runs["baseline"].config.optimizer.warmup_steps


def _mask_step(results: MeasuredResults, run: str) -> int:
    step = results.seeds(run)[0].parent_step
    if step is None:
        raise UndecidableError(f"{run} does not branch off another run at a step")
    return step


def _none_to_turn_on(on_at_start: LayerValues) -> str:
    lowest = on_at_start.min()
    if lowest < 100 - AT_LIMIT:
        return ""
    return f"every layer has at least {lowest:.1f} % of its units on at batch 0: none can turn on"


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
