"""The slices of a batch on the devices of one or many processes, with the same bits."""

from mnist.distributed.addresses import read_cluster
from mnist.distributed.cluster import Cluster, WorkerLost, ranks
from mnist.distributed.replicas import Replicas, check_slices, start

__all__ = [
    "Cluster",
    "Replicas",
    "WorkerLost",
    "check_slices",
    "ranks",
    "read_cluster",
    "start",
]
