"""What each documented filter and order of the list of backups costs at this size: a page of 50 and its count."""

import statistics
import time
from urllib.parse import quote

import httpx
import psycopg

from bench.api.servers import Running

REPEATS = 5  # the median counts
LIMIT = 50
SORTS = ("created_at:asc", "name:asc", "name:desc", "status:asc", "updated_at:desc", "protected_at:desc", "id:asc")


def queries(url: str, project_id: str) -> dict[str, str]:
    """What is asked -> the query string. Values are of a backup in the middle of the list."""
    with psycopg.connect(url, autocommit=True) as conn:
        row = conn.execute(
            "SELECT vault_id, resource_id, checkpoint_id, name, resource_name, resource_type, created_at FROM backups "
            "WHERE project_id = %s AND created_at <= now() - interval '1 year' "
            "ORDER BY created_at DESC, id DESC LIMIT 1",
            [project_id],
        ).fetchone()
    assert row is not None
    vault, resource, checkpoint, name, resource_name, resource_type, at = row
    day = f"{at:%Y-%m-%dT}"
    return {
        "vault_id": f"vault_id={vault}",
        "resource_id": f"resource_id={resource}",
        "checkpoint_id": f"checkpoint_id={checkpoint}",
        "name": f"name={quote(name)}",
        "resource_name (a part)": f"resource_name={quote(resource_name)}",
        "a day (start_time, end_time)": f"start_time={day}00:00:00Z&end_time={day}23:59:59Z",
        "status, of none": "status=error",
        "status, of all": "status=available",
        "incremental, of none": "incremental=false",
        "image_type, of none": "image_type=replication",
        "resource_type, of all": f"resource_type={quote(resource_type)}",
        "parent_id, of none": f"parent_id={vault}",
        "enterprise_project_id, of none": f"enterprise_project_id={vault}",
        "used_percent, of none": "used_percent=90",
        **{f"sort={sort}": f"sort={sort}" for sort in SORTS},
    }


def measure(server: Running, url: str, project_id: str, token: str) -> dict[str, float]:
    """What is asked -> seconds of a request, one at a time. Raises RuntimeError for any answer but 200."""
    found = {}
    with httpx.Client(headers={"X-Auth-Token": token}, timeout=60) as client:
        for name, query in queries(url, project_id).items():
            path = f"http://127.0.0.1:{server.port}/v3/{project_id}/backups?limit={LIMIT}&{query}"
            seconds = []
            for _ in range(REPEATS):
                begun = time.perf_counter()
                answer = client.get(path)
                seconds.append(time.perf_counter() - begun)
                if answer.status_code != 200:
                    raise RuntimeError(f"{path}: {answer.status_code} {answer.text}")
            found[name] = statistics.median(seconds)
    return found
