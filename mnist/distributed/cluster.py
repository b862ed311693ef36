"""The processes that train one run: how they connect, exchange data, and end when one of them is lost.

TensorFlow connects them by its `MultiWorkerMirroredStrategy`. They exchange data with `gather` within a graph, and with
`exchange` between two steps.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import sys
import threading
import traceback

from mnist import LOST, Error
from mnist.distributed.addresses import check_port

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context  # no public name can set the coordination service's limits

_GROUP = 1000  # a key that the strategy's own collectives do not use
_HEARTBEAT_SECONDS = 10  # or half of what a collective waits, if that is less
_POLL_SECONDS = 2
_GRACE_SECONDS = 4  # for a process to end by itself after its peer has ended
_ERRORS_OF_PEERS = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
)
_ERRORS_OF_ANY = (tf.errors.FailedPreconditionError, tf.errors.InternalError)  # a step may raise them, too


class WorkerLost(Error):
    """A process of the run that has ended or does not answer."""

    status = LOST


class Cluster:
    """The processes that train a run together, as one of them sees them.

    Args:
      jobs: a dict from "chief" and "worker" to lists of addresses, HOST:PORT. Default: this process alone.
      job, index: a string and an int. The job of this process and its place in the list of that job.
      timeout: seconds in which all must start. A third of it is the limit for an answer while they train.

    Attributes:
      workers: an int. The number of processes.
      worker: an int. The number of this process, counted from 0.
      is_chief: a bool. Whether it is worker 0, which alone writes to the run's folder.
      timeout: as given.

    Raises: `mnist.Error` if the port of this process is taken, `WorkerLost` if another process does not start in time.
    """

    def __init__(self, jobs=None, job="worker", index=0, timeout=60):
        jobs = {name: jobs[name] for name in sorted(jobs)} if jobs else {}  # chief, worker
        self._names = [(name, i) for name in jobs for i in range(len(jobs[name]))] or [(job, index)]
        self._addresses = [address for addresses in jobs.values() for address in addresses]
        self.workers, self.worker = len(self._names), self._names.index((job, index))
        self.is_chief = self.worker == 0
        self.timeout = timeout
        self._ranks = ranks(self._names)
        self._keys = itertools.count(1)
        self._gathers = {}
        if self.workers > 1:
            self._join(jobs, job, index)
            self._leaving = threading.Event()
            threading.Thread(target=self._watch, daemon=True).start()

    def _join(self, jobs, job, index):
        check_port(self._addresses[self.worker])
        leader = self._names[0]
        service = {"cluster_register_timeout_in_ms": self.timeout * 1000}
        # The heartbeat has to notice a lost process before a collective gives up by itself. A call that such a
        # collective leaves behind may write to memory that TensorFlow has freed.
        heartbeat = min(_HEARTBEAT_SECONDS, self.timeout / 6)
        service |= {"heartbeat_timeout_in_ms": int(heartbeat * 1000), "shutdown_barrier_timeout_in_ms": 5000}
        leader = f"/job:{leader[0]}/replica:0/task:{leader[1]}"
        context.context().configure_coordination_service("standalone", leader, **service)
        config = context.context().coordination_service
        config.cluster_register_with_barrier = True  # TensorFlow would wait forever for a missing worker
        for name, addresses in jobs.items():
            config.coordinated_job_list.add(name=name, num_tasks=len(addresses))
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(jobs), task_type=job, task_id=index, rpc_layer="grpc"
        )
        # TensorFlow holds Python's lock while it waits, so that no handler of Python could run at Ctrl-C.
        handlers = {signum: signal.signal(signum, signal.SIG_DFL) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
        except (tf.errors.OpError, RuntimeError) as error:
            missing = self._name_in(error) or "a worker"
            raise WorkerLost(f"{missing} did not come up in {self.timeout} s (--worker_timeout).") from None
        finally:
            for signum, handler in handlers.items():
                signal.signal(signum, handler)

    def _name_in(self, error):
        """Returns the other workers that an error of TensorFlow names, as text with their addresses."""
        found = re.findall(r"job:(\w+)/(?:replica:\d+/)?task:(\d+)", str(error))
        named = {(name, int(i)) for name, i in found} & set(self._names) - {self._names[self.worker]}
        numbers = sorted(map(self._names.index, named))
        return ", ".join(f"worker {i} ({self._addresses[i]})" for i in numbers)

    def gather(self, vector, timeout=None):
        """Gathers a vector `[n]` of each process in a graph, and returns `[workers, n]` in the order of the workers."""
        if self.workers == 1:
            return vector[tf.newaxis]
        with tf.device(f"/job:{self._names[self.worker][0]}/task:{self._names[self.worker][1]}/device:CPU:0"):
            rows = tf.raw_ops.CollectiveGather(
                input=vector[tf.newaxis],
                group_size=self.workers,
                group_key=_GROUP,
                instance_key=next(self._keys),
                shape=[self.workers, *vector.shape],
                communication_hint="ring",
                timeout_seconds=timeout or self.timeout / 3,
            )
            return rows if self._ranks == sorted(self._ranks) else tf.gather(rows, self._ranks)

    def exchange(self, data, timeout=None):
        """Sends bytes of any length to all processes, and returns a list with the bytes of each worker."""
        if self.workers == 1:
            return [data]
        (sizes,) = self._gather_array(np.array([len(data)], np.int32), timeout).T
        longest = 1 << max(10, int(sizes.max() - 1).bit_length())  # a power of two, because each size is another graph
        padded = np.frombuffer(data.ljust(longest, b"\0"), np.int32)
        rows = self._gather_array(padded, timeout)
        return [row.tobytes()[:size] for row, size in zip(rows, sizes, strict=True)]

    def _gather_array(self, array, timeout):
        key = array.size, timeout
        if key not in self._gathers:
            spec = [tf.TensorSpec([array.size], tf.int32)]
            gather = tf.function(lambda x: self.gather(x, timeout), input_signature=spec)
            self._gathers[key] = gather.get_concrete_function()
        return self._gathers[key](tf.constant(array)).numpy()

    def agree(self, value, timeout=None):
        """Sends a value of plain JSON to all processes, and returns a list with the value of each worker."""
        return [json.loads(text) for text in self.exchange(json.dumps(value).encode(), timeout)]

    def check_same(self, value, otherwise, timeout=None):
        """Raises `mnist.Error`, "worker <number> <otherwise>", if a worker has another value than the chief."""
        chief, *others = self.agree(value, timeout)
        for worker, other in enumerate(others, 1):
            if other != chief:
                raise Error(f"worker {worker} {otherwise}.")

    @contextlib.contextmanager
    def run(self):
        """Raises `WorkerLost` while it is entered if another process is lost. Without an error, all leave together."""
        try:
            order = self.agree(self.worker, self.timeout)
            if order != list(range(self.workers)):  # the sums would have other bits than on another layout
                raise RuntimeError(f"the collectives of TensorFlow have the order {order}.")
            yield
            self.exchange(b"")
        except (*_ERRORS_OF_PEERS, *_ERRORS_OF_ANY) as error:
            if self.workers == 1 or (isinstance(error, _ERRORS_OF_ANY) and not self._name_in(error)):
                raise
            if "CoordinationService/Heartbeat" in str(error):  # the chief answers heartbeats
                what = f"worker 0 ({self._addresses[0]}) was lost"
            elif isinstance(error, tf.errors.DeadlineExceededError):
                what = f"a worker did not answer for {self.timeout / 3:g} s (a third of --worker_timeout)"
            else:
                what = f"{self._name_in(error) or 'a worker'} was lost"
            raise WorkerLost(f"{what}: start it again to resume from the last checkpoint.") from None
        finally:
            if self.workers > 1:
                self._leaving.set()

    def _watch(self):
        """Ends this process after its peers, because no limit of TensorFlow ends a process that is stuck in Python."""
        watched = range(1, self.workers) if self.is_chief else [0]
        while not self._leaving.wait(_POLL_SECONDS):
            gone = [i for i in watched if not _accepts(self._addresses[i])]
            if gone and not self._leaving.wait(_GRACE_SECONDS):
                frame = sys._current_frames().get(threading.main_thread().ident)
                place = traceback.extract_stack(frame)[-1] if frame else None
                where = f" This one was at {place.filename}:{place.lineno}." if place else ""
                with contextlib.suppress(OSError):
                    os.write(2, f"error: worker {gone[0]} ({self._addresses[gone[0]]}) was lost.{where}\n".encode())
                os._exit(LOST)


def ranks(names):
    """Returns the row that TensorFlow's collectives give to each worker, named by a pair `(job, index)`.

    TensorFlow sorts tasks as strings, which puts task 10 before task 2.
    """
    order = sorted(names, key=lambda name: f"/job:{name[0]}/replica:0/task:{name[1]}/device:CPU:0")
    return [order.index(name) for name in names]


def _accepts(address):
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_POLL_SECONDS).close()
    except OSError as error:  # the network may be slow: heartbeats decide whether the process is lost
        return not isinstance(error, ConnectionRefusedError)
    return True
