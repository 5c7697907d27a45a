"""The page of the JSON report, from its schema."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from manual.markup import cell, escaped, fenced, table


def page() -> str:
    """Markdown: a table of fields for the document and for each definition, then the schema itself."""
    text = files("lipcheck").joinpath("schema.json").read_text(encoding="utf-8")
    schema = json.loads(text)
    lines = [
        "# The JSON report\n",
        escaped(schema["description"]) + "\n",
        "`lipcheck schema` prints the [schema](#schema); a field is always there unless it says *may be absent* or is "
        "marked †.\n",
        "## The document { #document }\n",
        _fields(schema),
    ]
    for name, definition in schema["$defs"].items():
        lines += [f"## {escaped(name)} {{ #{name} }}\n", escaped(definition.get("description", "")) + "\n"]
        lines.append(_fields(definition))
    lines += ["## The schema { #schema }\n", fenced(text, "json")]
    return "\n".join(lines)


def _fields(definition: dict[str, Any]) -> str:
    required = definition.get("required", ())
    rows = [
        [f"`{name}`" + ("" if name in required else " †"), _type(field), cell(_described(field))]
        for name, field in definition.get("properties", {}).items()
    ]
    return table(["field", "type", ""], rows)


def _described(field: dict[str, Any]) -> str:
    limits = [
        f"{word} {field[key]:g}" for key, word in (("minimum", "at least"), ("maximum", "at most")) if key in field
    ]
    return "; ".join([field[key] for key in ("description",) if key in field] + limits)


def _type(field: dict[str, Any]) -> str:
    """A field's type in words, linked where it is a definition's."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{escaped(name)}](#{name})"
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return " \\| ".join(f"`{json.dumps(value)}`" for value in field["enum"])
    for key in ("anyOf", "oneOf"):
        if key in field:
            return " or ".join(_type(one) for one in field[key])
    kinds = field.get("type", "any value")
    kind = " or ".join(kinds) if isinstance(kinds, list) else kinds
    if "items" in field:
        return f"{kind} of {_type(field['items'])}"
    values = field.get("additionalProperties")
    return f"{kind} of {_type(values)}" if isinstance(values, dict) and values else kind
