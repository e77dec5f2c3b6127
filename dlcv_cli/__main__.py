"""The script `dlcv`, and `python -m dlcv_cli`."""

import sys


def main() -> None:
    """Runs the command line; an interruption while it is being imported is one too."""
    try:
        from dlcv_cli.cli.app import main as run

        run()
    except KeyboardInterrupt as error:
        print("dlcv: interrupted", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 130))  # another one for SIGTERM


if __name__ == "__main__":
    main()
