"""The processes of a run and their addresses, read from TF_CONFIG or from the variables of Slurm."""

import json
import os
import re
import socket

from mnist import Error

import tensorflow as tf


def check_port(address):
    """Raises `mnist.Error` if the port of an address is taken, because gRPC would share it with its other server."""
    port = int(address.rpartition(":")[2])
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, os.name != "nt")
        try:
            trial.bind(("", port))
        except OSError as error:
            raise Error(f"port {port} of {address} is taken ({error.strerror}): name another.") from None


def read_cluster():
    """Reads which processes share this run: from TF_CONFIG, or from Slurm if its step has several tasks.

    Returns: `(jobs, job, index)` as `Cluster` takes them, an empty tuple if this process is alone.
    Raises: `mnist.Error` if the environment describes no cluster or no process of it.
    """
    if text := os.environ.get("TF_CONFIG", "").strip():
        return _parse_config(text)
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "")
    return _read_slurm(int(tasks)) if tasks.isdecimal() and int(tasks) > 1 else ()


def is_chief():
    """Returns whether this process is worker 0 of its run, before it is connected. Raises: as `read_cluster`."""
    described = read_cluster()
    return not described or described[1:] == (min(described[0]), 0)


def _read_slurm(tasks):
    try:
        # Slurm assigns the GPUs itself, and without a number of GPUs the resolver would count ports in steps of 0.
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            gpus_per_node=tasks, gpus_per_task=1, auto_set_gpu=False
        )
        jobs = resolver.cluster_spec().as_dict()
        job, index = resolver.get_task_info()
        if job is None:
            raise ValueError(f"no task {os.environ['SLURM_PROCID']} in {jobs}")
    except (RuntimeError, ValueError) as error:
        raise Error(f"the variables of Slurm describe no cluster: {error}") from None
    return jobs, job, index


def _parse_config(text):
    try:
        config = json.loads(text)
    except ValueError as error:
        raise _wrong(f"is not JSON ({error})") from None
    if not isinstance(config, dict):
        raise _wrong("is not an object")
    jobs, task = config.get("cluster"), config.get("task")
    if not jobs and not task:
        return ()
    if not isinstance(jobs, dict) or not jobs:
        raise _wrong("has no cluster")
    for name, addresses in jobs.items():
        if name not in ("chief", "worker"):
            raise _wrong(f"has a job {name!r}, expected chief or worker")
        if not isinstance(addresses, list) or not all(map(_is_address, addresses)):
            raise _wrong(f"has {addresses!r:.80} for the addresses of {name}")
    addresses = [address for job in jobs.values() for address in job]
    if twice := [address for address in addresses if addresses.count(address) > 1]:
        raise _wrong(f"has {twice[0]} twice")
    if len(jobs.get("chief", [])) > 1:
        raise _wrong("has more than one chief")
    if not isinstance(task, dict) or task.get("type") not in list(jobs):  # a list, because the type may have no hash
        raise _wrong(f"has the task {task!r:.80}, of no job of the cluster")
    job, index = task["type"], task.get("index")
    index = int(index) if isinstance(index, str) and index.isdecimal() else index
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(jobs[job]):
        raise _wrong(f"has the index {index!r} for {len(jobs[job])} of {job}, counted from 0")
    return (jobs, job, index) if len(addresses) > 1 else ()


def _wrong(found):
    expected = '{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}'
    return Error(f"TF_CONFIG {found}: expected {expected}.")


def _is_address(value):
    port = re.fullmatch(r".+:(\d{1,5})", value) if isinstance(value, str) else None
    return bool(port) and 0 < int(port[1]) < 65536
