"""A dask cluster of processes of this machine, each on cores of its own.

XLA's threads cost more than they bring while products are small, so that N processes of one core
train more runs a second than one process of N cores.

    caller  ->  host: a dask LocalCluster (scheduler, nannies)  ->  N workers

The host is started anew rather than forked or spawned, so that nothing loads the caller's main
module: notebooks, and scripts without a guard, can be callers.  It ends when its stdin does, that
is with the caller, however that ended, and takes the workers with it.  None of them hears Ctrl-C.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, Literal

START_SECONDS = 60  # longest wait for the host's answer, which is slow only on a busy machine
END_SECONDS = 10  # longest wait for the host to end by itself
HOST = (
    "import sys; sys.path[:] = sys.argv[2:];"
    " from isolab.sweeps.local import host; host(int(sys.argv[1]))"
)
SETTINGS = {
    "distributed.nanny.pre-spawn-environ": {},  # dask's trims memory after each step: slower
    "distributed.scheduler.allowed-failures": 2,  # the third worker dies over its batch in vain
    "distributed.scheduler.no-workers-timeout": "2m",
    "distributed.scheduler.worker-ttl": None,  # a worker that compiles is silent, and well
    "distributed.scheduler.work-stealing": False,
    # What dask watches itself with takes 1% of each worker's core.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick": {"interval": "10s", "cycle": "10s"},
    "distributed.admin.system-monitor.interval": "10s",
}


def process_count(processes: int | Literal["auto"] | None) -> int:
    """Returns how many processes train batches; None asks for this one alone.

    "auto" is one for each core, or one with an accelerator, which runs side by side fill.

    Raises:
        ValueError: no whole number of 1 or more, or more than one where there is an accelerator.
    """
    import jax

    cpu = jax.default_backend() == "cpu"
    if processes is None:
        return 1
    if processes == "auto":
        return len(own_cores()) if cpu else 1
    if not isinstance(processes, int) or isinstance(processes, bool) or processes < 1:
        raise ValueError(
            f"processes is {processes!r}; allowed: None, 'auto', or a whole number of 1 or more"
        )
    if processes > 1 and not cpu:
        raise ValueError(
            f"processes is {processes} with a {jax.default_backend()} backend; allowed: 1, since"
            " processes cannot share an accelerator (one trains runs side by side there)"
        )
    return processes


def own_cores() -> list[int]:
    """Returns the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def shares(cores: Sequence[int], processes: int) -> list[Sequence[int]]:
    """Deals cores out to processes; where they are too few, some processes share one."""
    cuts = [i * len(cores) // processes for i in range(processes + 1)]
    return [cores[start : max(end, start + 1)] for start, end in itertools.pairwise(cuts)]


@contextlib.contextmanager
def local_client(processes: int) -> Iterator[Any]:
    """Yields a dask client of this many worker processes, which end with the ``with`` block.

    Raises:
        isolab.sweeps.cluster.ClusterError: the processes cannot be started.
    """
    from isolab.sweeps.cluster import ClusterError, connect

    command = [sys.executable, "-c", HOST, str(processes), *sys.path]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        from isolab.sweeps.worker import Setup  # loads dask while the host does

        address = process.stdout.readline().strip()
        if not address:
            raise ClusterError(
                f"{processes} processes of {sys.executable!r} could not be started; what they wrote"
                " to standard error says why"
            )
        with connect(address, START_SECONDS) as client:
            client.register_plugin(Setup(shares(own_cores(), processes)))
            yield client
    finally:
        process.stdin.close()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def host(processes: int) -> None:
    """What the host does: runs a cluster, prints its scheduler's address, and ends with stdin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the workers inherit it
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a worker prints is no answer
    import dask

    dask.config.set(SETTINGS)
    import distributed
    import psutil

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        cluster: Any = distributed.LocalCluster
        started = cluster(
            n_workers=processes,
            threads_per_worker=1,
            host="127.0.0.1",
            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
            memory_limit=None,  # isolab.training.memory cuts batches to what there is
            local_directory=folder,
        )
        print(started.scheduler_address, file=answer, flush=True)
        sys.stdin.read()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # nobody need know how the cluster falls apart
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(0)
