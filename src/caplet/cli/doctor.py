"""``caplet doctor``: what this machine has, and how to get the rest."""

from caplet.cli.output import console, print_json
from caplet.cli.shared import Json
from caplet.errors import ToolMissing


def command(json: Json = False) -> None:
    """Look for compilers, emulator, Python packages and a writable cache; say how to install what is missing.

    Exit code 7 means that something is missing without which the main jobs do not work.
    """
    from caplet.runtime.doctor import examine

    findings = examine()
    missing = [finding.name for finding in findings if finding.required and not finding.found]
    if json:
        print_json({"ready": not missing, "findings": findings})
    else:
        out = console()
        for finding in findings:
            state = "found  " if finding.found else "MISSING" if finding.required else "absent "
            out.print(f"{state}  {finding.name}: {finding.about}")
            if not finding.found:
                out.print(f"         for {finding.purpose}; get it: {finding.install}")
    if missing:
        raise ToolMissing(f"needed and missing: {', '.join(missing)}; see above how to get it")
