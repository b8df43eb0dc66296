"""Install the wheel in dist/ into a new environment and use it from an empty folder, where no source is in reach.

    python .ci/wheel.py

It takes torch and the other dependencies from the environment that runs it, so that only the wheel itself is new. What
is tested: the command line starts, the package's data (recipes, trained networks, C runtime, templates) came along, the
demo's network trains and its C is written, and type checkers see the signatures.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

DIST = Path(__file__).parents[1] / "dist"
TYPED = "import caplet\nreveal_type(caplet.quantize)\n"


def main() -> None:
    """Install, run, check."""
    wheels = sorted(DIST.glob("caplet-*.whl"))
    if len(wheels) != 1:
        raise SystemExit(f"{DIST} holds {len(wheels)} wheels of caplet; the rule is one: make release")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        site = folder / "site"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
        subprocess.run([*pip, str(wheels[0])], check=True)
        work = folder / "work"
        work.mkdir()

        def run(*words: str) -> str:
            done = subprocess.run(words, cwd=work, env=environment, check=False, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
            return done.stdout

        environment = {**os.environ, "PYTHONPATH": str(site), "CAPLET_CACHE": str(folder / "cache")}
        where = run(sys.executable, "-c", "import caplet; print(caplet.__file__)")
        if not Path(where.strip()).is_relative_to(site):
            raise SystemExit(f"caplet came from {where.strip()}, not from the wheel")
        start = (sys.executable, "-c", "from caplet.cli import main; main()")
        run(*start, "--version")
        run(*start, "demo", "--trained")
        recipe = ("--recipe", "digits", "--limit", "200", "--set", "epochs=1", "--set", "calibration_size=100")
        run(*start, "train", *recipe, "--out", "trained", "--quiet")
        run(*start, "quantize", "trained/model.safetensors", "--calibration-size", "100", "--tolerance", "100",
            "--out", "quantized", "--quiet")  # fmt: skip
        run(*start, "export", "quantized", "--to", "c", "--out", "firmware")
        run(*start, "report", "quantized")
        (work / "typed.py").write_text(TYPED)
        shown = run(sys.executable, "-m", "mypy", "typed.py")
        if "CapsNet" not in shown or "QuantizeResult" not in shown:
            raise SystemExit(f"a type checker does not see the signature of caplet.quantize:\n{shown}")
    print(f"{wheels[0].name} works away from its sources")


if __name__ == "__main__":
    main()
