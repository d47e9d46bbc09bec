"""The paper's numbers."""

import functools
from importlib import resources
from typing import Any

import yaml


@functools.cache
def published() -> dict[str, Any]:
    """The content of published.yaml: `tables` by table, run and column, `peak_lr`, and `text`."""
    source = resources.files("relu_sparsity.paper") / "published.yaml"
    return yaml.safe_load(source.read_text(encoding="utf-8"))


def published_layers(table: int, run: str, metric: str) -> list[float]:
    """A column of one of Tables 1-5, layer by layer; empty where the table has none of the run."""
    return published()["tables"][f"table{table}"].get(run, {}).get(metric, [])
