"""Check a built wheel: nothing forgotten, nothing extra, and it runs when installed by itself.

Usage: python scripts/wheel_smoke.py dist/penstock-0.1.0-py3-none-any.whl

The libraries come from the environment that runs this script, so nothing is downloaded.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from collections.abc import Callable, Iterator
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"


def package_files() -> Iterator[str]:
    """Yield what the package holds in the tree, Lua scripts and static files among it."""
    for path in sorted((SOURCE / "penstock").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and path.name != ".DS_Store":
            yield path.relative_to(SOURCE).as_posix()


def check_contents(wheel: Path) -> str:
    """Compare the wheel's files with the tree's."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = set(package_files())
    missing, extra = sorted(expected - names), sorted(names - expected)
    if missing or extra:
        raise AssertionError(f"missing from the wheel: {missing}; not in the tree: {extra}")
    data = [name for name in names if not name.endswith(".py")]
    if not any(name.startswith("penstock/api/static/") for name in data):
        raise AssertionError("no static files in the wheel")
    if (SOURCE / "penstock/store/lua").is_dir() and not any(name.endswith(".lua") for name in data):
        raise AssertionError("no Lua scripts in the wheel")
    return f"{len(names)} files, {len(data)} of them data"


def check_metadata(wheel: Path) -> str:
    """Check the licence, the entry point and that nothing is required by address."""
    archive = zipfile.ZipFile(wheel)
    info = next(name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name)
    metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
    if metadata["License-Expression"] != "Apache-2.0" or f"{info}/licenses/LICENSE" not in archive.namelist():
        raise AssertionError("the licence is missing")
    if by_address := [line for line in metadata.get_all("Requires-Dist", []) if " @ " in line]:
        raise AssertionError(f"required by address: {by_address}")
    if "penstock = penstock.cli:main" not in archive.read(f"{info}/entry_points.txt").decode():
        raise AssertionError("the command `penstock` is missing")
    return f"{metadata['Name']} {metadata['Version']}"


def check_installed(wheel: Path) -> str:
    """Install the wheel into an empty environment and run its command from there."""
    with tempfile.TemporaryDirectory(prefix="penstock-wheel-") as folder:
        home = Path(folder) / "venv"
        venv.create(home, with_pip=False)
        python = home / "bin" / "python"
        site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python))
        run(*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel))
        # A folder named in a .pth has its own .pth files ignored, so the editable project stays invisible.
        (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
        where = run(python, "-c", "import penstock; print(penstock.__file__)", cwd=folder)
        if not where.startswith(str(site)):
            raise AssertionError(f"the wheel's own package was not the one imported: {where}")
        return run(home / "bin" / "penstock", "--version", cwd=folder)


def run(*command: str | Path, cwd: str | None = None) -> str:
    """Run a command and return its output; raises with all that it printed when it fails."""
    done = subprocess.run(command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise AssertionError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}")
    return done.stdout.strip()


def main() -> int:
    """Run each check on the wheel that the command line names."""
    wheel = Path(sys.argv[1]).resolve()
    checks: list[Callable[[Path], str]] = [check_contents, check_metadata, check_installed]
    failed = 0
    for check in checks:
        try:
            print(f"ok      {check.__name__}: {check(wheel)}")
        except (AssertionError, OSError) as problem:
            failed += 1
            print(f"FAILED  {check.__name__}: {problem}")
    print(f"{len(checks) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
