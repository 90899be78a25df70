"""A bucket with object lock on a real S3 server, and what is asked of it beside the product."""

import base64
import hashlib
import re
import secrets
from datetime import datetime

from seaweed import S3Server

from strongroom.base.clock import SystemClock
from strongroom.engine.store.s3_multipart import MultipartClient
from strongroom.engine.store.s3_retention import UNTIL_HEADER


def client_of(server: S3Server, bucket: str) -> MultipartClient:
    return MultipartClient(server.access(), server.endpoint, bucket, connections=2, clock=SystemClock(), silence_s=20.0)


def locked_bucket(server: S3Server) -> str:
    """The name of a new one."""
    name = f"locked-{secrets.token_hex(4)}"
    client_of(server, name).request("PUT", "bucket", "", {}, headers={"x-amz-bucket-object-lock-enabled": "true"})
    return name


def remove_versions_after_a_day(client: MultipartClient) -> None:
    """The lifecycle rule that our documents advise."""
    body = (
        b"<LifecycleConfiguration><Rule><ID>deleted</ID><Status>Enabled</Status><Filter><Prefix></Prefix></Filter>"
        b"<NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays></NoncurrentVersionExpiration></Rule>"
        b"</LifecycleConfiguration>"
    )
    digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    client.request("PUT", "rules", "", {"lifecycle": ""}, memoryview(body), {"content-md5": digest})


def kept_until(server: S3Server, bucket: str, key: str) -> datetime | None:
    """None: it is not kept."""
    found = client_of(server, bucket).request("HEAD", key, key, {}).headers.get(UNTIL_HEADER)
    return datetime.fromisoformat(found) if found else None


def versions(server: S3Server, bucket: str, key: str) -> list[str]:
    """Ids of all versions of an object that hold data."""
    page = client_of(server, bucket).request("GET", key, "", {"versions": "", "prefix": key}).body.decode()
    return re.findall(r"<Version>.*?<VersionId>([^<]+)</VersionId>", page, re.DOTALL)
