"""SDK-HMAC-SHA256: what the real signer signs is accepted, and nothing else is."""

import dataclasses
import hashlib
import hmac
import types
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, quote_plus

import pytest
import requests
from huaweicloudsdkcore.sdk_request import SdkRequest
from huaweicloudsdkcore.signer.signer import Signer
from hypothesis import given
from hypothesis import strategies as st

from strongroom.base.errors import Unauthenticated
from strongroom.control.signatures import SignedRequest, parse_signature, verify_signature

ACCESS, SECRET = "AKAKAKAKAKAKAKAKAKAK", "sEcReTsEcReTsEcReTsEcReTsEcReTsEcReT"
NOW = datetime(2026, 1, 31, 23, 59, 58, tzinfo=UTC)
DATE = "20260131T235958Z"
HOST = "backup.example.org:8799"


def sign(
    *, method="GET", path="/v3/p/vaults", query=(), body="", headers=None, date=DATE, secret=SECRET
) -> tuple[str, SignedRequest]:
    """The Authorization header and the wire request, by the SDK's own signer and the HTTP library the SDK uses."""
    request = SdkRequest(
        method=method,
        schema="http",
        host=HOST,
        resource_path=path,
        query_params=list(query),
        header_params={
            "Content-Type": "application/json",
            "User-Agent": "huaweicloud-usdk-python/3.0",
            "X-Project-Id": "p",
            "X-Sdk-Date": date,
            **(headers or {}),
        },
        body=body,
    )
    Signer(types.SimpleNamespace(ak=ACCESS, sk=secret)).sign(request)
    prepared = requests.Request(
        method, f"http://{HOST}{request.uri}", headers=request.header_params, data=request.body or None
    ).prepare()
    target, _, raw_query = prepared.path_url.partition("?")
    body_bytes = prepared.body or b""
    return request.header_params["Authorization"], SignedRequest(
        method=method,
        target=target.encode(),
        query=raw_query.encode(),
        headers=[
            (name.lower().encode(), value if isinstance(value, bytes) else value.encode("latin-1"))
            for name, value in prepared.headers.items()
        ],
        body=body_bytes if isinstance(body_bytes, bytes) else body_bytes.encode(),
    )


def verify(authorization: str, request: SignedRequest, *, secret: str = SECRET, now: datetime = NOW) -> datetime:
    signature = parse_signature(authorization)
    assert signature.access_key == ACCESS
    return verify_signature(request, signature, secret, now)


def refuse(authorization: str, request: SignedRequest, match: str = "verify aksk signature fail", **more) -> None:
    with pytest.raises(Unauthenticated, match=match):
        verify(authorization, request, **more)


# A path segment as a client may have it: any text but what ends a path, and no dot segments, which clients resolve.
segments = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/?#\\"), min_size=1, max_size=12
).filter(lambda text: text not in (".", "..") and "%" not in text)
values = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.booleans(),
    st.integers(),
    st.lists(st.integers(), max_size=4),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=4),
)
keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE"]),
    parts=st.lists(segments, min_size=1, max_size=5),
    slash=st.booleans(),
    query=st.dictionaries(keys, values, max_size=5),
    body=st.one_of(st.just(""), st.text(max_size=40), st.binary(max_size=2000)),
    header=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), max_size=10),
)
def test_what_the_real_signer_signs_is_accepted(method, parts, slash, query, body, header):
    """Odd paths, queries, lists, unicode, empty and binary bodies: the SDK's signature holds, for the wire's bytes."""
    authorization, request = sign(
        method=method,
        path="/" + "/".join(parts) + "/" * slash,
        query=query.items(),
        body=body,
        headers={"X-Odd": header},
    )
    assert verify(authorization, request) == NOW


def test_a_large_body_is_covered():
    """A body of megabytes is accepted, and one changed byte in it is not."""
    body = b'{"vault": "' + b"x" * (4 << 20) + b'"}'
    authorization, request = sign(method="POST", body=body)
    verify(authorization, request)
    refuse(authorization, dataclasses.replace(request, body=body[:-3] + b"y" + body[-2:]))


def test_a_percent_sign_and_a_slash_in_a_name():
    """Escapes in the path as sent: %25 and %2F verify as the client meant them."""
    authorization, request = sign(path="/v3/p/100%25/a%2Fb")
    assert request.target == b"/v3/p/100%25/a%2Fb"
    verify(authorization, request)


def test_the_placeholder_of_a_missing_project():
    """The SDK without a project id sends the literal placeholder: signed well, so the 404 is the router's."""
    authorization, request = sign(path="/v3/{project_id}/vaults")
    assert request.target == b"/v3/%7Bproject_id%7D/vaults"
    verify(authorization, request)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "DELETE"},
        {"target": b"/v3/q/vaults"},
        {"target": b"/v3/p/vaults/x"},
        {"query": b"limit=11"},
        {"query": b"limit=10&offset=1"},
        {"query": b"limit=10&limit=10"},
        {"query": b""},
        {"body": b"{}"},
    ],
    ids=str,
)
def test_every_part_of_the_request_is_covered(change):
    """Another method, path, query or body than was signed is refused."""
    authorization, request = sign(query=[("limit", 10)])
    verify(authorization, request)
    refuse(authorization, dataclasses.replace(request, **change))


@pytest.mark.parametrize("name", [b"host", b"content-type", b"user-agent", b"x-project-id"])
def test_signed_headers_are_covered(name):
    """A signed header that was changed, dropped or doubled is refused; an unsigned one more is not our business."""
    authorization, request = sign()
    others = [pair for pair in request.headers if pair[0] != name]
    refuse(authorization, dataclasses.replace(request, headers=[*others, (name, b"other")]))
    refuse(authorization, dataclasses.replace(request, headers=others), "did not come")
    refuse(authorization, dataclasses.replace(request, headers=[*request.headers, (name, b"other")]), "came twice")
    verify(authorization, dataclasses.replace(request, headers=[*request.headers, (b"accept-encoding", b"gzip")]))


def test_another_secret_is_refused():
    """A wrong secret key does not verify, and the sentence does not tell why."""
    authorization, request = sign(secret="another")
    refuse(authorization, request)


@pytest.mark.parametrize("minutes", [-15, 15])
def test_the_clock_window(minutes):
    """Clocks may be 15 minutes apart either way; beyond that the sentence names both times."""
    authorization, request = sign()
    verify(authorization, request, now=NOW + timedelta(minutes=minutes))
    beyond = NOW + timedelta(minutes=minutes, seconds=1 if minutes > 0 else -1)
    refuse(authorization, request, f"X-Sdk-Date is {DATE}.*Set the clock", now=beyond)


def test_a_date_that_is_none():
    """The 31st of February, and text that strptime alone would take, are refused."""
    authorization, request = sign()
    for date in (b"20260231T000000Z", b"20260131T2359", b"2026013 T235958Z", b""):
        headers = [(name, date if name == b"x-sdk-date" else value) for name, value in request.headers]
        refuse(authorization, dataclasses.replace(request, headers=headers), "is not like 2026")


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer x",
        "SDK-HMAC-SHA256",
        f"SDK-HMAC-SHA256 Access={ACCESS}, SignedHeaders=x-sdk-date, Signature=00",
        f"SDK-HMAC-SHA256 Access={ACCESS}, SignedHeaders=x-sdk-date, Signature={'zz' * 32}",
        f"SDK-HMAC-SHA256 Access={ACCESS}\x00, SignedHeaders=x-sdk-date, Signature={'00' * 32}",
        f"SDK-HMAC-SHA256 Access=, SignedHeaders=x-sdk-date, Signature={'00' * 32}",
        f"SDK-HMAC-SHA256 Access={ACCESS}, SignedHeaders=host, Signature={'00' * 32}",
        f"SDK-HMAC-SHA256 Access={ACCESS}, SignedHeaders=host;Host;x-sdk-date, Signature={'00' * 32}",
        f"SDK-HMAC-SM3 Access={ACCESS}, SignedHeaders=x-sdk-date, Signature={'00' * 32}",
        f"V11-HMAC-SHA256 Credential={ACCESS}/1/r/s, SignedHeaders=x-sdk-date, Signature={'00' * 32}",
        f"SDK-HMAC-SHA256 Access={ACCESS}, SignedHeaders={';h' * 3000};x-sdk-date, Signature={'00' * 32}",
    ],
)
def test_malformed_authorization_is_refused(authorization):
    """Anything but a well-formed header of the two forms is a 401, never a crash."""
    with pytest.raises(Unauthenticated):
        parse_signature(authorization)


@given(st.text(max_size=300))
def test_any_text_as_authorization(text):
    """No text makes the parser fail in another way than by refusing."""
    for authorization in (text, f"SDK-HMAC-SHA256 {text}", f"SDK-HMAC-SHA256 Access={ACCESS}, SignedHeaders={text}"):
        with pytest.raises(Unauthenticated):
            parse_signature(authorization)


def test_a_stated_body_hash_is_compared():
    """X-Sdk-Content-Sha256 of the body is fine; of another body, or an unsigned payload, is refused."""
    body = b'{"a": 1}'
    right = hashlib.sha256(body).hexdigest()
    verify(*sign(method="POST", body=body, headers={"X-Sdk-Content-Sha256": right}))
    refuse(*sign(method="POST", body=body, headers={"X-Sdk-Content-Sha256": "0" * 64}))
    refuse(*sign(method="POST", body=body, headers={"Content-Type": "text/plain"}), "the body must be signed too")


# --- the derived form: there is no Python client of it, so the test has a signer of its own, after the Go client ------


def sign_derived(
    *, method="GET", path="/v3/p/vaults", query=(), body=b"", region="eu-de", service="", day=DATE[:8], date=DATE
) -> tuple[str, SignedRequest]:
    headers = {"host": HOST, "user-agent": "golang  sdk", "x-sdk-date": date}
    names = ";".join(sorted(headers))
    scope = f"{day}/{region}/{service}/sdk_request"
    pairs = sorted(query, key=lambda pair: quote(pair[0], safe="~").lower())
    sent = "&".join(f"{quote_plus(key)}={quote_plus(value)}" for key, value in query)
    as_payload = method == "POST" and not body
    payload = "&".join(f"{quote_plus(k)}={quote_plus(v)}" for k, v in sorted(query)).encode() if as_payload else body
    canonical = "\n".join(
        [
            method,
            quote(path if path.endswith("/") else path + "/", safe="/~"),
            "" if as_payload else "&".join(f"{quote(k, safe='~')}={quote(v, safe='~')}" for k, v in pairs),
            "".join(f"{name}:{' '.join(headers[name].split())}\n" for name in sorted(headers)),
            names,
            hashlib.sha256(payload).hexdigest(),
        ]
    )
    key = b"SDK" + SECRET.encode()
    for part in (day, region, service, "sdk_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = f"SDK-HMAC-SHA256\n{date}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signature = hmac.new(key, text.encode(), "sha256").hexdigest()
    return (
        f"SDK-HMAC-SHA256 Credential={ACCESS}/{scope}, SignedHeaders={names}, Signature={signature}",
        SignedRequest(
            method=method,
            target=quote(path).encode(),
            query=sent.encode(),
            headers=[(name.encode(), value.encode()) for name, value in headers.items()],
            body=body,
        ),
    )


@given(
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE"]),
    parts=st.lists(segments, min_size=1, max_size=4),
    query=st.dictionaries(keys, st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=4),
    body=st.binary(max_size=100),
    region=st.sampled_from(["", "eu-de"]),
)
def test_the_derived_form_is_accepted(method, parts, query, body, region):
    """Credential= with a scope, empty region or service, and a POST without body that hashes its query."""
    lowered = {key.lower() for key in query}
    if len(lowered) < len(query):
        return  # keys that differ in case only: the Go client's own order is random there
    authorization, request = sign_derived(
        method=method, path="/" + "/".join(parts), query=list(query.items()), body=body, region=region
    )
    assert verify(authorization, request) == NOW


def test_the_derived_form_covers_the_whole_query():
    """It signs the first value of a key only, so a query that repeats a key is refused."""
    authorization, request = sign_derived(query=[("limit", "1")])
    verify(authorization, request)
    refuse(authorization, dataclasses.replace(request, query=b"limit=1&limit=2"), "repeats a key")
    refuse(authorization, dataclasses.replace(request, query=b"limit=2"))


def test_the_scopes_day_is_the_dates():
    """A derived key of one day signs nothing dated another day."""
    refuse(*sign_derived(day="20260130"))
