"""Every name robench knows, and the three doors by which names enter.

A name is a row of a built-in table here, a `module:object` text (also `path/to/file.py:object`), or an entry point of an
installed package in the group `robench.methods`, `.attacks`, `.datasets` or `.models`. Tables hold texts only: nothing is
imported until a named object is used, so listing is instant and a plug-in nobody names never runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robench.names import Entry, Registry

METHODS = Registry(
    "method",
    [
        Entry("standard", "robench.methods.standard:Standard", "cross-entropy on augmented images, no adversary"),
        Entry("pgd-at", "robench.methods.pgd_at:PGDAT", "adversarial training on PGD examples (Madry et al. 2018)"),
        Entry("fgsm-rs", "robench.methods.fgsm_rs:FGSMRS", "one step from a random start (Wong et al. 2020)"),
        Entry("n-fgsm", "robench.methods.fgsm_rs:NFGSM", "one step from strong noise (de Jorge et al. 2022)"),
        Entry("trades", "robench.methods.trades:TRADES", "cross-entropy plus beta times KL to PGD (Zhang et al. 2019)"),
        Entry("rst", "robench.methods.rst:RST", "TRADES with pseudo-labels beside the labels (Carmon et al. 2019)"),
        Entry("simclr", "robench.methods.simclr:SimCLR", "contrastive learning of two views (Chen et al. 2020)"),
        Entry(
            "rocl",
            "robench.methods.rocl:RoCL",
            "contrastive learning against instance-wise attacks (Kim et al. 2020)",
            aliases={
                "lambda": "regularise",
                "regularize": "regularise",
                "regularize_to": "regularise_to",
                "regularize_loss": "regularise_loss",
                "attack_view": "attack_target",
            },
        ),
        Entry("supcon", "robench.methods.supcon:SupCon", "contrastive learning of classes (Khosla et al. 2020)"),
        Entry("linear", "robench.methods.linear:Linear", "linear evaluation (LE): a linear head on a frozen encoder"),
        Entry("robust-linear", "robench.methods.linear:RobustLinear", "r-LE: the linear head trained on PGD examples"),
        Entry(
            "finetune-at", "robench.methods.finetune:FinetuneAT", "full fine-tuning of an encoder on PGD examples (+AT)"
        ),
        Entry(
            "finetune-trades",
            "robench.methods.finetune:FinetuneTRADES",
            "full fine-tuning of an encoder by TRADES (+TRADES, AFF)",
        ),
        Entry(
            "finetune-at-ss",
            "robench.methods.finetune:FinetuneATSS",
            "full fine-tuning on PGD examples with NT-Xent beside it (+AT+SS)",
        ),
    ],
)


def _attack(
    name: str,
    target: str,
    summary: str,
    *,
    norms: str = "linf l2 l1",
    knowledge: str = "white-box",
    paper: str,
    cost: str,
    by: str = "robench",
    exempt: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    family: str = "",
    version: int = 1,
) -> Entry:
    """A row for an attack; `cost` is the most forward + backward passes for an image of ten classes."""
    facts = {"norms": norms, "knowledge": knowledge, "paper": paper, "cost": cost, "by": by}
    return Entry(name, f"robench.attacks.{target}", summary, options or {}, facts, family, version, exempt or {})


ATTACKS = Registry(
    "attack",
    [
        _attack(
            "fgsm",
            "pgd:FGSM",
            "one step of size eps from the clean image",
            paper="Goodfellow et al. 2015",
            cost="1 + 1",
            version=2,
            exempt={"I6": "one long step may overshoot", "I7": "one step does not reach every corner of the box"},
        ),
        _attack(
            "pgd",
            "pgd:PGD",
            "projected gradient ascent, random start; pgd-K or pgd-KxR for K steps, R restarts",
            paper="Madry et al. 2018",
            cost="21 + 20",
            version=2,
        ),
        _attack(
            "pgd-20",
            "pgd:PGD",
            "PGD with 20 steps of eps/8",
            options={"steps": 20, "restarts": 1},
            paper="Madry et al. 2018",
            cost="21 + 20",
            version=2,
        ),
        _attack(
            "mi-fgsm",
            "pgd:PGD",
            "PGD with momentum from the clean image",
            options={"steps": 10, "step": 0.1, "momentum": 1.0, "random_start": False},
            paper="Dong et al. 2018",
            cost="11 + 10",
            version=1,
        ),
        _attack(
            "eot-pgd",
            "pgd:PGD",
            "PGD on gradients averaged over 20 passes, for randomised models",
            options={"steps": 20, "draws": 20},
            paper="Athalye et al. 2018",
            cost="420 + 400",
        ),
        _attack(
            "feature-pgd",
            "feature_pgd:FeaturePGD",
            "PGD away from the clean features of an encoder; reads no label",
            paper="Kim et al. 2020",
            cost="22 + 20",
            exempt={
                "I4": "called by itself it moves images that are wrong already, and may put one right",
                "I6": "farther features need not be nearer to another class",
                "I7": "far features need not be another class",
            },
        ),
        _attack(
            "apgd-ce",
            "apgd:APGD",
            "Auto-PGD on cross-entropy: chooses its own steps",
            options={"loss": "ce"},
            paper="Croce & Hein 2020",
            cost="101 + 100",
            version=2,
        ),
        _attack(
            "apgd-dlr",
            "apgd:APGD",
            "Auto-PGD on the difference of logits ratio",
            options={"loss": "dlr"},
            paper="Croce & Hein 2020",
            cost="101 + 100",
            version=2,
        ),
        _attack(
            "apgd-t",
            "apgd:APGDT",
            "Auto-PGD towards nine classes in turn",
            paper="Croce & Hein 2020",
            cost="910 + 900",
            version=2,
        ),
        _attack(
            "fab-t",
            "fab:FAB",
            "smallest perturbation by projections onto linearised boundaries, towards nine classes",
            paper="Croce & Hein 2020b",
            cost="1,873 + 900",
        ),
        _attack(
            "fab",
            "fab:FAB",
            "the same towards whichever boundary is nearest",
            options={"targeted": False},
            paper="Croce & Hein 2020b",
            cost="209 + 900",
            exempt={"I7": "a single walk may never cross a boundary; the reference's stays behind on the same image"},
        ),
        _attack(
            "deepfool",
            "deepfool:DeepFool",
            "smallest perturbation by steps to the nearest linearised boundary",
            norms="linf l2",
            paper="Moosavi-Dezfooli et al. 2016",
            cost="111 + 450",
        ),
        _attack(
            "ddn",
            "ddn:DDN",
            "smallest perturbation: the radius shrinks and grows as the image fools or not",
            norms="l2",
            paper="Rony et al. 2019",
            cost="112 + 100",
        ),
        _attack(
            "cw",
            "cw:CW",
            "smallest perturbation by Adam on a margin, weighed by binary search",
            norms="l2",
            paper="Carlini & Wagner 2017",
            cost="1,011 + 1,000",
        ),
        _attack(
            "square",
            "square:Square",
            "random squares, kept when they help; reads logits only",
            knowledge="score-based",
            paper="Andriushchenko et al. 2020",
            cost="5,002 + 0",
        ),
        _attack(
            "hopskipjump",
            "hopskipjump:HopSkipJump",
            "smallest perturbation along the boundary; reads decisions only",
            norms="linf l2",
            knowledge="decision-based",
            paper="Chen et al. 2020",
            cost="26,008 + 0",
        ),
        _attack(
            "random-noise",
            "noise:RandomNoise",
            "the worst of 100 random points on the border of the ball: a floor",
            knowledge="decision-based",
            paper="-",
            cost="101 + 0",
            exempt={"I7": "a hundred random points need not hit what a search would find"},
        ),
        _attack(
            "gaussian-noise",
            "noise:GaussianNoise",
            "the worst of 100 images with Gaussian noise: a floor",
            knowledge="decision-based",
            paper="-",
            cost="101 + 0",
            exempt={"I7": "a hundred random points need not hit what a search would find"},
        ),
        _attack(
            "autoattack",
            "autoattack:AutoAttack",
            "the standard version: APGD-CE, APGD-T, FAB-T and Square in turn",
            paper="Croce & Hein 2020, 2021",
            cost="7,818 + 1,900",
            version=3,
        ),
        _attack(
            "autoattack-plus",
            "autoattack:AutoAttack",
            "the plus version: with APGD-DLR, untargeted FAB and five restarts",
            options={"version": "plus"},
            paper="Croce & Hein 2020",
            cost="9,730 + 7,300",
            version=2,
        ),
        _attack(
            "autoattack-bracket",
            "bracket:Bracket",
            "an interval, not AutoAttack: FAB-T and Square on a random tenth of what APGD leaves",
            paper="members: Croce & Hein 2020",
            cost="7,818 + 1,900",
        ),
        _attack(
            "autoattack-rand",
            "autoattack:AutoAttack",
            "APGD-CE and APGD-DLR over 20 averaged passes, for randomised models",
            options={"version": "rand"},
            paper="Croce & Hein 2020",
            cost="4,080 + 4,000",
            version=2,
        ),
        _attack(
            "torchattacks:",
            "torchattacks:Torchattacks",
            "any attack of torchattacks that has an eps, as torchattacks:NAME",
            norms="linf l2",
            knowledge="varies",
            paper="Kim 2020",
            cost="varies",
            by="torchattacks",
            family="name",
            exempt={
                "I3": "most of its attacks return their last image, whatever fooled the model before",
                "I10": "its code draws its noise for a whole batch",
            },
        ),
    ],
)


def _family(name: str, target: str, summary: str, family: str, **options: Any) -> Entry:
    """A row for images of any size, which are attacked in linf at 8/255 unless one says otherwise."""
    facts = {"images": "yours", "shape": "yours", "classes": "yours", "threat": "linf-8/255"}
    return Entry(name, f"robench.data.{target}", summary, options, facts, family)


DATASETS = Registry(
    "dataset",
    [
        Entry(
            "digits",
            "robench.data.digits:load",
            "scanned digits that ship with scikit-learn; no download",
            facts={"images": "1,437 + 360", "shape": "1x8x8", "classes": "10", "threat": "linf-0.2"},
        ),
        Entry(
            "cifar10",
            "robench.data.torchvision:load",
            "photographs (Krizhevsky 2009)",
            options={"name": "CIFAR10"},
            facts={"images": "50,000 + 10,000", "shape": "3x32x32", "classes": "10", "threat": "linf-8/255"},
        ),
        Entry(
            "cifar100",
            "robench.data.torchvision:load",
            "photographs, fine labels (Krizhevsky 2009)",
            options={"name": "CIFAR100"},
            facts={"images": "50,000 + 10,000", "shape": "3x32x32", "classes": "100", "threat": "linf-8/255"},
        ),
        Entry(
            "svhn",
            "robench.data.torchvision:load",
            "house numbers (Netzer et al. 2011)",
            options={"name": "SVHN"},
            facts={"images": "73,257 + 26,032", "shape": "3x32x32", "classes": "10", "threat": "linf-8/255"},
        ),
        Entry(
            "mnist",
            "robench.data.torchvision:load",
            "handwritten digits (LeCun et al. 1998)",
            options={"name": "MNIST"},
            facts={"images": "60,000 + 10,000", "shape": "1x28x28", "classes": "10", "threat": "linf-0.3"},
        ),
        Entry(
            "fashion-mnist",
            "robench.data.torchvision:load",
            "clothes (Xiao et al. 2017)",
            options={"name": "FashionMNIST"},
            facts={"images": "60,000 + 10,000", "shape": "1x28x28", "classes": "10", "threat": "linf-0.1"},
        ),
        Entry(
            "stl10",
            "robench.data.torchvision:load",
            "photographs at 96 pixels (Coates et al. 2011)",
            options={"name": "STL10"},
            facts={"images": "5,000 + 8,000", "shape": "3x96x96", "classes": "10", "threat": "linf-8/255"},
        ),
        Entry(
            "imagefolder:",
            "robench.data.imagefolder:load",
            "PATH/train/CLASS/IMAGE and PATH/test/CLASS/IMAGE, as imagefolder:PATH",
            facts={"images": "yours", "shape": "yours", "classes": "yours", "threat": "linf-8/255"},
            family="path",
        ),
        _family("folder:", "folder:load", "PATH/CLASS/IMAGE as test images, or PATH/train and PATH/test", "path"),
        _family("npz:", "npz:load", "x_test, y_test (x_train, y_train) or x, y in a file of numpy.savez", "file"),
        _family("torchvision:", "named:torchvision_set", "any data set of torchvision, as torchvision:CLASS", "name"),
        _family("hf:", "named:hub_set", "a data set of the Hugging Face Hub; pip install 'robench[hf]'", "name"),
        _family(
            "cifar10-c:",
            "corruptions:load",
            "corrupted CIFAR-10, cifar10-c:fog@severity=3 (Hendrycks & Dietterich 2019)",
            "corruption",
            folder="CIFAR-10-C",
            classes=10,
        ),
        _family(
            "cifar100-c:",
            "corruptions:load",
            "corrupted CIFAR-100 (Hendrycks & Dietterich 2019)",
            "corruption",
            folder="CIFAR-100-C",
            classes=100,
        ),
        _family("corruptions:", "corruptions:load", "your own in that layout, as corruptions:PATH/NAME", "corruption"),
    ],
)

# what `--model` names: whole classifiers from elsewhere, which are evaluated and never trained
CLASSIFIERS = Registry(
    "classifier",
    [
        Entry(
            "timm:", "robench.zoo:timm_model", "a model of timm, as timm:NAME", facts={"extra": "timm"}, family="name"
        ),
        Entry(
            "torchvision:",
            "robench.zoo:torchvision_model",
            "a model of torchvision, as torchvision:NAME",
            facts={"extra": "-"},
            family="name",
        ),
        Entry(
            "hf:",
            "robench.hub_model:hub_model",
            "a model of timm, transformers or robench on the Hugging Face Hub, or in a folder: hf:OWNER/NAME, hf:FOLDER",
            facts={"extra": "hub"},
            family="name",
        ),
        Entry(
            "robustbench:",
            "robench.zoo:robustbench_model",
            "a model of RobustBench, as robustbench:NAME (@threat_model=Linf,dataset=cifar10)",
            facts={"extra": "robustbench"},
            family="name",
        ),
        Entry(
            "torchscript:",
            "robench.blackbox:torchscript_model",
            "a TorchScript file as a black box, as torchscript:FILE",
            facts={"extra": "-"},
            family="file",
        ),
        Entry(
            "onnx:",
            "robench.blackbox:onnx_model",
            "an ONNX file as a black box, as onnx:FILE",
            facts={"extra": "onnx"},
            family="file",
        ),
    ],
)

MODELS = Registry(
    "model",
    [
        Entry("cnn", "robench.models.cnn:cnn", "three convolutions, for digits and MNIST", facts={"features": "256"}),
        Entry("resnet18", "robench.models.resnet:resnet18", "ResNet-18, CIFAR stem", facts={"features": "512"}),
        Entry("resnet50", "robench.models.resnet:resnet50", "ResNet-50, CIFAR stem", facts={"features": "2048"}),
        Entry(
            "preact-resnet18",
            "robench.models.resnet:preact_resnet18",
            "pre-activation ResNet-18, CIFAR stem",
            facts={"features": "512"},
        ),
        Entry("wrn-28-10", "robench.models.wrn:wrn_28_10", "Wide ResNet 28-10", facts={"features": "640"}),
        Entry("wrn-34-10", "robench.models.wrn:wrn_34_10", "Wide ResNet 34-10", facts={"features": "640"}),
    ],
    elsewhere={
        row: f"a recipe trains an encoder (robench list models); {row} names classifiers, for robench evaluate --model"
        for row in CLASSIFIERS.rows
        if row.endswith(":")
    },
)

TRACKERS = Registry(
    "tracker",
    [
        Entry(
            "tensorboard",
            "robench.trackers:TensorBoard",
            "event files in the run's folder",
            facts={"extra": "tensorboard"},
        ),
        Entry("wandb", "robench.trackers:WandB", "Weights & Biases (@project=NAME)", facts={"extra": "wandb"}),
        Entry("mlflow", "robench.trackers:MLflow", "MLflow (@experiment=NAME)", facts={"extra": "mlflow"}),
    ],
)
