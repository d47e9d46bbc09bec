"""What params.yaml may hold, told from the models that check it: as JSON schema, and as text."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from relu_sparsity.params import NAME, Params, RunConfig, RunParams
from relu_sparsity.params_file import BRANCH_KEYS, FACTOR, RUN_KEYS, SCALE_SECTIONS

_FIELDS = Params.model_fields | RunConfig.model_fields
_MODELS: dict[str, Any] = {name: _FIELDS[name].annotation for name in SCALE_SECTIONS}
_BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
_TYPES = {
    "boolean": "`true` or `false`",
    "integer": "a whole number",
    "null": "`null`",
    "number": "a number",
    "string": "text",
}


def schema() -> dict[str, Any]:
    """The JSON schema of params.yaml, for editors and scripts.

    It knows every key, type and bound, and the factors of scales and runs. What ties keys to each
    other (a batch that a device batch divides) only reading the file checks.
    """
    absolute, relative = _definitions(), {}
    for name, model in absolute.items():
        keys = {key: _relative(value) for key, value in model["properties"].items()}
        relative[f"{name}.relative"] = model | {"properties": keys}
    of_run = _keys(RunParams)
    run = _layer(RUN_KEYS, of_run, ".relative")
    branch = _layer(BRANCH_KEYS, of_run, ".relative")
    scale = _layer(SCALE_SECTIONS, of_run, ".relative")
    scale["properties"] |= {"seeds": of_run["seeds"], "runs": _named("run")}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "params.yaml of relu-sparsity",
        "type": "object",
        "additionalProperties": False,
        "required": ["scales", "runs", "branches"],
        "properties": {
            "scale": {"description": "The scale that is run if none is named.", "type": "string"},
            "defaults": _layer(SCALE_SECTIONS, of_run, ""),
            "scales": _named("scale") | {"type": "object", "minProperties": 1},
            "runs": _named("run") | {"type": "object", "minProperties": 1},
            "branches": _named("branch") | {"type": "object"},
            "sensitivity": _named("run"),
        },
        "$defs": {
            **absolute,
            **relative,
            "factor": {"type": "string", "pattern": f"^{FACTOR}$"},
            "run": run,
            "branch": branch | {"type": "object", "required": ["parent", "intervention"]},
            "scale": scale,
        },
    }


def reference() -> Iterator[str]:
    """Every key of params.yaml as lines of Markdown: meaning, what is allowed, default."""
    definitions = _definitions()
    for name, model in _MODELS.items():
        described = definitions[model.__name__]
        yield from _table(name, described["description"], described["properties"])
    keys = _keys(RunParams)
    yield from _table(
        "seeds, parent, intervention",
        "What a run has beside sections. Only those of `branches` have a parent.",
        {key: keys[key] for key in ("seeds", "parent", "intervention")},
    )


def _definitions() -> dict[str, Any]:
    _, described = models_json_schema([(model, "validation") for model in _MODELS.values()])
    return {name: _untitled(model) for name, model in described["$defs"].items()}


def _keys(model: Any) -> dict[str, Any]:
    return _untitled(model.model_json_schema())["properties"]


def _untitled(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's schema without the titles that pydantic makes up; a key's text is one line."""
    keys = {
        name: {key: each for key, each in value.items() if key != "title"}
        | {"description": " ".join(value.get("description", "").split())}
        for name, value in model["properties"].items()
    }
    return {key: each for key, each in model.items() if key != "title"} | {"properties": keys}


def _relative(value: Mapping[str, Any]) -> dict[str, Any]:
    """A key where a value is laid over another one: without default, and it may be a factor."""
    told = {key: each for key, each in value.items() if key != "default"}
    own = {key: told.pop(key) for key in list(told) if key != "description"}
    choices = own.get("anyOf", [own])
    if {"integer", "number"} & {each.get("type") for each in choices}:
        choices = [*choices, {"$ref": "#/$defs/factor"}]
        return {**told, "anyOf": choices}
    return {**told, **own}


def _layer(keys: Iterable[str], of_run: Mapping[str, Any], suffix: str) -> dict[str, Any]:
    """A mapping of sections, each of which may be empty."""
    properties = {
        key: {"anyOf": [{"$ref": f"#/$defs/{_MODELS[key].__name__}{suffix}"}, {"type": "null"}]}
        if key in _MODELS
        else of_run[key]
        for key in keys
    }
    return {"type": ["object", "null"], "additionalProperties": False, "properties": properties}


def _named(kind: str) -> dict[str, Any]:
    return {
        "type": ["object", "null"],
        "additionalProperties": False,
        "patternProperties": {f"^{NAME}$": {"$ref": f"#/$defs/{kind}"}},
    }


def _table(title: str, text: str, keys: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield from (f"## {title}", "", text, "")
    yield from ("| key | allowed | default | meaning |", "|:--|:--|:--|:--|")
    for key, value in keys.items():
        default = _shown(value["default"]) if "default" in value else ""
        yield f"| `{key}` | {_allowed(value)} | {default} | {value['description']} |"
    yield ""


def _allowed(value: Mapping[str, Any]) -> str:
    if "anyOf" in value:
        return ", or ".join(map(_allowed, value["anyOf"]))
    if "enum" in value:
        return ", ".join(map(_shown, value["enum"]))
    if value["type"] == "array":
        return f"a list: {_allowed(value['items'])}"
    bounds = [f"{sign} {value[key]:,}" for key, sign in _BOUNDS.items() if key in value]
    return " ".join([_TYPES[value["type"]], ", ".join(bounds)]).strip()


def _shown(value: Any) -> str:
    return f"`{json.dumps(value)}`".replace('"', "") if value != "" else ""
