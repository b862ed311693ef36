"""The cores of this machine, and the threads that share one operation."""

import os


def num_cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def num_threads():
    """Threads that share one operation, as TensorFlow counts them; the last bits of a result depend on it."""
    variable = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    import tensorflow as tf  # here: a sweep asks for the cores alone

    asked = tf.config.threading.get_intra_op_parallelism_threads()
    return asked or (int(variable) if variable.isdecimal() else 0) or num_cores()
