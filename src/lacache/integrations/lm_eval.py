"""lm-eval with the model type `lacache`.

    python -m lacache.integrations.lm_eval run --model lacache \
        --model_args pretrained=default,budget=0.25,span=15,overlap=12 --tasks lambada_openai

is lm-eval's own command line, with one more model type in its registry. lm-eval 0.4.13 looks for
no plugins of other packages, so its command `lm_eval` by itself cannot know of this type. In
Python, `register()` and then `lm_eval.simple_evaluate(model="lacache", model_args=..., ...)`.
"""

import sys
from importlib import import_module

from lacache.common.packages import require_modules
from lacache.errors import LaCacheError

NAME = "lacache"
_TARGET = "lacache.integrations.lm_eval_model:LaCacheLM"


def register() -> None:
    """Put the model type into lm-eval's registry, once for each process.

    The model's own module is loaded when the type is first used (lm-eval's lazy registration).

    Raises:
        MissingExtraError: lm-eval is not installed.
    """
    require_modules("lm_eval", why="the model type for lm-eval", extra="evals")
    # lm-eval fills the registry with its own types only where it is empty, so these come first.
    import_module("lm_eval.models")
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target=_TARGET)


def main() -> None:
    """Run lm-eval's command line with the model type registered."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except LaCacheError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from error


if __name__ == "__main__":
    main()
