"""What models over the core do around Keras' own `fit`, `evaluate` and `predict`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras

from iresnet_core.adapters.keras.batches import representative_batch, require_finite_arrays
from iresnet_core.adapters.keras.one_at_a_time import waiting
from iresnet_core.adapters.keras.static_shapes import steps_for_shapes
from iresnet_core.errors import InvalidArgumentError

__all__ = ["PreparedModel"]


@contextmanager
def _eager_on_torch(model: keras.Model) -> Iterator[None]:
    """Keep torch.compile, which cannot follow Keras' evaluation, out of a function that is being made."""
    asked = model.jit_compile
    if keras.backend.backend() == "torch":
        model.jit_compile = False
    try:
        yield
    finally:
        if model.jit_compile != asked:
            model.jit_compile = asked


class PreparedModel(keras.Model):
    """A model whose layers are initialised before it is trained, and whose data are looked at before they are used."""

    train_function: Any
    test_function: Any
    predict_function: Any
    # The mixins of `iresnet_core.adapters.shared` add this method to a subclass, and the property `initialized`.
    initialize: Any

    def __init__(self, *, dtype: Any = None, **options: Any) -> None:
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        super().__init__(dtype=policy.variable_dtype, **options)

    def fit(self, x: Any = None, y: Any = None, batch_size: int | None = None, **kwargs: Any) -> Any:
        """Train; arguments as those of `keras.Model.fit`.

        Layers that depend on data and are not initialised yet are initialised first, from a batch of `x`. Arrays that
        hold NaN or infinity are refused with NonFiniteError, those of `validation_data` too.
        """
        self._require_usable(x, "the data")
        self._require_usable(kwargs.get("validation_data"), "the validation data")
        if not getattr(self, "initialized"):  # noqa: B009
            self.initialize(representative_batch(x, batch_size or 32))
        return super().fit(x, y, batch_size=batch_size, **kwargs)

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return loss and metrics with certified weights; as `keras.Model.evaluate`, but for arrays that hold NaN."""
        self._require_usable(x, "the data")
        return super().evaluate(x, *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Return outputs as NumPy arrays, with certified weights; as `keras.Model.predict`, but for arrays with NaN."""
        self._require_usable(x, "the data")
        return super().predict(x, *args, **kwargs)

    def _require_usable(self, data: Any, name: str) -> None:
        """Refuse data that a compiled step would turn into NaN."""
        require_finite_arrays(data, name)

    def _batch_spec(self) -> Any:
        """Return the shape and dtype of a batch of any size, as `call` takes it."""
        raise NotImplementedError

    def _write_onnx(self, path: Any, **options: Any) -> None:
        """Write the model as an ONNX file."""
        raise NotImplementedError

    def export(
        self,
        filepath: Any,
        method: str | None = None,
        format: str | None = None,
        verbose: Any = None,
        input_signature: Any = None,
        **kwargs: Any,
    ) -> None:
        """Write a program of the present model for batches of any size, whether or not it was called before.

        Parameters
        ----------
        filepath : str or path
            Its ending decides: .onnx for ONNX, .pt2 for a program of PyTorch, else a folder with a SavedModel.
        method : {"log_prob", "encode", "inverse", "sample"}, optional
            What an ONNX file of a flow computes; by default the log-density. The other formats hold the call.
        format : {"tf_saved_model", "onnx", "torch"}, optional
            In place of the ending.
        verbose, input_signature, **kwargs
            As those of `keras.Model.export`; for ONNX ``n=`` and other options of a PyTorch flow's `export`.

        Notes
        -----
        A SavedModel needs TensorFlow beside Keras' own backend, which is not PyTorch. ONNX needs the packages torch,
        onnx and onnxscript, on every backend of Keras.

        Raises
        ------
        InvalidArgumentError
            If a SavedModel is asked for on Keras' PyTorch backend, where Keras cannot write any, or a method for
            another format than ONNX.
        MissingDependencyError
            If a package is missing that writes ONNX.
        """
        suffix = Path(filepath).suffix
        format = {".onnx": "onnx", ".pt2": "torch"}.get(suffix, "tf_saved_model") if format is None else format
        if format == "onnx" and input_signature is None:
            self._write_onnx(filepath, **kwargs, **({} if method is None else {"method": method}))
            return
        if method is not None:
            raise InvalidArgumentError(
                f"method={method!r} is for ONNX files (export('flow.onnx')); the other formats hold what a call of the "
                "model computes."
            )
        if keras.backend.backend() == "torch" and format == "tf_saved_model":
            raise InvalidArgumentError(
                "Keras cannot write a SavedModel on its PyTorch backend. Use export('model.pt2', format='torch') for a "
                "program of PyTorch; or save the model as a .keras file, load it in a process with "
                "KERAS_BACKEND=tensorflow or jax, and export it there."
            )
        signature = [self._batch_spec()] if input_signature is None else input_signature
        if format == "torch" and input_signature is None:
            any_size = {0: sys.modules["torch"].export.Dim("batch")}
            kwargs.setdefault("dynamic_shapes", [tuple(keras.tree.map_structure(lambda _: any_size, signature))])
        super().export(filepath, format=format, verbose=verbose, input_signature=signature, **kwargs)

    def make_train_function(self, force: bool = False) -> Any:
        """Compile the training step."""
        if force or self.train_function is None:
            super().make_train_function(force)
            self.train_function = steps_for_shapes(self, self.train_step) or waiting(self.train_function)
        return self.train_function

    def make_test_function(self, force: bool = False) -> Any:
        """Compile the evaluation step."""
        if force or self.test_function is None:
            with _eager_on_torch(self):
                super().make_test_function(force)
            self.test_function = steps_for_shapes(self, self.test_step) or waiting(self.test_function)
        return self.test_function

    def make_predict_function(self, force: bool = False) -> Any:
        """Compile the prediction step."""
        if force or self.predict_function is None:
            with _eager_on_torch(self):
                super().make_predict_function(force)
            own = steps_for_shapes(self, self.predict_step)
            self.predict_function = waiting(self.predict_function) if own is None else lambda data: own(iter(data))
        return self.predict_function
