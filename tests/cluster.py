"""A Slurm cluster of one node, this machine, in a private folder: no munge, no systemd, two GPUs that are none.

`python tests/cluster.py FOLDER` starts one and prints the line that makes Slurm's commands use it; it runs until interrupted.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "sinfo", "scontrol", "scancel")
START = 30.0  # seconds it may take to start

CONF = """\
ClusterName=ci
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=10
SlurmctldPort={port}
SlurmdPort={other}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
ReturnToService=2
KillWait=5
MinJobAge=300
MaxArraySize=65
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
CommunicationParameters=NoInAddrAny
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Gres=gpu:2 State=UNKNOWN
PartitionName=cpu Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=10
"""

# stands for the accounting that such a cluster lacks, for whoever asks it
SACCT = """\
#!/bin/sh
echo 'JobID|State|NodeList'
"""


def absent() -> str:
    """Why there can be no cluster here; nothing when there can."""
    missing = [name for name in NEEDED if shutil.which(name, path=path()) is None]
    return f"{missing[0]} is not installed (apt-get install slurm-wlm)" if missing else ""


def path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _free() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def started(folder: Path) -> Iterator[dict[str, str]]:
    """Inside, the cluster runs; gives the environment that makes Slurm's commands use it."""
    for name in ("state", "spool", "log", "bin"):
        (folder / name).mkdir(parents=True)
    host, user = socket.gethostname().partition(".")[0], getpass.getuser()
    text = CONF.format(host=host, user=user, folder=folder, port=_free(), other=_free(), cpus=os.cpu_count())
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File=/dev/tty[0-1]\n")
    (folder / "bin" / "sacct").write_text(SACCT)
    (folder / "bin" / "sacct").chmod(0o755)
    here = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{folder / 'bin'}:{path()}"}
    processes = []
    try:
        for name in ("slurmctld", "slurmd"):
            command = [str(shutil.which(name, path=path())), "-D", "-f", str(folder / "slurm.conf")]
            with (folder / "log" / f"{name}.out").open("w") as log:
                processes.append(subprocess.Popen(command, env=here, stdout=log, stderr=log, start_new_session=True))
            time.sleep(0.5)
        until = time.monotonic() + START
        while (
            "idle"
            not in subprocess.run(
                ["sinfo", "-h", "-o", "%T"], env=here, capture_output=True, text=True, timeout=30
            ).stdout
        ):
            if time.monotonic() > until:
                said = "".join(file.read_text()[-2000:] for file in (folder / "log").iterdir())
                raise RuntimeError(f"Slurm did not start within {START} s: {said}")
            time.sleep(0.2)
        yield here
    finally:
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            subprocess.run(["scancel", "-u", user], env=here, timeout=10, capture_output=True)
            time.sleep(1)
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with started(Path(sys.argv[1]).resolve()) as here, contextlib.suppress(KeyboardInterrupt):
        print(f"export SLURM_CONF={here['SLURM_CONF']} PATH={here['PATH']}", flush=True)
        signal.pause()
