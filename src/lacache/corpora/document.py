"""A document, and how one is read from a text file."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

from lacache.common.files import refuse_device
from lacache.errors import InputError


@final
@dataclass(frozen=True)
class Document:
    """A text with its source.

    Attributes:
        name: The name or path that it was loaded by.
        source: The package or file that holds it.
        licence: The terms of use; "unknown" for a file.
        content: The text itself, never empty.
    """

    name: str
    source: str
    licence: str
    content: str


def read_document(path: Path) -> Document:
    """Read a UTF-8 text file.

    Raises:
        InputError: The file is missing, a directory, unreadable, binary, not UTF-8, or empty.
    """
    if path.is_dir():
        raise InputError(f"text {path} is a directory; give one file in it")
    refuse_device(path, "text ")
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"text file {path} does not exist; check the path") from error
    except OSError as error:
        raise InputError(
            f"text file {path} cannot be read ({error.strerror}); make it readable"
        ) from error
    return Document(str(path), str(path), "unknown", decode_text(raw, str(path)))


def decode_text(raw: bytes, name: str) -> str:
    """Decode UTF-8 bytes, with plain line ends and without a byte order mark.

    Args:
        raw: The bytes.
        name: What to call them in errors.

    Raises:
        InputError: The bytes are binary, not UTF-8, or only white space.
    """
    if (zero := raw.find(b"\0")) >= 0:
        raise InputError(
            f"{name} is binary or UTF-16 (byte {zero} is zero) and must be UTF-8 text; "
            "give a text file, or convert it: iconv -f utf-16 -t utf-8"
        )
    try:
        content = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not UTF-8 (byte {error.start} is 0x{raw[error.start]:02x}); "
            "give a text file, or convert it: iconv -f latin1 -t utf-8"
        ) from error
    content = content.replace("\r\n", "\n").replace("\r", "\n")
    if not content.strip():
        raise InputError(f"{name} is empty and must hold some text; give another file")
    return content
