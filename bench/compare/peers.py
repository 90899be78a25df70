"""Fetch the programs to compare with, beside the system: restic as Debian packages it now, BorgBackup 1.4 from PyPI.

    python -m bench.compare.peers DIR

From where this machine's apt and pip are told to look, and nowhere else. restic's newest package is taken (Debian's
unstable suite of the configured mirror; elsewhere what apt offers) and only unpacked; it is one static program. borg
gets a virtual environment of its own and is compiled there. What cannot be had is said in a sentence and left out.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SUITE = "sid"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
BORG = "borgbackup==1.4.*"
# What borg's build needs: the pkg-config module that tells whether it is there, and Debian's package of it.
BORG_NEEDS = {
    "libacl": "libacl1-dev",
    "libcrypto": "libssl-dev",
    "liblz4": "liblz4-dev",
    "libzstd": "libzstd-dev",
    "libxxhash": "libxxhash-dev",
}
SYSTEM_PACKAGES = Path(__file__).resolve().parents[2] / ".ci" / "system-packages"
OUTPUT_SHOWN = 300


class Unobtainable(Exception):
    """This machine cannot get a peer; the text says why."""


def fetch(folder: Path) -> dict[str, Path]:
    """The peers in `folder`, fetched unless they are there: name -> program. Those that cannot be had are missing."""
    found: dict[str, Path] = {}
    ways: dict[str, Callable[[Path], Path]] = {"restic": _fetch_restic, "borg": _fetch_borg}
    for name, way in ways.items():
        try:
            found[name] = way(folder / name)
        except Unobtainable as err:
            shutil.rmtree(folder / name, ignore_errors=True)
            print(f"{name} is not obtainable here and is left out: {err}", file=sys.stderr)
    return found


def _fetch_restic(folder: Path) -> Path:
    program = folder / "usr/bin/restic"
    if program.exists():
        return program
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        on_path = shutil.which("restic")
        if on_path:
            return Path(on_path)
        raise Unobtainable("there is no apt, and no restic on the PATH.")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        options = _unstable_suite(folder)
        _run(["apt-get", *options, "-qq", "update"])
        _run(["apt-get", *options, "-qq", "download", "restic"], cwd=folder)
    except Unobtainable:
        _run(["apt-get", "-qq", "download", "restic"], cwd=folder)  # another distribution: its own newest
    for package in folder.glob("restic_*.deb"):
        _run(["dpkg-deb", "-x", str(package), str(folder)])
    return program


def _unstable_suite(folder: Path) -> list[str]:
    """Options that make apt look at the unstable suite of the mirror it is told to use, with lists of its own."""
    sites = _run(["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"]).split()
    mirror = next((site for site in sites if site.rstrip("/").endswith("/debian")), None)
    if mirror is None or not KEYRING.exists():
        raise Unobtainable("apt is not told of a Debian mirror.")
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / "apt" / name).mkdir(parents=True, exist_ok=True)
    sources = folder / "apt/sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {mirror} {SUITE} main\n")
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": folder / "apt/none",
        "Dir::State::lists": folder / "apt/lists",
        "Dir::Cache": folder / "apt/cache",
        "APT::Sandbox::User": "root",  # its own user may not write where we are
    }
    return [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]


def _fetch_borg(folder: Path) -> Path:
    program = folder / "bin/borg"
    if program.exists():
        return program
    missing = [package for module, package in BORG_NEEDS.items() if not _has_library(module)]
    if missing:
        _run([str(SYSTEM_PACKAGES), "--install", "pkg-config", "python3-dev", "gcc", *missing])
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([str(folder / "bin/pip"), "--disable-pip-version-check", "-q", "install", BORG])
    _run([str(program), "--version"])
    return program


def _has_library(module: str) -> bool:
    if not shutil.which("pkg-config"):
        return False
    return subprocess.run(["pkg-config", "--exists", module], check=False).returncode == 0


def _run(argv: list[str], cwd: Path | None = None) -> str:
    """Run a tool; what it prints. Unobtainable when it fails."""
    try:
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    except OSError as err:
        raise Unobtainable(f"{argv[0]}: {err.strerror}.") from err
    if done.returncode:
        said = " ".join(done.stderr.split())[-OUTPUT_SHOWN:]
        raise Unobtainable(f"`{Path(argv[0]).name}` failed ({said}).")
    return done.stdout


def main() -> None:
    for name, program in fetch(Path(sys.argv[1]).resolve()).items():
        print(f"{name}: {program}")


if __name__ == "__main__":
    main()
