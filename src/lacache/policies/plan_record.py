"""Plans as plain JSON, and back: for records, files and command lines."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from lacache.common.files import parse_json, refuse_device
from lacache.errors import ConfigError, InputError
from lacache.policies.groups import Group, Groups
from lacache.policies.registry import POLICIES
from lacache.policies.retrieval_heads import RetrievalHeads
from lacache.policies.schedule import Plan, Policy
from lacache.policies.shrinking_window import ShrinkingWindow

_OF_GROUPS: dict[str, type[Policy]] = {**POLICIES, "shrinking": ShrinkingWindow}
_PLANS: dict[str, type[Plan]] = {**_OF_GROUPS, "history": RetrievalHeads, "groups": Groups}


def plan_record(plan: Plan) -> dict[str, Any]:
    """A plan's name and settings; `read_plan` is the way back.

    Raises:
        ConfigError: a plan of another kind, such as one of the evaluation alone.
    """
    name = next((name for name, kind in _PLANS.items() if isinstance(plan, kind)), None)
    if name is None:
        raise ConfigError(
            f"a {type(plan).__name__} cannot be written as JSON; use one of {', '.join(_PLANS)}"
        )
    if isinstance(plan, Groups):
        return {
            "name": name,
            "groups": [
                {"members": _plain(group.members), "policy": plan_record(group.policy)}
                for group in plan.groups
            ],
        }
    settings = asdict(plan)  # type: ignore[call-overload]
    return {"name": name, **{key: _plain(value) for key, value in settings.items()}}


def read_plan(record: object) -> Plan:
    """The plan of a record such as `{"name": "ladder", "capacity": 512, "span": 15}`.

    Groups are `{"name": "groups", "groups": [{"members": [0, [1, 2]], "policy": {...}}, ...]}`,
    where a member is a layer or a pair of layer and KV head.

    Raises:
        ConfigError: no such plan or setting, one that is missing, or a value out of range.
    """
    name, settings = _parts(record, "name")
    if not isinstance(name, str) or name not in _PLANS:
        raise ConfigError(
            f"name={name!r} of a plan must be one of {', '.join(_PLANS)}; try 'ladder'"
        )
    if name == "groups":
        _check("groups", {"groups"}, {"groups"}, settings)
        if not isinstance(settings["groups"], list):
            raise ConfigError(f"groups={settings['groups']!r} must be a list of groups")
        return Groups(tuple(_group(group) for group in settings["groups"]))
    make: Callable[..., Plan] = _PLANS[name]
    known = fields(_PLANS[name])  # type: ignore[arg-type]
    needed = {field.name for field in known if field.default is MISSING}
    _check(name, {field.name for field in known}, needed, settings)
    return make(**{key: _tuples(value) for key, value in settings.items()})


def load_plan(path: Path) -> Plan:
    """The plan in a JSON file.

    Raises:
        InputError: the file cannot be read or is not JSON.
        ConfigError: it holds no plan that works.
    """
    refuse_device(path, "plan ")
    try:
        text = path.read_text(encoding="utf-8")
        record = parse_json(text)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a JSON file with a plan") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); give a JSON file with a plan") from error
    return read_plan(record)


def _group(record: object) -> Group:
    members, settings = _parts(record, "members")
    _check("a group", {"policy"}, {"policy"}, settings)
    policy = read_plan(settings["policy"])
    if not isinstance(policy, Policy):
        raise ConfigError(
            f"the policy of a group cannot be {settings['policy']['name']!r}; use one of "
            f"{', '.join(_OF_GROUPS)}"
        )
    return Group(policy, _tuples(members))


def _parts(record: object, first: str) -> tuple[Any, dict[str, Any]]:
    if not isinstance(record, Mapping) or first not in record:
        raise ConfigError(
            f"{str(record)[:60]} must be a JSON object with {first!r}; try "
            '{"name": "ladder", "capacity": 512, "span": 15}'
        )
    return record[first], {key: value for key, value in record.items() if key != first}


def _check(what: str, known: set[str], needed: set[str], given: Mapping[str, Any]) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"{what} has no {key}; use {', '.join(sorted(known))}")
    for key in sorted(needed - set(given)):
        raise ConfigError(f"{what} needs {key}; add it")


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
