"""The text form of policies: `name`, `name:field=value:field=value`, or `@file` that holds one.

It passes unquoted through a shell, and through lists that split at commas. `str(policy)` writes
it. Tuples are joined by `+`; layers are `0-11+14`, KV heads `12.0`. Groups are
`groups:MEMBERS@CAPACITY@POLICY/MEMBERS@CAPACITY@POLICY`, such as
`groups:0-11@512@ladder:span=6/12-29@128@streaming`.
"""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lacache.common.files import refuse_device
from lacache.common.settings_text import parse_settings
from lacache.errors import ConfigError, InputError
from lacache.policies.full import Full
from lacache.policies.groups import Group, Groups
from lacache.policies.ladder import Ladder
from lacache.policies.members import parse_members, parse_number
from lacache.policies.paper import Paper
from lacache.policies.policy import LayerPolicy, Policy
from lacache.policies.retrieval_heads import RetrievalHeads
from lacache.policies.shrinking_window import ShrinkingWindow
from lacache.policies.streaming import Streaming
from lacache.policies.uniform import Uniform

Kinds = tuple[type[Policy], ...]

POLICIES: Kinds = (
    RetrievalHeads,
    Ladder,
    Paper,
    Streaming,
    Uniform,
    Full,
    Groups,
    ShrinkingWindow,
)
"""Every policy that a cache can follow. A new one adds a line here."""

DEFAULT_POLICY = "balanced"


def parse_policy(value: object, kinds: Kinds = POLICIES) -> Policy:
    """Return the policy that a text stands for; a policy is returned as it is.

    Args:
        value: a policy or its text.
        kinds: the policies that there are.

    Raises:
        ConfigError: no such policy or setting, one that is missing, or a value out of range.
        InputError: a file that cannot be read.
    """
    if isinstance(value, Policy):
        return value
    if not isinstance(value, str):
        raise ConfigError(
            f"policy={value!r} must be a policy or its text; try policy={DEFAULT_POLICY!r}"
        )
    text = value.strip()
    return parse_text(_read(text[1:]) if text.startswith("@") else text, kinds)


def parse_text(text: str, kinds: Kinds = POLICIES) -> Policy:
    """Return the policy that a text stands for, without reading files.

    Raises:
        ConfigError: no such policy or setting, one that is missing, or a value out of range.
    """
    name, _, rest = text.partition(":")
    by_name = policy_names(kinds)
    if name not in by_name:
        near = get_close_matches(name, by_name, 1) or [DEFAULT_POLICY]
        # A shrinking window is only of use in groups.
        offered = [name for name, (kind, _) in by_name.items() if kind is not ShrinkingWindow]
        raise ConfigError(
            f"policy={name[:60]!r} must be one of {', '.join(offered)}, with settings such as "
            f"ladder:span=15:overlap=0; try {near[0]}"
        )
    kind, settings = by_name[name]
    if kind is Groups:
        return Groups(tuple(_parse_group(part, kinds) for part in rest.split("/")))
    given = parse_settings("policy", name, kind, rest)
    make: Callable[..., Policy] = kind
    return make(**{**settings, **given})


def policy_names(kinds: Kinds = POLICIES) -> dict[str, tuple[type[Policy], Mapping[str, Any]]]:
    """Return each name of the text form, with its class and the settings that it stands for."""
    return {name: (kind, settings) for kind in kinds for name, settings in kind.names.items()}


def _read(name: str) -> str:
    """Return the text of a file, without comments and white space."""
    if not name:
        raise InputError("policy='@' names no file; try @policy.txt")
    path = Path(name)
    refuse_device(path, "policy ")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a text file with a policy") from error
    except ValueError as error:
        raise InputError(f"{path} is not UTF-8 text; give a text file with a policy") from error
    text = "".join("".join(line.partition("#")[0].split()) for line in lines)
    if not text:
        raise InputError(f"{path} is empty; write a policy in it, such as ladder:span=15")
    if text.startswith("{"):
        raise InputError(
            f"{path} is JSON, as lacache 0.1 wrote plans; write the policy as text, such as "
            "ladder:span=15:overlap=0"
        )
    if text.startswith("@"):
        raise InputError(f"{path} names another file; give the policy itself")
    return text


def _parse_group(text: str, kinds: Kinds) -> Group:
    members, first, rest = text.partition("@")
    capacity, second, policy_text = rest.partition("@")
    if not second:
        capacity, policy_text = "", rest
    try:
        if not first:
            raise ValueError
        numbers = parse_members(members)
        tokens = parse_number(capacity) if capacity else None
    except ValueError as error:
        raise ConfigError(
            f"group {text[:60]!r} must be MEMBERS@CAPACITY@POLICY; try 0-11@512@streaming"
        ) from error
    policy = parse_text(policy_text, kinds)
    if not isinstance(policy, LayerPolicy):
        raise ConfigError(
            f"policy {policy} cannot be that of a group; use one such as ladder or streaming"
        )
    return Group(policy, numbers, tokens)
