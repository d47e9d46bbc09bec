import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import yaml
from dvc.repo import Repo
from paper_runs import PAPER_SCALE, layout_of, write_paper_runs
from repository import PARAMS

from relu_sparsity.errors import UserError
from relu_sparsity.paper.catalog import TABLES
from relu_sparsity.paper.compare.page import write_comparison
from relu_sparsity.paper.extract import write_metrics
from relu_sparsity.paper.tables import write_table
from relu_sparsity.paper.verdicts import write_claims
from relu_sparsity.params_file import load_params

RESULTS = Path("results/test")
BASELINE = RESULTS / "runs" / "baseline" / "seed0"
IN_DVC = ("unit_use.csv", "evaluation.csv")
NO_DIFFERENCE = "Nothing differs in what both revisions have"


def git(folder: Path, *arguments: str) -> str:
    who = {
        f"GIT_{role}_{key}": "me" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")
    }
    return subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env=os.environ | who,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def edit_params(folder: Path, edit) -> None:
    path = folder / "params.yaml"
    document = yaml.safe_load(path.read_text())
    edit(document)
    path.write_text(yaml.safe_dump(document))


def summarize(folder: Path) -> None:
    """Writes what follows from the runs, as the workflow does."""
    params = load_params(folder / "params.yaml")
    layout = layout_of(folder / RESULTS)
    for run, seed in params.jobs():
        write_metrics(params, layout, run, seed)
    for table in TABLES:
        write_table(params, layout, table)
    write_claims(params, layout)


def commit(folder: Path, message: str) -> None:
    with contextlib.chdir(folder), Repo() as repo:
        repo.add(sorted(str(path) for name in IN_DVC for path in Path("results").rglob(name)))
        repo.push()
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)


def swap_first_and_last_layer(path: Path) -> None:
    rows = pd.read_csv(path)
    first, last = (rows["layer"] == layer for layer in (0, 5))
    use = rows["batch_use"].copy()
    rows.loc[first, "batch_use"] = use[last].to_numpy()
    rows.loc[last, "batch_use"] = use[first].to_numpy()
    rows.to_csv(path, index=False)


@pytest.fixture(scope="module", autouse=True)
def own_dvc_index(tmp_path_factory):
    """DVC remembers what folders hold outside the project."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path_factory.mktemp("dvc")))
        patch.setenv("DVC_NO_ANALYTICS", "1")
        yield


@pytest.fixture(scope="module")
def template(tmp_path_factory, own_dvc_index):
    """A project of two commits beside DVC's remote: another learning rate, another baseline."""
    parent = tmp_path_factory.mktemp("compare")
    folder = parent / "project"
    folder.mkdir()
    git(folder, "init", "--quiet")
    # DVC takes the address as relative to the current folder.
    with contextlib.chdir(folder), Repo.init() as repo, repo.config.edit() as config:
        config["remote"]["local"] = {"url": "../remote"}
        config["core"]["remote"] = "local"
    (folder / ".gitignore").write_text("*.npz\nrun.json\ntraining.csv\nevaluation_sequences.csv\n")
    document = yaml.safe_load((PARAMS).read_text())
    training = PAPER_SCALE["training"] | {"num_steps": 2000, "eval_every_steps": 500}
    scale = PAPER_SCALE | {"training": training}
    document |= {"scale": "test", "scales": {"test": scale, "other": scale}}
    document["runs"] = {run: document["runs"][run] for run in ("baseline", "lr_x1of3")}
    document["branches"] = {}
    (folder / "params.yaml").write_text(yaml.safe_dump(document))
    write_paper_runs(folder / RESULTS, load_params(folder / "params.yaml"))
    summarize(folder)
    commit(folder, "The paper's <results> | first")

    edit_params(folder, lambda each: each["scales"]["test"]["optimizer"].update(peak_lr=2.4e-3))
    swap_first_and_last_layer(folder / BASELINE / "unit_use.csv")
    summarize(folder)
    commit(folder, "A lower learning rate")
    return parent


@pytest.fixture
def project(template, tmp_path) -> Path:
    """A copy of the template's project."""
    shutil.copytree(template, tmp_path / "copy", ignore=shutil.ignore_patterns("out"))
    return tmp_path / "copy" / "project"


def compare(folder: Path, first="HEAD~1", second: str | None = "HEAD", scale=None):
    """The page and the Markdown."""
    target = folder.parent / "out" / "page.html"
    paths = write_comparison(folder, first, second, target, scale)
    assert paths == [target, target.with_suffix(".md")]
    return tuple(path.read_text(encoding="utf-8") for path in paths)


@pytest.fixture(scope="module")
def shown(template) -> tuple[str, str]:
    """The page and the Markdown of the template's two commits."""
    return compare(template / "project")


def below(markdown: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its header."""
    section = markdown.split(f"# {heading}")[1].partition("\n#")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


def file_of(folder: Path, revision: str, name: str) -> str:
    return git(folder, "show", f"{revision}:{(RESULTS / name).as_posix()}")


def test_parameters_are_resolved_and_named_by_run(shown):
    page, markdown = shown
    assert below(markdown, "Parameters") == [
        ["`runs.baseline.optimizer.peak_lr`", "0.003", "0.0024"],
        ["`runs.lr_x1of3.optimizer.peak_lr`", "0.001", "0.0008"],
    ]
    assert "runs.lr_x1of3.optimizer.peak_lr" in page


def test_a_difference_of_all_runs_is_one_line(project):
    def edit(document):
        document["scales"]["test"]["optimizer"]["warmup_steps"] = 60
        document["scales"]["test"]["claims"] = {"equivalence_margin": 0.006}
        document["runs"]["baseline"] = {"seeds": [0, 1]}

    edit_params(project, edit)
    _, markdown = compare(project, "HEAD", None)
    assert below(markdown, "Parameters") == [
        ["`claims.equivalence_margin`", "0.005", "0.006"],
        ["`runs.*.optimizer.warmup_steps`", "50", "60"],
        ["`runs.baseline.seeds`", "[0]", "[0, 1]"],
    ]


def test_numbers_as_dvc_writes_them_are_numbers(project):
    path = project / "params.yaml"
    edit_params(project, lambda each: each["runs"]["baseline"].update(optimizer={"peak_lr": 0.5}))
    assert path.read_text().count("peak_lr: 0.5\n") == 1
    path.write_text(path.read_text().replace("peak_lr: 0.5\n", "peak_lr: 1e-05\n"))
    _, markdown = compare(project, "HEAD", None)
    assert ["`runs.baseline.optimizer.peak_lr`", "0.0024", "1e-05"] in below(markdown, "Parameters")


def test_floats_that_differ_late_are_shown_in_full(project):
    def edit(document):
        document["runs"]["baseline"] = {"optimizer": {"peak_lr": 0.0024000001}}

    edit_params(project, edit)
    _, markdown = compare(project, "HEAD", None)
    assert below(markdown, "Parameters") == [
        ["`runs.baseline.optimizer.peak_lr`", "0.0024", "0.0024000001"]
    ]


def test_revisions_are_named_by_hash_and_subject(template, shown):
    page, markdown = shown
    first, second = (
        git(template / "project", "rev-parse", each)[:7] for each in ("HEAD~1", "HEAD")
    )
    assert f"| **A** | HEAD~1 | {first} The paper's \\<results> \\| first |" in markdown
    assert f"| **B** | HEAD | {second} A lower learning rate |" in markdown
    assert f"{first} The paper&#39;s &lt;results&gt; | first" in page
    assert "Not there" not in page
    assert NO_DIFFERENCE not in page


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_exactly_the_cells_that_differ_are_shown_with_the_papers(template, shown, number):
    page, markdown = shown
    first, second = (
        pd.read_csv(
            io.StringIO(file_of(template / "project", revision, f"tables/table{number}.csv")),
            dtype=str,
            keep_default_na=False,
            index_col="layer",
        )
        for revision in ("HEAD~1", "HEAD")
    )
    expected = []
    for old, new in zip(first, second, strict=True):
        if old.endswith(("_std", "_paper")):
            continue
        for layer in first.index[first[old].ne(second[new])]:
            before, after = first.loc[layer, old], second.loc[layer, new]
            change = f"{float(after) - float(before):+.3g}"
            paper = second.loc[layer, f"{new}_paper"]
            name = old if old == new else f"{old} → {new}"
            expected.append([name, layer, before, after, change, paper])
    assert bool(expected) == (number in (1, 5))
    heading = f"Table {number}. "
    assert (heading in page) == (f"# {heading}" in markdown) == bool(expected)
    if expected:
        assert below(markdown, heading) == expected
        cells = '<td class="number group">{2}</td><td class="number b">{3}</td>'
        assert all(cells.format(*row) in page for row in expected)


def test_a_run_of_another_learning_rate_keeps_its_column(shown):
    _, markdown = shown
    rows = below(markdown, "Table 5. ")
    assert {row[0] for row in rows} == {"batch_use_baseline"}
    assert {"0", "5"} <= {row[1] for row in rows}


def test_verdicts_that_changed_come_with_the_numbers_of_both(template, shown):
    page, markdown = shown
    first, second = (
        {
            each["number"]: each
            for each in json.loads(file_of(template / "project", revision, "claims.json"))["claims"]
        }
        for revision in ("HEAD~1", "HEAD")
    )
    changed = {
        number: (first[number]["verdict"], second[number]["verdict"])
        for number in first
        if first[number]["verdict"] != second[number]["verdict"]
    }
    verdicts = {int(row[0]): row for row in below(markdown, "Verdicts")}
    assert {number: (row[2], row[3].strip("*")) for number, row in verdicts.items()} == changed
    assert changed[1] == ("reproduced", "not reproduced")
    assert verdicts[1][1] == second[1]["statement"]
    assert verdicts[1][4].startswith("batch use: 13.3, 79.3,")
    assert verdicts[1][5].startswith("batch use: 95.6, 79.3,")
    assert f'<div class="evidence">{verdicts[1][5]}</div>' in page


def test_final_scores_of_all_runs_are_shown(project):
    path = project / BASELINE / "metrics.json"
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps(metrics | {"loss": metrics["loss"] + 0.25}))
    _, markdown = compare(project, "HEAD", None)
    loss, accuracy = (f"{metrics[key]:.6g}" for key in ("loss", "accuracy"))
    baseline, other = below(markdown, "Held-out scores")
    changed = f"{metrics['loss'] + 0.25:.6g}"
    assert baseline == ["baseline", loss, changed, "+0.25", accuracy, accuracy, ""]
    assert other[0] == "lr_x1of3"
    assert other[1] == other[2]
    assert "## Parameters" not in markdown
    assert NO_DIFFERENCE not in markdown


def test_scores_of_several_seeds_are_means(project):
    edit_params(project, lambda each: each["runs"].update(baseline={"seeds": [0, 1]}))
    shutil.copytree(project / BASELINE, project / BASELINE.parent / "seed1")
    path = project / BASELINE / "metrics.json"
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps(metrics | {"loss": metrics["loss"] + 0.5}))
    _, markdown = compare(project, "HEAD", None)
    baseline = below(markdown, "Held-out scores")[0]
    assert baseline[2:4] == [f"{metrics['loss'] + 0.25:.6g} ± 0.35", "+0.25"]


def test_curves_of_the_runs_that_differ_are_overlaid(shown):
    page, markdown = shown
    assert markdown.rstrip().endswith("the HTML page shows them: baseline.")
    assert page.count("<svg") == 1
    for title in ("baseline</h3>", "Units used per batch", "Units used per token", "Held-out loss"):
        assert title in page
    # Six layers in each of two panels, the loss, and the legend's sample.
    assert page.count("stroke-dasharray: 2.7,1.35") == 6 + 6 + 1 + 1


@pytest.mark.parametrize("second", ["HEAD", None])
def test_no_difference_is_said(project, second):
    for text in compare(project, "HEAD", second):
        assert NO_DIFFERENCE in text
        assert "Parameters" not in text
        assert "<svg" not in text


def test_the_working_tree_is_read_as_it_is(project):
    swap_first_and_last_layer(project / BASELINE / "unit_use.csv")
    summarize(project)
    _, markdown = compare(project, "HEAD", None)
    assert "| **B** | working tree |" in markdown
    assert ["batch_use", "0", "95.6", "13.3", "-82.3", "13.3"] in below(markdown, "Table 1. ")
    # The edits undo the second commit's, but for the learning rate.
    _, markdown = compare(project, "HEAD~1", None)
    assert "Table 1. " not in markdown
    assert "Curves" not in markdown
    assert len(below(markdown, "Parameters")) == 2


def remove(project: Path, *what: str) -> None:
    folders = {
        "cache": project / ".dvc" / "cache",
        "remote": project.parent / "remote",
        "working tree": project / "results",
    }
    for name in what:
        shutil.rmtree(folders[name])


@pytest.mark.parametrize(
    "removed", [("working tree", "remote"), ("working tree", "cache"), ("working tree",), ()]
)
def test_cache_and_remote_give_the_same_bytes(project, removed):
    before = compare(project)
    remove(project, *removed)
    assert compare(project) == before
    assert not (project / BASELINE / "unit_use.csv").exists() or not removed


def test_files_that_are_nowhere_are_named_and_the_rest_is_shown(project):
    remove(project, "cache", "remote", "working tree")
    page, markdown = compare(project)
    for name in ("A (HEAD~1)", "B (HEAD)"):
        assert f"{name} lacks these files" in markdown
    line = (
        f"- `{BASELINE.as_posix()}`: unit_use.csv, evaluation.csv "
        "(neither in DVC's cache nor in its remote)"
    )
    assert markdown.count(line) == 2
    assert BASELINE.as_posix() in page
    assert ["batch_use", "0", "13.3", "95.6", "+82.3", "13.3"] in below(markdown, "Table 1. ")
    assert len(below(markdown, "Verdicts")) > 0
    assert len(below(markdown, "Held-out scores")) == 2
    assert "<svg" not in page


def test_an_output_that_is_still_in_the_working_tree_is_found(project):
    remove(project, "cache", "remote")
    _, markdown = compare(project)
    lacking = markdown.split("A (HEAD~1) lacks")[1].partition("##")[0]
    # The second commit's files are checked out, and one of them the first commit had already.
    assert "B (HEAD) lacks" not in markdown
    assert f"`{BASELINE.as_posix()}`: unit_use.csv (neither" in lacking
    assert "evaluation.csv" not in lacking


def test_an_output_that_dvc_does_not_cache_is_found_unless_it_has_changed(project):
    table = RESULTS / "tables" / "table1.csv"
    git(project, "rm", "--quiet", "--cached", str(table))
    with (project / ".gitignore").open("a") as file:
        file.write(f"/{table}\n")
    outputs = {"stages": {"tables": {"cmd": "true", "outs": [{str(table): {"cache": False}}]}}}
    (project / "dvc.yaml").write_text(yaml.safe_dump(outputs))
    with contextlib.chdir(project), Repo() as repo:
        repo.commit(target="tables", force=True)
    commit(project, "Tables are not cached")
    assert "Not there" not in compare(project, "HEAD", "HEAD~1")[1]

    (project / table).write_text("layer\n")
    _, markdown = compare(project, "HEAD", "HEAD~1")
    assert f"- `{table.parent.as_posix()}`: table1.csv (neither in DVC's cache" in markdown


def test_a_folder_in_dvc_whose_listing_is_lost_is_named(project):
    with contextlib.chdir(project), Repo() as repo:
        for path in Path("results").rglob("*.dvc"):
            repo.remove(str(path))
        git(project, "rm", "-r", "--quiet", "--cached", str(RESULTS / "runs"))
        repo.add(str(RESULTS / "runs"))
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "Runs as a folder")
    assert compare(project, "HEAD~1", "HEAD")[1].count(NO_DIFFERENCE) == 1
    remove(project, "cache", "working tree")
    shutil.rmtree(os.environ["DVC_SITE_CACHE_DIR"])
    _, markdown = compare(project, "HEAD~1", "HEAD")
    assert "B (HEAD) lacks these files" in markdown
    assert f"- `{BASELINE.as_posix()}`: metrics.json, unit_use.csv, evaluation.csv (neither in" in (
        markdown
    )


def test_a_remote_that_cannot_be_read_leaves_the_cache(project, caplog):
    before = below(compare(project)[1], "Table 1. ")
    with contextlib.chdir(project), Repo() as repo, repo.config.edit() as config:
        config["remote"]["local"] = {"url": "gs://no-such-bucket/results"}
    git(project, "commit", "--quiet", "--all", "--message", "A remote without its plug-in")
    _, markdown = compare(project, "HEAD~2", "HEAD")
    assert "Not there" not in markdown
    assert below(markdown, "Table 1. ") == before
    assert "DVC's remote cannot be read" in caplog.text

    remove(project, "cache", "working tree")
    _, markdown = compare(project, "HEAD~2", "HEAD")
    assert "(not in DVC's cache, and its remote cannot be read)" in markdown
    assert below(markdown, "Table 1. ") == before


def test_a_commit_without_results_is_shown_with_its_parameters(project):
    git(project, "rm", "-r", "--quiet", "results", ".dvc")
    git(project, "commit", "--quiet", "--message", "No results, no DVC")
    _, markdown = compare(project, "HEAD~2", "HEAD")
    assert "`results/test`: claims.json (neither in git nor in DVC)" in markdown
    assert len(below(markdown, "Parameters")) == 2
    assert [row[2] for row in below(markdown, "Held-out scores")] == ["–", "–"]


def test_stale_results_of_the_working_tree_are_not_there(project):
    before = compare(project, "HEAD", None)[1]
    assert "Not there" not in before
    stale = {BASELINE / "metrics.json", RESULTS / "claims.json"}
    target = project.parent / "page.html"
    write_comparison(project, "HEAD", None, target, stale=stale)
    markdown = target.with_suffix(".md").read_text()
    told = "not of the parameters, code and packages now: not made again yet"
    assert f"`{RESULTS.as_posix()}`: claims.json ({told})" in markdown
    assert "metrics.json" in markdown
    (baseline, _) = below(markdown, "Held-out scores")
    (whole, _) = below(before, "Held-out scores")
    assert (baseline[1], baseline[2]) == (whole[1], "–")


def test_what_the_table_of_a_mask_shows_is_a_parameter(project):
    edit_params(project, lambda each: each["defaults"]["pruning"].update(show_speed=True))
    _, markdown = compare(project, "HEAD", None)
    assert below(markdown, "Parameters") == [["`pruning.show_speed`", "false", "true"]]


def test_a_run_of_one_revision_only_is_named(project):
    edit_params(project, lambda each: each["runs"].update(wide={"model": {"mlp_dim": "x2"}}))
    page, markdown = compare(project, "HEAD", None)
    assert "The run `wide` is only in B." in markdown
    assert "The run <code>wide</code> is only in" in page
    assert f"`{RESULTS.as_posix()}/runs/wide/seed0`" in markdown
    assert "| `" not in markdown
    _, markdown = compare(project, "HEAD", "HEAD")
    assert "wide" not in markdown


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("claims.json", "{"),
        ("claims.json", '{"claims": [1]}'),
        ("tables/table1.csv", ""),
        ("runs/baseline/seed0/metrics.json", '{"loss": 1}'),
        ("runs/baseline/seed0/unit_use.csv", "step,layer\n0,0\n"),
        ("runs/baseline/seed0/evaluation.csv", "a\n1\n"),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_is_shown(project, name, content):
    path = project / RESULTS / name
    path.unlink()
    path.write_text(content)
    _, markdown = compare(project, "HEAD~1", None)
    folder = path.parent.relative_to(project).as_posix()
    assert f"- `{folder}`: {path.name} (not in the form that is written now)" in markdown
    assert len(below(markdown, "Parameters")) == 2
    assert len(below(markdown, "Table 5. ")) > 0


def test_the_same_revisions_give_the_same_bytes_in_another_process(project):
    before = compare(project)
    code = (
        "import sys; from pathlib import Path; "
        "from relu_sparsity.paper.compare.page import write_comparison; "
        "write_comparison(Path('.'), 'HEAD~1', 'HEAD', Path('again.html'))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code], cwd=project, env=environment, check=True)
    again = tuple((project / f"again.{each}").read_text("utf-8") for each in ("html", "md"))
    assert again == before


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        names = ("src", "href", "xlink:href", "data", "action")
        self.addresses += [value for name, value in attrs if name in names]


def test_the_page_needs_nothing_from_elsewhere(template, shown):
    text, _ = shown
    page = _Page()
    page.feed(text)
    assert text.startswith("<!DOCTYPE html>")
    assert page.addresses
    assert all(address.startswith("#") for address in page.addresses)
    assert not page.tags & {"script", "link", "iframe", "object", "img"}
    assert "url(http" not in text
    assert "@import" not in text
    assert str(template) not in text


def test_nothing_in_the_repository_changes(project):
    before = git(project, "status", "--porcelain", "--ignored")
    compare(project)
    assert git(project, "status", "--porcelain", "--ignored") == before


@pytest.mark.parametrize("name", ["nowhere", "HEAD~9", "0123456"])
@pytest.mark.parametrize("position", [0, 1])
def test_an_unknown_revision_is_named(project, name, position):
    revisions = ["HEAD", "HEAD"]
    revisions[position] = name
    with pytest.raises(UserError, match=f"revision '{name}' is unknown"):
        compare(project, *revisions)
    assert not (project.parent / "out").exists()


def test_a_folder_without_git_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a git repository"):
        write_comparison(tmp_path, "HEAD", None, tmp_path / "page.html")


def test_revisions_of_different_scales_need_one_scale_given(project):
    edit_params(project, lambda each: each.update(scale="other"))
    with pytest.raises(
        UserError, match="the scale of HEAD is 'test', that of working tree is 'other'"
    ):
        compare(project, "HEAD", None)
    _, markdown = compare(project, "HEAD", None, scale="test")
    assert NO_DIFFERENCE in markdown
    assert "at the scale `test`" in markdown


def test_an_unknown_scale_is_refused_with_the_revision_named(project):
    with pytest.raises(UserError, match=r"HEAD~1:params\.yaml: scale: 'huge' .*other, test"):
        compare(project, scale="huge")


def test_a_commit_that_dvc_cannot_read_is_named(project):
    stage = {"foreach": "${nothing}", "do": {"cmd": "true"}}
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"branch": stage}}))
    git(project, "add", "dvc.yaml")
    git(project, "commit", "--quiet", "--message", "A stage of nothing")
    with pytest.raises(UserError, match=r"HEAD: DVC cannot read this revision: .*nothing"):
        compare(project, "HEAD", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", r"working tree:params\.yaml: not a YAML file"),
        ("runs: 3", r"working tree:params\.yaml: .*allowed"),
        (None, r"working tree:params\.yaml: not in the working tree"),
    ],
)
def test_bad_parameters_are_refused_with_the_revision_named(project, content, message):
    path = project / "params.yaml"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=message):
        compare(project, "HEAD", None)


def test_another_format_is_refused(project):
    with pytest.raises(UserError, match=r"page\.pdf: allowed: a name that ends in \.html"):
        write_comparison(project, "HEAD", None, project / "page.pdf")
