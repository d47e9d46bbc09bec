"""Reproduces "Uncovering Layer-Dependent Activation Sparsity Patterns in ReLU Transformers"."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relu_sparsity.results import open_results

__all__ = ["open_results"]


def __getattr__(name: str) -> Any:
    # Every job imports this package: what only notebooks need comes when it is asked for.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from relu_sparsity import results

    return getattr(results, name)
