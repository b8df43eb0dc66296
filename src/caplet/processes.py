"""Child processes: each has a time limit, no input, and ends with everything that it started."""

import os
import signal
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE, CompletedProcess, Popen, TimeoutExpired

from caplet.errors import ToolMissing

LOOK, WORK = 30.0, 300.0
"""Seconds for asking a program its version, and for a compilation."""


def run(
    command: Sequence[str], cwd: Path | None = None, seconds: float = WORK, environment: Mapping[str, str] | None = None
) -> CompletedProcess[str]:
    """Run a program to its end; its exit code, and what it printed.

    Raises:
        ToolMissing: it cannot be started, or does not end within ``seconds``; it is ended then, as on an interrupt.
    """
    name, open_ = " ".join(command[:4]), partial(Popen[str], stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
    try:
        child = open_(command, cwd=cwd, env=environment, text=True, errors="replace", start_new_session=True)
    except OSError as error:
        raise ToolMissing(f"{name} cannot be started: {error.strerror or error}") from error
    with child:
        try:
            out, err = child.communicate(timeout=seconds)
        except BaseException as error:
            if hasattr(os, "killpg"):
                os.killpg(child.pid, signal.SIGKILL)  # its own group: the children of its children go, too
            child.kill()
            if isinstance(error, TimeoutExpired):
                raise ToolMissing(f"{name} did not end within {seconds:g} s and was ended") from error
            raise
    return CompletedProcess(list(command), child.returncode, out, err)
