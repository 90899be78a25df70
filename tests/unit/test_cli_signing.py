"""The command line signs as the SDK does, and the server's own verifier agrees."""

from datetime import UTC, datetime

import httpx
import pytest
from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.sdk_request import SdkRequest

from strongroom.base.signing import sign
from strongroom.cli.credentials import Credentials
from strongroom.cli.signing import RequestSigner

CREDENTIALS = Credentials(
    endpoint="http://127.0.0.1:8799", project_id="0" * 32, access_key="TESTAK", secret_key="TESTSK"
)
REQUESTS = [
    ("GET", "/v3/p/vaults", [], b""),
    ("GET", "/v3/p/vaults", [("name", "größe ü"), ("limit", "10"), ("id", "b"), ("id", "a"), ("empty", "")], b""),
    ("POST", "/v3/p/checkpoints", [], b'{"checkpoint": {"vault_id": "x"}}'),
    ("DELETE", "/v3/p/backups/a%20b~c", [], b""),
]


class FixedClock:
    def now(self) -> datetime:
        return datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def monotonic_s(self) -> float:
        return 0.0


@pytest.mark.parametrize(("method", "path", "query", "body"), REQUESTS)
def test_signature_equals_the_sdks(method: str, path: str, query: list[tuple[str, str]], body: bytes) -> None:
    """For the same request and headers the SDK computes the same signature."""
    headers = {"Host": "127.0.0.1:8799", "X-Sdk-Date": "20260102T030405Z", "X-Project-Id": "0" * 32}
    url = httpx.URL(f"http://127.0.0.1:8799{path}", params=query or None)
    signed = {name.lower(): value for name, value in headers.items()}
    request = SdkRequest(
        method=method,
        schema="http",
        host="127.0.0.1:8799",
        resource_path=httpx.URL(f"http://h{path}").path,
        uri=path,
        query_params=list(query),
        header_params=dict(headers),
        body=body.decode(),
    )
    credentials = BasicCredentials("TESTAK", "TESTSK", "0" * 32)
    theirs = credentials.sign_request(request).header_params["Authorization"]
    assert sign("TESTSK", method, url.raw_path, signed, body) == theirs.rpartition("Signature=")[2]


def test_request_carries_what_the_server_needs() -> None:
    """Authorization names the key and the signed headers; date and project travel with it."""
    request = httpx.Request("POST", "http://127.0.0.1:8799/v3/p/vaults", json={"a": 1})
    next(RequestSigner(CREDENTIALS, FixedClock()).auth_flow(request))
    assert request.headers["Authorization"].startswith(
        "SDK-HMAC-SHA256 Access=TESTAK, SignedHeaders=host;x-project-id;x-sdk-date, Signature="
    )
    assert request.headers["X-Sdk-Date"] == "20260102T030405Z"
    assert request.headers["X-Project-Id"] == "0" * 32


def test_secret_is_not_in_the_credentials_text() -> None:
    """A traceback or log that shows the credentials does not show the secret key."""
    assert "TESTSK" not in repr(CREDENTIALS)
