"""The CNN, and functions on any Keras model: predict, check, serialize, copy."""

from mnist.model.checks import check_answers, check_model_and_optimizer
from mnist.model.cnn import CNN
from mnist.model.inference import (
    IMAGE_SHAPE,
    call_to_train,
    count_outputs,
    features_of,
    keep_state,
    make_predict_logits,
    scale_images,
    summarize_model,
)
from mnist.model.optimizers import Optimizer, Rate, count_on, make_learning_rate, make_optimizer
from mnist.model.serialize import (
    being_imported,
    copy_model,
    describe,
    describe_model,
    import_objects,
    is_like,
    make_object,
    module_of,
    probe,
    rebuild,
)

__all__ = [
    "CNN",
    "IMAGE_SHAPE",
    "Optimizer",
    "Rate",
    "being_imported",
    "call_to_train",
    "check_answers",
    "check_model_and_optimizer",
    "copy_model",
    "count_on",
    "count_outputs",
    "describe",
    "describe_model",
    "features_of",
    "import_objects",
    "is_like",
    "keep_state",
    "make_learning_rate",
    "make_object",
    "make_optimizer",
    "make_predict_logits",
    "module_of",
    "probe",
    "rebuild",
    "scale_images",
    "summarize_model",
]
