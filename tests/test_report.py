from pathlib import Path

from relu_sparsity.jobs import job_table
from relu_sparsity.layout import Layout
from relu_sparsity.params_file import load_params
from relu_sparsity.report import rule_graph


def test_the_graph_of_rules_has_each_once_whichever_job_comes_first():
    jobs = list(job_table(load_params(Path("params.yaml"), "smoke"), Layout("smoke")).values())
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
