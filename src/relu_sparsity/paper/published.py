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
