"""What all tests share: one torch thread, a pair of trained checkpoints, and the command line in this process."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from robench import recipe
from robench.cli import main
from robench.training import Run, train

torch.set_num_threads(1)  # the same bits on every machine, and tests that share cores do not fight for them
# how long an example takes to make says what else the machine does, and is no fault
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoints folder with two models; read it, never write to it."""
    root = tmp_path_factory.mktemp("trained")
    for name in ("standard-digits", "pgd-at-digits"):
        train(Run(recipe.load(name, [("stage.0.epochs", 3)]), root / name))
    return root


@pytest.fixture(scope="session")
def run_cli() -> Callable[..., tuple[int, str, str]]:
    """Call `robench ARGUMENTS` in this process; returns the exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        return int(stopped.value.code or 0), out.getvalue(), err.getvalue()

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly what could not be looked at here: a skipped test is a promise nobody kept."""
    texts = {str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", []) if report.longrepr}
    for text in sorted(text for text in texts if "NOT OPENED IN A BROWSER" in text):
        terminalreporter.write_line(text.removeprefix("Skipped: "), red=True, bold=True)
