"""Rules from outside: registered by user code, by installed packages (entry points `lipcheck.rules`), or for one audit.

They stand in a table of their own, and every audit that uses one names it. In place of a built-in rule a rule is used
only where it says so.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from types import MappingProxyType, ModuleType
from typing import Any, TypeVar

import torch
from torch._library.custom_ops import CustomOpDef

from lipcheck.errors import LipcheckError, UsageError
from lipcheck.graph import DependentError, Node
from lipcheck.operators import Nonlinear, Operator, Unbounded
from lipcheck.ranges import Range
from lipcheck.rules import DEFAULT_RULES, Rule
from lipcheck.text import clean

GROUP = "lipcheck.rules"
# What `rules=` takes: a table, a module or functions that `rule` has decorated, or several of these.
Rules = Mapping[Any, Rule] | ModuleType | Rule | Sequence["Mapping[Any, Rule] | ModuleType | Rule"]
_Function = TypeVar("_Function", bound=Rule)
_MARK = "__lipcheck_rule__"


@dataclass(frozen=True, slots=True)
class _Entry:
    """One operation's rule. `override` says that it stands in place of another on purpose."""

    op: Callable[..., Any]
    function: Rule
    override: bool


@dataclass(frozen=True, slots=True, eq=False)
class RuleBook:
    """The rules of one audit: the table, where those come from that are not built in, and what is missing.

    `origins` are in words, by operation; `problems` are plugins or rules that were left out, each with the reason.
    """

    table: Mapping[Callable[..., Any], Rule]
    origins: Mapping[Callable[..., Any], str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def notes(self, nodes: Iterable[Node]) -> tuple[str, ...]:
        """For a report's reader: which of these calls have a rule that is not built in, and what could not be used."""
        used = dict.fromkeys(node.op for node in nodes if node.op in self.origins)
        return (*(f"rule of {op}: {self.origins[op]}" for op in used), *self.problems)


def rule(*ops: Any, override: bool = False) -> Callable[[_Function], _Function]:
    """Makes a function the rule of these operations, for every audit of this process: from a `Node` to an operator.

    An operation is `torch.ops.NAMESPACE.NAME`, one of its overloads, or what `torch.library.custom_op` returned.
    `override` puts it in place of a built-in rule, or of one registered before. A function of the same name, as when a
    notebook's cell runs again, replaces the one before.
    Errors: UsageError for what is no operation, and for an operation that has a rule already.
    """
    overloads = tuple(overload for op in ops for overload in overloads_of(op))
    if not overloads:
        raise UsageError("no operation is named; write @lipcheck.rule(torch.ops.NAMESPACE.NAME)")

    def register(function: _Function) -> _Function:
        if not callable(function):
            raise UsageError(f"a rule is a function of a Node, not a {type(function).__name__}")
        entries = [_Entry(op, function, override) for op in overloads]
        for entry in entries:
            _refuse_conflict(entry)
        _REGISTERED.update((entry.op, entry) for entry in entries)
        setattr(function, _MARK, (*getattr(function, _MARK, ()), *entries))
        return function

    return register


_REGISTERED: dict[Callable[..., Any], _Entry] = {}
# What importing a plugin registered, by the entry point: an import happens only once.
_LOADED: dict[tuple[str, str], tuple[_Entry, ...]] = {}


def overloads_of(op: Any) -> tuple[Callable[..., Any], ...]:
    """The overloads that an operation has in a captured graph.

    Errors: UsageError for what is no operation of torch.
    """
    if isinstance(op, CustomOpDef):
        return (op._opoverload,)
    if isinstance(op, torch._ops.OpOverload):
        return (op,)
    if isinstance(op, torch._ops.OpOverloadPacket):
        packet: Any = op
        return tuple(getattr(packet, name) for name in packet.overloads())
    shown = getattr(op, "__name__", type(op).__name__)
    raise UsageError(
        f"{clean(str(shown))} is no operation; give torch.ops.NAMESPACE.NAME, one of its overloads, or what "
        "torch.library.custom_op returned"
    )


def gather(rules: Rules | None = None, *, plugins: bool = True) -> RuleBook:
    """The rules of one audit: built-in ones, those of plugins and of this process, and `rules` on top.

    Without `plugins`, only the built-in ones and `rules`. A plugin that cannot be loaded is a problem, no error.
    Errors: UsageError where `rules` holds what is no rule.
    """
    table: dict[Callable[..., Any], Rule] = dict(DEFAULT_RULES)
    origins: dict[Callable[..., Any], str] = {}
    problems: list[str] = []

    def use(entry: _Entry, origin: str) -> None:
        label = _name(entry.function)
        replaced = ", in place of the built-in rule" if entry.op in DEFAULT_RULES else ""
        table[entry.op] = _guarded(entry.function, label)
        origins[entry.op] = f"{label} ({origin}){replaced}"

    if plugins:
        taken: dict[Callable[..., Any], tuple[Rule, str]] = {}
        for point in _entry_points():
            origin = f"plugin {_plugin(point)}"
            found = _load(point)
            if isinstance(found, str):
                problems.append(f"{origin} could not be loaded ({found}); its rules are missing from this audit")
                continue
            for entry in found:
                function, other = taken.get(entry.op, (entry.function, ""))
                if entry.op in DEFAULT_RULES and not entry.override:
                    problems.append(f"{origin}: its rule of {entry.op} is not used, as it does not say override=True")
                elif function is not entry.function and not entry.override:
                    problems.append(f"{origin}: its rule of {entry.op} is not used, {other} has one")
                else:
                    taken[entry.op] = entry.function, origin
                    use(entry, origin)
        for entry in _REGISTERED.values():
            if taken.get(entry.op, (None, ""))[0] is not entry.function:
                use(entry, "registered in this process")
    for entry in _entries(rules) if rules is not None else ():
        if DEFAULT_RULES.get(entry.op) is not entry.function:
            use(entry, "given by rules=")
    return RuleBook(MappingProxyType(table), MappingProxyType(origins), tuple(problems))


def _refuse_conflict(entry: _Entry) -> None:
    """Errors: UsageError where the operation has a rule already that is not meant to be replaced."""
    if entry.override:
        return
    if entry.op in DEFAULT_RULES:
        raise UsageError(f"{entry.op} has a built-in rule; say override=True to replace it")
    known = _REGISTERED.get(entry.op)
    if known is not None and _name(known.function) != _name(entry.function):
        raise UsageError(
            f"{entry.op} has a rule already, {_name(known.function)}; say override=True to replace it by "
            f"{_name(entry.function)}"
        )


def _entry_points() -> list[metadata.EntryPoint]:
    """The installed plugins, in an order that does not depend on where they are installed."""
    found = {(point.name, point.value): point for point in metadata.entry_points(group=GROUP)}
    return [found[key] for key in sorted(found)]


def _plugin(point: metadata.EntryPoint) -> str:
    """The plugin for people: its name, and the package it comes from."""
    package = point.dist
    source = f" of {package.name} {package.version}" if package is not None else ""
    return clean(f"{point.name}{source}")


def _load(point: metadata.EntryPoint) -> tuple[_Entry, ...] | str:
    """The plugin's rules, or in a line why there are none."""
    key = (point.name, point.value)
    before = dict(_REGISTERED)
    try:
        loaded = point.load()
        recorded = [entry for op, entry in _REGISTERED.items() if before.get(op) is not entry]
        _LOADED.setdefault(key, tuple(recorded))
        entries = {(entry.op, entry.function): entry for entry in (*_LOADED[key], *_entries(loaded))}
    except (Exception, SystemExit) as error:  # of a stranger's module
        return _said(error)
    finally:
        # What a plugin's import registers is the plugin's, and goes with it.
        _REGISTERED.clear()
        _REGISTERED.update(before)
    return tuple(entries.values()) if entries else "it holds no rule"


def _entries(rules: Any) -> Iterator[_Entry]:
    """The rules of a table, a module, a decorated function or several of these.

    Errors: UsageError for anything else.
    """
    if isinstance(rules, Mapping):
        for op, function in rules.items():
            if DEFAULT_RULES.get(op) is function:
                continue
            if not callable(function):
                raise UsageError(f"the rule of {op} is a {type(function).__name__}; give a function of a Node")
            for overload in overloads_of(op):
                yield _Entry(overload, function, override=False)
    elif isinstance(rules, ModuleType):
        for value in vars(rules).values():
            yield from getattr(value, _MARK, ()) if inspect.isfunction(value) else ()
    elif isinstance(rules, list | tuple):
        for part in rules:
            yield from _entries(part)
    elif hasattr(rules, _MARK):
        yield from getattr(rules, _MARK)
    else:
        raise UsageError(
            f"rules holds a {type(rules).__name__}; give a table {{operation: function}}, a module, or functions "
            "that @lipcheck.rule has decorated"
        )


def _name(function: Any) -> str:
    module = getattr(function, "__module__", "")
    return clean(f"{module}.{getattr(function, '__qualname__', type(function).__name__)}")


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return clean(f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__)


def _guarded(function: Rule, label: str) -> Rule:
    """The rule, with its mistakes turned into Unbounded: they cost an operation its bound, not the audit."""

    def guarded(node: Node) -> Operator:
        try:
            operator: Any = function(node)
        except DependentError:
            raise
        except LipcheckError as error:
            return Unbounded(f"its rule {label} refuses it: {error}")
        except Exception as error:  # of a stranger's function
            return Unbounded(f"its rule {label} failed ({_said(error)})")
        if isinstance(operator, Nonlinear) and type(operator).__module__.partition(".")[0] != "lipcheck":
            return _Guarded(operator, label)
        if isinstance(operator, Operator):
            return operator
        return Unbounded(f"its rule {label} returned a {type(operator).__name__}, no operator of lipcheck")

    return guarded


@dataclass(frozen=True, slots=True, eq=False)
class _Guarded(Nonlinear):
    """A plugin's own map, with its mistakes turned into infinite slopes and unknown ranges."""

    inner: Nonlinear
    label: str

    def slopes(self, ranges: Sequence[Range]) -> tuple[float, ...]:
        return self._slopes(ranges)[0]

    def image(self, ranges: Sequence[Range], shape: tuple[int, ...]) -> Range:
        try:
            found = self.inner.image(ranges, shape)
            fits = isinstance(found, Range) and found.shape == tuple(shape)
        except Exception:  # of a stranger's method; nothing is known then
            fits = False
        return found if fits else Range.unknown(shape)

    def unbounded_because(self, ranges: Sequence[Range]) -> str:
        mistake = self._slopes(ranges)[1]
        if mistake:
            return mistake
        try:
            return str(self.inner.unbounded_because(ranges))
        except Exception as error:  # of a stranger's method
            return f"its map {self.label} failed ({_said(error)})"

    def _slopes(self, ranges: Sequence[Range]) -> tuple[tuple[float, ...], str]:
        """The slopes, and what is wrong with them: then they are infinite."""
        nothing = (float("inf"),) * len(ranges)
        try:
            found = tuple(float(slope) for slope in self.inner.slopes(ranges))
        except Exception as error:  # of a stranger's method
            return nothing, f"its map {self.label} failed ({_said(error)})"
        if len(found) != len(ranges) or any(slope != slope for slope in found):
            return nothing, f"its map {self.label} gave the slopes {found} for {len(ranges)} inputs"
        return found, ""
