"""The verdict on each of the paper's claims, with its numbers."""

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from relu_sparsity.files import to_json, write_text
from relu_sparsity.paper.claims import CLAIMS, Claim
from relu_sparsity.paper.evidence import (
    MIN_LAYERS,
    MIN_SEEDS,
    MeasuredResults,
    PublishedResults,
    UndecidableError,
)
from relu_sparsity.paper.history import load_runs
from relu_sparsity.paper.published import published
from relu_sparsity.paper.rules import DRIFT

if TYPE_CHECKING:
    from relu_sparsity.layout import Layout
    from relu_sparsity.params import Params

Verdict = Literal["reproduced", "not reproduced", "not decidable"]
VERDICTS: tuple[Verdict, ...] = ("reproduced", "not reproduced", "not decidable")
_FOUND = {True: "holds", False: "does not hold"}


@dataclass(frozen=True)
class Decision:
    """A claim's verdict at a scale.

    Attributes:
      claim: The claim.
      verdict: One of `VERDICTS`.
      reason: Why it is not decidable; empty otherwise.
      scope: Of which seeds alone it speaks; empty where there are enough to speak of training.
      evidence: The numbers. Use is in percent, accuracy in 0 to 1, loss in nats per token.
      paper: The same numbers of the paper's tables, and what its text says.
      holds_in_paper: The verdict of the same rule on Tables 1-5, where they are enough.
    """

    claim: Claim
    verdict: Verdict
    reason: str
    scope: str
    evidence: dict[str, Any]
    paper: dict[str, Any] = field(default_factory=dict)
    holds_in_paper: Verdict | None = None


def decide_claims(results: MeasuredResults) -> list[Decision]:
    """Decides all claims. What is missing makes a claim not decidable, and never fails."""
    return [decide_claim(claim, results) for claim in CLAIMS]


def write_claims(params: "Params", layout: "Layout") -> None:
    """Decides all claims and writes claims.json and claims.md.

    Raises:
      UserError: The results of a run or a mask are incomplete or malformed.
    """
    runs = load_runs(layout.results, {name: run.seeds for name, run in params.paper_runs.items()})
    decisions = decide_claims(MeasuredResults(runs, params, layout.results))
    texts = {
        "json": to_json(claims_json(decisions, params.scale)),
        "md": claims_markdown(decisions, params.scale, params.claims.purpose),
    }
    for path in layout.claims:
        write_text(path, texts[path.suffix.removeprefix(".")])


def count_verdicts(decisions: list[Decision]) -> dict[Verdict, int]:
    """How many claims have each verdict."""
    counts = Counter(each.verdict for each in decisions)
    return {verdict: counts[verdict] for verdict in VERDICTS}


def claims_json(decisions: list[Decision], scale: str) -> dict[str, Any]:
    """All that is known about the claims, for programs."""
    return {
        "scale": scale,
        "summary": _summary(decisions),
        "counts": count_verdicts(decisions),
        "claims": [
            {
                "number": each.claim.number,
                "source": each.claim.source,
                "statement": each.claim.statement,
                "rule": each.claim.rule,
                "remark": each.claim.remark,
                "verdict": each.verdict,
                "reason": each.reason,
                "scope": each.scope,
                "evidence": each.evidence,
                "paper": each.paper,
                "holds_in_paper": each.holds_in_paper,
            }
            for each in decisions
        ],
    }


def claims_markdown(decisions: list[Decision], scale: str, purpose: str = "") -> str:
    """The claims as a page: a line for each, then the rules and all numbers."""
    lines = [
        f"# The paper's claims at the scale `{scale}`",
        "",
        *([purpose, ""] if purpose else []),
        _summary(decisions),
        "",
        "| | Claim | Source | Verdict | On the paper's own tables |",
        "|--:|:--|:--|:--|:--|",
    ]
    for each in decisions:
        claim = each.claim
        paper = each.holds_in_paper or "–"
        cells = (claim.number, claim.statement, claim.source, _verdict(each), paper)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    for each in decisions:
        claim = each.claim
        lines += ["", f"## {claim.number}. {claim.statement}", "", f"*Rule.* {claim.rule}", ""]
        reason = f": {each.reason}" if each.reason else ""
        lines.append(f"*Verdict.* {_verdict(each)}{reason}.")
        for name, numbers in (("Here", each.evidence), ("Paper", each.paper)):
            if numbers:
                lines += ["", f"*{name}.* {numbers_text(numbers)}."]
        if claim.remark:
            lines += ["", claim.remark]
    return "\n".join(lines) + "\n"


def decide_claim(claim: Claim, results: MeasuredResults) -> Decision:
    """Decides one claim. What is missing makes it not decidable, and never fails."""
    paper = published()["text"].get(claim.number, {})
    holds_in_paper: Verdict | None = None
    if claim.in_tables:
        finding = claim.decide(PublishedResults())
        paper = {**_plain(finding.evidence), **{f"text_{key}": paper[key] for key in paper}}
        holds_in_paper = "reproduced" if finding.holds else "not reproduced"
    verdict: Verdict
    scope = ""
    missing = [run for run in claim.runs if run not in results.runs]
    try:
        if missing:
            raise UndecidableError(f"there are no results of {', '.join(missing)} at this scale")
        seeds = results.shared_seeds(*claim.runs)
        if not seeds:
            raise UndecidableError(f"{', '.join(claim.runs)} share no seed")
        results = results.of_seeds(seeds, *claim.runs)
        for run in claim.runs if claim.compares_layers else ():
            if (depth := len(results.seeds(run)[0].mlp_dims)) < MIN_LAYERS:
                raise UndecidableError(
                    f"{run} has {depth} layers; what is claimed of layers needs {MIN_LAYERS}"
                )
        finding = claim.decide(results)
        reason = (
            (_not_learned(claim, results) if claim.learned else "")
            or finding.undecided
            or (_not_converged(claim, results) if claim.converged else "")
            or ("" if claim.is_test else _seeds_disagree(claim, results, seeds, finding.holds))
        )
        verdict = "not decidable" if reason else "reproduced" if finding.holds else "not reproduced"
        evidence = _plain(finding.evidence)
        if not reason and len(seeds) < MIN_SEEDS:
            scope = f"for seed {', '.join(map(str, seeds))}"
    except UndecidableError as error:
        verdict, reason, evidence = "not decidable", str(error), {}
    return Decision(claim, verdict, reason, scope, evidence, paper, holds_in_paper)


def _verdict(decision: Decision) -> str:
    scope = f" ({decision.scope})" if decision.scope else ""
    return f"**{decision.verdict}**{scope}"


def _seeds_disagree(claim: Claim, results: MeasuredResults, seeds: list[int], holds: bool) -> str:
    """With which seeds alone the rule finds something else than on the mean over all of them."""
    found, alone = _FOUND[holds], dict[str, list[str]]()
    for seed in seeds if len(seeds) > 1 else ():
        try:
            finding = claim.decide(results.of_seeds([seed], *claim.runs))
            one = "cannot be told" if finding.undecided else _FOUND[finding.holds]
        except UndecidableError:
            one = "cannot be told"
        if one != found:
            alone.setdefault(one, []).append(str(seed))
    if not alone:
        return ""
    told = (f"with seed {', '.join(seeds)} alone it {what}" for what, seeds in alone.items())
    return f"the seeds disagree: on their mean it {found}, {', '.join(told)}"


def _not_learned(claim: Claim, results: MeasuredResults) -> str:
    """Which run's model has learned too little for a verdict: at the end, or where it branched.

    A test compares arms with a control, `claim.runs[0]`. An arm that ends worse than that, however
    much, is a finding.
    """
    share = results.params.claims.learned_share
    for run in claim.runs:
        for seed, history in results.runs[run].items():
            if not history.ngram_losses:
                return (
                    f"whether {run} seed {seed} has learned is not known: n-grams were not taken "
                    "of its held-out text, which another training.seq_len or eval_sequences than "
                    "the scale's cuts otherwise"
                )
            unigrams, bigrams = (history.ngram_losses[f"{n}_loss"] for n in ("unigram", "bigram"))
            most = unigrams - share * (unigrams - bigrams)
            losses = history.eval_loss.mean(axis=1)
            moments = {}
            if not claim.is_test or run == claim.runs[0]:
                moments["at the end"] = losses[-1]
            if history.parent_step is not None:
                before = history.eval_steps <= history.parent_step
                moments[f"at step {history.parent_step}"] = losses[before][-1]
            for when, loss in moments.items():
                if loss > most:
                    return (
                        f"this model has not learned: {when} the held-out loss of {run} seed "
                        f"{seed} is {loss:.2f} nats, that of unigrams {unigrams:.2f} and of "
                        f"bigrams {bigrams:.2f}; at most {most:.2f} is needed"
                    )
    return ""


def _not_converged(claim: Claim, results: MeasuredResults) -> str:
    drift = {run: results.drift(run) for run in claim.runs}
    worst = max(drift, key=lambda run: drift[run])
    if drift[worst] <= DRIFT:
        return ""
    return (
        f"{worst} has not converged: batch use of a layer moves by {drift[worst]:.1f} points "
        f"between the halves of the convergence window; at most {DRIFT:g} are allowed"
    )


def _summary(decisions: list[Decision]) -> str:
    counts = (f"{count} {verdict}" for verdict, count in count_verdicts(decisions).items())
    return (
        f"Of the paper's {len(decisions)} claims: {', '.join(counts)}. A verdict speaks of the "
        "models of this scale; only those of the paper's size can say whether the paper is right."
    )


def _plain(value: Any) -> Any:
    """Numbers as JSON has them, with six digits."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(each) for each in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}")
    return value.item() if isinstance(value, np.generic) else value


def numbers_text(evidence: dict[str, Any]) -> str:
    """Numbers by name, in words."""
    return "; ".join(
        f"{name.replace('_', ' ')}: {_text(value)}" for name, value in evidence.items()
    )


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
