"""Runs the driver in separate processes, for tests that stop, kill or disturb it.

A server imports everything once and forks: a forked process has its own life, its own JAX and its
own end, and starts in a fraction of the time. Options of a process besides its command line:

    devices      simulated devices
    threads      of XLA on the CPU; rounding depends on them, so compared runs have the same
    pause        seconds before each round
    strike       a signal, and the round, from 1, before which the process sends it to itself; 0 is
                 when the model begins to load
    gate         a file, and the round before which the process waits for it
    poison       index of a sample whose values are not finite
    fail         the round, from 1, before which the process raises
    folder       where the process starts, and finds relative paths
    simulated    whether samples follow from their index alone, without a model
    environment  environment variables in addition to those of the tests
"""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

WAIT = 300  # seconds; only a driver that hangs needs them
# As many as XLA has in the process of the tests, with its eight simulated devices.
THREADS = max(8, int(os.environ.get("NPROC", len(os.sched_getaffinity(0)))))


class Process:
    """A process of the driver; its output goes to files."""

    def __init__(self, server, pid, out, err):
        self.pid, self._server, self._status = pid, server, None
        self._out, self._err = out, err

    @property
    def out(self):
        return self._out.read_text()

    @property
    def err(self):
        # Without what progress bars overwrote; universal newlines would take that for lines.
        lines = self._err.read_bytes().decode().split("\n")
        return "\n".join(line.split("\r")[-1] for line in lines)

    def status(self):
        """Returns the exit status, or minus the signal that ended it, or None while it runs."""
        if self._status is None:
            self._status = self._server.ask(status=self.pid)
        return self._status

    def wait(self, seconds=WAIT):
        """Waits for the end and returns the exit status."""
        end = time.monotonic() + seconds
        while self.status() is None:
            assert time.monotonic() < end, f"no end after {seconds} s\n{self.out}\n{self.err}"
            time.sleep(0.02)
        return self._status

    def kill(self, number=signal.SIGKILL):
        if self.status() is None:
            os.kill(self.pid, number)


class Server:
    """Forks processes of the driver; their output goes to `folder`."""

    def __init__(self, program, folder):
        self._program, self._folder, self._count = program, folder, 0

    def ask(self, **request):
        self._program.stdin.write(json.dumps(request) + "\n")
        self._program.stdin.flush()
        answer = self._program.stdout.readline()
        assert answer, f"the server ended with {self._program.wait()}"
        return json.loads(answer)

    def start(self, argv, **options):
        """Starts a process with a command line (its first word is ignored) and options."""
        self._count += 1
        out, err = (self._folder / f"{self._count}.{kind}" for kind in ("out", "err"))
        pid = self.ask(argv=[str(word) for word in argv], out=str(out), err=str(err), **options)
        return Process(self, pid, out, err)

    def hosts(self, argv, *own, **shared):
        """Starts a run of several processes, each with its own options and the shared ones."""
        address = f"--coordinator=127.0.0.1:{free_port()}"
        flags = [*argv, address, f"--num_processes={len(own)}"]
        return [
            self.start([*flags, f"--process_id={host}"], **shared, **options)
            for host, options in enumerate(own)
        ]


def free_port(ports=(0,)):
    """Returns the first free port among `ports`; 0 stands for any port."""
    for port in ports:
        with socket.socket() as free:
            try:
                free.bind(("", port))
            except OSError:
                continue
            return free.getsockname()[1]
    raise OSError(f"none of {ports} is free")


def wait_until(condition):
    """Waits until the condition holds; returns its last value."""
    end = time.monotonic() + WAIT
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {WAIT} s"
        time.sleep(0.02)
    return value


@contextmanager
def serving(inputs, folder):
    """Starts a Server for runs with the inputs of small_runs."""
    program = [sys.executable, __file__, str(inputs)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    # The package that the tests import, and no other that is installed.
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.getenv("PYTHONPATH")]))
    with subprocess.Popen(program, **pipes, env=os.environ | {"PYTHONPATH": path}) as server:
        yield Server(server, folder)
        server.stdin.close()


def _serve(inputs):
    """Answers requests until there are no more; in a forked process, returns its request."""
    from seediff_jax import main
    from seediff_jax.prompts.tokenizer import load_tokenizer
    from tests.helpers import simulated_samples

    del main, simulated_samples  # imported for the processes that are forked
    load_tokenizer(inputs / "tokenizer")
    for line in sys.stdin:
        request = json.loads(line)
        if "status" in request:
            pid, status = os.waitpid(request["status"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif not (answer := os.fork()):
            return request
        print(json.dumps(answer), flush=True)
    return None


def _become(request):
    """Turns the forked process into one of the driver."""
    import jax

    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), number)
    os.environ |= request.get("environment", {})
    os.chdir(request.get("folder", "."))
    os.environ["NPROC"] = str(request.get("threads", THREADS))
    jax.config.update("jax_num_cpu_devices", request.get("devices", 1))


def _disturb(options):
    """Makes the options act on the rounds."""
    from seediff_jax.driver import make_dataset
    from seediff_jax.driver.sample_maker import PairMaker
    from tests.helpers import simulated_samples

    start, fetch, rounds = PairMaker.start, PairMaker.fetch, []
    gate, gated = options.get("gate", (None, None))
    name, struck = options.get("strike", (None, None))

    def started(maker, blocks):
        rounds.append(blocks)
        time.sleep(options.get("pause", 0))
        if len(rounds) == options.get("fail"):
            raise RuntimeError("a fault")
        if len(rounds) == struck:
            os.kill(os.getpid(), getattr(signal, name))
        while len(rounds) == gated and not Path(gate).exists():
            time.sleep(0.02)
        return start(maker, blocks)

    def fetched(maker, made):
        blocks = fetch(maker, made)
        for block in blocks:
            block.rows.is_finite["latents"] = block.inputs.indices != options.get("poison")
        return blocks

    if struck == 0:
        load_model = make_dataset.load_model

        def loading(*arguments, **options):
            os.kill(os.getpid(), getattr(signal, name))
            return load_model(*arguments, **options)

        make_dataset.load_model = loading
    if options.get("simulated"):
        make_dataset.prepare = simulated_samples.prepare
    PairMaker.start, PairMaker.fetch = started, fetched


def _leave(statuses):
    """Ends a forked process at once; freeing its memory would take longer than its run."""
    if statuses:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(statuses[0])


if __name__ == "__main__":
    statuses = []
    atexit.register(_leave, statuses)  # registered first: called last
    if (request := _serve(Path(sys.argv[1]))) is not None:
        _become(request)
        _disturb(request)
        from seediff_jax.driver.stdio import run_program
        from seediff_jax.main import main

        sys.argv = request["argv"]
        try:
            run_program(main)
        except SystemExit as end:
            statuses.append(end.code)
