"""The model type `lacache` for lm-eval.

    python -m lacache.integrations.lm_eval run --model lacache --tasks lambada_openai \
        --model_args pretrained=default,budget=0.25,policy=ladder:span=15:overlap=0

is lm-eval's own command line, with one more model type in its registry. lm-eval 0.4.13 loads no
plugins, so its own command `lm_eval` does not find this type. In Python, call `register()`, and
then `lm_eval.simple_evaluate(model="lacache", model_args=..., ...)`.
"""

import sys
from importlib import import_module

from lacache.common.packages import require_modules
from lacache.errors import LaCacheError

NAME = "lacache"
_TARGET = "lacache.integrations.lm_eval_model:LaCacheLM"


def register() -> None:
    """Register the model type with lm-eval. Idempotent.

    Its module is imported when the type is first used (lm-eval's lazy registration).

    Raises:
        MissingExtraError: lm-eval is not installed.
    """
    require_modules("lm_eval", why="the model type for lm-eval", extra="evals")
    # lm-eval fills only an empty registry with its own types, so they come first.
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
