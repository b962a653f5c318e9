"""Small files by the names that documented commands use, in the folder one is in."""

from importlib.util import find_spec
from pathlib import Path

import numpy
import torch
from documented import blocks
from PIL import Image
from safetensors.torch import save_file

for page, name in (("docs/own-model.md", "my.py"), ("docs/own-attack.md", "my_attacks.py")):
    Path(name).write_text(next(block.text for block in blocks(page) if block.file == name))

from my import make_model  # noqa: E402 (which was written here)

torch.manual_seed(0)
torch.save(make_model().state_dict(), "w.pt")

dice = numpy.random.default_rng(0)
pictures = dice.integers(0, 256, (40, 32, 32, 3), dtype=numpy.uint8)
labels = numpy.arange(40) % 10
numpy.savez("images.npz", image=pictures, x=pictures, y=labels)

for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
    folder = Path("pictures") / f"class-{label}"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(folder / f"{i}.png")

corrupted = Path("CIFAR-10-C")
corrupted.mkdir()
numpy.save(corrupted / "fog.npy", dice.integers(0, 256, (200, 32, 32, 3), dtype=numpy.uint8))
numpy.save(corrupted / "labels.npy", numpy.arange(200) % 10)

if find_spec("onnx"):
    import onnx

    inside, outside = onnx.TensorProto.FLOAT, ["n", 3, 32, 32]
    nodes = [onnx.helper.make_node("Flatten", ["x"], ["flat"]), onnx.helper.make_node("MatMul", ["flat", "w"], ["y"])]
    weights = onnx.numpy_helper.from_array(dice.normal(size=(3072, 10)).astype("float32"), "w")
    ends = [
        onnx.helper.make_tensor_value_info(name, inside, shape) for name, shape in (("x", outside), ("y", ["n", 10]))
    ]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], [weights])
    opset = onnx.helper.make_opsetid("", 13)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), "model.onnx")

if find_spec("timm"):
    import timm

    save_file(timm.create_model("resnet18", num_classes=10).state_dict(), "w.safetensors")
else:
    save_file(make_model().state_dict(), "w.safetensors")
