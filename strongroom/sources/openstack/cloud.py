"""A connection to one OpenStack, as `clouds.yaml` names it, and its errors in our words.

An address is `cinder:CLOUD/VOLUME` or `nova:CLOUD/SERVER`: the name of an entry of clouds.yaml, and the id of a volume
or server that this entry's project sees. The file is OpenStack's own, found as its clients do:
$OS_CLIENT_CONFIG_FILE, else /etc/openstack/clouds.yaml. Tenants never see it: they are given ids of what is registered.

openstacksdk is not among what Strongroom needs: `pip install "strongroom[openstack]"`.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from strongroom.base.errors import SourceDenied, SourceError, SourceGone

CINDER = b"cinder:"  # begins the address of a volume
CLOUDS_FILE = "/etc/openstack/clouds.yaml"
NEEDED = (
    "Volumes and servers of an OpenStack need its client and os-brick. Install them where the worker runs: "
    'pip install "strongroom[openstack]".'
)
REQUEST_S_MAX = 60
MICROVERSION = "3.54"  # attachments without an instance (Rocky, 2018)

_ADDRESS = re.compile(r"cinder:([A-Za-z0-9_.-]{1,64})/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_GONE, _DENIED, _BUSY = (404,), (401, 403), (409, 429)
_OVER = 413  # Cinder's word for a quota; Nova's is 403, Neutron's 409, with the word in the sentence
_QUOTA = re.compile(r"\bquota\b", re.IGNORECASE)


class Address(NamedTuple):
    """Where a volume is: an entry of clouds.yaml, and an id there."""

    cloud: str
    volume_id: str

    @classmethod
    def parse(cls, path: bytes) -> "Address":
        """Raises SourceError."""
        found = _ADDRESS.fullmatch(path.decode("utf-8", "replace"))
        if found is None:
            raise SourceError(
                reason="A volume of an OpenStack is written cinder:CLOUD/VOLUME-ID, the id as Cinder has it."
            )
        return cls(*found.groups())


def connect(name: str) -> Any:
    """openstacksdk for the entry `name`; it logs in at the first request. Raises SourceError when it cannot be used."""
    try:
        from openstack.config import OpenStackConfig
        from openstack.connection import Connection
    except ImportError as err:
        raise SourceError(reason=NEEDED) from err
    file = os.environ.get("OS_CLIENT_CONFIG_FILE", CLOUDS_FILE)
    with errors(f"cloud {name}"):
        try:
            region = OpenStackConfig(config_files=[file]).get_one(cloud=name, api_timeout=REQUEST_S_MAX)
        except Exception as err:
            if not _is_sdk(err):
                raise
            reason = f"The worker knows no OpenStack named {name}. Name it in {os.path.basename(file)} of the worker."
            raise SourceError(reason=reason, detail=f"{file}: {err}") from err
        return Connection(config=region)


def connect_storage(name: str) -> Any:
    """Cinder's part of it, logged in. Raises SourceError."""
    cloud = connect(name)
    with errors(f"cloud {name}"):
        return cloud.block_storage


def checked(answer: Any) -> dict[str, Any]:
    """The body of a raw answer; {} without one. Raises what `errors` knows."""
    from openstack import exceptions

    exceptions.raise_from_response(answer)
    found: dict[str, Any] = answer.json() if answer.content else {}
    return found


@contextlib.contextmanager
def errors(what: str) -> Iterator[None]:
    """The one place where an error of openstacksdk becomes ours. `what` names the object for the tenant."""
    try:
        yield
    except Exception as err:
        status = getattr(err, "status_code", None) or getattr(err, "http_status", None)
        if not _is_sdk(err):
            raise
        if status in _GONE:
            raise SourceGone(reason=f"OpenStack has no {what} that its project sees.", detail=str(err)) from err
        if status == _OVER or (status in (*_DENIED, *_BUSY) and _QUOTA.search(str(err))):
            reason = f"A quota of the project is used up: OpenStack refuses {what}. Free some of it, then try again."
            raise SourceError(reason=reason, detail=str(err)) from err
        if status in _DENIED:
            raise SourceDenied(reason=f"OpenStack does not let us use {what}.", detail=str(err)) from err
        if status in _BUSY:
            raise SourceError(
                reason=f"OpenStack refuses at {what}: it is busy. Try again later.", detail=str(err)
            ) from err
        raise SourceError(
            reason=f"OpenStack failed at {what}. Try again, or tell the operator.", detail=str(err)
        ) from err


def _is_sdk(err: Exception) -> bool:
    """An error of openstacksdk, or of the libraries that carry its requests."""
    return type(err).__module__.partition(".")[0] in ("openstack", "keystoneauth1", "requests", "urllib3")
