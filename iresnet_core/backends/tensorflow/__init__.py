"""The TensorFlow backend: eager, in tf.function, and compiled by XLA."""

from iresnet_core.backends.tensorflow.backend import TensorFlowBackend

__all__ = ["TensorFlowBackend"]
