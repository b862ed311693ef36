"""Who the processes of a run are and where they listen, as TF_CONFIG or Slurm tell."""

import json
import os
import re
import socket

from mnist import Error

import tensorflow as tf


def check_port(address):
    """Raises `mnist.Error` if the port is taken: gRPC would share it with another of its servers."""
    port = int(address.rpartition(":")[2])
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, os.name != "nt")
        try:
            trial.bind(("", port))
        except OSError as error:
            raise Error(f"port {port} of {address} is taken ({error.strerror}): name another.") from None


def read_cluster():
    """The processes of this run as the environment tells: TF_CONFIG, or Slurm's variables where a step has many tasks.

    Returns: `jobs, job, index` as `Cluster` takes them; none if this process is alone.
    Raises: `mnist.Error` for what is no such description.
    """
    text = os.environ.get("TF_CONFIG", "").strip()
    if text:
        return _parse_config(text)
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "")
    if tasks.isdecimal() and int(tasks) > 1:
        try:
            # Slurm hands out the GPUs itself, and without any the resolver would count in steps of 0.
            resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
                gpus_per_node=int(tasks), gpus_per_task=1, auto_set_gpu=False
            )
            jobs = resolver.cluster_spec().as_dict()
        except (RuntimeError, ValueError) as error:
            raise Error(f"the variables of Slurm tell of no cluster: {error}") from None
        job, index = resolver.get_task_info()
        if job is None:
            raise Error(f"the variables of Slurm tell of no cluster: no task {os.environ['SLURM_PROCID']} in {jobs}")
        return jobs, job, index
    return ()


def _parse_config(text):
    def wrong(found):
        return Error(
            f'TF_CONFIG {found}: expected {{"cluster": {{"worker": ["HOST:PORT", ...]}}, '
            '"task": {"type": "worker", "index": 0}}.'
        )

    try:
        config = json.loads(text)
    except ValueError as error:
        raise wrong(f"is no JSON ({error})") from None
    if not isinstance(config, dict):
        raise wrong("is no object")
    jobs, task = config.get("cluster"), config.get("task")
    if not jobs and not task:
        return ()
    if not isinstance(jobs, dict) or not jobs:
        raise wrong("has no cluster")
    for name, addresses in jobs.items():
        if name not in ("chief", "worker"):
            raise wrong(f"has a job {name!r}, and this loop knows chief and worker")
        if not isinstance(addresses, list) or not all(isinstance(a, str) and _is_address(a) for a in addresses):
            raise wrong(f"has {addresses!r:.80} for the addresses of {name}")
    addresses = [address for job in jobs.values() for address in job]
    if twice := [address for address in addresses if addresses.count(address) > 1]:
        raise wrong(f"has {twice[0]} twice")
    if len(jobs.get("chief", [])) > 1:
        raise wrong("has more than one chief")
    if not isinstance(task, dict) or task.get("type") not in list(jobs):  # it may be a list, which has no hash
        raise wrong(f"has the task {task!r:.80}, of no job of the cluster")
    job, index = task["type"], task.get("index")
    index = int(index) if isinstance(index, str) and index.isdecimal() else index
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(jobs[job]):
        raise wrong(f"has the index {index!r} for {len(jobs[job])} of {job}, counted from 0")
    return (jobs, job, index) if len(addresses) > 1 else ()


def _is_address(text):
    port = re.fullmatch(r".+:(\d{1,5})", text)
    return bool(port) and 0 < int(port[1]) < 65536
