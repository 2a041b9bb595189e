"""Read a text file, or say in one line why it is not one."""

from pathlib import Path

from lacache.common.files import refuse_device
from lacache.corpora.text import Text
from lacache.errors import InputError


def read_text_file(path: Path) -> Text:
    """The content of a UTF-8 text file.

    Raises:
        InputError: It is missing, a directory, unreadable, binary, not UTF-8, or empty.
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
    return Text(str(path), str(path), "unknown", decode_text(raw, str(path)))


def decode_text(raw: bytes, name: str) -> str:
    """UTF-8 bytes as text with plain line ends; a byte order mark is dropped.

    Args:
        raw: The bytes.
        name: What to call them in errors.

    Raises:
        InputError: They are binary, not UTF-8, or nothing but white space.
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
