"""Text files as editors write them: UTF-8, with or without a byte order mark, any line ends."""

from pathlib import Path

from ..errors import InvalidConfig

_OTHER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_text(path: Path) -> str:
    """Return the text of a file, with line feeds as line ends.

    Raises:
        InvalidConfig: the file cannot be read, or it is not UTF-8; the message has the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidConfig(f"{path} cannot be read ({error.strerror}); check the path") from error
    encoding = _OTHER_MARKS.get(data[:2])
    if encoding is None and b"\0" in data:
        encoding = "UTF-16 or a binary format"
    if encoding is not None:
        raise InvalidConfig(f"{path.name}, line 1: the file is {encoding}, not UTF-8; save it again as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidConfig(
            f"{path.name}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file again as UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
