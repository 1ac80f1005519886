"""Objects -> a short name of what they do: the key under which a cache keeps a result.

Two objects of one class and the same settings have one fingerprint in every process. What cannot be described gets a
name of its own each time, so that a cache may forget but never err.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch

__all__ = ["file_state", "fingerprint", "sha256"]

_KNOWN = ("monai.", "torch.", "numpy.", "builtins.")  # their code is named by their version
_HEADERS = (".mhd", ".nhdr", ".hdr")  # the voxels lie in another file of the same name


def fingerprint(*things: Any) -> str:
    """Hash what objects are made of: values, settings, and the code of functions and of classes that are not MONAI's.

    Args:
        things: plain values, arrays, functions, transforms, and containers of these.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(f"{monai.__version__} {torch.__version__} {np.__version__}".encode())
    for word in _words(things, ()):
        digest.update(word.encode() + b"\0")
    return digest.hexdigest()


def file_state(path: str) -> tuple[Any, ...] | None:
    """What changes when a file is written: name, size and time of it and of the files that its header stands for.

    Args:
        path: any text.

    Returns:
        None when it is no path of a file.
    """
    file = Path(path)
    if not file.is_file():
        return None
    files = [file]
    if file.suffix.lower() in _HEADERS:
        files = sorted(one for one in file.parent.iterdir() if one.name.startswith(f"{file.stem}."))
    return tuple((str(one.resolve()), one.stat().st_size, one.stat().st_mtime_ns) for one in files)


def sha256(path: str | Path) -> str:
    """Hash of a file's content.

    Args:
        path: such as that of the weights.
    """
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _words(thing: Any, inside: tuple[int, ...]) -> Iterator[str]:
    """Describe an object word by word; ``inside`` holds the ids of the objects around it, in case one holds itself."""
    if id(thing) in inside:
        yield "itself"
        return
    inside = (*inside, id(thing))
    yield type(thing).__qualname__
    if thing is None or isinstance(thing, (bool, int, float, complex, str, bytes, torch.dtype, torch.device, np.dtype)):
        yield repr(thing)
    elif isinstance(thing, enum.Enum):
        yield str(thing)
    elif isinstance(thing, (type, types.ModuleType, types.BuiltinFunctionType)):
        yield f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', thing.__name__)}"
    elif isinstance(thing, (list, tuple)):
        yield str(len(thing))
        for item in thing:
            yield from _words(item, inside)
    elif isinstance(thing, (set, frozenset)):
        yield from sorted(fingerprint(item) for item in thing)
    elif isinstance(thing, Mapping):
        for key in sorted(thing, key=str):
            yield from _words(key, inside)
            yield from _words(thing[key], inside)
    elif isinstance(thing, (np.ndarray, np.generic, torch.Tensor)):
        array = np.asarray(thing)
        yield f"{array.dtype} {array.shape}"
        yield hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    elif isinstance(thing, np.random.RandomState):
        return  # where it stands is not what a deterministic step does
    elif isinstance(thing, functools.partial):
        yield from _words((thing.func, thing.args, thing.keywords), inside)
    elif isinstance(thing, types.MethodType):
        yield from _words((thing.__func__, thing.__self__), inside)
    elif isinstance(thing, types.FunctionType):
        yield f"{thing.__module__}.{thing.__qualname__}"
        if not f"{thing.__module__}.".startswith(_KNOWN):
            cells = [cell.cell_contents for cell in thing.__closure__ or ()]
            parts = (thing.__code__, thing.__defaults__, thing.__kwdefaults__, cells, _globals_of(thing))
            yield from _words(parts, inside)
    elif isinstance(thing, types.CodeType):
        yield from _words((thing.co_code, thing.co_names, thing.co_varnames, thing.co_consts), inside)
    elif hasattr(thing, "__dict__"):
        kind = type(thing)
        yield f"{kind.__module__}.{kind.__qualname__}"
        if not f"{kind.__module__}.".startswith(_KNOWN):
            yield _source_of(kind)
        yield from _words(vars(thing), inside)
    else:
        yield repr(thing)


def _globals_of(function: types.FunctionType) -> dict[str, Any]:
    """What a function finds by name outside of itself.

    A lambda in a config finds ``@spacing`` in a dictionary of all that the config holds, under the id in its code; only
    the ids that it names are taken.
    """
    code, found = function.__code__, {}
    for name in code.co_names:
        if name in function.__globals__:
            value = function.__globals__[name]
            if isinstance(value, dict):
                value = {key: value[key] for key in code.co_consts if isinstance(key, str) and key in value}
            found[name] = value
    return found


def _source_of(kind: type) -> str:
    module = inspect.getmodule(kind)
    try:
        return inspect.getsource(module) if module is not None else ""
    except (OSError, TypeError):  # a class of a notebook or of compiled code has no file
        return ""
