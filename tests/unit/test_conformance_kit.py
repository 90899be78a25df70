"""The kit's own judges: what the document and the SDK's models allow, and what they do not."""

import json
import types
from typing import Any, ClassVar

import pytest

from strongroom.conformance import contract, findings, run, story
from strongroom.conformance.contract import Exchange, faults, operation_of
from strongroom.conformance.decoding import decode_faults
from strongroom.conformance.findings import Findings
from strongroom.conformance.story import ABSENT, Outcome, Step, find, tell

HEADERS = {"x-request-id": "req-1", "content-type": "application/json"}


def exchange(body: Any, status: int = 200, **headers: str) -> Exchange:
    named = HEADERS | {name.replace("_", "-"): value for name, value in headers.items()}
    content = json.dumps(body).encode() if body is not None else b""
    return Exchange(method="GET", path="/v3/p/vaults/summary", status=status, headers=named, content=content)


@pytest.mark.parametrize(
    ("method", "path", "operation"),
    [
        ("GET", "/v3/p/vaults/external", "list_external_vault"),
        ("GET", "/v3/p/vaults/some-id", "show_vault"),
        ("POST", "/v3/p/vault/resource_instances/action", "show_vault_resource_instances"),
        ("GET", "/v3/migrates", "show_migrate_status"),
        ("GET", "/", "list_api_versions"),
        ("POST", "/v3/auth/tokens", None),
        ("PATCH", "/v3/p/vaults", None),
    ],
)
def test_a_fixed_word_of_a_path_wins_over_a_variable(method: str, path: str, operation: str | None) -> None:
    """Requests find the operation that a server finds."""
    assert operation_of(method, path) == operation


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (exchange({"size": 1}), "used_size is absent"),
        (exchange({"size": "1", "used_size": 0}), "is not of type"),
        (exchange({"size": 1, "used_size": 0}, status=201), "status 201"),
        (exchange({"size": 1, "used_size": 0}, x_request_id=""), "X-Request-Id"),
        (exchange({"size": 1, "used_size": 0}, content_type="text/html"), "Content-Type"),
        (exchange({"error": {"code": 404}}, status=404), "error_code"),
        (exchange({"error_code": "E1", "error_msg": "A sentence that says it."}, status=404), "error_code"),
        (exchange({"error_code": "BackupService.6105", "error_msg": ""}, status=404), "says nothing"),
        (exchange({"error_code": "BackupService.6105", "error_msg": "A long sentence."}, status=409), "status 409"),
        (exchange(None), "not JSON"),
    ],
)
def test_what_is_wrong_with_an_answer_is_said(answer: Exchange, word: str) -> None:
    """Members, types, statuses, headers, envelopes: each has its sentence."""
    assert any(word in sentence for sentence in faults("show_summary", answer)), faults("show_summary", answer)


def test_a_right_answer_has_no_fault() -> None:
    """A success and a refusal in the published form."""
    assert faults("show_summary", exchange({"size": 1, "used_size": 0})) == []
    refused = {"error_code": "BackupService.6105", "error_msg": "Vault x does not exist."}
    assert faults("show_vault", exchange(refused, status=404)) == []


class Size:
    openapi_types: ClassVar = {
        "bytes": "int",
        "names": "list[str]",
        "tags": "dict(str, str)",
        "at": "datetime",
        "kind": "Kind",
    }
    attribute_map: ClassVar = {name: name for name in openapi_types}


class Kind:
    openapi_types: ClassVar = {}
    attribute_map: ClassVar = {}
    DISK = "disk"


@pytest.mark.parametrize(
    ("raw", "wrong"),
    [
        ({"bytes": 1, "names": ["a"], "tags": {"a": "b"}, "at": "2026-01-01T00:00:00.000000", "kind": "disk"}, 0),
        ({"bytes": None}, 0),
        ({"bytes": "1"}, 1),
        ({"bytes": True}, 1),
        ({"names": "a"}, 1),
        ({"names": ["a", 2, 3]}, 2),
        ({"tags": {"a": 1}}, 1),
        ({"at": "2026-01-01T00:00:00+00:00"}, 1),
        ({"kind": "tape"}, 1),
        ([], 1),
    ],
)
def test_raw_values_are_compared_with_declared_types(raw: Any, wrong: int) -> None:
    """What the SDK would quietly convert is a fault, and so is what it cannot decode."""
    models = types.SimpleNamespace(Size=Size, Kind=Kind)
    assert len(list(decode_faults(models, "Size", raw, "$", set()))) == wrong


def test_members_no_model_has_are_listed() -> None:
    """They are harmless, and told."""
    unknown: set[str] = set()
    assert list(decode_faults(types.SimpleNamespace(Size=Size), "Size", {"new": 1}, "$", unknown)) == []
    assert unknown == {"$.new"}


@pytest.mark.parametrize(
    ("path", "value"),
    [("a.0.b", 1), ("a.#", 1), ("a.1", ABSENT), ("a.0.c", ABSENT), ("a.x", ABSENT), ("", {"a": [{"b": 1}]})],
)
def test_dotted_paths(path: str, value: Any) -> None:
    """Members, places in a list, lengths."""
    assert find({"a": [{"b": 1}]}, path) == value


class Scripted:
    """An actor whose answers are given."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.steps: list[Step] = []

    def perform(self, step: Step) -> Outcome:
        self.steps.append(step)
        return self.outcomes.pop(0)

    def close(self) -> None:
        return


def test_a_story_goes_on_after_a_fault() -> None:
    """A wrong answer is told once; steps that hang on it are untried, the others are made."""
    actor = Scripted(Outcome(refusal="answered 500", error="500 "), Outcome(body={"size": 1}))
    seen = Findings()
    steps = [
        {"do": "create_vault", "keep": {"vault": "vault.id"}},
        {"do": "show_vault", "with": {"path": {"vault_id": "{vault}"}}},
        {"do": "show_summary", "expect": {"size": 2}},
    ]
    tell("curl", steps, {"": actor}, {}, seen)
    assert [step.do for step in actor.steps] == ["create_vault", "show_summary"]
    assert seen.verdict("curl", "create_vault") == ("fails", ["create_vault: answered 500"])
    assert seen.verdict("curl", "show_vault") == ("untried", ["nothing gave {vault}"])
    assert seen.verdict("curl", "show_summary") == ("fails", ["show_summary: size is 1, not 2"])


def test_every_client_has_a_step_for_every_operation_it_calls() -> None:
    """Stories name operations of the document, know each member they use, and leave none out."""
    known = {*Step.__dataclass_fields__, "with", "why", "keep", "needs"} - {"label", "arguments"}
    for client in run.CLIENTS:
        stories = run.STORIES.get(client, (client,))
        steps = [step for name in stories for step in story.load(name)]
        assert {member for step in steps for member in step} <= known
        told = {story._operation(step) for step in steps}
        assert told <= set(contract.operations())
        assert {name for name in contract.operations() if findings.in_scope(client, name)} <= told
