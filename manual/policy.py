"""The page of a policy's keys and rules, from the code that reads and judges it."""

from __future__ import annotations

from lipcheck.policy import RULES
from lipcheck.policy_file import KEYS
from manual.markup import cell, table

_SEVERAL = ("layers", "kinds", "waivers")


def page() -> str:
    """Markdown, a section a table of the policy, then the rules that findings are of."""
    lines = [
        "# Keys and rules of a policy\n",
        "In `lipcheck.toml`, or under `[tool.lipcheck]` in `pyproject.toml` with that prefix: "
        "`[tool.lipcheck.network]`, `[[tool.lipcheck.layers]]`. "
        "Every table and every key may be absent, but for those that say otherwise. "
        "[Policies](../policy.md) tells how they are used.\n",
    ]
    for name, keys in KEYS.items():
        title = f"[[{name}]]" if name in _SEVERAL else f"[{name}]"
        lines.append(f"## `{title}` {{ #{name} }}\n")
        lines.append(table(["key", ""], [[f"`{key}`", cell(meaning)] for key, meaning in keys.items()]))
    lines.append("## Rules { #rules }\n")
    lines.append("What a finding's `rule` may be, and what one that no waiver covers makes of the audit.\n")
    rows = [[f"`{rule.id}`", rule.severity, rule.outcome, cell(rule.text)] for rule in RULES.values()]
    lines.append(table(["rule", "severity", "verdict", ""], rows))
    return "\n".join(lines)
