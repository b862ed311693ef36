"""The formats of an exported model: the writer of each, and the lines of Python that use its output."""

from mnist.formats import keras_file, onnx, saved_model, tflite
from mnist.formats.served import Served

# Each has OUTPUT, the name of its output in the folder of a run, write() and usage().
FORMATS = {"saved_model": saved_model, "keras": keras_file, "tflite": tflite, "onnx": onnx}

__all__ = ["FORMATS", "Served"]
