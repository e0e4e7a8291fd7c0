"""PyTorch: what is refused before a program is traced, files of classifiers, and programs of torch.export."""

import pytest
from torch_models import images, samples, torch, vector_flow

import iresnet_core
from iresnet_core.adapters.torch import Classifier
from iresnet_core.adapters.torch import program as programs
from iresnet_core.errors import InvalidArgumentError, MissingDependencyError, StorageError


def flow(d=2):
    return vector_flow(d, blocks=1).initialize(samples(50, d)).eval()


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("flow.txt", {}, "ends in .onnx"),
        ("no such folder/flow.pt2", {}, "there is no folder"),
        ("flow.pt2", {"method": "score"}, "method must be one of"),
        ("flow.pt2", {"method": "sample"}, "number of samples"),
        ("flow.pt2", {"n": 3}, "n is for method='sample'"),
        ("flow.pt2", {"tol": 0.1}, "tol=0.1"),
        ("flow.pt2", {"rng": 0}, "rng=0"),
        ("flow.pt2", {"errors": True}, "errors=True"),
    ],
)
def test_what_no_program_can_be_is_refused_at_once(path, options, message, monkeypatch):
    monkeypatch.setattr(torch.export, "export", lambda *args, **kwargs: pytest.fail("it was traced"))
    with pytest.raises(InvalidArgumentError, match=message):
        flow().export(path, **options)
    with pytest.raises(InvalidArgumentError, match="not been initialised"):
        vector_flow(2, blocks=1).export("flow.pt2")


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(programs, "ONNX_PACKAGES", ("a_package_that_is_not_there",))
    with pytest.raises(MissingDependencyError, match="pip install a_package_that_is_not_there"):
        flow().export("flow.onnx")


def test_a_program_of_torch_export(tmp_path):
    model = flow()
    model.export(tmp_path / "flow.pt2")
    score = torch.export.load(tmp_path / "flow.pt2").module()
    with torch.no_grad():
        for n in (1, 5):
            torch.testing.assert_close(score(samples(n, 2)), model.log_prob(samples(n, 2)), rtol=1e-5, atol=1e-5)


def classifier(dtype=torch.float32):
    torch.manual_seed(0)
    model = Classifier((1, 8, 8), 4, padding=1, widths=(6, 6), blocks=(1, 1), activation="relu").to(dtype)
    return model.initialize(images(30).to(dtype)).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_classifier_is_saved_and_loaded(tmp_path, dtype):
    model = classifier(dtype)
    model.save(tmp_path / "model.safetensors")
    again = Classifier.load(tmp_path / "model.safetensors")
    x = images(5).to(dtype)
    assert not again.training
    assert again.initialized
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_other_files_are_no_classifiers(tmp_path):
    path = tmp_path / "file.safetensors"
    flow().save(path)
    with pytest.raises(StorageError, match="holds no classifier"):
        Classifier.load(path)
    path.write_bytes(b"other")
    with pytest.raises(StorageError, match="no safetensors file"):
        Classifier.load(path)
    classifier().save(path)
    with pytest.raises(StorageError):
        iresnet_core.load(path)
