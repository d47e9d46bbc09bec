import base64
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest
from docutils.core import publish_parts
from paper_runs import layout_of, make_params, write_mask, write_paper_runs
from repository import PARAMS

from relu_sparsity.errors import UserError
from relu_sparsity.files import read_json
from relu_sparsity.jobs import job_table
from relu_sparsity.layout import Layout
from relu_sparsity.paper.catalog import TABLES
from relu_sparsity.paper.figures import write_figure
from relu_sparsity.paper.tables import write_table
from relu_sparsity.paper.verdicts import VERDICTS, write_claims
from relu_sparsity.params_file import load_params
from relu_sparsity.report import overview, rule_graph


@pytest.fixture(scope="module")
def scale(tmp_path_factory):
    """Runs with the paper's numbers, but for a mask that is too large and a run that is missing."""
    params = make_params(claims={"purpose": "For models < 1 layer & more."})
    layout = layout_of(tmp_path_factory.mktemp("report"))
    write_paper_runs(layout.results, params)
    write_mask(layout.mask("masked", 0), params.runs["masked"].config.model.mlp_dims, 0.6)
    shutil.rmtree(layout.run("depth_14", 0))
    write_claims(params, layout)
    for table in TABLES:
        write_table(params, layout, table)
    for figure in ("fig01", "fig02", "fig03", "fig04", "fig08"):
        write_figure(params, layout, figure)
    return params, layout


@pytest.fixture(scope="module")
def page(scale):
    """The first page, made as Snakemake makes it."""
    template = Path("workflow/report/overview.rst").read_text()
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    snakemake = SimpleNamespace(config={"overview": overview(*scale)})
    text = environment.from_string(template).render(snakemake=snakemake)
    html = publish_parts(text, writer_name="html", settings_overrides={"halt_level": 2})
    return ElementTree.fromstring(
        re.sub("<(img|details)([^>]*?) ?(open)?>", close, html["html_body"])
    )


def close(tag):
    """HTML's way of writing an element, as XML has it."""
    return f"<{tag[1]}{tag[2]}{'/' if tag[1] == 'img' else ''}>"


def of_class(element, name):
    return [each for each in element.iter() if name in each.get("class", "").split()]


def text_of(element):
    return " ".join("".join(element.itertext()).split())


def pictures(element):
    uris = [each.get("src") for each in element.iter("img")]
    return [base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,")) for uri in uris]


def test_the_first_page_says_what_verdicts_at_the_scale_mean(scale, page):
    first = text_of(next(page.iter("p")))
    assert first.startswith("Scale test: 6 layers of 32,768 hidden units, 10,000 steps")
    assert "For models < 1 layer & more." in first
    assert "only those of the paper's size can say whether the paper is right" in first


def test_layers_of_different_width_are_told_from_the_narrowest_to_the_widest(scale):
    """Those of the baseline, which a scale may give a model of its own."""
    params, layout = scale
    baseline = params.runs["baseline"]
    model = baseline.config.model.model_copy(update={"mlp_dim": (256, 128, 64, 64, 64, 2048)})
    config = baseline.config.model_copy(update={"model": model})
    runs = params.runs | {"baseline": baseline.model_copy(update={"config": config})}
    ragged = overview(params.model_copy(update={"runs": runs}), layout)
    assert (ragged["num_layers"], ragged["widths"]) == (6, "64 to 2,048")


def test_figures_1_and_2_and_table_1_come_before_the_claims(scale, page):
    _, layout = scale
    (figures,) = of_class(page, "figures")
    assert pictures(figures) == [layout.figure(each).read_bytes() for each in ("fig01", "fig02")]
    tables = {each.get("id"): each for each in page.iter("table")}
    assert list(tables) == list(TABLES)
    cells = [[text_of(cell) for cell in row] for row in tables["table1"].iter("tr")]
    assert cells[0][:2] == ["Layer", "Per token (%)"]
    assert cells[1][:4] == ["0", "4.1 (4.1)", "12.2 (12.2)", "13.3 (13.3)"]
    elements = list(page.iter())
    assert elements.index(figures) < elements.index(tables["table1"])
    assert elements.index(tables["table1"]) < elements.index(of_class(page, "claims")[0])


def test_each_claim_is_in_its_group_with_its_reason(scale, page):
    _, layout = scale
    claims = read_json(layout.results / "claims.json")["claims"]
    assert {claim["verdict"] for claim in claims} == set(VERDICTS)
    group, reason, shown = "", "", {}
    for element in page.iter():
        if element.tag == "h3":
            group, reason = text_of(element).split(" ", 1)[1], ""
        elif element.get("class") == "reason":
            reason = text_of(element)
        elif element.get("id", "").startswith("claim"):
            shown[int(element.get("id").removeprefix("claim"))] = (group, reason, element)
    assert sorted(shown) == list(range(1, 28))
    for claim in claims:
        group, reason, card = shown[claim["number"]]
        assert group == claim["verdict"]
        assert reason == (f"Because {claim['reason']}:" if claim["reason"] else "")
        assert group.replace(" ", "-") in card.get("class").split()
        assert claim["statement"] in text_of(card)
        assert claim["rule"] in text_of(card)
    badges = [text_of(each) for each in of_class(page, "badges")]
    assert badges[1] == "1 not reproduced 15"


def test_a_claims_picture_is_of_its_numbers_or_else_its_figure(scale, page):
    _, layout = scale
    cards = {each.get("id"): each for each in of_class(page, "claim")}
    assert pictures(cards["claim11"]) == [layout.figure("fig01").read_bytes()]
    (drawn,) = pictures(cards["claim1"])
    assert b"<!-- batch use -->" in drawn
    assert not pictures(cards["claim16"])
    assert "against baseline: -0.0" in text_of(cards["claim16"])


def test_links_lead_to_results_of_the_report_and_to_tables_of_the_page(scale, page):
    _, layout = scale
    ids = {each.get("id") for each in page.iter()}
    links = [each.get("href") for each in page.iter("a")]
    results = {str(layout.figure(each)) for each in ("fig01", "fig02", "fig03", "fig04", "fig08")}
    linked = {re.search("results\\['(.*?)'\\]", each)[1] for each in links if "app.setView" in each}
    assert linked == results
    assert {each[1:] for each in links if each.startswith("#")} <= ids
    assert all(each.startswith(("#", "javascript:app.setView(")) for each in links)


def test_same_results_same_page(scale):
    assert overview(*scale) == overview(*scale)


def test_what_is_missing_is_named(scale, tmp_path):
    params, _ = scale
    with pytest.raises(UserError, match=r"claims\.json: is missing; make all results first"):
        overview(params, layout_of(tmp_path))


def test_the_graph_of_rules_has_each_once_whichever_job_comes_first():
    jobs = list(job_table(load_params(PARAMS, "smoke"), Layout("smoke")).values())
    graph = rule_graph(jobs)
    rules = [node["rule"] for node in graph["node-data"]]
    assert len(rules) == len(set(rules))
    assert "sensitivity" not in rules, "it is no part of the report"
    links = graph["link-data"] + graph["link-data-direct"]
    assert all(rules[link["source"]] == link["sourcerule"] for link in links)
    assert all(rules[link["target"]] == link["targetrule"] for link in links)
    edges = {(link["sourcerule"], link["targetrule"]) for link in links}
    assert len(edges) == len(links)
    assert {
        ("mask", "train"),
        ("widths", "train"),
        ("train", "mask"),
        ("claims", "report"),
    } <= edges
    neighbours = [link["target"] - link["source"] for link in graph["link-data-direct"]]
    assert set(neighbours) == {1}
    assert 1 not in [link["target"] - link["source"] for link in graph["link-data"]]
