"""The stored world with machines: folders of disk images behind a driver of their own (tests/folder_machine.py)."""

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_machine
from contract_schema import check_answer
from folder_machine import FolderMachines, address, make_machine
from points_world import DISK, SERVER
from stored_world import StoredWorld

from strongroom.control.protectables import record_looks
from strongroom.control.subjects import ResourceRef
from strongroom.engine import restore_block
from strongroom.operations.machine_record import look_at_machine
from strongroom.sources import open as open_drivers

MIB = 1 << 20
SCHEME = b"folder"


class MemoryDisk:
    """A BlockTarget in memory."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.data = bytearray(size)

    def write(self, offset: int, data: memoryview) -> None:
        self.data[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int) -> None:
        self.data[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        return None


@dataclass
class Machines:
    """`driver` serves every machine of the world."""

    stored: StoredWorld
    driver: FolderMachines

    def folder(self, name: str) -> Path:
        return self.stored.folder / name

    async def add(self, name: str, disks: Mapping[str, bytes]) -> str:
        """The id of a registered machine with these disks."""
        folder = make_machine(self.folder(name), disks)
        resource = await self.stored.world.add_resource(SERVER, name=name)
        await self.stored.world.execute("UPDATE protectables SET path = %s WHERE id = %s", address(folder), resource)
        await self.look(resource, name)
        return resource

    async def look(self, resource: str, name: str) -> None:
        """As a binding looks."""
        seen = await asyncio.to_thread(look_at_machine, self.ref(resource, name))
        await record_looks(self.stored.world.database, self.stored.world.project, {resource: seen})

    def ref(self, resource: str, name: str) -> ResourceRef:
        path = address(self.folder(name))
        return ResourceRef(
            id=resource, type=SERVER, name=name, path=path, options={}, worker_group="default", size_bytes=0
        )

    def write(self, name: str, disk: str, offset: int, data: bytes) -> None:
        with (self.folder(name) / f"{disk}.img").open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def disks(self, name: str) -> dict[str, bytes]:
        """Content of every disk now."""
        return {path.stem: path.read_bytes() for path in sorted(self.folder(name).glob("*.img"))}

    def ids(self, name: str) -> dict[str, str]:
        known: Any = folder_machine.facts(self.folder(name))["disks"]
        return dict(known)

    async def show(self, backup: str) -> dict[str, Any]:
        world = self.stored.world
        answer = check_answer("show_backup", await world.client.get(world.v3(f"backups/{backup}")))
        return answer["backup"]  # type: ignore[no-any-return]

    async def read(self, backup: str) -> dict[str, bytes]:
        """Content of every disk of a backup, by name of the device, straight from the store."""
        shown = await self.show(backup)
        found = {}
        for child in shown["children"]:
            name = child["resource_name"].removeprefix(shown["resource_name"] + "-")
            found[name] = await self.read_disk(child["id"])
        return found

    async def read_disk(self, backup: str) -> bytes:
        repository = await self.stored.repository_of(backup)
        row = await self.stored.world.execute("SELECT root, resource_size_bytes FROM backups WHERE id = %s", backup)
        root, size = row[0]
        target = MemoryDisk(int(str(size)))
        await asyncio.to_thread(restore_block, repository, str(root), target)
        return bytes(target.data)

    async def add_image(self, name: str, size: int) -> tuple[str, Path]:
        """A registered image file."""
        path = self.stored.folder / f"{name}.raw"
        path.write_bytes(bytes(size))
        resource = await self.stored.world.add_resource(DISK, name=name, size_bytes=size)
        await self.stored.world.execute("UPDATE protectables SET path = %s WHERE id = %s", str(path).encode(), resource)
        return resource, path


def open_machines(stored: StoredWorld) -> Machines:
    driver = FolderMachines()
    open_drivers.MACHINE_DRIVERS[SCHEME] = lambda: driver
    return Machines(stored, driver)


def noise(seed: str, size: int = MIB) -> bytes:
    """A disk of which half is noise and half is empty."""
    return random.Random(seed).randbytes(size // 2) + bytes(size - size // 2)
