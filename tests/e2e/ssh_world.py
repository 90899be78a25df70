"""Debian's sshd on loopback, as another host's: its own /etc/strongroom, and no Python of ours."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from harness import wait_until
from lifeline import end_with_starter

HOST_PLACES = {"etc": Path("/etc/strongroom"), "home": Path("/var/lib/strongroom-agent")}  # bound over for this sshd

_OURS = f"python{sys.version_info[0]}.{sys.version_info[1]}"
# The system's own, which has no package of ours, where it is of our version.
THEIR_PYTHON = next(
    place for place in (Path("/usr/bin") / _OURS, Path(sys.base_prefix) / "bin" / _OURS) if place.exists()
)


def keygen(file: Path) -> str:
    """A new key; its public line."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)], check=True)
    return " ".join(file.with_suffix(".pub").read_text().split()[:2])


class Sshd:
    """Root may log in with `key`. python: all that its shell finds, as python3; None: nothing. Root's own start
    files are not read.
    """

    def __init__(self, base: Path, key: str, python: Path | None = THEIR_PYTHON) -> None:
        (base / "bin").mkdir(parents=True)
        if python is not None:
            (base / "bin" / "python3").symlink_to(python)
        self.base = base
        self.host_key = keygen(base / "host")
        (base / "authorized").write_text(key + "\n")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        (base / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {base}/host\nAuthorizedKeysFile {base}/authorized\n"
            "StrictModes no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\nUsePAM no\nPidFile none\n"
            f"KbdInteractiveAuthentication no\nLogLevel VERBOSE\n"
            f"SetEnv HOME={base}/bin PATH={base}/bin\n"
        )
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self._made = [place for place in HOST_PLACES.values() if not place.exists()]
        binds = []
        for name, place in HOST_PLACES.items():
            place.mkdir(parents=True, exist_ok=True)
            (base / name).mkdir()
            binds.append(f"mount --bind {base / name} {place}")
        script = " && ".join([*binds, f"exec /usr/sbin/sshd -D -e -f {base}/sshd_config"])
        with (base / "log").open("wb") as log:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=end_with_starter,  # noqa: PLW1509 -- as lifeline says
            )
        wait_until(lambda: "Server listening" in self.log(), f"sshd listens: {self.log()}")

    def allow(self, text: str) -> None:
        """The host's own file."""
        file = self.base / "etc" / "agent.toml"
        file.write_text(text)
        file.chmod(0o644)

    def log(self) -> str:
        return (self.base / "log").read_text(errors="replace")[-6000:]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        for place in self._made:
            os.rmdir(place)
