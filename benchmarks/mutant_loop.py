"""A plugin of pytest that runs the collected tests once for each mutant, in a fork: pytest imports and collects once.

Environment: MUTANTS, a JSON file with the mutants and their sources; RESULTS, the file to which a line is added for
each; MUTANT_PROCESSES; MUTANT_MINUTES, after which none is begun. A mutant is met by the tests that call its function,
the fastest first, until one fails. The time limit is of processor time, so that other jobs kill no mutant.
"""

import json
import os
import resource
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.state import state

LEAST_S, FACTOR = 5, 4  # of processor time, and of what the tests take without a mutant
STUCK_S = 900  # of time by the clock, for what waits for ever
STATUSES = {None: "no tests", 0: "survived", 1: "killed", -signal.SIGXCPU: "timeout", -signal.SIGALRM: "timeout"}
failures: list[str] = []


def pytest_configure() -> None:
    settings.register_profile(
        "mutants",
        database=None,
        derandomize=True,
        deadline=None,  # of time by the clock, which other jobs would let pass
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    settings.load_profile("mutants")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        failures.append(report.nodeid)


def pytest_runtestloop(session: pytest.Session) -> bool:
    sources = json.loads(Path(os.environ["MUTANTS"]).read_text(encoding="utf-8"))
    clean = Path(os.environ["MUTANTS"] + ".clean")
    if wait(fork(lambda: measure_tests(session.items, clean))):
        pytest.exit(f"a test fails without a mutant: {clean.read_text(encoding='utf-8')}", 1)
    met = json.loads(clean.read_text(encoding="utf-8"))
    processes = int(os.environ["MUTANT_PROCESSES"])
    end = time.monotonic() + 60 * float(os.environ["MUTANT_MINUTES"])
    shares = [dict(list(sources.items())[i::processes]) for i in range(processes)]
    workers = [fork(lambda share=share: run_mutants(share, session.items, met, end)) for share in shares]
    codes = [wait(worker) for worker in workers]
    if any(codes):
        pytest.exit("a worker ended early", 1)
    return True


def measure_tests(items: Sequence[pytest.Item], path: Path) -> int:
    """Writes of each test its processor time and the functions that it calls; returns how many failed."""
    met = {}
    set_mutant_under_test("stats")
    for item, following in zip(items, [*items[1:], None], strict=True):
        state()._stats.clear()
        begin = time.process_time()
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        met[item.nodeid] = (time.process_time() - begin, sorted(state()._stats))
    path.write_text(json.dumps(failures or met), encoding="utf-8")
    return len(failures)


def run_mutants(
    sources: dict[str, str], items: Sequence[pytest.Item], met: dict[str, tuple[float, list[str]]], end: float
) -> int:
    for name, source in sources.items():
        if time.monotonic() > end:
            break
        function = name.rpartition("__mutmut_")[0]
        tests = sorted((item for item in items if function in met[item.nodeid][1]), key=lambda i: met[i.nodeid][0])
        limit = LEAST_S + FACTOR * sum(met[item.nodeid][0] for item in tests)
        code = wait(fork(lambda name=name, tests=tests: run_tests(name, tests), int(limit))) if tests else None
        status = STATUSES.get(code, f"ended with {code}")
        with Path(os.environ["RESULTS"]).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, "source": source, "status": status, "tests": len(tests)}) + "\n")
    return 0


def run_tests(name: str, items: Sequence[pytest.Item]) -> int:
    set_mutant_under_test(name)
    for item, following in zip(items, [*items[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if failures:
            return 1
    return 0


def fork(work: Callable[[], int], limit_s: int | None = None) -> int:
    """Starts a process that ends with what the work returns, and returns its number."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            if limit_s is not None:
                resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s + 5))
                signal.alarm(STUCK_S)
            code = min(work(), 99)
        finally:
            os._exit(code)
    return child


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
