"""dlcv: transfer learning and recurrent cells, studied from the shell."""

__version__ = "0.1.0"
