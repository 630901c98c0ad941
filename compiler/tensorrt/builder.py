"""The child process that builds an engine: TensorRT is C++ and may take its process down.

Started with ``python -P -m compiler.tensorrt.builder FD``: the request is JSON on standard input, answers are JSON
lines on the descriptor FD: progress, then an error or what was built. Everything here is over a module ``trt`` that may
be classic TensorRT 10.3 to 11.x or TensorRT for RTX.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from compiler.tensorrt import api
from compiler.tensorrt.recipe import Built, Request
from skerry.disk import Disk
from skerry.errors import CompileError

_MAX_WARNINGS = 20


def build(trt: Any, request: Request, tell: Callable[[str], None], disk: Disk) -> Built:
    """Parses, builds and writes the engine.

    Raises:
        CompileError: no GPU where one is needed, an operator that the parser refuses, or no engine came out.
    """
    logger = _logger(trt)
    builder = _builder(trt, logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, logger, request.model)
    config = builder.create_builder_config()
    _configure(trt, builder, config, request)
    monitor = _watch(trt, config, tell)
    cache = _timing_cache(config, request)
    serialized = builder.build_serialized_network(network, config)
    del monitor
    if serialized is None:
        raise CompileError(f"no engine came out of {trt.__name__} {trt.__version__}: {logger.last_error()}")
    engine = bytes(serialized)
    disk.replace(Path(request.out), engine)
    if cache is not None and request.timing_cache:
        disk.replace(Path(request.timing_cache), bytes(config.get_timing_cache().serialize()))
    if request.inspect:
        disk.replace(Path(request.inspect), _inspect(trt, logger, engine))
    return Built(version=trt.__version__, layers=network.num_layers, bytes=len(engine), warnings=logger.warnings())


def _builder(trt: Any, logger: Any) -> Any:
    try:
        return trt.Builder(logger)
    except TypeError as exc:  # what pybind11 makes of a null pointer
        why = logger.last_error()
        raise CompileError(f"TensorRT {trt.__version__} does not start here: {why}; it needs an NVIDIA GPU") from exc


def _parse(trt: Any, network: Any, logger: Any, model: str) -> None:
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(model):
        errors = [_explained(parser.get_error(index)) for index in range(parser.num_errors)]
        raise CompileError(f"TensorRT {trt.__version__} refuses the model: " + "; ".join(dict.fromkeys(errors)))


def _explained(error: Any) -> str:
    """Which node, of which kind, and why."""
    where = error.node_name() or f"node {error.node()}"
    return f"{where} ({error.node_operator() or 'operator unknown'}): {' '.join(error.desc().split())[:300]}"


def _configure(trt: Any, builder: Any, config: Any, request: Request) -> None:
    options = request.recipe.build
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    config.builder_optimization_level = options.level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector has names alone
    for profile in request.recipe.profiles:
        shapes = builder.create_optimization_profile()
        shapes.set_shape(profile.input, profile.least, profile.usual, profile.most)
        config.add_optimization_profile(shapes)
    if options.dla_core is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = options.dla_core
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    if request.sms:
        config.num_compute_capabilities = len(request.sms)
        for index, sm in enumerate(request.sms):
            config.set_compute_capability(_capability(trt, sm), index)


def _capability(trt: Any, sm: str) -> Any:
    name = f"SM{sm.replace('.', '')}"
    known = [item for item in dir(trt.ComputeCapability) if item.startswith("SM")]
    if name not in known:
        raise CompileError(f"{trt.__name__} {trt.__version__} cannot build for SM {sm}; it can for {', '.join(known)}")
    return getattr(trt.ComputeCapability, name)


def _timing_cache(config: Any, request: Request) -> Any:
    """What earlier builds measured: a second one is then faster. Ahead of time nothing is measured."""
    if not request.timing_cache or request.sms:
        return None
    path = Path(request.timing_cache)
    cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    if not config.set_timing_cache(cache, ignore_mismatch=False):  # of another device or version: start anew
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return cache


def _inspect(trt: Any, logger: Any, engine: bytes) -> bytes:
    loaded = trt.Runtime(logger).deserialize_cuda_engine(engine)
    if loaded is None:
        raise CompileError(f"the engine does not load where it was built: {logger.last_error()}")
    text: str = loaded.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return text.encode()


def _logger(trt: Any) -> Any:
    """A logger that keeps what is said instead of printing it."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._said: list[tuple[Any, str]] = []

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.WARNING:
                self._said.append((severity, " ".join(text.split())))

        def last_error(self) -> str:
            errors = [text for severity, text in self._said if severity <= trt.ILogger.ERROR]
            return errors[-1][:400] if errors else "it does not say why"

        def warnings(self) -> list[str]:
            texts = [text for severity, text in self._said if severity == trt.ILogger.WARNING]
            return list(dict.fromkeys(texts))[:_MAX_WARNINGS]

    return Log()


def _watch(trt: Any, config: Any, tell: Callable[[str], None]) -> Any:
    """Tells how far the build is, where TensorRT can say (from 10.0 on)."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
            self._steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            tell(f"building the engine: {phase}, {step + 1} of {self._steps.get(phase, step + 1)}")
            return True  # go on

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

    config.progress_monitor = Monitor()
    return config.progress_monitor


def main(answers: int) -> None:
    """Reads a request, builds, answers."""
    with os.fdopen(answers, "wb", buffering=0) as out:

        def answer(**line: object) -> None:
            out.write(msgspec.json.encode(line) + b"\n")

        request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
        with contextlib.suppress(BrokenPipeError):
            try:
                made = build(api.load(request.backend), request, lambda text: answer(progress=text), Disk())
            except CompileError as exc:
                answer(error=str(exc))
            else:
                answer(built=made)


if __name__ == "__main__":
    main(int(sys.argv[1]))
