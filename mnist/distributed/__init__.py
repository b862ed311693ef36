"""The slices of a batch on the devices of one or many processes, with the same bits."""

from mnist.distributed.addresses import is_chief, read_cluster
from mnist.distributed.cluster import Cluster, WorkerLost, ranks
from mnist.distributed.replicas import Replicas, check_slices, start

__all__ = [
    "Cluster",
    "Replicas",
    "WorkerLost",
    "check_slices",
    "is_chief",
    "ranks",
    "read_cluster",
    "start",
]
