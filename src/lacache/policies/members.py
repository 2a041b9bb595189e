"""Members: whole layers, or single KV heads of layers; and how settings that name them are text."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lacache.common.validation import validate_int
from lacache.errors import ConfigError

_MOST_LAYERS = 100_000
"""Far beyond any model; a typing slip must not fill the memory."""

Member = int | tuple[int, int]
"""A layer with all its KV heads, or one pair (layer, KV head)."""


def validate_members(members: object, name: str = "members") -> tuple[Member, ...]:
    """Return members as layers and pairs (layer, KV head).

    Raises:
        ConfigError: they are no sequence, or hold something else.
    """
    if isinstance(members, str) or not isinstance(members, Iterable):
        raise ConfigError(f"{name}={members!r} must be a sequence; try {name}=(0, 1, (2, 0))")
    valid = tuple(m if isinstance(m, int) else _pair(m) for m in members)
    for member in valid:
        for number in member if isinstance(member, tuple) else (member,):
            validate_int(name, number, 0)
    return valid


def _pair(member: object) -> tuple[int, int]:
    if isinstance(member, Sequence) and not isinstance(member, str) and len(member) == 2:
        return member[0], member[1]
    raise ConfigError(f"member {member!r} must be a layer (3) or a pair (layer, KV head) (3, 0)")


def pairs_of(members: Iterable[Member], num_heads: Sequence[int]) -> list[tuple[int, int]]:
    """Return the pairs (layer, KV head) of members, each once and in order of depth.

    Raises:
        ConfigError: no such layer or head.
    """
    return sorted({pair for member in members for pair in heads_of(member, num_heads)})


def heads_of(member: Member, num_heads: Sequence[int]) -> list[tuple[int, int]]:
    """Return the pairs (layer, KV head) of a member.

    Raises:
        ConfigError: no such layer or head.
    """
    layer, head = member if isinstance(member, tuple) else (member, None)
    if layer >= len(num_heads):
        raise ConfigError(
            f"layer {layer} of a group must be below the number of layers {len(num_heads)}; try "
            f"layers up to {len(num_heads) - 1}"
        )
    if head is None:
        return [(layer, h) for h in range(num_heads[layer])]
    if head >= num_heads[layer]:
        raise ConfigError(
            f"KV head {head} of layer {layer} must be below the layer's {num_heads[layer]} KV "
            f"heads; try heads up to {num_heads[layer] - 1}"
        )
    return [(layer, head)]


def format_members(members: Sequence[Member]) -> str:
    """Return members as text: `0-11+12.0` is the layers 0 to 11 and KV head 0 of layer 12."""
    parts: list[str] = []
    first = last = -2
    for member in members:
        if isinstance(member, tuple):
            parts.append(f"{member[0]}.{member[1]}")
            last = -2
        elif member == last + 1:
            parts[-1] = f"{first}-{member}"
            last = member
        else:
            parts.append(str(member))
            first = last = member
    return "+".join(parts)


def parse_number(text: str) -> int:
    """Return a number of ASCII digits.

    Raises:
        ValueError: the text is none.
    """
    if not re.fullmatch("[0-9]+", text):
        raise ValueError(text)
    return int(text)


def parse_members(text: str) -> tuple[Member, ...]:
    """Return the members that `format_members` has written.

    Raises:
        ValueError: the text is none of these.
    """
    members: list[Member] = []
    for part in text.split("+"):
        layer, dot, head = part.partition(".")
        first, dash, last = part.partition("-")
        if dot:
            members.append((parse_number(layer), parse_number(head)))
        elif dash:
            start, stop = parse_number(first), parse_number(last)
            if not start <= stop < _MOST_LAYERS:
                raise ValueError(f"range {part}")
            members.extend(range(start, stop + 1))
        else:
            members.append(parse_number(part))
    return tuple(members)


def text_form(
    parse: Callable[[str], Any], format: Callable[[Any], str], example: str
) -> dict[str, Any]:
    """Return the metadata of a dataclass field that is no plain number or word as text.

    Args:
        parse: text to value; raises ValueError.
        format: value to text.
        example: for errors.
    """
    return {"parse": parse, "format": format, "example": example}


MEMBERS_FORM = text_form(parse_members, format_members, "0-2+5")
"""The text form of layers and KV heads."""
