"""An engine's process, as the side sees it that gives the orders."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indistill.errors import IndistillError, InputError
from indistill.export.artefact import InputKind
from indistill.export.bench_engines import EngineKind
from indistill.export.bench_report import Include, Role
from indistill.preprocess import Preprocessing


@dataclass(frozen=True)
class Engine:
    """What is timed.

    Attributes:
        role: `teacher` or `student`.
        kind: `pytorch` runs a network eagerly as it is, `compiled` by torch.compile; the others run an exported file.
        source: model spec, run or file.
        preprocessing: from an image to the network's input.
        weights: of a model spec.
        arguments: of a model spec's factory.
        precision: of an exported file.
        input: what an exported file takes.
        parameters: of an exported file's network, where they are known.
    """

    role: Role
    kind: EngineKind
    source: str
    preprocessing: Preprocessing
    weights: str | None = None
    arguments: Mapping[str, Any] | None = None
    precision: str = "fp32"
    input: InputKind = "image"
    parameters: int | None = None


class EngineProcess:
    """An engine's process, started when it is loaded, so that the time to the first result is its own.

    Args:
        engine: what it runs.
        threads: of the engine.
        images: a folder of encoded images, of which batches are made.
        include: what is timed.
        log: a file for what the process says.
    """

    def __init__(self, engine: Engine, threads: int, images: Path, include: Include, log: Path) -> None:
        self.engine = engine
        self._process: subprocess.Popen[str] | None = None
        self._log = log
        self._threads = str(threads)
        self._order = {
            "kind": engine.kind,
            "source": engine.source,
            "weights": engine.weights,
            "arguments": dict(engine.arguments or {}),
            "threads": threads,
            "preprocessing": engine.preprocessing.to_dict(),
            "input": engine.input,
            "images": str(images),
            "include": include,
        }

    def load(self) -> dict[str, Any]:
        """Starts the process and returns what is known of the engine when it is loaded."""
        pinned = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), self._threads)
        with self._log.open("w", encoding="utf-8") as log:  # in a pipe that nobody empties it could wait for ever
            self._process = subprocess.Popen(
                [sys.executable, "-m", "indistill.export.bench_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | pinned | {"TORCHINDUCTOR_COMPILE_THREADS": "1"},
            )
        return self.ask(self._order)

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Returns the answer to an order. Raises IndistillError, with the process's last words, if there is none."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            words = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise IndistillError(
                f"the {self.engine.kind} process of {self.engine.source} ended: {words[-1] if words else 'killed'}"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind = InputError if answer["exit_code"] == InputError.exit_code else IndistillError
            raise kind(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
