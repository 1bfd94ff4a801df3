"""What libtpu, the compiler and runtime of TPUs, has to be told before JAX loads it."""

import os

_STACK = "--fibers_default_thread_stack_size=1048576"


def widen_compiler_stack() -> None:
    """Gives the threads of libtpu's compiler 1 MiB of stack; call it before any use of JAX.

    With the 64 KiB that they have by default, libtpu 0.0.42.1 dies of a stack overflow (SIGSEGV) on
    the UNet of Stable Diffusion 1 with 8 images and guidance: while it fuses the attention of
    64 x 64 locations, it estimates fusions within fusions. LIBTPU_INIT_ARGS that name the option
    are left as they are.
    """
    arguments = os.environ.get("LIBTPU_INIT_ARGS", "")
    if _STACK.partition("=")[0] not in arguments:
        os.environ["LIBTPU_INIT_ARGS"] = f"{arguments} {_STACK}".strip()
