"""Classifiers of which only the answers are used: files of TorchScript and ONNX."""

from __future__ import annotations

import contextlib
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robench import files
from robench.errors import CheckpointError, first_line, missing


class BlackBox(nn.Module):
    """A classifier without gradients: a TorchScript module, or anything else that answers images."""

    def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (n, classes), which no gradient passes."""
        with torch.no_grad():
            return self.answer(x).to(x)


class Onnx:
    """A session of onnxruntime, which computes on the CPU; one whose file fixes the batch gets batches of that size."""

    def __init__(self, session: Any) -> None:
        self.session = session
        (self.entry,) = session.get_inputs()
        size = self.entry.shape[0] if self.entry.shape else None
        self.size = size if isinstance(size, int) else 0

    def __call__(self, x: Tensor) -> Tensor:
        """Logits, (n, classes)."""
        parts = x.detach().cpu().float().split(self.size or max(len(x), 1))
        return torch.cat([self._part(part) for part in parts])

    def _part(self, x: Tensor) -> Tensor:
        short = self.size - len(x)
        whole = torch.cat([x, x[-1:].expand(short, *x.shape[1:])]) if short > 0 else x
        return torch.from_numpy(self.session.run(None, {self.entry.name: whole.contiguous().numpy()})[0])[: len(x)]


def torchscript_model(*, file: str) -> nn.Module:
    """The module in a TorchScript file.

    Raises:
        CheckpointError: if there is none.
    """
    _there(file, "TorchScript")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # torch would rather export; files that people have are what they are
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return BlackBox(torch.jit.load(file, map_location="cpu"))
        except (RuntimeError, ValueError):
            raise CheckpointError(f"{file} is not TorchScript{_or_weights(file)}") from None


def onnx_model(*, file: str) -> nn.Module:
    """The model in an ONNX file.

    Raises:
        UsageError: if onnxruntime is not installed.
        CheckpointError: if the file holds none, or one that takes more than images.
    """
    _there(file, "ONNX")
    try:
        import onnxruntime
    except ImportError as error:
        raise missing(f"onnx:{file}", "onnxruntime", "onnx", error) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no class of their own
        raise CheckpointError(f"{file} is not ONNX that onnxruntime can read: {first_line(error)}") from None
    if len(session.get_inputs()) != 1:
        names = ", ".join(each.name for each in session.get_inputs())
        raise CheckpointError(f"{file} takes {names}; a classifier takes images and nothing else")
    return BlackBox(Onnx(session))


def _there(file: str, wanted: str) -> None:
    if not Path(file).is_file():
        raise CheckpointError(f"there is no file {file}; name the file of the model")
    if page := files.web_page(Path(file), wanted):
        raise CheckpointError(page)


def _or_weights(file: str) -> str:
    """What a file that is no TorchScript is instead, and what to do; torch itself tells of its archive reader."""
    if zipfile.is_zipfile(file):
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
            if any(name.endswith("/data.pkl") for name in archive.namelist()):
                return f" but was written by torch.save: if it holds weights, --model my.py:make_model --weights {file}"
    return ", or is damaged: save the model again by torch.jit.save, or fetch the file again"
