"""The rules that decide the paper's claims on values per layer, as in its Tables 1-5.

A rule is a function of the results. These can also be run on the published numbers, which tests
the rules, and the paper against itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from relu_sparsity.paper.catalog import LEARNING_RATES
from relu_sparsity.paper.evidence import Results, UndecidableError, rank_correlation
from relu_sparsity.paper.extract import LayerValues

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
AT_LIMIT = 1.0
"""Points from 0 or 100 % within which a claimed gain cannot show: there is no room for it."""


@dataclass(frozen=True)
class Finding:
    """What a rule found: whether the claim holds, and the numbers."""

    holds: bool
    evidence: dict[str, Any]
    undecided: str = ""


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
    holds = _first_is_far_below(use, COLLAPSE) and use[0] <= COLLAPSE * start
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
    others = np.setdiff1d(np.arange(len(token)), lowest)
    # Strictly, as otherwise ties, as of layers that use all units, would count as a match.
    holds = token[lowest].max() < token[others].min() and batch[lowest].min() > batch[others].max()
    return Finding(
        bool(holds),
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
    holds, most = turned_off[0] >= 2 * turned_off[1:].max(), turned_off.max()
    none = f"no layer turns off more than {most:.1f} % of its units" if most < AT_LIMIT else ""
    return Finding(bool(holds), {"turned_off": turned_off}, none)


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
        nothing_removed(results),
    )


def learning_rates_keep_the_order(results: Results) -> Finding:
    use = {run: results.layers(run, "batch_use") for run in LEARNING_RATES}
    far_lowest = all(_first_is_far_below(each, FAR_BELOW) for each in use.values())
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
    return Finding(
        rises(total) and rises(first),
        {"runs": falling, "total": total, "layer0": first},
        no_room_to_rise({"batch use": total, "batch use of layer 0": first}),
    )


def first_layer_units_are_frequent(results: Results) -> Finding:
    p65, p90 = (results.layers("baseline", each) for each in ("p65", "p90"))
    holds = p65[0] >= 5 * p65[1:].max() and p90[-2:].max() <= 10
    evidence = {"p65": p65, "p90_of_last_two_layers": p90[-2:]}
    return Finding(bool(holds), evidence, _dead_layers(results))


def ratios_fall_with_depth(results: Results) -> Finding:
    evidence: dict[str, Any] = {}
    holds = True
    for metric in ("token_over_sequence", "sequence_over_batch"):
        ratio = results.layers("baseline", metric)
        trend = rank_correlation(np.arange(len(ratio)), ratio)
        holds = holds and ratio[0] > ratio[1:].max() and trend <= TREND
        evidence |= {metric: ratio, f"{metric}_trend": trend}
    return Finding(bool(holds), evidence, _dead_layers(results))


def rises(use: Float[np.ndarray, " runs"]) -> bool:
    """Whether use rises from each run to the next."""
    return bool((np.diff(use) > 0).all())


def no_room_to_rise(rising: Mapping[str, Float[np.ndarray, " runs"]]) -> str:
    """Which use that is claimed to rise from run to run cannot; empty if all could, or do.

    It cannot from a run that uses all units already. Use that could rise and does not, or that
    falls, decides.
    """
    full = ""
    for name, use in rising.items():
        at_limit, change = use[:-1] > 100 - AT_LIMIT, np.diff(use)
        stays = change <= 0
        if (stays & ~(at_limit & (change >= -AT_LIMIT))).any():
            return ""
        if at_limit[0] or stays.any():
            full = full or f"{name} is {use[:-1][at_limit].min():.1f} %, and can rise no further"
    return full


def _first_is_far_below(use: LayerValues, share: float) -> bool:
    """Whether layer 0 uses at most this share of what any other layer does, and less than it."""
    lowest_other = use[1:].min()
    # Less, as half of nothing is nothing too.
    return bool(use[0] < lowest_other and use[0] <= share * lowest_other)


def _dead_layers(results: Results) -> str:
    dead = np.flatnonzero(results.layers("baseline", "batch_use") == 0)
    if not dead.size:
        return ""
    return f"no unit of layer {', '.join(map(str, dead))} is used"


def _none_to_turn_on(on_at_start: LayerValues) -> str:
    lowest = on_at_start.min()
    if lowest < 100 - AT_LIMIT:
        return ""
    return f"every layer has at least {lowest:.1f} % of its units on at batch 0: none can turn on"


def nothing_removed(results: Results) -> str:
    """Why rounds that are as wide as each other cannot be compared; empty where they can."""
    used = results.total("round1", "final_use")
    if used <= 90:
        return ""
    return f"round 1 uses {used:.1f} % of its units, so round 2 is hardly any narrower"
