"""The paper's 27 claims: a row for each, with the rule that decides it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from relu_sparsity.paper import rules, run_rules
from relu_sparsity.paper.catalog import DEPTHS, LEARNING_RATES, WIDTHS


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
      learned: Whether these runs must have learned; of a test, the first one and what is masked.
      compares_layers: Whether it sets a layer against others, for which there have to be some.
      in_tables: Whether the rule can be run on Tables 1-5.
      is_test: Whether the rule is a test over seeds. Any other has to find the same with each seed.
      remark: What is to know beside the verdict.
    """

    number: int
    source: str
    statement: str
    rule: str
    decide: Callable[[Any], rules.Finding]
    runs: tuple[str, ...] = ("baseline",)
    converged: bool = True
    learned: bool = True
    compares_layers: bool = True
    in_tables: bool = False
    is_test: bool = False
    remark: str = ""


_ROUNDS = ("round1", "round2")
_NONE_TO_TURN_ON = (
    f"Not decidable where every layer has at least {100 - rules.AT_LIMIT:g} % of its units on at "
    "batch 0."
)
_NO_ROOM_TO_RISE = (
    f"Not decidable where use could rise only from over {100 - rules.AT_LIMIT:g} %, where there is "
    "no room."
)
_DEAD_LAYERS = "Not decidable where no unit of some layer is used."

CLAIMS = (
    Claim(
        1,
        "section 3, Table 1",
        "Layer 0 uses the fewest of its units per batch.",
        "Batch use at convergence is lower in layer 0 than in every other layer.",
        rules.lowest_first_layer,
        in_tables=True,
    ),
    Claim(
        2,
        "section 3, Table 1",
        "The last layer uses the most of its units per batch.",
        "Batch use at convergence is higher in the last layer than in every other layer.",
        rules.highest_last_layer,
        in_tables=True,
    ),
    Claim(
        3,
        "section 3, Figure 1",
        "Layer 0 collapses: it ends with far fewer units in use than any other layer.",
        "Layer 0's batch use at convergence is lower than every other layer's, at most half of the "
        "next lowest one's, and at most half of the share of its units that was on at batch 0.",
        rules.first_layer_collapses,
        in_tables=True,
    ),
    Claim(
        4,
        "section 3, Table 1",
        "Use per token and use per batch anticorrelate across layers.",
        "Pearson's and Spearman's correlation of the two at convergence are both negative.",
        rules.token_and_batch_anticorrelate,
        in_tables=True,
        remark="The paper's -0.15 does not follow from its Table 1.",
    ),
    Claim(
        5,
        "sections 1, 4.3, Table 1",
        "The layers that use the fewest units per token use the most per batch.",
        "The two layers with the lowest token use at convergence are the two with the highest "
        "batch use; a layer that ties with one of them in either breaks it.",
        rules.lowest_per_token_are_highest_per_batch,
        in_tables=True,
    ),
    Claim(
        6,
        "section 3.1, Table 2",
        "At initialization, higher layers use fewer of their units.",
        "The share of units on at batch 0 falls from each layer to the next.",
        rules.on_at_start_falls,
        converged=False,
        learned=False,
        in_tables=True,
    ),
    Claim(
        7,
        "section 3.1, Table 2",
        "Higher layers turn on more of the units that were off at the start.",
        "The share of units off at batch 0 and on at the end rises from each layer to the next. "
        f"{_NONE_TO_TURN_ON}",
        rules.turned_on_rises,
        in_tables=True,
    ),
    Claim(
        8,
        "Table 2",
        "Layer 0 turns off by far the most units.",
        "The share of units on at batch 0 and off at the end is in layer 0 at least twice that "
        f"of any other layer. Not decidable where no layer turns off {rules.AT_LIMIT:g} %.",
        rules.first_layer_turns_off_most,
        in_tables=True,
    ),
    Claim(
        9,
        "section 3.2, Figure 2a",
        "Use per token drops first in the last layer, then in the one below, and so on down.",
        "For each layer, the first step at which token use is below half its value at step 0: "
        "no layer's is before the last layer's, and its rank correlation with the layer is at "
        f"most {rules.TREND:g}. A layer that never falls so low is after all others; not decidable "
        "where half of the layers do not.",
        run_rules.token_use_drops_from_the_top,
        converged=False,
    ),
    Claim(
        10,
        "section 3.2, Figure 2b",
        "The median use frequency drops in the same order, and layer 0 alone turns and rises.",
        "As for claim 9, with p50; and layer 0, and no other layer, ends at 1.5 times its lowest "
        "value or more, and at least 1 point above it.",
        run_rules.median_drops_from_the_top,
    ),
    Claim(
        11,
        "section 4.2, Figure 1",
        "Hardly any unit turns off in the first 1.6 warm-ups, a great many do afterwards.",
        f"At the last measured step up to {run_rules.EARLY_WARMUPS:g} times the warm-up, batch use "
        "over all layers is lower than at step 0 by at most a quarter of its whole fall from step "
        "0 to its lowest; units that are on again by then do not count. Not decidable with fewer "
        "than 3 measured steps up to then, or where fewer than 10 % of the units ever turn off.",
        run_rules.units_turn_off_late,
        converged=False,
        compares_layers=False,
    ),
    Claim(
        12,
        "section 1, Table 2",
        "Some layers gain units over training while others lose them.",
        "From batch 0 to the end, at least one layer gains 1 % of its units and at least one "
        f"loses 1 %. {_NONE_TO_TURN_ON}",
        rules.some_gain_some_lose,
        in_tables=True,
    ),
    Claim(
        13,
        "section 1, Table 2",
        "About 5 % of the units are off at initialization and never turn on.",
        "The share of units off at batch 0 and at the end, averaged over layers, is between 2.5 "
        "and 7.5 %.",
        rules.never_on,
        in_tables=True,
        remark="Table 2 gives 4.1 %. Units that turn on and off again in between count as never "
        "on, in the paper's table as here.",
        compares_layers=False,
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
        f"otherwise, with less than {run_rules.MIN_MASKED:g} % of the units masked, or where a "
        "random mask of the same size is equivalent at the end too, or was not tried.",
        run_rules.masked_is_equivalent,
        runs=("baseline", "masked"),
        converged=False,
        is_test=True,
        compares_layers=False,
    ),
    Claim(
        15,
        "section 4.1.1",
        "About 30 % of all units are off at the mask step.",
        "The mask holds between 20 and 40 % of the units of all layers.",
        run_rules.share_off_at_mask_step,
        runs=("masked",),
        converged=False,
        compares_layers=False,
    ),
    Claim(
        16,
        "section 4.1.1",
        "A random mask of the same size makes performance collapse.",
        "Held-out accuracy at the end is lower with the random mask than without and than with "
        "the mask of unused units, each by at least the collapse margin, and by a paired one-sided "
        f"t-test. Not decidable with less than {run_rules.MIN_MASKED:g} % of the units masked, or "
        "where both losses are beyond the margin and not both significant.",
        run_rules.random_mask_collapses,
        runs=("baseline", "masked", "random_masked"),
        is_test=True,
        converged=False,
        compares_layers=False,
    ),
    Claim(
        17,
        "section 4.4, Table 4",
        "Round 2 uses about the same fraction of each layer's units as round 1.",
        f"The final use of no layer differs by more than {rules.ROUND_TOLERANCE:g} points between "
        "the rounds. Not decidable where round 1 uses more than 90 % of its units.",
        rules.rounds_use_same_fraction,
        runs=_ROUNDS,
        in_tables=True,
        compares_layers=False,
    ),
    Claim(
        18,
        "section 4.4",
        "Round 2 performs substantially worse than round 1.",
        "Held-out accuracy at the end is lower by at least the round-2 margin, and by a paired "
        "one-sided t-test. Not decidable where round 1 uses more than 90 % of its units, or where "
        "the loss is beyond the margin and not significant.",
        run_rules.round2_is_worse,
        runs=_ROUNDS,
        is_test=True,
        converged=False,
        compares_layers=False,
    ),
    Claim(
        19,
        "section 5.1, Table 5",
        "At every learning rate layer 0 is far the lowest and the top two layers are the highest, "
        "the last one the very highest but for one rate.",
        f"At every rate layer 0's batch use is below, and at most {rules.FAR_BELOW:g} of, the next "
        "lowest layer's, and the last two layers are above all others; the last is the highest at "
        "all rates but one, at most.",
        rules.learning_rates_keep_the_order,
        runs=LEARNING_RATES,
        in_tables=True,
    ),
    Claim(
        20,
        "section 5.1, Table 5",
        "Batch use, in all and in layer 0, rises as the peak learning rate falls.",
        f"Both rise from the base rate to 2/3 of it, and from there to 1/3. {_NO_ROOM_TO_RISE}",
        rules.use_rises_as_rate_falls,
        runs=LEARNING_RATES[:3],
        in_tables=True,
        compares_layers=False,
    ),
    Claim(
        21,
        "section 5.1",
        "The base learning rate performs best.",
        "Held-out loss at the end is lower than at every other rate by at least the learning-rate "
        "margin, and by paired two-sided t-tests with Holm's correction. Not reproduced where "
        "another rate is as clearly better; a tie is not decidable.",
        run_rules.base_rate_is_best,
        runs=LEARNING_RATES,
        converged=False,
        is_test=True,
        compares_layers=False,
    ),
    Claim(
        22,
        "section 5.2, Figure 3",
        "Wider models use a smaller fraction of their units, per token and per batch.",
        "Both, over all layers, rise from the full width to a half, and from there to a quarter. "
        f"{_NO_ROOM_TO_RISE}",
        run_rules.wider_is_sparser,
        runs=WIDTHS,
        compares_layers=False,
    ),
    Claim(
        23,
        "section 5.3, Figure 4",
        "Deeper models tend to use more units per batch, with no clear trend per token.",
        "Batch use over all layers is higher at the largest depth than at the smallest; token use "
        f"does not move one way only by 20 % of its mean or more. {_NO_ROOM_TO_RISE}",
        run_rules.deeper_uses_more_per_batch,
        runs=DEPTHS,
        compares_layers=False,
    ),
    Claim(
        24,
        "section 5.3, Figure 4",
        "In the 14-layer model a middle layer behaves like layer 0.",
        "Batch use of layer 0 and of a layer in the middle half is at most half of the median. Not "
        "decidable where no unit of half of the layers is used.",
        run_rules.middle_layer_like_the_first,
        runs=("depth_14",),
    ),
    Claim(
        25,
        "section 4.3, Table 3",
        "Layer 0's units are used on far more tokens; those of the last two layers on few.",
        "p65 of layer 0 is at least 5 times that of any other layer, and p90 of the last two "
        f"layers is at most 10 % of the tokens. {_DEAD_LAYERS}",
        rules.first_layer_units_are_frequent,
        in_tables=True,
    ),
    Claim(
        26,
        "section 2.1, Figure 8",
        "Batch use is stable after 7 % of training.",
        "From 7 % of the steps on, the mean over every convergence window's length of steps is "
        "within 5 points of the mean at convergence, in every layer. Not decidable where 7 % of "
        f"the steps end before {run_rules.EARLY_WARMUPS:g} warm-ups (the paper's are 14), when by "
        "claim 11 nothing has turned off yet.",
        run_rules.stable_after_early_steps,
        converged=False,
        compares_layers=False,
    ),
    Claim(
        27,
        "Table 1",
        "The token/sequence and sequence/batch ratios are highest in layer 0, and fall with depth.",
        "Both are highest in layer 0, and their rank correlations with the layer are at most "
        f"{rules.TREND:g}. {_DEAD_LAYERS}",
        rules.ratios_fall_with_depth,
        in_tables=True,
    ),
)
