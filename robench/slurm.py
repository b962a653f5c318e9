"""What a Slurm cluster allows, asked before anything is submitted, and whether it still holds a job. No torch here."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from robench.errors import UsageError, nearest

PATIENCE = 60  # seconds a command of Slurm may take
PROBE = 30  # seconds to wait for a free node that looks at the results folder

KEYS = (  # of sbatch
    *(
        "account",
        "constraint",
        "cpus_per_task",
        "exclude",
        "gpus_per_node",
        "gres",
        "job_name",
        "mem",
        "partition",
        "qos",
    ),
    "time",
)
WHOLE = ("cpus_per_task", "gpus_per_node")
PLACE = ("account", "constraint", "partition", "qos")


def parse(texts: Sequence[str]) -> dict[str, str | int]:
    """What `--slurm KEY=VALUE` says, `time` in minutes.

    Raises:
        UsageError: for unknown keys and values that are none.
    """
    found: dict[str, str | int] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not value:
            raise UsageError(f"--slurm {text}: write KEY=VALUE, such as --slurm partition=gpu")
        if key not in KEYS:
            match = nearest(key, KEYS)
            guess = f" Did you mean {match!r}?" if match else ""
            raise UsageError(f"--slurm {text}: unknown key {key!r}.{guess} Known: {', '.join(KEYS)}")
        if key in WHOLE and not value.isdecimal():
            raise UsageError(f"--slurm {text}: {key} is a whole number")
        found[key] = minutes(value) if key == "time" else int(value) if key in WHOLE else value
    return found


def parameters(settings: Mapping[str, str | int]) -> dict[str, str | int]:
    """The settings as submitit calls them."""
    return {f"slurm_{key}": value for key, value in settings.items()}


def minutes(text: str) -> int:
    """A time limit in minutes: `4h`, `30m`, `2d`, `90` (minutes), or Slurm's `1-12:00:00` and `4:00:00`.

    Raises:
        UsageError: if it is none of these.
    """
    if found := re.fullmatch(r"(\d+)([dhm]?)", text):
        total = int(found[1]) * {"d": 1440, "h": 60, "m": 1, "": 1}[found[2]]
    elif found := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text):
        days, hours, mins, seconds = (int(part or 0) for part in found.groups())
        total = days * 1440 + hours * 60 + mins + (seconds > 0)
    else:
        raise UsageError(f"--slurm time={text} is no time: use 4h, 30m, 2d, 90 (minutes) or 1-12:00:00")
    if total < 1:
        raise UsageError(f"--slurm time={text}: a job needs at least a minute")
    return total


def check(settings: Mapping[str, str | int], tasks: int) -> None:
    """Refuse what this cluster would.

    Raises:
        UsageError: where there is no Slurm, no such partition, no array of that many jobs, or no such job at all.
    """
    absent = [name for name in ("sbatch", "srun", "squeue", "sinfo", "scontrol") if not _on_path(name)]
    if absent:
        raise UsageError(f"--launcher slurm: {absent[0]} is not on this machine's PATH; use --launcher local")
    partitions = _ask("sinfo", "-h", "-o", "%R").split()
    wanted = settings.get("partition")
    if wanted is not None and (unknown := [each for each in str(wanted).split(",") if each not in partitions]):
        raise UsageError(
            f"--slurm partition={wanted}: there is no {unknown[0]!r}; this cluster has {', '.join(partitions)}"
        )
    limit = array_limit()
    if tasks > limit:
        raise UsageError(
            f"this would be an array of {tasks:,} jobs, and the cluster takes {limit:,}: make jobs longer with --minutes, or "
            "launch less at once"
        )
    _try(settings)


def _try(settings: Mapping[str, str | int]) -> None:
    """Ask the scheduler whether it would take such a job, without submitting one.

    Raises:
        UsageError: with what it says.
    """
    line = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    command = ["sbatch", "--test-only", "--ntasks=1", *line, "--wrap=true"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise UsageError(f"Slurm does not answer: sbatch took more than {PATIENCE} s") from None
    if ran.returncode:
        asked = " ".join(f"--slurm {key}={value}" for key, value in settings.items())
        said = " ".join(ran.stderr.replace("sbatch: error: ", "").replace("allocation failure: ", "").split())
        raise UsageError(
            f"Slurm would take no such job ({asked or 'no --slurm options'}): {said or 'sbatch --test-only failed'}"
        )


def array_limit() -> int:
    """How many jobs an array may have."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"))
    return int(found[1]) - 1 if found else 1000


def check_shared(path: Path, settings: Mapping[str, str | int], option: str = "--results") -> bool:
    """Whether a node sees a file; asked on the first that is free within half a minute.

    Args:
        path: of the file.
        settings: of Slurm, of which those that say where count.
        option: by which another folder is chosen.

    Returns:
        False if no node was free, so that it could not be seen.

    Raises:
        UsageError: if it does not see it.
    """
    place = [f"--{key.replace('_', '-')}={settings[key]}" for key in PLACE if key in settings]
    command = ["srun", f"--immediate={PROBE}", "--ntasks=1", "--time=1", "--quiet", *place]
    script = f"test -f '{path.resolve()}' && echo seen || echo unseen"
    try:
        ran = subprocess.run([*command, "sh", "-c", script], capture_output=True, text=True, timeout=2 * PROBE)  # noqa: S603
    except subprocess.TimeoutExpired:
        return False
    if "unseen" in ran.stdout:
        raise UsageError(
            f"a node of the cluster does not see {path.resolve()}: it must be on a disk that all nodes share. Choose another "
            f"folder with {option}"
        )
    return "seen" in ran.stdout


def queued(jobs: Sequence[str]) -> bool:
    """Whether any of some jobs waits or runs; yes if the scheduler does not answer."""
    for job in jobs:
        try:
            command = ["squeue", "-h", "-j", job, "-o", "%i"]
            ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired):
            return True
        if ran.returncode and "Invalid job id" not in ran.stderr:
            return True
        if ran.stdout.strip():
            return True
    return False


def _on_path(name: str) -> bool:
    return any(os.access(Path(folder) / name, os.X_OK) for folder in os.get_exec_path())


def _ask(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout  # noqa: S603
    except subprocess.CalledProcessError as error:
        raise UsageError(f"Slurm does not answer: {command[0]} says {error.stderr.strip()!r}") from None
    except subprocess.TimeoutExpired:
        raise UsageError(f"Slurm does not answer: {command[0]} took more than {PATIENCE} s") from None
