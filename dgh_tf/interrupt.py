"""cli: Ctrl-C while a command is still importing is one line. Every package imports this file before anything else."""
import sys

_PACKAGES = ("dgh_tf", "tflite_export", "benchmarks")


def _said(kind, error, trace) -> None:
    """sys.excepthook of a command."""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped: interrupted before anything was done.", file=sys.stderr, flush=True)
    else:
        sys.__excepthook__(kind, error, trace)


if any(flag == "-m" and name.split(".")[0] in _PACKAGES for flag, name in zip(sys.orig_argv, sys.orig_argv[1:], strict=False)):
    sys.excepthook = _said  # not for those who only import these packages
