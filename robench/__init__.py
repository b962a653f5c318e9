"""robench: train, attack and tabulate; one harness for honest adversarial robustness tables."""

__version__ = "0.1.0"
