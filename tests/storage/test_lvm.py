"""Logical volumes, classic and thin, in a guest: this machine's kernel need not have the device mapper."""

import os
import py_compile
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest_world import KERNEL, Archive, kernel, module_order

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent / "guest"
MODULES = ("virtio_pci", "virtio_blk", "dm_mod", "dm_snapshot", "dm_thin_pool", "ext4", "xfs")
TOOLS = ("lvm", "dmsetup", "thin_delta", "mkfs.ext4", "mkfs.xfs")
DISK_BYTES = 512 << 20
GUEST_S_MAX = 900.0  # TCG on a machine with other work
STORIES = re.findall(r"^def ((?:thin|classic|a|without|folders)_\w+)", (HERE / "story.py").read_text(), re.MULTILINE)

pytestmark = [pytest.mark.long, pytest.mark.timeout(1000)]


def python_files() -> Iterator[tuple[str, Path]]:
    """What the story imports, and what Python needs to begin: (place in the guest, file)."""
    code = "import sys, encodings.idna, encodings.latin_1, encodings.ascii, story; "
    code += "print(*(m.__file__ for m in list(sys.modules.values()) if getattr(m, '__file__', None)), sep='\\n')"
    here = {"PYTHONPATH": f"{ROOT}:{HERE}"}
    shown = subprocess.run([sys.executable, "-c", code], env=here, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    library = Path(os.__file__).parent
    for line in shown.stdout.splitlines():
        path = Path(line)
        if path.is_relative_to(ROOT / "strongroom"):
            yield f"ourselves/{path.relative_to(ROOT)}", path
        elif path.is_relative_to(library):
            yield f"python/lib/{library.name}/{path.relative_to(library)}", path
    yield "ourselves/story.py", HERE / "story.py"


def build_initramfs(path: Path, scratch: Path) -> Path:
    seen: set[str] = set()
    with path.open("wb") as file:
        archive = Archive(file)

        def add(place: str, content: bytes, mode: int = stat.S_IFREG | 0o755) -> None:
            if place not in seen:
                seen.add(place)
                archive.add(place, mode, content)

        def add_program(place: str, program: Path) -> None:
            add(place, program.resolve().read_bytes())
            shown = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
            for library in map(Path, re.findall(r"(/\S+\.so\S*)", shown)):
                add(str(library).lstrip("/"), library.read_bytes())

        for folder in ("proc", "sys", "dev", "tmp", "etc", "run", "var", "python/lib/python3.11/lib-dynload"):
            archive.add(f"{folder}/.keep", stat.S_IFREG | 0o644)
        archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
        add("init", (HERE / "init.sh").read_bytes())
        add_program("bin/busybox", Path(str(shutil.which("busybox"))))
        add("bin/sh", b"busybox", stat.S_IFLNK | 0o777)
        add_program("python/bin/python", Path(sys.executable))
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None, f"{tool} is not installed: run `make test-sources`"
            add_program(f"usr/sbin/{tool}", Path(found))
        for place, source in python_files():
            if source.suffix == ".so":
                add_program(place, source)
                continue
            compiled = scratch / "module.pyc"  # compiled here: it takes the guest half a minute
            mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
            py_compile.compile(str(source), str(compiled), f"/{place}", True, invalidation_mode=mode)
            add(place, source.read_bytes())
            folder, _, name = place.rpartition("/")
            tag = sys.implementation.cache_tag
            add(f"{folder}/__pycache__/{name.removesuffix('.py')}.{tag}.pyc", compiled.read_bytes())
        files = {each.stem.replace("-", "_"): each for each in (KERNEL / "lib" / "modules").rglob("*.ko")}
        order = module_order(MODULES, files)
        for module in order:
            add(f"modules/{module.name}", module.read_bytes())
        add("modules/order", "\n".join(each.name for each in order).encode())
        archive.end()
    return path


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the guest printed, from its boot to its end."""
    place = tmp_path_factory.mktemp("lvm")
    with (place / "disk").open("wb") as disk:
        disk.truncate(DISK_BYTES)
    log = place / "console.log"
    command = ["qemu-system-x86_64", "-accel", "tcg", "-machine", "q35", "-m", "768", "-nic", "none", "-no-reboot"]
    command += ["-display", "none", "-serial", f"file:{log}", "-kernel", str(kernel())]
    command += ["-initrd", str(build_initramfs(place / "initramfs", place))]
    command += ["-append", "console=ttyS0 quiet panic=-1"]
    command += ["-drive", f"file={place / 'disk'},format=raw,if=virtio,cache=unsafe"]
    subprocess.run(command, check=True, timeout=GUEST_S_MAX)
    return log.read_text(errors="replace")


@pytest.mark.parametrize("story", STORIES)
def test_points_of_logical_volumes(console: str, story: str) -> None:
    """Each story of guest/story.py passed inside the guest."""
    assert re.search(rf"^PASS {story}\r?$", console, re.MULTILINE), console[-6000:]


def test_every_story_was_told(console: str) -> None:
    assert "STORY-ENDED 0" in console, console[-6000:]
    assert len(STORIES) == len(re.findall(r"^PASS ", console, re.MULTILINE)), console[-6000:]
