"""The processes that train one run: how they find each other, what they tell each other, and what if one is lost.

TensorFlow's `MultiWorkerMirroredStrategy` connects them; between two steps of the loop they have `exchange`, within
the graph `gather`.
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
_GRACE_SECONDS = 4  # in which a process whose peer has gone may end by itself


class WorkerLost(Error):
    """A process of the run has ended, or answers no more."""

    status = LOST


class Cluster:
    """One process of `workers` that train together, the `worker`th, or a process alone.

    Args:
      jobs: a dict from the names of jobs to lists of addresses, HOST:PORT.
      job, index: which of them this process is.
      timeout: seconds in which all must come up; a third of it for an answer while they train.
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
        # A process that is dead or stopped is to be noticed by this: a collective that gives up by itself may leave a
        # call under way, which then writes to memory that is free.
        heartbeat = min(_HEARTBEAT_SECONDS, self.timeout / 6)
        service |= {"heartbeat_timeout_in_ms": int(heartbeat * 1000), "shutdown_barrier_timeout_in_ms": 5000}
        leader = f"/job:{leader[0]}/replica:0/task:{leader[1]}"
        context.context().configure_coordination_service("standalone", leader, **service)
        config = context.context().coordination_service
        config.cluster_register_with_barrier = True  # else a worker that never comes is waited for without end
        for name, addresses in jobs.items():
            config.coordinated_job_list.add(name=name, num_tasks=len(addresses))
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(jobs), task_type=job, task_id=index, rpc_layer="grpc"
        )
        # TensorFlow holds Python's lock while it waits: no handler of Python would hear Ctrl-C.
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
        """The workers that an error of TensorFlow names, with their addresses."""
        found = re.findall(r"job:(\w+)/(?:replica:\d+/)?task:(\d+)", str(error))
        named = {(name, int(i)) for name, i in found} & set(self._names) - {self._names[self.worker]}
        numbers = sorted(map(self._names.index, named))
        return ", ".join(f"worker {i} ({self._addresses[i]})" for i in numbers)

    def gather(self, vector, timeout=None):
        """In a graph: `[n]` of this process to `[workers, n]` of all, in the order of the workers."""
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
        """Tells all processes something, and waits for what they tell.

        Args:
          data: bytes.
          timeout: seconds to wait, if others than while they train.

        Returns: a list of bytes, one for each worker.
        """
        if self.workers == 1:
            return [data]
        (sizes,) = self._gather_array(np.array([len(data)], np.int32), timeout).T
        longest = 1 << max(10, int(sizes.max() - 1).bit_length())  # few sizes: each is a graph of its own
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
        """`exchange` of what JSON can tell. Returns: a list of values, one for each worker."""
        return [json.loads(text) for text in self.exchange(json.dumps(value).encode(), timeout)]

    def check_same(self, value, otherwise, timeout=None):
        """Raises `mnist.Error` if a value is not the chief's on all workers.

        Args:
          value: what JSON can tell.
          otherwise: what a worker with another is or does, in words.
        """
        chief, *others = self.agree(value, timeout)
        for worker, other in enumerate(others, 1):
            if other != chief:
                raise Error(f"worker {worker} {otherwise}.")

    @contextlib.contextmanager
    def run(self):
        """While entered, the loss of another process is a `WorkerLost`. Left in good order, all leave together."""
        try:
            told = self.agree(self.worker, self.timeout)
            if told != list(range(self.workers)):  # the sums would have other bits than on another layout
                raise RuntimeError(f"the collectives of TensorFlow have the order {told}.")
            yield
            self.exchange(b"")
        except (
            tf.errors.UnavailableError,
            tf.errors.DeadlineExceededError,
            tf.errors.AbortedError,
            tf.errors.CancelledError,
            tf.errors.FailedPreconditionError,
            tf.errors.InternalError,
        ) as error:
            own = isinstance(error, (tf.errors.FailedPreconditionError, tf.errors.InternalError))
            if self.workers == 1 or (own and not self._name_in(error)):  # a fault of the step's: not of the others
                raise
            if "CoordinationService/Heartbeat" in str(error):  # which the chief answers
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
        """Ends a process that is stuck in Python when those have gone that it would have to answer to.

        The others give it up by the limits of TensorFlow's collectives; it would not notice.
        """
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
    """Where TensorFlow's collectives put what each of the workers gives, `(job, index)`: task 10 before task 2."""
    order = sorted(names, key=lambda name: f"/job:{name[0]}/replica:0/task:{name[1]}/device:CPU:0")
    return [order.index(name) for name in names]


def _accepts(address):
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_POLL_SECONDS).close()
    except ConnectionRefusedError:
        return False
    except OSError:  # a network that is slow: heartbeats tell whether it is lost
        return True
    return True
