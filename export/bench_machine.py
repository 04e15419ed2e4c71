"""The machine that `bench` ran on, as far as it decides how fast a network runs."""

import importlib.util
import platform
from importlib import metadata
from pathlib import Path

import psutil

from indistill.export.bench_report import Environment

MODULES = ("torch", "onnx", "onnxruntime", "openvino", "numpy", "PIL")
X86_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
ARM_FLAGS = ("asimd", "asimddp", "i8mm", "bf16", "sve")


def describe_environment(load_before: float) -> Environment:
    """Returns what the machine is, with the load average from before the measurements."""
    distributions = metadata.packages_distributions()  # ONNX Runtime has one name for CPUs and one for GPUs
    flags = set((_read_cpu("flags") or _read_cpu("Features") or "").split())
    found = [module for module in MODULES if importlib.util.find_spec(module) is not None]
    return Environment(
        cpu=read_cpu_name(),
        cpu_flags=sorted(flags.intersection((*X86_FLAGS, *ARM_FLAGS))),
        logical_cores=psutil.cpu_count() or 1,
        os=platform.platform(),
        python=platform.python_version(),
        packages={distributions[module][0]: metadata.version(distributions[module][0]) for module in found},
        governor=_read_governor(),
        loadavg_before=load_before,
        loadavg_after=psutil.getloadavg()[0],
    )


def read_cpu_name() -> str:
    """Returns the processor's name, as far as the system tells it."""
    return _read_cpu("model name") or platform.processor() or platform.machine()


def _read_cpu(name: str) -> str | None:
    """Returns what the system says of the first core under a name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), None)


def _read_governor() -> str | None:
    """Returns how the first core's frequency is chosen."""
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text(encoding="utf-8").strip()
    except OSError:
        return None
