"""Slices of a batch on devices and processes, with the same bits."""

from mnist.distributed.addresses import read_cluster
from mnist.distributed.cluster import Cluster, ranks
from mnist.distributed.replicas import Replicas, check_slices, start

__all__ = [
    "Cluster",
    "Replicas",
    "check_slices",
    "ranks",
    "read_cluster",
    "start",
]
