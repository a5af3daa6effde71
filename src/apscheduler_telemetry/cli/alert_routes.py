"""
Which receivers of Alertmanager get an alert, and what mutes it, according to its configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Labels = Mapping[str, str]

_QUOTED_PATTERN = r'"(?:[^"\\]|\\.)*"'
_MATCHER_PATTERN = re.compile(
    rf"\s*(?P<name>{_QUOTED_PATTERN}|[^\s=!~\"{{}},]+)\s*(?P<operator>=~|!~|!=|=)\s*"
    rf"(?P<value>{_QUOTED_PATTERN}|[^\",}}]*?)\s*(?:,|$)"
)
_ESCAPED_CHARACTERS = {"n": "\n"}
_SILENCE_OPERATORS = {
    (True, False): "=",
    (False, False): "!=",
    (True, True): "=~",
    (False, True): "!~",
}


class Matcher(NamedTuple):
    """
    One condition on a label; a label that an alert does not have is empty.

    Attributes:
        name: of the label.
        operator: ``=``, ``!=``, ``=~`` or ``!~``.
        value: what it is compared with; a regular expression for the whole value with a tilde.
    """

    name: str
    operator: str
    value: str

    def matches(self, labels: Labels) -> bool:
        """
        Return whether an alert with these labels meets the condition.

        Raises:
            ValueError: Python does not understand the regular expression.
        """
        actual = labels.get(self.name, "")
        if "~" in self.operator:
            try:
                is_equal = re.fullmatch(self.value, actual, re.DOTALL) is not None
            except re.error as error:
                msg = f"unknown regular expression {self.value!r}: {error}"
                raise ValueError(msg) from error
        else:
            is_equal = actual == self.value
        return is_equal != self.operator.startswith("!")


class Destination(NamedTuple):
    """
    Where a route sends an alert.

    Attributes:
        receiver: its name.
        is_default: whether no route below the first one has matched.
    """

    receiver: str
    is_default: bool


def parse_matchers(text: str) -> list[Matcher]:
    """
    Return the matchers in a text such as ``severity="critical", owner=~"a|b"``.

    Raises:
        ValueError: the text is not understood.
    """
    inner = text.strip()
    if inner.startswith("{") and inner.endswith("}"):
        inner = inner[1:-1]
    found, position = [], 0
    while inner[position:].strip():
        match = _MATCHER_PATTERN.match(inner, position)
        if match is None:
            msg = f"unknown matcher: {text}"
            raise ValueError(msg)
        found.append(Matcher(_unquote(match["name"]), match["operator"], _unquote(match["value"])))
        position = match.end()
    return found


def find_destinations(route: Mapping[str, Any], labels: Labels) -> list[Destination]:
    """Return where the first route of a configuration sends an alert with these labels."""
    return list(_yield_destinations(route, labels, route["receiver"], is_default=True))


def _yield_destinations(
    route: Mapping[str, Any], labels: Labels, receiver: str, *, is_default: bool
) -> Iterator[Destination]:
    own = route.get("receiver") or receiver
    has_child = False
    for child in route.get("routes") or ():
        if _do_all_match(_route_matchers(child), labels):
            has_child = True
            yield from _yield_destinations(child, labels, own, is_default=False)
            if not child.get("continue"):
                return
    if not has_child:
        yield Destination(own, is_default)


def find_integrations(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the kinds of integrations of each receiver, such as ``slack``."""
    return {
        receiver["name"]: [
            key.removesuffix("_configs")
            for key, integrations in receiver.items()
            if key.endswith("_configs") and integrations
        ]
        for receiver in config["receivers"]
    }


def is_inhibited(rule: Mapping[str, Any], source: Labels, target: Labels) -> bool:
    """Return whether an alert that fires (the source) inhibits another one by a rule."""
    sources, targets = (
        _matchers_of(rule, f"{side}_matchers", f"{side}_match", f"{side}_match_re")
        for side in ("source", "target")
    )
    return (
        _do_all_match(sources, source)
        and _do_all_match(targets, target)
        and all(source.get(name, "") == target.get(name, "") for name in rule.get("equal") or ())
        # Alerts that are both source and target do not inhibit each other.
        and not (_do_all_match(sources, target) and _do_all_match(targets, source))
    )


def is_silenced(silence: Mapping[str, Any], labels: Labels) -> bool:
    """Return whether a silence of the API mutes an alert with these labels."""
    return all(
        Matcher(
            each["name"],
            _SILENCE_OPERATORS[each.get("isEqual", True), each["isRegex"]],
            each["value"],
        ).matches(labels)
        for each in silence["matchers"]
    )


def _do_all_match(matchers: Iterable[Matcher], labels: Labels) -> bool:
    return all(matcher.matches(labels) for matcher in matchers)


def _route_matchers(route: Mapping[str, Any]) -> Sequence[Matcher]:
    return _matchers_of(route, "matchers", "match", "match_re")


def _matchers_of(
    item: Mapping[str, Any], matchers: str, match: str, match_re: str
) -> list[Matcher]:
    """Return the matchers of a route, or of one side of an inhibition rule, in all three forms."""
    found = [each for text in item.get(matchers) or () for each in parse_matchers(text)]
    found += [Matcher(name, "=", value) for name, value in (item.get(match) or {}).items()]
    found += [Matcher(name, "=~", value) for name, value in (item.get(match_re) or {}).items()]
    return found


def _unquote(text: str) -> str:
    if not text.startswith('"'):
        return text
    return re.sub(r"\\(.)", lambda match: _ESCAPED_CHARACTERS.get(match[1], match[1]), text[1:-1])
