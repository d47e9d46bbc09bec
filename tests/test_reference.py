"""The JSON schema and the reference of params.yaml, against the reader of the file."""

import pytest
import yaml
from jsonschema import Draft202012Validator
from repository import PARAMS, ROOT

from relu_sparsity.errors import UserError
from relu_sparsity.files import to_json
from relu_sparsity.params_file import SCALE_SECTIONS, parse_params
from relu_sparsity.reference import reference, schema

SCHEMA = ROOT / "workflow" / "schemas" / "params.schema.json"


@pytest.fixture(scope="module")
def validator():
    Draft202012Validator.check_schema(schema())
    return Draft202012Validator(schema())


def document(edit=None):
    """params.yaml, with `edit` laid over it."""
    return laid_over(yaml.safe_load(PARAMS.read_text()), edit or {})


def laid_over(value, edit):
    for key, each in edit.items():
        deeper = isinstance(each, dict) and isinstance(value.get(key), dict)
        value[key] = laid_over(value[key], each) if deeper else each
    return value


def test_the_file_is_current():
    told = "relu-sparsity params --schema > workflow/schemas/params.schema.json"
    assert SCHEMA.read_text() == to_json(schema()), f"stale; make it again: {told}"
    assert f"$schema={SCHEMA.relative_to(ROOT)}" in PARAMS.read_text().splitlines()[0]


@pytest.mark.parametrize(
    "edit",
    [
        {},
        {"runs": {"new": None}},
        {"runs": {"new": {"model": {"mlp_dim": "x1/4"}, "optimizer": None, "seeds": [3, 4]}}},
        {"runs": {"new": {"model": {"mlp_dim": [64, 64, 64, 64, 64, 32]}}}},
        {"runs": {"new": {"optimizer": {"peak_lr": "x 1.5", "grad_clip_norm": 1}}}},
        {"scales": {"smoke": {"training": {"eval_sequences": "x1/4"}}}},
        {"scales": {"smoke": {"runs": {"baseline": {"seeds": [0, 1, 2]}}}}},
        {"scales": {"smoke": {"data": {"source": "text", "files": ["README.md"]}}}},
    ],
)
def test_what_the_reader_takes_the_schema_takes(validator, edit):
    edited = document(edit)
    assert parse_params(edited, PARAMS)
    assert [error.message for error in validator.iter_errors(edited)] == []


@pytest.mark.parametrize(
    "edit",
    [
        {"scale": 3},
        {"extra": {}},
        {"runs": None},
        {"runs": {"New": {}}},
        {"runs": {"new": {"seeds": [-1]}}},
        {"runs": {"new": {"seeds": []}}},
        {"runs": {"new": {"data": {"num_shards": 2}}}},
        {"runs": {"new": {"model": {"mlp_dim": "1/4"}}}},
        {"runs": {"new": {"model": {"mlp_dims": 64}}}},
        {"runs": {"new": {"parent": "baseline"}}},
        {"runs": {"new": {"model": {"tie_embeddings": "x2"}}}},
        {"branches": {"new": {"intervention": "mask_unused"}}},
        {"branches": {"new": {"parent": "baseline", "intervention": "mask"}}},
        {"defaults": {"optimizer": {"peak_lr": "x2"}}},
        {"defaults": {"optimizer": {"b1": 1.0}}},
        {"scales": {"smoke": {"model": {"num_layers": 0}}}},
        {"scales": {"smoke": {"model": {"num_layers": True}}}},
        {"scales": {"smoke": {"model": {"norm": "batchnorm"}}}},
        {"scales": {"smoke": {"data": {"source": "files"}}}},
        {"scales": {"smoke": {"resources": {"threads": "1"}}}},
        {"scales": {"smoke": {"runs": {"baseline": {"seed": 1}}}}},
    ],
)
def test_what_the_schema_refuses_the_reader_refuses(validator, edit):
    edited = document(edit)
    assert not validator.is_valid(edited)
    with pytest.raises(UserError):
        parse_params(edited, PARAMS)


def test_the_reference_has_every_key_with_its_meaning():
    lines = list(reference())
    for section in SCALE_SECTIONS:
        assert f"## {section}" in lines
    rows = [line.split(" | ") for line in lines if line.startswith("| `")]
    models = [model for name, model in schema()["$defs"].items() if name.endswith("Params")]
    keys = [key for model in models for key in model["properties"]]
    told = [row[0].strip("|` ") for row in rows]
    assert sorted(told) == sorted([*keys, "seeds", "parent", "intervention"])
    assert all(len(row) == 4 and len(row[3]) > 10 for row in rows)
    assert "| `heldout_fraction` | a number > 0, < 1 | `0.05` |" in "\n".join(lines)
