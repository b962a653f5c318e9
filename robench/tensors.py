"""Weights from anywhere, as named tensors: safetensors, or `.pt` without running any code, and nothing that is not whole.

What a file claims is checked before memory is given for it, and what it holds is checked against what a model wants.
"""

from __future__ import annotations

import io
import json
import math
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor

from robench import files
from robench.errors import CheckpointError, first_line

SAFE_SINCE = (2, 10)  # the first torch whose weights_only loading has no published way around it (CVE-2026-24747)
NESTS = ("state_dict", "model_state_dict", "model", "net")  # keys under which others keep their tensors


def read_file(path: Path, sha256: str = "") -> dict[str, Tensor]:
    """The tensors of a file.

    Args:
        path: of a safetensors or `.pt` file.
        sha256: what its digest must be, if that is known; compared before anything is parsed.

    Raises:
        CheckpointError: if it cannot be read, has another digest, or is refused by `read`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; name another file") from None
    found = files.sha256(content)
    if sha256 and found != sha256:
        raise CheckpointError(
            f"{path} has the SHA-256 {found}, not {sha256}: it is damaged or another file; fetch it again"
        )
    return read(content, str(path))


def read(content: bytes, what: str) -> dict[str, Tensor]:
    """The tensors of a file's content, on the CPU; no code in it is run.

    Args:
        content: of a safetensors file, or of a file of `torch.save` that holds tensors by name, at the top or under
            `state_dict`, `model_state_dict`, `model` or `net`.
        what: how messages call it.

    Raises:
        CheckpointError: if it is anything else, is cut off or damaged, claims more than it holds, or would run code.
    """
    start = content[:200].lstrip()
    if not content:
        raise CheckpointError(f"{what} is empty; fetch it again")
    if start[:1] == b"<":
        raise CheckpointError(f"{what} is a web page, not weights: sign in where it is, and fetch it again")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{what} is a pointer of Git LFS, not weights: git lfs pull")
    if content[:4] == b"PK\x03\x04":
        return _archive(content, what)
    if content[:1] == b"\x80":
        raise CheckpointError(_pickle(content, what))
    try:
        _check_header(content)
        return load_tensors(content)
    except Exception as error:  # whatever the library makes of a stranger's bytes
        raise CheckpointError(
            f"{what} is not a safetensors file: {error or type(error).__name__}; fetch it again"
        ) from None


def check(stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    """Whether tensors are those a model has: the same names, shapes and types, and finite numbers.

    Raises:
        CheckpointError: naming the first that differs, and how many do.
    """
    keys = [*wanted, *(key for key in stored if key not in wanted)]
    differing = [key for key in keys if _form(stored.get(key)) != _form(wanted.get(key))]
    if differing:
        first = differing[0]
        raise CheckpointError(
            f"{what} does not fit the model: {len(differing)} of {len(keys)} tensors differ. First: {first} is "
            f"{_form(stored.get(first))} in the file and {_form(wanted.get(first))} in the model. "
            "Name the architecture and data set it was trained with (--model, --dataset)"
        )
    for key, tensor in stored.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{what}: tensor {key} holds NaN or infinite weights; train it again")


def _form(tensor: Tensor | None) -> str:
    """Shape and type, in words; of the usual type only the shape."""
    if tensor is None:
        return "absent"
    kind = "" if tensor.dtype == torch.float32 else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"{tuple(tensor.shape)}{kind}"


def _check_header(content: bytes) -> None:
    """Read the table of contents of a safetensors file, and add up what it claims.

    Raises:
        ValueError: if that is not what follows the table.
    """
    if len(content) < 8:
        raise ValueError("it is cut off")
    (length,) = struct.unpack("<Q", content[:8])
    if length > len(content) - 8:
        raise ValueError("its table of contents is cut off, or it is another kind of file")
    table = json.loads(content[8 : 8 + length])
    table.pop("__metadata__", None)
    room, claimed = len(content) - 8 - length, 0
    for name, row in table.items():
        begin, end = row["data_offsets"]
        claimed += end - begin
        if math.prod(row["shape"]) > room * 8:
            raise ValueError(f"tensor {name} claims {math.prod(row['shape']):,} numbers, and {room:,} bytes are there")
    if claimed != room:
        raise ValueError(f"its tensors claim {claimed:,} bytes, and {room:,} are there")


def _archive(content: bytes, what: str) -> dict[str, Tensor]:
    """The tensors of a file of `torch.save`."""
    if tuple(map(int, torch.__version__.split(".")[:2])) < SAFE_SINCE:
        raise CheckpointError(
            f"{what}: this torch ({torch.__version__}) cannot open .pt files of others safely; install torch 2.10 or newer, or "
            "convert the file to safetensors where you trust it"
        )
    names: list[str] = []
    try:
        names += _globals(_whole(content))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the library makes of a stranger's bytes
        said = _refusal(names, str(error)) or f"cannot be opened: {first_line(error)}; fetch it again"
        raise CheckpointError(f"{what} {said}") from None
    return _tensors(loaded, what, len(content))


def _whole(content: bytes) -> bytes:
    """The pickle inside an archive, once every member has been found to be what it says and as long as it says.

    Raises:
        ValueError: if one is not.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > len(content):
            raise ValueError(f"it claims to unpack to more than its {len(content):,} bytes")
        if damaged := archive.testzip():
            raise ValueError(f"its member {damaged} is damaged")
        pickles = [member for member in members if member.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"it has {len(pickles)} tables of contents (data.pkl), and weights have one")
        return archive.read(pickles[0])


def _globals(pickled: bytes) -> list[str]:
    """Everything a pickle would import, read without running it."""
    found, texts = [], [""]
    for code, argument, _ in pickletools.genops(pickled):
        if isinstance(argument, str) and code.name not in ("GLOBAL", "INST"):
            texts.append(argument)
        elif code.name in ("GLOBAL", "INST"):
            found.append(str(argument).replace(" ", "."))
        elif code.name == "STACK_GLOBAL":
            found.append(".".join(texts[-2:]))
    return found


def _refusal(names: Iterable[str], said: str) -> str:
    """Why a pickle that imports something else than tensors was refused; nothing if that is not why."""
    plain = ("torch._utils.", "torch._tensor.", "collections.OrderedDict", "torch.serialization.")
    kinds = tuple(
        f"torch.{name}" for name in dir(torch) if name.endswith("Storage") or isinstance(vars(torch)[name], torch.dtype)
    )
    strange = [name for name in names if not name.startswith(plain) and name not in kinds]
    named = [name for name in strange if name in said] or strange
    if not named:
        return ""
    return (
        f"needs full pickle, which can run code: it would run {named[0]} when it is opened, so it was not; weights hold tensors "
        "only. Save the state_dict, best as safetensors"
    )


def _pickle(content: bytes, what: str) -> str:
    """Why a bare pickle is not opened."""
    try:
        said = _refusal(_globals(content), "")
    except Exception:  # whatever the library makes of a stranger's bytes
        said = ""
    old = (
        "is a bare pickle, as torch before 1.6 wrote; open it where you trust it and save its state_dict as safetensors"
    )
    return f"{what} {said or old}"


def _tensors(loaded: object, what: str, room: int) -> dict[str, Tensor]:
    """The named tensors in what was loaded."""
    if isinstance(loaded, Mapping):
        loaded = next((loaded[key] for key in NESTS if isinstance(loaded.get(key), Mapping)), loaded)
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointError(f"{what} holds no tensors by name, but a {type(loaded).__name__}; save the state_dict")
    for key, tensor in loaded.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{what} holds {key!r}, a {type(tensor).__name__}; save the state_dict alone")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise CheckpointError(f"{what}: tensor {key} is not a plain dense one; save it as one")
        if tensor.numel() * tensor.element_size() > min(tensor.untyped_storage().nbytes(), room):
            raise CheckpointError(
                f"{what}: tensor {key} claims {tensor.numel() * tensor.element_size():,} bytes, and the file has {room:,}; "
                "save it with .contiguous()"
            )
    return {key: tensor.detach() for key, tensor in loaded.items()}
