"""`python -m dlcv_cli` is `dlcv`."""

from dlcv_cli.cli.root import main

main()
