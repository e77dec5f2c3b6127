"""The script `dlcv`, and `python -m dlcv_cli`."""

import sys


def main() -> None:
    """Run the command line. Ctrl-C while it is still being imported ends it in the same way."""
    try:
        from dlcv_cli.cli.app import main as run

        run()
    except KeyboardInterrupt as error:
        print("dlcv: interrupted", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 130))  # SIGTERM has another one


if __name__ == "__main__":
    main()
