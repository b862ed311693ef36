"""The cores of this machine, the threads of one operation, and computing with the same bits on another machine.

The last bits of a result depend on the kernels that TensorFlow and NumPy choose for the processor when they are loaded.
With the environment `PORTABLE` they choose the same kernels, which need AVX2, on any x86-64 processor.
"""

import contextlib
import os
import platform
import shlex
import sys

from mnist import Error

PORTABLE = {
    "TF_ENABLE_ONEDNN_OPTS": "1",  # off by default on a processor without AVX-512, where other kernels compute
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "TF_NUM_INTRAOP_THREADS": "1",
    # NumPy 2.4 has X86_V4 in place of AVX512F to AVX512_CNL, and ignores names that it does not have.
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR",
    "OPENBLAS_CORETYPE": "Haswell",
}
# Environment variables that select kernels or arithmetic, by prefix, and suffixes of those that only log or dump.
_KERNELS = ("TF_ENABLE_ONEDNN_OPTS", "TF_XLA_FLAGS", "XLA_FLAGS", "TF_DETERMINISTIC_OPS", "ONEDNN_", "DNNL_")
_QUIET = ("_VERBOSE", "_JIT_DUMP", "_JIT_PROFILE", "_PRIMITIVE_CACHE_CAPACITY")
# Eigen computes these from the processor's own approximations of 1/x and 1/sqrt(x), and erf with or without FMA.
NOT_PORTABLE = ("Rsqrt", "Reciprocal", "Inv", "Erf", "Erfc", "Erfinv", "Ndtri")
_HALF = (14, 19)  # DT_BFLOAT16 and DT_HALF, for which processors have other kernels


def num_cores():
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def num_threads():
    """Returns the number of threads that TensorFlow uses for one operation. The last bits of a result depend on it."""
    variable = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    import tensorflow as tf  # here, because a sweep needs only the cores

    asked = tf.config.threading.get_intra_op_parallelism_threads()
    return asked or (int(variable) if variable.isdecimal() else 0) or num_cores()


def kernel_variables():
    """Returns the environment variables that select kernels or arithmetic, a dict."""
    names = sorted(name for name in os.environ if name.startswith(_KERNELS) and not name.endswith(_QUIET))
    return {name: os.environ[name] for name in names}


def _started_portable():
    """Returns whether this process was started with the environment `PORTABLE`, whatever `os.environ` is now."""
    if os.name != "posix":
        return False
    import posix  # its environ is the environment at the start of Python

    return all(posix.environ.get(os.fsencode(name)) == os.fsencode(value) for name, value in PORTABLE.items())


def restart_portable():
    """Starts this program again with the environment `PORTABLE`, unless it was started with it.

    Raises: `mnist.Error` if the command of this process cannot be repeated.
    """
    if _started_portable():
        return
    own = sys.argv[1:]
    if sys.argv[0] in ("", "-") or sys.orig_argv[len(sys.orig_argv) - len(own) :] != own:
        raise Error(f"--portable cannot start this program again: start it with env {_assignments()}.")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | PORTABLE)


def _assignments():
    return " ".join(f"{name}={shlex.quote(value)}" for name, value in PORTABLE.items())


def check_portable():
    """Raises `mnist.Error` if TensorFlow or NumPy may compute other bits here than on another machine."""
    import numpy as np
    import tensorflow as tf

    if not _started_portable() or not PORTABLE.items() <= os.environ.items():
        raise Error(f"portable has no effect, because this process was not started with env {_assignments()}")
    if others := kernel_variables().keys() - PORTABLE.keys() - {"TF_DETERMINISTIC_OPS"}:
        raise Error(f"portable: the environment has {', '.join(sorted(others))}, which may change the bits: unset it.")
    features = np._core._multiarray_umath.__cpu_features__  # without a public name
    if platform.machine().lower() not in ("x86_64", "amd64") or not (features["AVX2"] and features["FMA3"]):
        raise Error("portable needs an x86-64 processor with AVX2 and FMA, which this one is not.")
    if tf.config.get_visible_devices("GPU"):
        raise Error("portable is for processors, and TensorFlow found a GPU: set CUDA_VISIBLE_DEVICES=-1.")
    if num_threads() != 1:
        raise Error(f"portable needs one thread for one operation, not {num_threads()}: leave out --intra_op_threads.")
    if tf.config.optimizer.get_jit():
        raise Error("portable: XLA compiles for the processor that it runs on: leave it out.")


@contextlib.contextmanager
def portable_operations():
    """Checks all operations of the functions of TensorFlow that run for the first time within a `with` block.

    It looks at the graphs before and after Grappler, which makes a Rsqrt of a division by a Sqrt.

    Raises: `mnist.Error` that names an operation whose bits depend on the processor.
    """
    from tensorflow.python.eager import context  # no public name collects the optimized graphs

    collected = context.context()
    collected.enable_graph_collection()
    try:
        yield
        graphs = collected.export_run_metadata().function_graphs
    finally:
        collected.disable_graph_collection()
    for graph in [graph for both in graphs for graph in (both.pre_optimization_graph, both.post_optimization_graph)]:
        for node in [*graph.node, *(node for function in graph.library.function for node in function.node_def)]:
            if fault := _fault(node):
                raise Error(f"portable: {node.name} is {fault}, whose last bits depend on the processor.")


def _fault(node):
    """Returns what is not portable in a `NodeDef`, or None."""
    if node.op in NOT_PORTABLE:
        return f"the operation {node.op}"
    if "_XlaMustCompile" in node.attr and node.attr["_XlaMustCompile"].b:
        return "compiled by XLA"
    if any(value.type in _HALF for value in node.attr.values()):
        return "in a type of 16 bits"
    return None
