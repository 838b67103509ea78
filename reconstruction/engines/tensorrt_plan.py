"""TensorRT plans: an engine file built for one kind of GPU, kept in the user's cache (imports tensorrt late).

Never run on hardware: written for TensorRT 10.13, with no call that 11 removed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import deque
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from lowdose.reconstruction.engine_file import DIGEST_BYTES, INPUTS, EngineFileError, bytes_of, write_whole

if TYPE_CHECKING:
    import tensorrt as trt
    from rich.progress import Progress, TaskID

    from lowdose.reconstruction.engine_file import Card, EngineFile

logger = logging.getLogger(__name__)

MAGIC = b"lowdose cache 1\n"
MAX_HEADER_BYTES = 4096
MIN_EDGE, OPTIMUM_EDGE, MAX_EDGE = 64, 512, 1024
"""Of the pictures a plan is made for [pixel], rounded up to what the network takes. Larger ones go through in tiles."""
ERRORS_KEPT = 20

Shape = tuple[int, int, int, int]


class PlanError(EngineFileError):
    """TensorRT cannot make a plan of an engine file here: what it said, what to do."""


class UnusableCache(Exception):  # noqa: N818 not an error: the plan is built instead
    """A file of the cache cannot be used, and why."""


@dataclass(frozen=True, slots=True)
class Profile:
    """The pictures a plan is made for, (batch, channels, rows, cols); it is fastest on the optimum."""

    smallest: Shape
    optimum: Shape
    largest: Shape

    def covers(self, shape: Shape) -> bool:
        """Tell whether pictures of a shape can be run."""
        return all(low <= n <= high for low, n, high in zip(self.smallest, shape, self.largest, strict=True))

    def __str__(self) -> str:
        return "-".join("x".join(map(str, shape)) for shape in (self.smallest, self.optimum, self.largest))


@dataclass(frozen=True, slots=True)
class PlanKey:
    """What a plan depends on: of any other it is useless.

    Parameters
    ----------
    digest : str
        Of the ONNX file.
    tensorrt, gpu, capability : str
        Version of TensorRT, name of the GPU and its compute capability ("9.0").
    profile : str
        Sizes of the pictures.
    """

    digest: str
    tensorrt: str
    gpu: str
    capability: str
    profile: str

    @property
    def file_name(self) -> str:
        """Name in the cache."""
        return _slug(self.digest, f"trt{self.tensorrt}", self.gpu, f"sm{self.capability}", self.profile) + ".plan"


def profile_for(card: Card) -> Profile:
    """Return the profile of an engine file: one picture at a time, edges from 64 to 1024 px, fastest at 512.

    Examples
    --------
    With a network that takes multiples of 96: edges of 96, 576 and 1056 pixels.
    """
    step = card.info.size_multiple
    low, best, high = (step * -(-edge // step) for edge in (MIN_EDGE, OPTIMUM_EDGE, MAX_EDGE))
    channels = len(card.info.channels)
    return Profile((1, channels, low, low), (1, channels, best, best), (1, channels, high, high))


def cache_folder() -> Path:
    """Return where plans are kept."""
    return Path(platformdirs.user_cache_dir("lowdose")) / "tensorrt"


def open_plan(
    file: EngineFile,
    *,
    gpu: str,
    capability: str,
    profile: Profile,
    workspace_bytes: int,
    folder: Path | None = None,
) -> trt.ICudaEngine:
    """Return an engine file ready to run on the current GPU: from the cache, or built now, which takes minutes.

    Parameters
    ----------
    file : EngineFile
        Read and checked.
    gpu, capability : str
        Of the current GPU.
    profile : Profile
        Pictures to be run.
    workspace_bytes : int
        GPU memory a single layer may take for itself.
    folder : Path or None
        Of the cache; None = the user's.

    Raises
    ------
    PlanError
        If it cannot be built, or cannot be read after it was built.
    """
    import tensorrt as trt

    folder = folder or cache_folder()
    key = PlanKey(file.info.digest, trt.__version__, gpu, capability, str(profile))
    path = folder / key.file_name
    try:
        return _loaded(read_cached(path, asdict(key)))
    except UnusableCache as why:
        logger.info("building a TensorRT plan of %s for %s, which takes minutes: %s", file.path.name, gpu, why)
    plan = build_plan(file, key, profile, workspace_bytes=workspace_bytes, folder=folder)
    _keep(path, asdict(key), plan)
    try:
        return _loaded(plan)
    except UnusableCache as why:
        raise PlanError(f"the new plan of {file.path.name} cannot be used: {why}; use runtime openvino") from None


def build_plan(file: EngineFile, key: PlanKey, profile: Profile, *, workspace_bytes: int, folder: Path) -> bytes:
    """Return the plan of an engine file for the current GPU, with a bar that tells how far it is.

    The network is strongly typed: it computes in the precision it was exported in, FP32 without TF32.

    Raises
    ------
    PlanError
        If TensorRT does not know the network, or the GPU has too little memory.
    """
    import tensorrt as trt

    log = _log()
    log.errors.clear()
    builder = trt.Builder(log)
    # on 11 all networks are, and the flag is ignored
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(bytes_of(file)):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise PlanError(f"TensorRT {key.tensorrt} cannot read {file.path.name}: {errors}; use runtime openvino")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    config.clear_flag(trt.BuilderFlag.TF32)
    _set_profile(builder, config, profile)
    timings = folder / _slug("timings", f"trt{key.tensorrt}", key.gpu, f"sm{key.capability}")
    timings_key = {"tensorrt": key.tensorrt, "gpu": key.gpu, "capability": key.capability}
    _use_timings(config, timings, timings_key)
    plan = _built(builder, network, config)
    if plan is None:
        raise PlanError(_why_not_built(file, list(log.errors), workspace_bytes))
    _keep(timings, timings_key, bytes(memoryview(config.get_timing_cache().serialize())))
    return bytes(memoryview(plan))


def read_cached(path: Path, key: dict[str, str]) -> bytes:
    """Return the content of a file of the cache.

    Raises
    ------
    UnusableCache
        If there is none, it is damaged or was made for something else.
    """
    try:
        with path.open("rb") as file:
            magic, header, content = file.read(len(MAGIC)), file.readline(MAX_HEADER_BYTES), file.read()
    except OSError as error:
        raise UnusableCache(f"there is none yet ({path}: {error.strerror})") from None
    try:
        found = json.loads(header) if magic == MAGIC else {}
    except ValueError:
        found = {}
    if not isinstance(found, dict) or found.pop("content", "") != _digest(content):
        raise UnusableCache(f"{path} is damaged")
    for name, expected in key.items():
        if found.get(name) != expected:
            raise UnusableCache(f"{path} was made for {name} {found.get(name)}, this is {expected}")
    return content


def write_cached(path: Path, key: dict[str, str], content: bytes) -> None:
    """Write a file of the cache, as a whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # TensorRT trusts a plan: nobody else may write here
    header = json.dumps({**key, "content": _digest(content)}).encode() + b"\n"
    write_whole(path, MAGIC + header + content)


def _keep(path: Path, key: dict[str, str], content: bytes) -> None:
    try:
        write_cached(path, key, content)
    except OSError as error:
        logger.warning("cannot keep %s (%s): it is made again next time", path, error.strerror)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).hexdigest()


def _slug(*parts: str) -> str:
    return "_".join(re.sub(r"[^A-Za-z0-9.+-]+", "-", part) for part in parts)


def _loaded(plan: bytes) -> trt.ICudaEngine:
    """Return a plan ready to run; raise UnusableCache, with what TensorRT said, if it cannot be."""
    log = _log()
    log.errors.clear()
    engine = _runtime().deserialize_cuda_engine(plan)
    if engine is None:
        raise UnusableCache(f"TensorRT does not accept it: {_said(list(log.errors))}")
    return engine


def _set_profile(builder: trt.Builder, config: trt.IBuilderConfig, profile: Profile) -> None:
    import tensorrt as trt

    shapes = builder.create_optimization_profile()
    smallest, optimum, largest = (trt.Dims4(*shape) for shape in (profile.smallest, profile.optimum, profile.largest))
    shapes.set_shape(INPUTS, smallest, optimum, largest)
    if config.add_optimization_profile(shapes) < 0:
        raise PlanError(f"TensorRT refuses the sizes {profile}: {_said(list(_log().errors))}")


def _use_timings(config: trt.IBuilderConfig, path: Path, key: dict[str, str]) -> None:
    """Let the builder use, and add to, what it measured on this GPU before."""
    try:
        kept = read_cached(path, key)
    except UnusableCache:
        kept = b""
    timings = config.create_timing_cache(kept)
    if timings is None or not config.set_timing_cache(timings, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _built(builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig) -> trt.IHostMemory | None:
    """Build, telling how far it is on the error output; Ctrl-C ends it."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        monitor = _new_monitor(bars)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
    if monitor.stopped:
        raise KeyboardInterrupt
    return plan


def _why_not_built(file: EngineFile, errors: list[str], workspace_bytes: int) -> str:
    """Return what a user can do about a build that failed."""
    said = _said(errors)
    if re.search(r"out ?of ?memory|insufficient memory|memory allocation", said, re.IGNORECASE):
        return (
            f"the GPU has too little memory to build a plan of {file.path.name} (a layer may take "
            f"{workspace_bytes / 2**20:.0f} MiB): end other programs that use it, or use runtime openvino. "
            f"TensorRT said: {said}"
        )
    return f"TensorRT cannot build a plan of {file.path.name}: {said}; use runtime openvino"


def _said(errors: list[str]) -> str:
    return "; ".join(errors[-3:]) or "nothing"


@lru_cache(maxsize=1)
def _runtime() -> trt.Runtime:
    """Return the runtime of this process, which must outlive what it reads."""
    import tensorrt as trt

    return trt.Runtime(_log())


@lru_cache(maxsize=1)  # TensorRT has one for a process
def _log() -> Any:
    """Return what TensorRT talks to: it keeps the errors and passes everything but details on to the logging here."""
    import tensorrt as trt

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=ERRORS_KEPT)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(msg)
                logger.warning("TensorRT: %s", msg)  # who asked for it knows whether it is an error
            elif severity != trt.ILogger.VERBOSE:
                logger.debug("TensorRT: %s", msg)

    return Log()


def _new_monitor(bars: Progress) -> Any:
    """Return what TensorRT tells how far it is; called from its threads, so nothing may be raised in it."""
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped = False
            self._tasks: dict[str, TaskID] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            try:
                self._tasks[phase_name] = bars.add_task(phase_name, total=num_steps)
            except KeyboardInterrupt:
                self.stopped = True

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                if phase_name in self._tasks:
                    bars.update(self._tasks[phase_name], completed=step + 1)
            except KeyboardInterrupt:
                self.stopped = True
            return not self.stopped

        def phase_finish(self, phase_name: str) -> None:
            try:
                if phase_name in self._tasks:
                    bars.remove_task(self._tasks.pop(phase_name))
            except KeyboardInterrupt:
                self.stopped = True

    return Monitor()
