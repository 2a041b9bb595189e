"""What the parts of a run are called in tables."""

from lacache.evals.methods.full import FullCache
from lacache.evals.runs import RunSpec
from lacache.evals.specs import format_spec


def task_label(spec: RunSpec) -> str:
    """The spec of its task."""
    return format_spec(spec.task.name, spec.task)


def method_label(spec: RunSpec) -> str:
    """The spec of its method."""
    return format_spec(spec.method.name, spec.method)


def budget_label(spec: RunSpec) -> str:
    """Its budget; nothing for the full cache."""
    return "" if isinstance(spec.method, FullCache) else spec.budget


def protocol_label(spec: RunSpec) -> str:
    """Its protocol, and in the dense one where the first token is from."""
    if spec.protocol == "strict":
        return "strict"
    return f"dense, first token from the {spec.first_token}" + (
        " pass" if spec.first_token == "dense" else ""
    )


def in_words(label: str) -> str:
    """A spec with spaces, for a long one to be broken at in a table."""
    return label.replace(":", ": ", 1).replace(",", ", ")
