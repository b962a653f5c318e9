"""robench: train, attack and tabulate; one harness for honest adversarial robustness tables.

    import robench

    robench.evaluate("timm:resnet18", "cifar10", "autoattack", threats="linf-8/255", count=1000)

Everything below is imported when it is first used, so that `import robench` costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robench.api import Results, evaluate, load_data, load_model, report, train

__version__ = "0.1.0"

__all__ = ["Results", "__version__", "evaluate", "load_data", "load_model", "report", "train"]


def __getattr__(name: str) -> Any:
    """One of the words above, from `robench.api`."""
    if name not in __all__:
        raise AttributeError(f"module 'robench' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module("robench.api"), name)


def __dir__() -> list[str]:
    """What completion shows."""
    return sorted({*globals(), *__all__})
