"""Open small text formats safely, and write files that are never seen half-written.

A file is read under a size limit; YAML is read without tags and without aliases (294 bytes of
nested aliases can otherwise fill the memory). Every fault is a :class:`core.errors.UserError`
naming file and line.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import yaml

from core.errors import UserError

LIMIT_BYTES = 16 * 2**20


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML 1.1 without repeated keys, and with ``1e-3`` read as a number."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; a key given twice is an error."""
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="a key must be a plain word", problem_mark=key_node.start_mark
                )
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key_node.value!r} is given twice",
                    problem_mark=key_node.start_mark,
                )
            seen.add(key_node.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _float_resolver() -> None:
    import re

    number = re.compile(
        r"^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.[0-9_]+(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    )
    _Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))


_float_resolver()


def read_text(path: Path, limit: int = LIMIT_BYTES) -> str:
    """Read a UTF-8 text file of at most ``limit`` bytes.

    Raises:
        UserError: if the file is missing, not a file, too large or not UTF-8.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        size = path.stat().st_size
        if size > limit:
            raise UserError(f"{path}: {size:,} bytes is more than the {limit:,} allowed here")
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML text; ``source`` names it in errors.

    Raises:
        UserError: on a syntax error, an alias, a tag, a repeated key or nesting too deep.
    """
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.AliasEvent):
                raise yaml.MarkedYAMLError(
                    problem="YAML aliases (*name) are not allowed; write the value out",
                    problem_mark=event.start_mark,  # type: ignore[arg-type]
                )
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark: Any = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{source}{line}: {error.problem}") from None
    except RecursionError:
        raise UserError(f"{source}: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{source}: not valid YAML ({str(error).splitlines()[0]})") from None


def read_yaml(path: Path) -> Any:
    """Read a YAML file safely; see :func:`parse_yaml`."""
    return parse_yaml(read_text(path), str(path))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: if it is missing, too large or not JSON.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write ``content`` so that ``path`` holds either the old content or the whole new one.

    The temporary file lies in the same folder, is flushed to the disk and then renamed.
    """
    payload = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def file_digest(path: Path) -> str:
    """Hash a file's content with SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable where the system allows it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
