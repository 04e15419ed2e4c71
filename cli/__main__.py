"""Where the program begins: signals are seen to before anything else is imported."""

import sys

from indistill.signals import catch_signals, end_at_once_on_signals, find_signal, leave_soon


def run() -> None:
    """Runs the command line and exits."""
    end_at_once_on_signals()
    from indistill.cli.main import INTERRUPTED, main

    try:
        catch_signals()
        main()
    except SystemExit as end:
        if find_signal() is not None and isinstance(end.code, int):
            leave_soon(end.code)
        raise
    except KeyboardInterrupt:  # before the command had begun, or when its end was being told
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)
    finally:
        end_at_once_on_signals()


if __name__ == "__main__":
    run()
