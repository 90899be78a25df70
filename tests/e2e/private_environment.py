"""Environments of other people's services, each beside ours: their requirements and ours never meet."""

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def environment(name: str) -> Path:
    """A virtual environment with what `requirements/<name>.txt` locks: made once for each content of that file."""
    lock = ROOT / "requirements" / f"{name}.txt"
    home = ROOT / ".keystone" / f"{name}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}"
    done = home / "installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        python = str(home / "bin" / "python")
        asked = ["install", "--quiet", "--require-hashes", "-r", str(lock)]
        # uv takes a tenth of the time. It knows nothing of pip's settings: where those name a mirror, pip does it.
        fast = subprocess.run([sys.executable, "-m", "uv", "pip", *asked, "--python", python])
        if fast.returncode != 0:
            subprocess.run([python, "-m", "pip", "--disable-pip-version-check", *asked], check=True)
        done.touch()
    return home
