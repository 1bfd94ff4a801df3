"""Reports the progress of a run: a progress bar, a log, curves, a profile.

log_dir/host-0000.jsonl            a line every few seconds: number of samples, speed
log_dir/host-0000/events...        the same for TensorBoard
log_dir/plugins/profile/           what the devices did in one round, for TensorBoard
"""

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import jax
from tqdm import tqdm

LOG_SECONDS = 10.0
"""Time between two lines of the log."""
BAR_SECONDS = 0.5
"""Time between two updates of the progress bar."""
COMPILING_SECONDS = 10
"""Time between two lines about compilation, if stderr is not a terminal."""

_END_SECONDS = 2.0  # to write the last line, which a full disk or a stopped terminal may never take
_log = logging.getLogger(__name__)


class _Quiet:
    """A stream that ignores errors; after an exception, tqdm would never release its lock."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(Exception):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(Exception):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


class Monitor:
    """Counts the samples of this host and reports progress; a context manager.

    Separate threads report, so that a slow or failing terminal or disk does not delay any sample.

    Args:
        total: samples of the run.
        done: samples that exist at its start.
        own: samples that this host is to make.
        log_dir: local folder for the log; None for no log.
        profile: whether to write a profile of one round there: the second, or else the only one.
        rounds: rounds to come.
        shows_progress: whether this host draws the progress bar.
        attention: which implementation of attention each layer of the UNet uses, for the log.
    """

    def __init__(
        self,
        *,
        total: int,
        done: int,
        own: int,
        log_dir: str | None = None,
        profile: bool = False,
        rounds: int = 0,
        shows_progress: bool = True,
        attention: str = "",
    ):
        self._total, self._done, self._own = total, done, own
        self._host = jax.process_index()
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._written = self._failed = self._started = self._on_devices = 0
        self._busy = self._busy_since = self._begin = self._entered = 0.0
        self._compiling_since = self._compile_seconds = self._first_seconds = None
        self._log_dir = None if log_dir is None else Path(log_dir)
        self._profiled = min(1, rounds - 1) if profile and rounds else None
        self._is_profiling = False
        self._shows_progress, self._attention = shows_progress, attention
        self._threads: list[threading.Thread] = []
        self._logged: SimpleQueue[dict[str, Any] | None] = SimpleQueue()

    def __enter__(self) -> "Monitor":
        self._begin = self._entered = time.monotonic()
        if self._log_dir is not None:
            self._log_dir.mkdir(parents=True, exist_ok=True)
            self._tell("log", self._write_log)
            self._tell("curves", self._write_curves)
        if self._shows_progress:
            self._tell("progress bar", self._draw)
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(_END_SECONDS)
        with self._lock:
            if self._is_profiling:
                self._profile(jax.profiler.stop_trace)

    def _tell(self, what: str, task: Callable[[], None]) -> None:
        def attempt() -> None:
            try:
                task()
            except Exception as error:
                _log.warning("the %s ends: %s; the run continues", what, error)

        self._threads.append(threading.Thread(target=attempt, daemon=True))
        self._threads[-1].start()

    def _draw(self) -> None:
        class Bar(tqdm):
            # A bar that cannot be drawn must not delay other bars or the end of the program.
            monitor_interval = 0
            _lock = threading.RLock()

        name = f"host {self._host}" if jax.process_count() > 1 else None
        total, initial = (self._own, 0) if name else (self._total, self._done)
        stream = _Quiet(sys.stderr)
        options = {"unit": "image", "desc": name, "file": stream, "mininterval": 0}
        step = 1 if stream.isatty() else COMPILING_SECONDS
        told, has_ended = 0, False
        with Bar(total=total, initial=initial, **options) as bar:
            while not has_ended:
                has_ended = self._ended.wait(BAR_SECONDS)
                if (compiling := self._compiling()) and compiling // step > told:
                    told = compiling // step
                    what = f"compiling {compiling:.0f} s"
                    bar.set_description(f"{name}: {what}" if name else what)
                elif self._first_seconds is not None and told >= 0:
                    told = -1
                    bar.set_description_str(f"{name}: " if name else "", refresh=False)
                    bar.start_t = time.time() - (time.monotonic() - self._begin)
                    Bar.write(self._describe_first(), file=stream)
                if new := initial + self._written - bar.n:
                    if name:
                        overall = f"all hosts about {self._overall()}/{self._total}"
                        bar.set_postfix_str(overall, refresh=False)
                    bar.update(new)
            bar.refresh()

    def _compiling(self) -> float:
        """Seconds since the programs began to be compiled; 0 where they are not."""
        if self._compiling_since is None or self._compile_seconds is not None:
            return 0
        return time.monotonic() - self._compiling_since

    def _describe_first(self) -> str:
        compiled = self._compile_seconds
        more = "" if compiled is None else f", {compiled:.0f} s of which were for compiling"
        return f"first image after {self._first_seconds:.0f} s{more}"

    def _write_log(self) -> None:
        try:
            with open(f"{self._log_path()}.jsonl", "a", encoding="utf-8") as log:
                has_ended = False
                while not has_ended:
                    has_ended = self._ended.wait(LOG_SECONDS)
                    state = self.state()
                    log.write(json.dumps(state) + "\n")
                    log.flush()
                    self._logged.put(state)
        finally:
            self._logged.put(None)

    def _write_curves(self) -> None:
        import tensorboardX  # It loads torch where that is installed, which takes a second or more.

        with closing(tensorboardX.SummaryWriter(self._log_path())) as curves:
            while state := self._logged.get():
                for name in ("images_per_second", "device_busy", "written", "failed"):
                    curves.add_scalar(name, state[name], state["written"])

    def _log_path(self) -> str:
        return str(self._log_dir / f"host-{self._host:04d}")

    def round_started(self) -> None:
        """Notes that a round is sent to the devices."""
        with self._lock:
            if self._started == self._profiled:
                self._is_profiling = True
                self._profile(lambda: jax.profiler.start_trace(str(self._log_dir)))
            self._started += 1
            self._on_devices += 1
            if self._compiling_since is None:
                self._compiling_since = time.monotonic()
            if self._on_devices == 1:
                self._busy_since = time.monotonic()

    def round_compiled(self) -> None:
        """Notes that the programs of a round are compiled; after the first, rates are counted."""
        with self._lock:
            if self._compile_seconds is None:
                self._begin = self._busy_since = time.monotonic()
                self._compile_seconds = self._begin - self._compiling_since

    def round_fetched(self) -> None:
        """Notes that the oldest round on the devices is done."""
        with self._lock:
            self._on_devices -= 1
            fetched = self._started - self._on_devices
            if self._is_profiling and fetched == self._profiled + 1:
                self._profile(jax.profiler.stop_trace)
                self._is_profiling, self._profiled = False, None
            if not self._on_devices:
                self._busy += time.monotonic() - self._busy_since

    def watch(self, written: int, failed: int) -> None:
        """Counts the samples of a block that were written, and those that failed."""
        with self._lock:
            if written and self._first_seconds is None:
                self._first_seconds = time.monotonic() - self._entered
            self._written += written
            self._failed += failed

    def state(self) -> dict[str, Any]:
        """Figures so far, as JSON values; "done" is an estimate where there are several hosts."""
        now = time.monotonic()
        seconds = max(now - self._begin, 1e-9)
        busy = self._busy + (now - self._busy_since if self._on_devices else 0)
        rate = self._written / seconds
        left = self._own - self._written
        stats = jax.local_devices()[0].memory_stats() or {}
        return {
            "time": round(time.time(), 3),
            "host": self._host,
            "written": self._written,
            "failed": self._failed,
            "done": self._overall(),
            "total": self._total,
            "images_per_second": round(rate, 4),
            "compile_seconds": _rounded(self._compile_seconds),
            "first_image_seconds": _rounded(self._first_seconds),
            "eta_seconds": round(left / rate, 1) if rate else None,
            "device_busy": round(busy / seconds, 4),
            "device_peak_bytes": stats.get("peak_bytes_in_use"),
            "attention": self._attention,
        }

    def _profile(self, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception as error:
            _log.warning("no profile: %s; the run continues", error)

    def _overall(self) -> int:
        """Estimates how many samples exist, assuming that all hosts are as fast as this one."""
        missing = self._total - self._done
        return self._done + round(missing * self._written / self._own if self._own else missing)
