from __future__ import annotations

import collections
import pickle
import stat
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from fastfss.weights import CheckpointError, read_checkpoint, read_metadata, save_checkpoint


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "bn.running_var": torch.rand(4, generator=generator, dtype=torch.float64),
        "bn.num_batches_tracked": torch.tensor(7),
        "half": torch.randn(5, generator=generator).half(),
    }


def assert_same(found, wanted):
    assert list(found) == list(wanted)
    for key, tensor in wanted.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: {"state_dict": t, "epoch": 3},
        lambda t: {"model": t, "optimizer": {"lr": 0.1}},
        lambda t: {"state_dict": {"model": t}},
        lambda t: {f"module.{key}": value for key, value in t.items()},
        lambda t: {"state_dict": {f"module.{key}": value for key, value in t.items()}},
        collections.OrderedDict,
    ],
    ids=["plain", "state_dict", "model", "both", "parallel", "wrapped-parallel", "ordered"],
)
def test_every_usual_form_of_a_torch_file_gives_the_same_tensors(tmp_path, tensors, wrap, zipped):
    path = tmp_path / "a.pth"
    torch.save(wrap(tensors), path, _use_new_zipfile_serialization=zipped)
    assert_same(read_checkpoint(path), tensors)


def test_prefix_of_some_keys_only_stays(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "a.pth")
    assert list(read_checkpoint(tmp_path / "a.pth")) == ["module.a", "b"]


def test_parameters_come_as_plain_tensors_without_gradient(tmp_path):
    torch.save(dict(nn.Linear(2, 2).named_parameters()), tmp_path / "a.pth")
    for tensor in read_checkpoint(tmp_path / "a.pth").values():
        assert not tensor.requires_grad


def test_content_decides_not_the_suffix(tmp_path, tensors):
    save_checkpoint(tmp_path / "a.safetensors", tensors)
    renamed = (tmp_path / "a.safetensors").rename(tmp_path / "a.pth")
    found = read_checkpoint(str(renamed))
    assert_same({key: found[key] for key in tensors}, tensors)


class Intruder:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def write_truncated(path: Path, whole: Path, keep: float) -> None:
    content = whole.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])


@pytest.mark.parametrize("keep", [0.001, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_file_is_named_as_such(tmp_path, tensors, kind, keep):
    whole, path = tmp_path / "whole.safetensors", tmp_path / "cut.bin"
    tensors["large"] = torch.zeros(4096)
    if kind == "safetensors":
        save_checkpoint(whole, tensors)
    else:
        torch.save(tensors, whole, _use_new_zipfile_serialization=kind == "zip")
    write_truncated(path, whole, keep)
    with pytest.raises(CheckpointError, match=r"cut\.bin: (truncated or damaged|neither)"):
        read_checkpoint(path)


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.pth: no such file"):
        read_checkpoint(tmp_path / "absent.pth")


def test_folder(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_empty_file(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match="the file is empty"):
        read_checkpoint(tmp_path / name)


def test_text_file(tmp_path):
    (tmp_path / "a.pth").write_text("<!DOCTYPE html>\nnot found")
    with pytest.raises(CheckpointError, match=r"a\.pth: neither .*<!DOCTYPE"):
        read_checkpoint(tmp_path / "a.pth")


def test_text_file_with_the_suffix_of_safetensors(tmp_path):
    (tmp_path / "a.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=r"a\.safetensors: truncated or damaged"):
        read_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize("plain_pickle", [True, False], ids=["pickle", "torch"])
def test_code_in_a_pickle_is_refused_and_never_runs(tmp_path, plain_pickle):
    path, trace = tmp_path / "a.pth", tmp_path / "trace"
    content = {"weight": torch.ones(1), "extra": Intruder(trace)}
    if plain_pickle:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"a\.pth: holds Python objects \([\w.]+\)"):
        read_checkpoint(path)
    assert not trace.exists()


def test_whole_pickled_module_is_refused_with_its_class(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, "holds no tensors"),
        ({"state_dict": {}}, "holds no tensors"),
        ([torch.ones(1)], "of type list, expected a dictionary"),
        (torch.ones(1), "of type Tensor, expected a dictionary"),
        ({"epoch": 3, "weight": torch.ones(1)}, "entry 'epoch' is of type int"),
        ({"net": {"weight": torch.ones(1)}}, "entry 'net' is of type dict"),
        ({0: torch.ones(1)}, "entry 0 is of type Tensor"),
    ],
    ids=["empty", "empty-inside", "list", "tensor", "number", "other-wrapper", "number-as-key"],
)
def test_what_is_not_a_state_dict_is_named(tmp_path, content, reason):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_checkpoint(tmp_path / "a.pth")
    assert str(tmp_path / "a.pth") in str(caught.value)


def test_saved_tensors_come_back_bit_by_bit(tmp_path):
    base = torch.arange(24.0).reshape(1, 2, 3, 4)
    tensors = {
        "channels_last": base.to(memory_format=torch.channels_last),
        "view": base[..., 1:3],
        "again": base,
        "expanded": torch.ones(1, 3).expand(2, 3),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "bfloat16": base.bfloat16(),
        "bool": base > 3,
        "parameter": nn.Parameter(base),
    }
    save_checkpoint(tmp_path / "a.safetensors", tensors, {"source": "here", "note": "grün"})
    found = read_checkpoint(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor)
    assert read_metadata(tmp_path / "a.safetensors") == {"source": "here", "note": "grün"}


def test_file_without_metadata_has_none(tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    assert read_metadata(tmp_path / "a.safetensors") == {}


def test_metadata_of_a_torch_file_is_an_error(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="found a PyTorch file"):
        read_metadata(tmp_path / "a.pth")


def test_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"a": torch.ones(1)})

    def fail(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, {"a": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == [path]
    assert torch.equal(read_checkpoint(path)["a"], torch.ones(1))


def test_saved_file_has_ordinary_permissions(tmp_path):
    (tmp_path / "plain").touch()
    save_checkpoint(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    mode = stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode)
    assert mode == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize(
    ("name", "tensors", "metadata", "error", "reason"),
    [
        ("a.pth", {"a": torch.ones(1)}, None, ValueError, "ending in .safetensors, got 'a.pth'"),
        ("no/a.safetensors", {"a": torch.ones(1)}, None, FileNotFoundError, "does not exist"),
        ("a.safetensors", {}, None, ValueError, "at least one tensor"),
        ("a.safetensors", {"a": [1.0]}, None, TypeError, "'a' is of type list"),
        ("a.safetensors", {"a": torch.ones(1)}, {"n": 3}, TypeError, "'n' is of type int"),
    ],
    ids=["suffix", "folder", "empty", "list", "metadata"],
)
def test_bad_save_is_refused_and_writes_nothing(tmp_path, name, tensors, metadata, error, reason):
    with pytest.raises(error, match=reason):
        save_checkpoint(tmp_path / name, tensors, metadata)
    assert not list(tmp_path.iterdir())


def test_others_can_read_what_is_saved(tmp_path, tensors):
    save_checkpoint(tmp_path / "a.safetensors", tensors)
    found = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())
