"""The cores of this machine, and the threads of one operation."""

import os


def num_cores():
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def num_threads():
    """Returns the number of threads that TensorFlow uses for one operation. The last bits of a result depend on it."""
    variable = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    import tensorflow as tf  # here, because a sweep needs only the cores

    asked = tf.config.threading.get_intra_op_parallelism_threads()
    return asked or (int(variable) if variable.isdecimal() else 0) or num_cores()
