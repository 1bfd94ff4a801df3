"""Starts `seediff`. It handles signals before it imports other modules, which takes a second."""

from seediff_jax.driver import signals


def run() -> None:
    """Console entry."""
    signals.end_at_signals()
    from seediff_jax.driver.stdio import run_program
    from seediff_jax.main import main

    run_program(main)


if __name__ == "__main__":
    run()
