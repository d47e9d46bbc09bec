"""What every section of a parameter file has in common, and how its mistakes are told."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from relu_sparsity.errors import UserError


class Section(BaseModel):
    """A section of a parameter file: immutable, and every key is known."""

    # Strict: "6" is no number, and neither is true.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        strict=True,
        use_attribute_docstrings=True,
    )

    def resolved(self) -> dict[str, Any]:
        """All its values, as JSON knows them: also of the keys that no fingerprint has."""
        told = self.model_dump(mode="json")
        for key, field in type(self).model_fields.items():
            value = getattr(self, key)
            if isinstance(value, Section):
                told[key] = value.resolved()
            elif field.exclude:
                told[key] = value
        return told


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Refuses a key that stands twice in a mapping, of which PyYAML takes the last.

    Several times as fast where PyYAML was built with libyaml, as its wheels are.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# PyYAML goes by YAML 1.1, where `1e-3` and `5e-05` are text. DVC writes numbers so, and today's
# editors read them as numbers.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> Any:
    """Reads a YAML file.

    Raises:
      UserError: It is missing, cannot be read, or is not YAML.
    """
    try:
        return parse_yaml(path.read_bytes(), path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run this in the project's folder") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def parse_yaml(content: bytes, path: Path) -> Any:
    """Like `read_yaml`, for what the file at `path` holds."""
    try:
        return yaml.load(content.decode("utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML file: {error}") from None


def told(error: Any, known: Iterable[str]) -> tuple[list[str], str]:
    """What one of pydantic's errors says.

    Args:
      error: One of `ValidationError.errors()`.
      known: The keys that are allowed where it is about an unknown one.

    Returns:
      The path of the key, and the value with what is allowed.
    """
    location = [str(part) for part in error["loc"]]
    text = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        # A check of several keys names the one at fault itself.
        key, _, text = text.partition(": ")
        return location + key.split("."), text
    if error["type"] == "extra_forbidden":
        return location, f"is no known key; allowed: {', '.join(known)}"
    if error["type"] == "tuple_type":
        text = "input should be a list: [one, another]"
    return location, f"{error['input']!r}: {text[0].lower()}{text[1:]}"


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Nested values by the path of their keys: `model.num_layers`."""
    if not isinstance(value, Mapping):
        return {key: value} if key else {}
    inner = [flat(each, f"{key}.{name}" if key else str(name)) for name, each in value.items()]
    return {name: each for part in inner for name, each in part.items()}
