"""A back end of a real Cinder that needs no kernel modules: volumes are sparse files, reached by their path."""

import os
import subprocess

from cinder import interface
from cinder.volume import driver

POOL = {
    "pool_name": "files",
    "total_capacity_gb": 1000,
    "free_capacity_gb": 900,
    "reserved_percentage": 0,
    "thin_provisioning_support": True,
    "consistent_group_snapshot_enabled": True,
    "max_over_subscription_ratio": 20.0,
    "provisioned_capacity_gb": 0,
}


@interface.volumedriver
class FileDriver(driver.VolumeDriver):
    VERSION = "1"
    CI_WIKI_NAME = "none"

    def __init__(self, *words, **named):
        super().__init__(*words, **named)
        self.root = os.environ["FILE_DRIVER_ROOT"]

    def do_setup(self, context):
        os.makedirs(self.root, exist_ok=True)

    def check_for_setup_error(self):
        return None

    def _place(self, name):
        return os.path.join(self.root, name)

    def _copy(self, source, target):
        subprocess.check_call(["cp", "--sparse=always", self._place(source), self._place(target)])

    def create_volume(self, volume):
        with open(self._place(volume["name"]), "wb") as file:
            file.truncate(volume["size"] << 30)

    def delete_volume(self, volume):
        if os.path.exists(self._place(volume["name"])):
            os.unlink(self._place(volume["name"]))

    def create_snapshot(self, snapshot):
        self._copy(snapshot["volume_name"], snapshot["name"])

    def delete_snapshot(self, snapshot):
        os.unlink(self._place(snapshot["name"]))

    def create_volume_from_snapshot(self, volume, snapshot):
        self._copy(snapshot["name"], volume["name"])
        os.truncate(self._place(volume["name"]), volume["size"] << 30)

    def create_cloned_volume(self, volume, source):
        self._copy(source["name"], volume["name"])

    def extend_volume(self, volume, new_size):
        os.truncate(self._place(volume["name"]), new_size << 30)

    def create_group(self, context, group):
        return {"status": "available"}

    def delete_group(self, context, group, volumes):
        return {"status": "deleted"}, [{"id": volume["id"], "status": "deleted"} for volume in volumes]

    def create_group_snapshot(self, context, group_snapshot, snapshots):
        """One after the other: of one moment only as long as nobody writes."""
        for snapshot in snapshots:
            self.create_snapshot(snapshot)
        return {"status": "available"}, [{"id": one["id"], "status": "available"} for one in snapshots]

    def delete_group_snapshot(self, context, group_snapshot, snapshots):
        for snapshot in snapshots:
            self.delete_snapshot(snapshot)
        return {"status": "deleted"}, [{"id": one["id"], "status": "deleted"} for one in snapshots]

    def ensure_export(self, context, volume):
        return None

    create_export = remove_export = terminate_connection = lambda self, *words, **named: None

    def initialize_connection(self, volume, connector):
        return {"driver_volume_type": "local", "data": {"device_path": self._place(volume["name"])}}

    def _update_volume_stats(self):
        self._stats = {
            "volume_backend_name": "files",
            "vendor_name": "tests",
            "driver_version": "1",
            "storage_protocol": "local",
            "pools": [POOL],
        }
