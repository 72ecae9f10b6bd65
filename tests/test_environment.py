"""What `fastfss env` says, on this machine and on machines that are described to it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

import fastfss
from fastfss import environment as module
from fastfss.environment import environment

X86 = """\
processor\t: 0
model name\t: Some CPU @ 2.00GHz
flags\t\t: fpu sse4_2 avx avx2 fma f16c avx512f amx_tile amx_bf16 hypervisor
"""
MAPS = """\
7f00-7f10 r-xp 00000000 fd:00 11 {home}/env/lib/python3.11/site-packages/torch/lib/libgomp.so.1
7f10-7f20 r--p 00010000 fd:00 11 {home}/env/lib/python3.11/site-packages/torch/lib/libgomp.so.1
7f20-7f30 r-xp 00000000 fd:00 12 /usr/lib/libomp_helpers.txt
7f30-7f40 rw-p 00000000 00:00 0 [heap]
"""


def native_module(architectures=None, devices=()):
    def cuda_devices():
        if isinstance(devices, Exception):
            raise devices
        return list(devices)

    return SimpleNamespace(
        compiled_isas="portable,avx2,avx512",
        best_isa=lambda: SimpleNamespace(name="avx512"),
        active_isa=lambda: SimpleNamespace(name="avx2"),
        cuda_architectures=architectures,
        cuda_devices=cuda_devices,
    )


@pytest.fixture
def files(monkeypatch):
    """Replaces what is read under /proc."""
    contents: dict[str, str] = {}
    monkeypatch.setattr(module, "_read", lambda path: contents.get(path, ""))
    return contents


@pytest.fixture
def native(monkeypatch):
    def use(replacement):
        monkeypatch.setattr(module._native_call, "module", replacement)
        return {backend.name: backend for backend in environment().backends}

    return use


def test_versions_are_those_that_the_packages_report():
    found = environment()
    assert found.fastfss == fastfss.__version__
    assert found.packages["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(found.packages) >= {"torchvision", "numpy", "timm", "onnxruntime", "tensorrt"}


def test_text_has_one_labelled_line_for_each_fact():
    lines = str(environment()).splitlines()
    labels = [line.partition(":")[0] for line in lines]
    for label in ("fastfss", "python", "torch", "CPU", "threads", "OpenMP", "backend native"):
        assert labels.count(label) == 1, label
    assert all(line.partition(":")[2].strip() for line in lines)


def test_json_holds_every_field_and_survives_a_round_trip():
    found = environment()
    again = json.loads(json.dumps(found.to_dict()))
    assert again["packages"] == found.packages
    assert [b["name"] for b in again["backends"]] == [b.name for b in found.backends]


def test_package_that_is_missing_is_said_so(monkeypatch):
    monkeypatch.setitem(module.PACKAGES, "numpy", ("no-such-distribution-of-numpy",))
    found = environment()
    assert found.packages["numpy"] is None
    assert "not installed" in next(x for x in str(found).splitlines() if x.startswith("numpy:"))


def test_second_name_of_a_distribution_counts(monkeypatch):
    monkeypatch.setitem(module.PACKAGES, "onnxruntime", ("no-such-distribution", "numpy"))
    assert environment().packages["onnxruntime"] == environment().packages["numpy"]


def test_cpu_features_come_from_the_kernels_list(files):
    files["/proc/cpuinfo"] = X86
    cpu = environment().cpu
    assert cpu.model == "Some CPU @ 2.00GHz"
    expected = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "amx_tile", "amx_bf16")
    assert cpu.features == expected


def test_machine_without_proc_still_gets_an_answer(files):
    found = environment()
    assert found.cpu.model
    assert found.cpu.features == ()
    assert "CPU features: " in " ".join(str(found).split())


def test_thread_count_is_torchs():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert environment().threads.torch == 1
    finally:
        torch.set_num_threads(before)


def test_thread_variables_are_shown_where_set(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert environment().threads.variables["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS=3" in str(environment())


def test_one_openmp_runtime_is_no_reason_to_warn(files):
    files["/proc/self/maps"] = MAPS.format(home="/home/someone")
    found = environment()
    assert found.threads.openmp == ("site-packages/torch/lib/libgomp.so.1",)
    assert found.warnings == ()


@pytest.mark.parametrize(
    "other", ["libgomp.so.1.0.0", "libiomp5.so", "libomp.so.5", "libgomp-a34b3233.so.1"]
)
def test_two_openmp_runtimes_bring_a_warning_with_both_files(files, other):
    files["/proc/self/maps"] = (
        MAPS.format(home="/home/someone") + f"7f50-7f60 r-xp 00000000 fd:00 13 /usr/lib/{other}\n"
    )
    found = environment()
    assert len(found.threads.openmp) == 2
    (warning,) = found.warnings
    assert f"/usr/lib/{other}" in warning
    assert "site-packages/torch/lib/libgomp.so.1" in warning
    assert "warning:" in str(found)


def test_this_process_shares_torchs_openmp_runtime():
    found = environment()
    assert len(found.threads.openmp) <= 1, found.warnings


def test_home_folder_is_not_shown(files, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    files["/proc/self/maps"] = f"7f-80 r-xp 00000000 fd:00 1 {tmp_path}/lib/libiomp5.so\n"
    found = environment()
    assert found.threads.openmp == ("~/lib/libiomp5.so",)
    assert str(tmp_path) not in str(found)


def test_native_backend_names_the_instruction_set_in_use(native):
    backends = native(native_module())
    assert backends["native"].on
    assert "avx2" in backends["native"].detail
    text = str(environment())
    assert "portable avx2 avx512" in text
    assert "best for this CPU: avx512" in text


def test_build_without_native_code_is_off_and_says_why(native):
    backends = native(None)
    assert not backends["native"].on
    assert "FASTFSS_BUILD=python" in backends["native"].detail
    assert not backends["cuda"].on
    assert environment().instruction_sets.compiled == ()
    assert "in use:" not in str(environment())


def test_cuda_is_off_in_a_build_without_cuda_kernels(native):
    backend = native(native_module(architectures=None))["cuda"]
    assert not backend.on
    assert "FASTFSS_BUILD=cuda" in backend.detail


def test_cuda_repeats_the_runtimes_own_words_without_a_driver(native):
    words = "CUDA driver version is insufficient for CUDA runtime version"
    backend = native(native_module("80,90", RuntimeError(words)))["cuda"]
    assert not backend.on
    assert words in backend.detail
    assert "80,90" in backend.detail


def test_cuda_is_off_without_a_gpu(native):
    backend = native(native_module("80,90", devices=()))["cuda"]
    assert not backend.on
    assert "no GPU" in backend.detail


def test_cuda_is_on_with_a_gpu_and_names_it(native):
    backend = native(native_module("80,90", devices=("Some GPU (sm_90)",)))["cuda"]
    assert backend.on
    assert "Some GPU (sm_90)" in backend.detail


def triton_backend():
    return next(backend for backend in environment().backends if backend.name == "triton")


def test_triton_is_off_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not triton_backend().on
    assert "torch sees no GPU" in triton_backend().detail


@pytest.mark.parametrize("reason", [None, "Triton needs another GPU"])
def test_triton_is_on_where_the_gpu_fits(monkeypatch, reason):
    monkeypatch.setattr(module, "_torch_cuda", lambda: "some")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(module._triton_call, "why_not_device", lambda device: reason)
    found = triton_backend()
    assert found.on == (reason is None)
    assert (reason or "Some GPU") in found.detail


def test_every_backend_that_is_off_has_a_reason():
    backends = {backend.name: backend for backend in environment().backends}
    engines = {"onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"}
    assert set(backends) == {"native", "cuda", "triton", *engines}
    assert all(backend.detail for backend in backends.values())


@pytest.mark.parametrize(
    ("name", "version", "gpu", "on", "detail"),
    [
        ("onnxruntime", None, False, False, 'not installed: pip install "fastfss[onnx]"'),
        ("openvino", "2026.1", False, True, "2026.1, for what `fastfss export` writes"),
        ("tensorrt", "10.9", False, False, "10.9 is installed; torch sees no GPU"),
        ("tensorrt", "10.9", True, True, "10.9, for what `fastfss export` writes"),
        ("tensorrt-rtx", None, True, False, 'not installed: pip install "fastfss[tensorrt-rtx]"'),
        (
            "tensorrt-rtx",
            "1.7",
            False,
            False,
            "1.7 is installed; torch sees no GPU, so that it only builds",
        ),
    ],
)
def test_engines(monkeypatch, name, version, gpu, on, detail):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    found = module._engine_backend(name, version)
    assert (found.on, found.detail) == (on, detail)


def test_missing_extras_come_with_the_command_that_installs_them(monkeypatch):
    requirements = [
        "torch>=2.10",
        'no-such-typer>=0.12; extra == "cli"',
        'numpy>=1; extra == "cli"',
        "no-such-timm[all]>=1.0 ; python_version > '3' and extra == 'timm'",
        'no-such-pytest; extra == "test"',
        'fastfss[cli]; extra == "test"',
    ]
    monkeypatch.setattr(module.metadata, "requires", lambda name: requirements)
    cli, timm = environment().missing_extras
    assert (cli.name, cli.missing) == ("cli", ("no-such-typer",))
    assert cli.command == 'pip install "no-such-typer>=0.12"'
    assert (timm.name, timm.missing) == ("timm", ("no-such-timm",))
    assert timm.command == 'pip install "no-such-timm[all]>=1.0"'
    assert cli.command in str(environment())


def test_source_folder_without_metadata_says_that_extras_are_unknown(monkeypatch):
    def absent(name):
        raise module.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(module.metadata, "requires", absent)
    monkeypatch.setattr(module.metadata, "distribution", absent)
    found = environment()
    assert found.missing_extras is None
    assert "not installed" in found.installed


@pytest.mark.parametrize(
    ("files_of_distribution", "installed"),
    [
        ({"WHEEL": "", "direct_url.json": '{"dir_info": {"editable": true}}'}, "editable"),
        ({"WHEEL": "", "direct_url.json": '{"archive_info": {}}'}, "wheel"),
        ({"WHEEL": ""}, "wheel"),
        ({}, "imported from a folder, not installed"),
    ],
    ids=["editable", "wheel file", "index", "egg-info beside the sources"],
)
def test_way_of_installation_is_told(monkeypatch, files_of_distribution, installed):
    distribution = SimpleNamespace(read_text=files_of_distribution.get, version="1.0", requires=[])
    monkeypatch.setattr(module.metadata, "distribution", lambda name: distribution)
    assert environment().installed == installed
