"""/metrics and the log of a real server: what alerts and dashboard ask is told, and no secret is."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from harness import Server, make_tree, wait_until

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parent.parent.parent
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
DASHBOARD = ROOT / "deploy/grafana/strongroom.json"
TOKEN = "canary-metrics-token-0123456789"
NAMES = re.compile(r"\b((?:cbr|strongroom)_[a-z_]+)\b")


class Seen(NamedTuple):
    """A server that has made, restored, checked, deleted and failed; what it told, and its log."""

    text: str
    vault: str
    resource: str
    project: str
    log: str
    secrets: dict[str, str]


def scrape(server: Server) -> httpx.Response:
    return httpx.get(f"{server.endpoint}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    base = tmp_path_factory.mktemp("metrics")
    make_tree(base / "tree", 5)
    settings = {"metrics_token": TOKEN, "metrics_detail": "vaults", "log_format": "json", "log_level": "debug"}
    server = Server(base / "state", **settings).start()
    with server.client() as client:
        resource = client.register("turbo", "tree", base / "tree")
        vault = client.vault("vault", "turbo", [resource])
        settled = client.settled(client.checkpoint(vault))
        (first,) = client.backups()
        assert settled["status"] == "available" and client.restore(first["id"])["status"] == "success"
        client.ok("POST", f"/ext/v1/{client.project}/vaults/{vault}/verify", {"verify": {}})
        client.quiet()
        shutil.rmtree(base / "tree")
        assert client.settled(client.checkpoint(vault))["status"] == "error"
        make_tree(base / "tree", 6)
        assert client.settled(client.checkpoint(vault))["status"] == "available"
        client.ok("DELETE", f"backups/{first['id']}")
        wait_until(lambda: first["id"] not in {b["id"] for b in client.backups()}, "the backup is deleted")
        client.quiet()
        refused = client.http.get("/v3/auth/tokens", headers={"X-Subject-Token": "canary-foreign-token"})
        assert refused.status_code >= 400
        login = {"name": "admin", "password": "canary-wrong-password", "domain": {"name": "default"}}
        body = {"auth": {"identity": {"methods": ["password"], "password": {"user": login}}}}
        assert client.http.post("/v3/auth/tokens", json=body).status_code == 401
        secrets = {
            "password": server.credentials["password"],
            "secret key": server.credentials["secret_key"],
            "token": client.http.headers["X-Auth-Token"],
            "foreign token": "canary-foreign-token",
            "wrong password": "canary-wrong-password",
            "metrics token": TOKEN,
            "master key": (server.state / "master.key").read_text().split()[1],
        }
        answer = wait_until(
            lambda: (
                (r := scrape(server)).status_code == 200
                and all(part in r.text for part in ('vault="', 'cbr_gc_total{result="success"} 1'))
                and r
            ),
            "the catalogue and the prune are told",
        )
        text, project = answer.text, client.project
        assert httpx.get(f"{server.endpoint}/metrics").status_code == 401
        assert httpx.get(f"{server.endpoint}/metrics", headers={"Authorization": "Bearer x"}).status_code == 401
    assert server.stop() == 0
    yield Seen(text, vault, resource, project, server.log_path.read_text(), secrets)


def value(text: str, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    assert found, (series, text)
    return float(found[1])


def test_what_happened_is_counted(seen: Seen) -> None:
    """Results, bytes and ages of the tasks that the server has just done."""
    assert value(seen.text, 'cbr_backup_total{result="success"}') == 2
    assert value(seen.text, 'cbr_backup_total{result="failed"}') == 1
    assert value(seen.text, 'cbr_restore_total{result="success"}') == 1
    assert value(seen.text, 'cbr_verify_total{result="success"}') == 1
    assert value(seen.text, "cbr_verify_errors_total") == 0
    assert value(seen.text, 'cbr_gc_total{result="success"}') >= 1
    assert value(seen.text, "cbr_gc_freed_bytes_total") > 0
    assert value(seen.text, "cbr_backup_duration_seconds_count") == 2
    kinds = {kind: value(seen.text, f'cbr_backup_bytes_total{{kind="{kind}"}}') for kind in ("read", "new", "stored")}
    assert kinds["read"] >= kinds["new"] > 3_000_000 < kinds["stored"]
    labels = f'project="{seen.project}",resource="{seen.resource}",type="OS::Sfs::Turbo",vault="{seen.vault}"'
    assert value(seen.text, f"cbr_backup_last_success_timestamp_seconds{{{labels}}}") > 1.7e9
    assert value(seen.text, "cbr_catalogue_up") == 1
    assert value(seen.text, "cbr_resources") == 1 and value(seen.text, "cbr_resources_scheduled") == 0


def test_each_metric_that_alerts_and_dashboard_name_exists(seen: Seen) -> None:
    """Of a real server: a rule about a name that nobody tells would be silent for ever."""
    told = set(re.findall(r"^# TYPE (\w+) ", seen.text, re.MULTILINE)) | set(NAMES.findall(seen.text))
    expressions = re.findall(r"expr: (?:>-\n)?((?:.|\n {10})*)", ALERTS.read_text())
    asked = {name for text in expressions for name in NAMES.findall(text)}
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        asked |= {name for target in panel["targets"] for name in NAMES.findall(target["expr"])}
    assert len(asked) > 20 and {"cbr_resources_overdue", "cbr_vault_util_ratio"} <= asked
    # No policy in this server: the interval is there in test_figures.
    assert asked - told - {"cbr_backup_expected_interval_seconds"} == set()


def test_no_secret_is_logged(seen: Seen) -> None:
    """Every line is JSON; requests and tasks carry their ids; of secrets there is no trace, at the level debug."""
    assert {name for name, secret in seen.secrets.items() if secret in seen.log} == set()
    lines = [json.loads(line) for line in seen.log.splitlines() if line.startswith("{")]
    assert len(lines) > 20 and len(lines) >= 0.9 * len(seen.log.splitlines())
    requests = [line for line in lines if line["event"] == "request" and f"/{seen.project}/" in line["path"]]
    assert requests and all(line["project"] == seen.project and line["request_id"] for line in requests)
    tasks = [line for line in lines if line["event"] == "task done"]
    assert tasks and all(line["project"] == seen.project and line["task"] and "request_id" in line for line in tasks)
    asked = {line["request_id"] for line in requests}
    assert {line["request_id"] for line in tasks if line["operation"] == "backup"} <= asked


@pytest.mark.long
def test_prometheus_takes_the_rules(tmp_path: Path) -> None:
    """Prometheus' own checker reads rules and scrape settings, and the overdue alert fires when it should."""
    subprocess.run(["promtool", "check", "rules", str(ALERTS)], check=True)
    (tmp_path / "case.yml").write_text(
        json.dumps(
            {
                "rule_files": [str(ALERTS)],
                "tests": [
                    {
                        "interval": "1m",
                        "input_series": [
                            {"series": "cbr_resources_overdue{instance='a'}", "values": "0x10 3x30"},
                            {"series": "cbr_resources_overdue{instance='b'}", "values": "0x10 3x30"},
                        ],
                        "alert_rule_test": [
                            {"eval_time": "10m", "alertname": "StrongroomBackupDidNotRun", "exp_alerts": []},
                            {
                                "eval_time": "30m",
                                "alertname": "StrongroomBackupDidNotRun",
                                "exp_alerts": [
                                    {
                                        "exp_labels": {"severity": "critical"},
                                        "exp_annotations": {
                                            "summary": "3 resources have had no restore point for twice the time of "
                                            "their schedule."
                                        },
                                    }
                                ],
                            },
                        ],
                    }
                ],
            }
        )
    )
    subprocess.run(["promtool", "test", "rules", str(tmp_path / "case.yml")], check=True)
