"""The rules that decide the paper's claims on histories, masks and other experiments."""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from relu_sparsity.paper.catalog import DEPTHS, LEARNING_RATES, WIDTHS
from relu_sparsity.paper.evidence import (
    MeasuredResults,
    UndecidableError,
    holm,
    p_below,
    p_differs,
    p_equivalent,
    rank_correlation,
)
from relu_sparsity.paper.extract import over_all_units
from relu_sparsity.paper.rules import (
    COLLAPSE,
    TREND,
    Finding,
    no_room_to_rise,
    nothing_removed,
    rises,
)

MIN_MASKED = 20.0
"""With fewer percent of all units masked, harm or its absence says nothing about 30 %."""
EARLY_WARMUPS = 1.6
"""Up to so many warm-ups hardly any unit turns off: section 4.2's 8,000 steps of 5,000."""


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
    if random is None:
        control = "no random mask of the same size tells whether accuracy depends on so many units"
    else:
        evidence["random_mask_difference_at_end"] = random.mean()
        control = (
            "a random mask of the same size is equivalent too: here accuracy hardly depends on so "
            "many units, whichever they are"
            if p_equivalent(random, margin) < alpha
            else ""
        )
    return Finding(holds, evidence, undecided or (control if holds else ""))


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
    margin, losses = results.params.claims.collapse_margin, []
    evidence: dict[str, Any] = {
        "masked_units": results.masked("random_masked"),
        "margin": margin,
    }
    for other in ("baseline", "masked"):
        pairs = results.pairs("random_masked", other, "accuracy")
        end = pairs.differences[-1]
        losses.append(end)
        evidence |= {
            f"against_{other}": end.mean(),
            f"p_against_{other}": p_below(end),
            "pairs": pairs.unit,
        }
    holds, unsure = _worse(losses, margin, results.alpha)
    return Finding(holds, evidence, _too_few_masked(results, "random_masked") or unsure)


def round2_is_worse(results: MeasuredResults) -> Finding:
    margin = results.params.claims.round2_margin
    pairs = results.pairs("round2", "round1", "accuracy")
    end = pairs.differences[-1]
    holds, unsure = _worse([end], margin, results.alpha)
    return Finding(
        holds,
        {"difference": end.mean(), "p": p_below(end), "margin": margin, "pairs": pairs.unit},
        nothing_removed(results) or unsure,
    )


def _worse(
    differences: list[Float[np.ndarray, " pairs"]], margin: float, alpha: float
) -> tuple[bool, str]:
    """Whether all means are below zero by the margin, and significantly; and why it is not known.

    It is not where all means are that low and not all of them significantly: too few pairs.
    """
    if any(each.mean() > -margin for each in differences):
        return False, ""
    if all(p_below(each) < alpha for each in differences):
        return True, ""
    return False, "the loss of accuracy is beyond the margin, and not significant"


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
    holds = all(map(rises, use.values()))
    named = {metric.replace("_", " "): each for metric, each in use.items()}
    return Finding(holds, {"runs": WIDTHS, **use}, no_room_to_rise(named))


def deeper_uses_more_per_batch(results: MeasuredResults) -> Finding:
    # A scale's baseline may have any depth.
    depths = {run: len(results.seeds(run)[0].mlp_dims) for run in DEPTHS}
    runs = sorted(depths, key=lambda run: depths[run])
    if len(set(depths.values())) < len(depths):
        told = ", ".join(f"{run} {depth}" for run, depth in depths.items())
        raise UndecidableError(f"the depths are not all different: {told} layers")
    token, batch = (
        np.array([results.total(run, metric) for run in runs])
        for metric in ("token_use", "batch_use")
    )
    one_way = (np.diff(token) > 0).all() or (np.diff(token) < 0).all()
    trend = bool(one_way and np.ptp(token) >= 0.2 * token.mean())
    ends = batch[[0, -1]]
    evidence = {"runs": runs, "token_use": token, "batch_use": batch, "token_use_trend": trend}
    undecided = "" if trend else no_room_to_rise({"batch use": ends})
    return Finding(rises(ends) and not trend, evidence, undecided)


def middle_layer_like_the_first(results: MeasuredResults) -> Finding:
    use = results.layers("depth_14", "batch_use")
    quarter = max(1, len(use) // 4)
    middle = np.arange(quarter, len(use) - quarter)
    lowest = int(middle[use[middle].argmin()])
    limit = COLLAPSE * np.median(use)
    return Finding(
        bool(use[lowest] <= limit and use[0] <= limit),
        {"batch_use": use, "lowest_middle_layer": lowest, "half_of_median": limit},
        "" if limit else "no unit of half of the layers is used",
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


def _too_few_masked(results: MeasuredResults, run: str) -> str:
    masked = results.masked(run)
    if masked >= MIN_MASKED:
        return ""
    return f"the mask holds {masked:.1f} % of the units; at least {MIN_MASKED:g} % are needed"
