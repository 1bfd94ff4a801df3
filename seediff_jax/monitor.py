"""What a run says of itself while it works: a progress bar, a log, curves, a profile.

log_dir/host-0000.jsonl            a line every few seconds: what is done, how fast
log_dir/host-0000/events...        the same for TensorBoard
log_dir/plugins/profile/           what the devices did in one round, for TensorBoard
"""

import json
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from tqdm import tqdm

LOG_SECONDS = 10.0
"""Between two lines of the log."""


def require_log_dir(log_dir: str | None) -> None:
    """Checks that the folder of the log is none of a bucket, whose files cannot grow.

    Raises:
        ValueError: it is a URL.
    """
    if log_dir is not None and "://" in log_dir:
        raise ValueError(
            f"log_dir={log_dir} is a URL, and files of a bucket cannot grow line by line; give a "
            "local folder, where each host keeps its own log, as in --log_dir=/tmp/log"
        )


class Monitor:
    """Counts what this host makes, and tells; a context manager.

    Args:
        total: samples of the run.
        done: samples that were there at its start.
        own: samples that this host is to make.
        log_dir: folder of this machine for the log, None for none.
        profile: whether to write a profile of one round there, the second if there are so many.
        rounds: rounds that are ahead.
        shows_progress: whether this host draws the progress bar.
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
    ):
        self._total, self._done, self._own = total, done, own
        self._host = jax.process_index()
        self._lock = threading.Lock()
        self._written = self._failed = self._started = self._on_devices = 0
        self._busy = self._busy_since = self._begin = self._last_line = 0.0
        self._log_dir = None if log_dir is None else Path(log_dir)
        self._log: Any = None
        self._curves: Any = None
        self._profiled = min(1, rounds - 1) if profile and rounds else None
        self._is_profiling = False
        name = f"host {self._host}" if jax.process_count() > 1 else None
        shown = (own, 0) if name else (total, done)
        self._bar = tqdm(
            total=shown[0], initial=shown[1], unit="image", desc=name, disable=not shows_progress
        )

    def __enter__(self) -> "Monitor":
        if self._log_dir is not None:
            import tensorboardX  # It loads torch where that is installed, which takes a second.

            self._log_dir.mkdir(parents=True, exist_ok=True)
            name = f"host-{self._host:04d}"
            self._log = open(self._log_dir / f"{name}.jsonl", "a", encoding="utf-8")
            self._curves = tensorboardX.SummaryWriter(str(self._log_dir / name))
        self._begin = self._last_line = time.monotonic()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        with self._lock:
            if self._is_profiling:
                self._end_profile()
            if self._log is not None:
                self._write_line()
                self._log.close()
                self._curves.close()

    def round_started(self) -> None:
        """A round goes to the devices."""
        with self._lock:
            if self._started == self._profiled:
                jax.profiler.start_trace(str(self._log_dir))
                self._is_profiling = True
            self._started += 1
            self._on_devices += 1
            if self._on_devices == 1:
                self._busy_since = time.monotonic()

    def round_fetched(self) -> None:
        """The oldest round on the devices is done."""
        with self._lock:
            self._on_devices -= 1
            fetched = self._started - self._on_devices
            if self._is_profiling and fetched == self._profiled + 1:
                self._end_profile()
            if not self._on_devices:
                self._busy += time.monotonic() - self._busy_since

    def watch(self, written: int, failed: int) -> None:
        """A block is done: samples that were written, and that failed."""
        with self._lock:
            self._written += written
            self._failed += failed
            self._bar.update(written)
            if jax.process_count() > 1:
                self._bar.set_postfix_str(f"all hosts about {self._overall()}/{self._total}")
            if self._log is not None and time.monotonic() - self._last_line > LOG_SECONDS:
                self._write_line()

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
            "eta_seconds": round(left / rate, 1) if rate else None,
            "device_busy": round(busy / seconds, 4),
            "device_peak_bytes": stats.get("peak_bytes_in_use"),
        }

    def _end_profile(self) -> None:
        jax.profiler.stop_trace()
        self._is_profiling = False
        self._profiled = None

    def _overall(self) -> int:
        """Samples that exist, taking it that all hosts are as fast as this one."""
        missing = self._total - self._done
        return self._done + round(missing * self._written / self._own if self._own else missing)

    def _write_line(self) -> None:
        state = self.state()
        self._last_line = time.monotonic()
        self._log.write(json.dumps(state) + "\n")
        self._log.flush()
        for name in ("images_per_second", "device_busy", "written", "failed"):
            self._curves.add_scalar(name, state[name], self._written)
