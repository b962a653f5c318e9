"""Checkpoints to and from the Hub, with its own client against a Hub on this machine; and models as it keeps them."""

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import hub_server
import pytest
import torch
from hub_server import Kept
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from robench import hub, hub_model
from robench.checkpoint import open_checkpoint
from robench.data import Images, Split
from robench.errors import CheckpointError, UsageError
from robench.foreign import open_foreign
from robench.results import Result, Store

Cli = Callable[..., tuple[int, str, str]]
NAME = "someone/pgd-at-digits"
# what the client uses in ways that its own libraries will not have much longer
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def here(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "checkpoints")
    return tmp_path


@pytest.fixture
def there(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    """A Hub that is empty, and a cache that is."""
    pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install 'robench[hub]'")
    constants = importlib.import_module("huggingface_hub.constants")
    with hub_server.serving() as (address, kept):
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(here / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield kept


# to the Hub and back


def test_a_checkpoint_goes_up_and_comes_back_bit_for_bit(there: Kept, here: Path, run_cli: Cli) -> None:
    run_cli("evaluate", "pgd-at-digits", "--attack", "fgsm", "--count", 20)
    code, out, err = run_cli("push", "pgd-at-digits", NAME)
    assert (code, out) == (0, ""), err
    assert f"pgd-at-digits is at {err.split('is at ')[1].split('/someone')[0]}/{NAME}/commit/" in err
    sent, own = there.files[NAME], open_checkpoint("pgd-at-digits", here / "checkpoints")
    assert set(sent) == {"README.md", "robench.json", "model.safetensors"}
    assert sent["model.safetensors"] == (own.folder / "best.safetensors").read_bytes()
    assert there.private[NAME]
    page = sent["README.md"].decode()
    (record,) = Store(here / "results").records()
    assert isinstance(record, Result)
    assert f"| fgsm linf-0.2 | 20 | {5 * sum(record.clean):.1f} | {5 * sum(record.robust):.1f} |" in page
    assert f"robench pull {NAME}" in page

    code, out, err = run_cli("pull", NAME, "--checkpoints", "others")
    assert (code, out) == (0, ""), err
    assert "others/pgd-at-digits: fetched; robench evaluate others/pgd-at-digits --attack autoattack" in err
    back = open_checkpoint("pgd-at-digits", here / "others")
    for end in ("json", "safetensors"):
        assert (back.folder / f"best.{end}").read_bytes() == (own.folder / f"best.{end}").read_bytes()
    assert not back.unready
    code, _, err = run_cli("evaluate", "pgd-at-digits", "--checkpoints", "others", "--attack", "fgsm", "--count", 20)
    assert code == 0, err
    assert "0 new, 1 already" in err  # the same weights have the same results
    assert "is there already" in run_cli("pull", NAME, "--checkpoints", "others")[2]


def test_a_model_on_the_hub_is_evaluated(there: Kept, here: Path, run_cli: Cli) -> None:
    run_cli("push", "pgd-at-digits", NAME)
    line = ("--dataset", "digits", "--attack", "fgsm", "--threat", "linf-0.2", "--count", 20)
    code, _, err = run_cli("evaluate", "--model", f"hf:{NAME}", *line)
    assert code == 0, err
    run_cli("evaluate", "pgd-at-digits", *line)
    one, other = (r for r in Store(here / "results").records() if isinstance(r, Result))
    assert {one.subject.name, other.subject.name} == {"pgd-at-digits"}
    assert (one.clean, one.robust) == (other.clean, other.robust)


def test_what_is_pushed_again_is_what_is_fetched(there: Kept, here: Path, run_cli: Cli) -> None:
    run_cli("push", "pgd-at-digits", NAME)
    run_cli("pull", NAME, "--name", "first")
    assert run_cli("push", "standard-digits", NAME, "--message", "better")[0] == 0
    code, _, err = run_cli("pull", NAME, "--name", "second")
    assert code == 0, err
    assert open_checkpoint("second", here / "checkpoints").recipe.name == "standard-digits"
    there.files.pop(NAME)  # without it the cache still has the last one
    assert run_cli("pull", NAME, "--name", "third")[0] == 0


def test_public_is_asked_for(there: Kept, run_cli: Cli) -> None:
    code, _, err = run_cli("push", "pgd-at-digits", NAME, "--public")
    assert code == 0, err
    assert not there.private[NAME]
    assert there.tokens == {"Bearer hf_secret"}


def test_a_plan_sends_nothing(there: Kept, run_cli: Cli) -> None:
    code, out, err = run_cli("push", "pgd-at-digits", NAME, "--plan")
    assert (code, err) == (0, "")
    assert "README.md:\n---" in out
    assert '"recipe": {' in out
    assert "model.safetensors: " in out
    assert there.asked == []


def test_nothing_but_push_sends(there: Kept, run_cli: Cli) -> None:
    run_cli("push", "pgd-at-digits", NAME)
    there.asked.clear()
    run_cli("pull", NAME, "--name", "again")
    run_cli(
        "evaluate",
        "--model",
        f"hf:{NAME}",
        "--dataset",
        "digits",
        "--attack",
        "fgsm",
        "--threat",
        "linf-0.2",
        "--count",
        8,
    )
    assert there.asked
    assert not [each for each in there.asked if not each.startswith(("GET", "HEAD"))]


def test_a_hub_that_refuses(there: Kept, run_cli: Cli) -> None:
    there.refuse = True
    code, out, err = run_cli("push", "pgd-at-digits", NAME)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {NAME} cannot be pushed (")
    assert err.endswith("): log in with hf auth login, or set HF_TOKEN to a token that may write there\n")
    assert "hf_secret" not in err


def test_a_name_nobody_has(there: Kept, run_cli: Cli) -> None:
    code, _, err = run_cli("pull", "someone/absent")
    assert code == 2
    assert "hf:someone/absent is no folder here and cannot be fetched (RepositoryNotFoundError" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["someone", "a/b/c", "/b", "a/"])
def test_what_is_no_name(name: str, here: Path, run_cli: Cli) -> None:
    code, _, err = run_cli("push", "pgd-at-digits", name)
    assert (code, err) == (2, f"error: {name!r} is no name on the Hub; write OWNER/NAME\n")


@pytest.mark.parametrize("line", [("push", "pgd-at-digits", NAME), ("pull", NAME)])
def test_the_hub_is_an_extra(line: tuple[str, ...], here: Path, run_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    what = f"robench {line[0]} {NAME}"
    code, _, err = run_cli(*line)
    assert (code, err) == (
        2,
        f"error: '{what}' comes with huggingface_hub, which is not installed: pip install 'robench[hub]'\n",
    )


# what came down is looked at


def laid_out(here: Path, **changes: Any) -> Path:
    """A folder as the Hub has it."""
    sent = hub.parcel(open_checkpoint("pgd-at-digits", here / "checkpoints"))
    whole = {**json.loads(sent.description), **changes}
    (here / "down").mkdir()
    (here / "down" / "robench.json").write_text(json.dumps(whole))
    (here / "down" / "model.safetensors").write_bytes(sent.weights)
    return here / "down"


def test_a_folder_will_do(here: Path, run_cli: Cli) -> None:
    laid_out(here)
    assert run_cli("pull", "./down", "--name", "copy")[0] == 0
    assert open_checkpoint("copy", here / "checkpoints").recipe.name == "pgd-at-digits"
    (here / "checkpoints" / "half").mkdir()
    (here / "checkpoints" / "half" / "best.safetensors").write_bytes(b"cut off")
    assert run_cli("pull", "./down", "--name", "half")[0] == 0  # the same command goes on
    assert open_checkpoint("half", here / "checkpoints").load() is not None
    code, _, err = run_cli("pull", "./down", "--name", "standard-digits")
    assert code == 2
    assert "standard-digits is another run: give this one another name, with --name" in err


@pytest.mark.parametrize("run", ["../out", "a/b", ".."])
def test_a_name_leads_nowhere_else(run: str, here: Path) -> None:
    with pytest.raises(UsageError, match="is no name of a run"):
        hub.pull(str(laid_out(here, name=run)), here / "checkpoints")
    assert not (here / "out").exists()


def test_damage_is_found(here: Path) -> None:
    folder, root = laid_out(here), here / "others"
    whole = json.loads((folder / "robench.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()

    def refused(words: str) -> None:
        with pytest.raises(CheckpointError, match=words):
            hub.pull(str(folder), root)
        with pytest.raises(CheckpointError, match=words):
            hub_model.hub_model(name=str(folder))
        assert not root.exists()

    (folder / "model.safetensors").write_bytes(weights[:-1] + b"x")
    refused("its SHA-256 is not the one in robench.json")
    (folder / "model.safetensors").write_text("<html>no</html>")
    refused("is a web page, not weights")
    (folder / "model.safetensors").write_bytes(weights)
    changed = {**whole, "checkpoint": {**whole["checkpoint"], "seed": 7}}
    (folder / "robench.json").write_text(json.dumps(changed))
    refused("its digest is not that of its content")
    (folder / "robench.json").write_text(json.dumps({**whole, "format": 9}))
    refused("by another version of robench")
    (folder / "robench.json").write_text("[]")
    refused("is damaged")


def test_what_another_trained_is_no_run(here: Path) -> None:
    (here / "down").mkdir()
    with pytest.raises(CheckpointError) as caught:
        hub.pull("down", here / "checkpoints")
    assert str(caught.value) == (
        "down holds no robench.json, so robench did not train it; evaluate it with --model hf:down"
    )


def test_code_of_a_stranger_is_not_run(here: Path, run_cli: Cli) -> None:
    (here / "evil.py").write_text("raise RuntimeError('it was run')\n")
    folder = laid_out(here)
    whole = json.loads((folder / "robench.json").read_text())
    table = whole["checkpoint"]
    table["recipe"]["model"] = "evil.py:make@width=2"
    table.pop("digest", None)
    table["digest"] = hub.digest(dict(table))
    (folder / "robench.json").write_text(json.dumps(whole))
    code, _, err = run_cli("pull", "./down", "--name", "stranger")
    assert code == 0, err
    assert "it names evil.py:make, which is code: read it before you train or evaluate with it" in err
    with pytest.raises(CheckpointError) as caught:
        hub_model.hub_model(name="./down")
    assert str(caught.value) == (
        "hf:./down names evil.py:make, which is code and was not run; robench pull it, read it, and evaluate the checkpoint if "
        "you trust it"
    )


# models of other packages, as the Hub has them


def colours(classes: int = 10) -> Images:
    dice = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (24, 3, 32, 32), generator=dice, dtype=torch.uint8)
    return Images("colours", Split.TEST, pixels, torch.arange(24) % classes, classes)


def cached(folder: Path, commit: str = "c0ffee") -> Path:
    """The same files as a folder of the Hub's cache."""
    whole = folder.parent / f"models--someone--{folder.name}"
    shutil.copytree(folder, whole / "snapshots" / commit)
    (whole / "refs").mkdir()
    (whole / "refs" / "main").write_text(commit)
    return whole


def test_a_timm_model(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="needs timm: pip install 'robench[timm]'")
    torch.manual_seed(3)
    model = timm.create_model("resnet10t", num_classes=10).eval()
    folder = tmp_path / "small"
    folder.mkdir()
    pretrained = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    config = {"architecture": "resnet10t", "num_classes": 10, "pretrained_cfg": pretrained}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(save_tensors(model.state_dict()))
    images = colours()
    for place in (folder, cached(folder)):
        found = open_foreign(f"hf:{place}", images)
        torch.testing.assert_close(found.load()(images.x()), model(images.x()))
        assert found.notes == ("its own files normalise by imagenet: add --preprocess imagenet?",)
        assert open_foreign(f"hf:{place}", images, preprocess="imagenet").notes == ()
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet10u"}))
    with pytest.raises(CheckpointError, match=r"is a 'resnet10u', which timm .* does not know: update timm"):
        open_foreign(f"hf:{folder}", images)


def test_the_cache_has_revisions(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    whole = cached(tmp_path / "small")
    assert hub.located(str(whole), None, "x") == whole / "snapshots" / "c0ffee"
    assert hub.located(str(whole), "c0ffee", "x") == whole / "snapshots" / "c0ffee"
    with pytest.raises(UsageError, match=r"has no snapshot 'v2' \(snapshots: c0ffee\)"):
        hub.located(str(whole), "v2", "x")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "has neither robench.json nor config.json; build the network yourself: --model my.py:make_model"),
        ("[]", "has a config.json that cannot be read"),
        ("{", "has a config.json that cannot be read"),
        ("{}", "names neither an architecture of timm nor one of transformers"),
        ('{"architectures": ["BertForMaskedLM"]}', "is a BertForMaskedLM; expected an image classifier"),
        (
            '{"architectures": ["XForImageClassification"], "auto_map": {"AutoConfig": "x.Y"}}',
            "brings code of its own, which was not run",
        ),
    ],
)
def test_what_is_no_classifier(config: str | None, words: str, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError) as caught:
        open_foreign(f"hf:{tmp_path}", colours())
    assert words in str(caught.value)


class Tiny(nn.Module):
    """Answers as transformers does."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Any:
        return SimpleNamespace(logits=self.classifier(x.mean((2, 3))), hidden_states=None)


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A double of transformers, which says what it was asked and answers what it is told; and a folder for it."""
    known: dict[str, Any] = {"told": {}}

    def from_pretrained(path: str, **options: Any) -> Any:
        known["asked"] = (path, options)
        return Tiny(), known["told"]

    fake, utils = ModuleType("transformers"), ModuleType("transformers.utils")
    fake.AutoModelForImageClassification = SimpleNamespace(from_pretrained=from_pretrained)  # type: ignore[attr-defined]
    nothing = dict.fromkeys(("disable_progress_bar", "enable_progress_bar", "set_verbosity_error"), lambda: None)
    utils.logging = SimpleNamespace(  # type: ignore[attr-defined]
        **nothing, is_progress_bar_enabled=lambda: True, get_verbosity=lambda: 30, set_verbosity=lambda level: None
    )
    monkeypatch.setitem(sys.modules, "transformers", fake)
    monkeypatch.setitem(sys.modules, "transformers.utils", utils)
    (tmp_path / "config.json").write_text('{"architectures": ["TinyForImageClassification"], "model_type": "tiny"}')
    (tmp_path / "model.safetensors").write_bytes(save_tensors(Tiny().state_dict()))
    return known


def test_a_model_of_transformers_runs_no_code_beside_it(tmp_path: Path, double: dict[str, Any]) -> None:
    images = colours()
    found = open_foreign(f"hf:{tmp_path}", images)
    assert found.load()(images.x()).shape == (24, 10)
    path, options = double["asked"]
    assert path == str(tmp_path)
    assert (options["local_files_only"], options["use_safetensors"], options["trust_remote_code"]) == (
        True,
        True,
        False,
    )


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"missing_keys": ["classifier.weight"]}, "1 of 2 tensors differ. First: classifier.weight is missing"),
        (
            {"mismatched_keys": [("classifier.bias", (7,), (10,))], "unexpected_keys": ["classifier.x"]},
            "2 of 2 tensors differ. First: classifier.bias is (7,), the model has (10,)",
        ),
        ({"unexpected_keys": {"more"}}, "1 of 2 tensors differ. First: more is none of the model's"),
    ],
)
def test_a_part_that_was_left_random_is_refused(
    told: dict[str, Any], words: str, tmp_path: Path, double: dict[str, Any]
) -> None:
    double["told"] = told
    with pytest.raises(CheckpointError) as caught:
        open_foreign(f"hf:{tmp_path}", colours())
    assert str(caught.value) == (
        f"the weights of hf:{tmp_path} do not fit TinyForImageClassification: {words}; fetch it again, or build the network "
        "yourself: --model my.py:make_model --weights FILE.safetensors"
    )


@pytest.mark.usefixtures("double")
def test_only_safetensors(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors, and other files of weights may run code"):
        open_foreign(f"hf:{tmp_path}", colours())


def test_transformers_is_an_extra(tmp_path: Path, double: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError) as caught:
        open_foreign(f"hf:{tmp_path}", colours())
    assert str(caught.value) == (
        f"'hf:{tmp_path}' comes with transformers, which is not installed: pip install 'robench[transformers]'"
    )


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], "half"),
        ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], "imagenet"),
        ([0.5, 0.4, 0.5], [0.5, 0.5, 0.5], "0.5,0.4,0.5,0.5,0.5,0.5"),
        ([0.1307], [0.3081], "mnist"),
    ],
)
def test_its_own_normalisation_is_told(mean: list[float], std: list[float], expected: str, tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"do_normalize": True, "image_mean": mean, "image_std": std}))
    assert hub_model.normalisation(str(tmp_path)) == expected
    path.write_text(json.dumps({"do_normalize": False, "image_mean": mean, "image_std": std}))
    assert hub_model.normalisation(str(tmp_path)) == ""
    path.write_text("[3]")
    assert hub_model.normalisation(str(tmp_path)) == ""


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_what_transformers_itself_wrote(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'robench[transformers]'")
    torch.manual_seed(0)
    if kind == "vit":
        small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        config = transformers.ViTConfig(**small, image_size=32, patch_size=8, num_labels=10)
        model = transformers.ViTForImageClassification(config)
    else:
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=10)
        model = transformers.ResNetForImageClassification(config)
    model.eval().save_pretrained(tmp_path / "model", max_shard_size="8KB")
    images = colours()
    for place in (tmp_path / "model", cached(tmp_path / "model")):
        found = open_foreign(f"hf:{place}", images)
        torch.testing.assert_close(found.load()(images.x()), model(images.x()).logits)
