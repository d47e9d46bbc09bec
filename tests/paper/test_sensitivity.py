import shutil

import pandas as pd
import pytest
from paper_runs import layout_of, make_params, write_paper_runs

from relu_sparsity.files import read_json, write_json
from relu_sparsity.paper.sensitivity import BASELINE_CLAIMS, write_sensitivity


@pytest.fixture(scope="module")
def sensitivity(tmp_path_factory):
    """A scale with one choice that has results like the baseline's, and its results."""
    folder = tmp_path_factory.mktemp("sensitivity")
    params = make_params()
    write_paper_runs(folder, params)
    layout = layout_of(folder)
    for choice in params.choices:
        if choice not in ("rmsnorm", "no_decay"):
            shutil.rmtree(layout.run(choice, 0).parent)
    write_sensitivity(params, layout)
    return params, layout


def test_every_choice_with_results_has_a_row_and_the_baseline_is_the_first(sensitivity):
    _, layout = sensitivity
    frame = pd.read_csv(layout.sensitivity[0])
    assert frame.choice.tolist() == ["baseline", "rmsnorm"]
    assert frame.differs_in.fillna("").tolist() == ["", "norm rmsnorm"]
    base = frame.iloc[0]
    assert base.batch_use_layer0 == pytest.approx(13.3, abs=0.1)
    assert [claim.number for claim in BASELINE_CLAIMS] == [*range(1, 14), 25, 26, 27]
    assert all(base[f"claim{claim.number}"] == "reproduced" for claim in BASELINE_CLAIMS)


def test_a_verdict_is_of_the_choice_and_not_of_the_baseline(sensitivity):
    params, layout = sensitivity
    path = layout.run("rmsnorm", 0) / "unit_use.csv"
    whole = path.read_text()
    use = pd.read_csv(path)
    use.loc[use.layer == 0, "batch_use"] = 0.99
    use.to_csv(path, index=False)
    try:
        write_sensitivity(params, layout)
        frame = pd.read_csv(layout.sensitivity[0]).set_index("choice")
    finally:
        path.write_text(whole)
        write_sensitivity(params, layout)
    assert frame.claim1.to_dict() == {"baseline": "reproduced", "rmsnorm": "not reproduced"}
    assert frame.batch_use_layer0["rmsnorm"] == pytest.approx(99)


def test_a_choice_that_has_not_learned_decides_nothing(sensitivity):
    params, layout = sensitivity
    path = layout.run("rmsnorm", 0) / "run.json"
    described = read_json(path)
    write_json(path, described | {"ngram_losses": {"unigram_loss": 0.2, "bigram_loss": 0.1}})
    try:
        write_sensitivity(params, layout)
        row = pd.read_csv(layout.sensitivity[0]).set_index("choice").loc["rmsnorm"]
    finally:
        write_json(path, described)
    told = {row[f"claim{claim.number}"] for claim in BASELINE_CLAIMS if claim.learned}
    assert told == {"not decidable"}


def test_same_runs_same_bytes(sensitivity):
    params, layout = sensitivity
    written = []
    for _ in range(2):
        write_sensitivity(params, layout)
        written.append([path.read_bytes() for path in layout.sensitivity])
    assert written[0] == written[1]
    text = layout.sensitivity[1].read_text()
    assert "| rmsnorm" in text
    assert b"</svg>" in written[0][2]


def test_a_choice_is_judged_by_its_own_parameters(sensitivity):
    """With a longer warm-up 7 % of its steps end too early for claim 26."""
    params, layout = sensitivity
    run = params.runs["rmsnorm"]
    optimizer = run.config.optimizer.model_copy(update={"warmup_steps": 500})
    config = run.config.model_copy(update={"optimizer": optimizer})
    runs = params.runs | {"rmsnorm": run.model_copy(update={"config": config})}
    try:
        write_sensitivity(params.model_copy(update={"runs": runs}), layout)
        frame = pd.read_csv(layout.sensitivity[0]).set_index("choice")
    finally:
        write_sensitivity(params, layout)
    assert frame.claim26.to_dict() == {"baseline": "reproduced", "rmsnorm": "not decidable"}
