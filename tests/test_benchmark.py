"""The benchmark of training compares like with like, and notices a ratio that falls."""

import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from robench import data
from robench.data import Images, Split
from robench.errors import DataError
from robench.losses import contrastive
from robench.methods import method_for
from robench.models import Nets, build_nets
from robench.noise import ImageGenerator
from robench.optimiser import LARS
from robench.protocols import Batch, Moment
from robench.threat import ThreatModel

FOLDER = Path(__file__).parent.parent / "benchmarks"
N = 6


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench() -> Iterator[tuple[ModuleType, ModuleType, ModuleType]]:
    """`measure`, `plain` and `training`."""
    sys.path.insert(0, str(FOLDER))
    yield load("measure"), load("plain"), load("training")
    sys.path.remove(str(FOLDER))


def networks(method: Any) -> Nets:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nets = build_nets("resnet18@width=2", (3, 16, 16), "cifar10", normalise=False)
        nets.parts.update(method.heads(nets.encoder.features, 4))
    return nets.train()


@pytest.mark.parametrize("name", ["pgd-at", "trades", "rocl"])
def test_the_transcriptions_minimise_what_our_methods_minimise(name: str, bench: Any, monkeypatch: Any) -> None:
    # in a ball of radius zero, where the two sides' noise is the same
    _, plain, _ = bench
    monkeypatch.setattr(plain, "EPS", 0.0)
    method = method_for(
        name, {"hidden": 16, "dimensions": 8} if name == "rocl" else {"start": 0.0} if name == "trades" else {}
    )
    views = tuple(
        torch.rand(N, 3, 16, 16, generator=torch.Generator().manual_seed(s)) for s in range(len(method.views))
    )
    y = torch.arange(N) % 4
    ours, theirs = networks(method), networks(method)
    batch = Batch(views, y, ImageGenerator(0, range(N)))
    expected = sum(method.terms(ours, batch, Moment(0, 1, ThreatModel.parse("linf-0"))).values())
    optimiser = torch.optim.SGD(theirs.parameters(), lr=0.1)
    if name == "rocl":
        found = plain.rocl(theirs.project, theirs, optimiser, *views)
    else:
        found = {"pgd-at": plain.pgd_at, "trades": plain.trades}[name](theirs, optimiser, views[0], y)
    assert found == pytest.approx(expected.item(), rel=1e-4)  # type: ignore[union-attr]


def test_the_released_loop_minimises_the_same_and_does_more(bench: Any, monkeypatch: Any) -> None:
    _, plain, _ = bench
    monkeypatch.setattr(plain, "EPS", 0.0)
    found, passes = {}, {}
    for name in ("pgd_at", "pgd_at_released"):
        nets = networks(method_for("pgd-at", {}))
        seen: list[bool] = []
        nets.register_forward_hook(lambda module, *_, seen=seen: seen.append(module.training))
        x = torch.rand(N, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        made = getattr(plain, name)(nets, torch.optim.SGD(nets.parameters(), lr=0.1), x, torch.arange(N) % 4, steps=3)
        found[name], passes[name] = made, seen
    assert found["pgd_at_released"][0] == pytest.approx(found["pgd_at"], rel=1e-5)
    assert passes == {"pgd_at": [False] * 3 + [True], "pgd_at_released": [True] * 6}


@pytest.mark.parametrize("views", [2, 3])
def test_the_transcribed_similarity_is_our_contrastive_loss(views: int, bench: Any) -> None:
    z = torch.randn(views * N, 5, generator=torch.Generator().manual_seed(0))
    expected = contrastive(z.chunk(views), temperature=0.5).mean()
    assert bench[1].similarity(z, N).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_transcribed_lars_is_ours(bench: Any) -> None:
    weights = []
    for kind in (LARS, bench[1].LARS):
        weight = nn.Parameter(torch.arange(1.0, 5.0))
        optimiser = kind([weight], lr=2.0, momentum=0.9, weight_decay=0.0)
        for step in range(3):
            weight.grad = torch.tensor([0.1, -0.2, 0.3, step + 1.0])
            optimiser.step()
        weights.append(weight.detach())
    assert (weights[0] - weights[1]).abs().max() < 1e-6


def test_a_ratio_that_fell_is_found(bench: Any, tmp_path: Path) -> None:
    measure = bench[0]
    before = [measure.Row("a", "b", ours=1.0, theirs=3.0), measure.Row("c", "d", ours=1.0, theirs=2.0)]
    measure.write(tmp_path / "kept.json", before, {"width": 2})
    kept = measure.read(tmp_path / "kept.json")
    assert kept == before
    assert json.loads((tmp_path / "kept.json").read_text())["rows"][0]["ratio"] == 3.0
    assert not measure.fallen(kept, [measure.Row("a", "b", 1.0, 2.71), measure.Row("new", "d", 1.0, 0.1)])
    assert measure.fallen(kept, [measure.Row("a", "b", 1.0, 2.69)]) == {"a": "a: 2.69x, recorded 3.00x +- 0 %"}


@pytest.mark.parametrize(
    ("later", "falls"),
    [
        ([3.1, 2.9], False),  # one pair was disturbed
        ([2.72, 2.8], False),  # once, and the middle of all is above 2.7
        ([2.6, 2.65], True),  # a real drop
        ([2.69, 9.0], True),  # which one lucky pair does not hide
    ],
)
def test_what_seems_to_have_fallen_is_measured_again(later: list[float], falls: bool, bench: Any, capsys: Any) -> None:
    measure = bench[0]
    recorded = [measure.Row("a", "b", 1.0, 3.0), measure.Row("c", "d", 1.0, 2.0)]
    first = [measure.row("a", "b", [1.0], [2.5]), measure.row("c", "d", [1.0], [2.0])]
    values, asked = iter(later), []

    def again(names: set[str]) -> list[Any]:
        asked.append(names)
        return [measure.row("a", "b", [1.0], [next(values)]), measure.row("c", "d", [1.0], [0.1])]

    lines = measure.held(recorded, first, again)
    assert set(lines) == ({"a"} if falls else set())
    assert all(names == {"a"} for names in asked)
    assert "a: 2.50x, recorded 3.00x" in capsys.readouterr().err


def test_a_disturbance_that_both_sides_met_is_none(bench: Any) -> None:
    measure = bench[0]
    # the machine was three times as slow in the second repeat, and in the last for ours alone
    made = measure.row("a", "b", [1.0, 3.0, 1.0, 1.0, 3.0], [2.0, 6.0, 2.0, 2.0, 2.0])
    assert made.ratio == 2.0
    assert made.pairs == (2 / 3, 2.0, 2.0, 2.0, 2.0)


def test_only_the_parts_of_what_fell_are_measured_again(bench: Any) -> None:
    measure, ran = bench[0], []

    def part(name: str) -> list[Any]:
        ran.append(name)
        return [measure.Row(f"{name} 1", "b", 1.0, 2.0), measure.Row(f"{name} 2", "b", 1.0, 2.0)]

    rows, again = measure.measured({"x": lambda: part("x"), "y": lambda: part("y")})
    assert [each.name for each in rows] == ["x 1", "x 2", "y 1", "y 2"]
    assert [each.name for each in again({"y 2"})] == ["y 1", "y 2"]
    assert ran == ["x", "y", "y"]


def test_the_script_runs_in_small(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pixels = torch.randint(0, 256, (2048, 3, 32, 32), dtype=torch.uint8)
    images = Images("cifar10", Split.TRAIN, pixels, torch.arange(2048) % 10, 10)
    monkeypatch.setattr(data, "load", lambda *_: images)
    threads = torch.get_num_threads()
    out = tmp_path / "made.json"
    parts = [word for name in ("steps", "pipeline", "wall") for word in ("--only", name)]
    small = ["--width", "2", "--batch", "2", "--repeats", "1", *parts]
    monkeypatch.setattr(sys, "argv", ["training.py", *small, "--out", str(out)])
    assert bench[2].main() == 0
    torch.set_num_threads(threads)
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 8 + 3 + 7
    assert all(each["ratio"] > 0 for each in rows)
    table = capsys.readouterr().out
    assert all(each["name"] in table for each in rows)


def test_without_images_it_says_so(bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def absent(*_: Any) -> Images:
        raise DataError("nothing here")

    monkeypatch.setattr(data, "load", absent)
    monkeypatch.setattr(sys, "argv", ["training.py"])
    threads = torch.get_num_threads()
    assert bench[2].main() == 0
    torch.set_num_threads(threads)
    assert "skipped: no images (nothing here)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mark", "names"),
    [
        ("training", ["training-width16", "training-width64", "training-views"]),
        ("levers", ["levers-width16", "levers-width64"]),
        ("evaluation", ["evaluation-pgd", "evaluation-autoattack", "evaluation-bracket"]),
    ],
)
def test_the_tables_are_what_is_kept(mark: str, names: list[str], bench: Any) -> None:
    page = FOLDER / "README.md"
    made = "\n".join(bench[0].kept(FOLDER / f"{name}.json") for name in names)
    pattern = rf"(?<=<!-- {mark} -->\n).*?(?=<!-- /{mark} -->)"
    if "RENEW_GOLDEN" in os.environ:
        page.write_text(re.sub(pattern, lambda _: made, page.read_text(), flags=re.DOTALL))
    assert re.search(pattern, page.read_text(), re.DOTALL)[0] == made  # type: ignore[index]


def test_the_plot_has_every_floor_and_every_kept_ratio(tmp_path: Path, bench: Any, monkeypatch: Any) -> None:
    plot = load("plot")
    monkeypatch.setattr(sys, "argv", ["plot.py", str(tmp_path / "ratios.svg")])
    plot.main()
    drawn = (tmp_path / "ratios.svg").read_text()
    kept = {row.name for files in plot.PANELS.values() for row in plot.shown(files)}
    assert kept == set(plot.FLOORS)  # a row that is renamed or not measured leaves a floor without a bar
    assert all(f"{name} / " in drawn for name in kept)
    page = (FOLDER / "README.md").read_text()
    for name in ("benchmark-ratios", "evaluation-scale"):
        assert f"../docs/{name}.svg" in page
        assert (FOLDER.parent / "docs" / f"{name}.svg").is_file()
