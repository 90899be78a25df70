"""Waiting for what OpenStack goes on with after it has answered.

A wait for something to be made hears a cancel once a second. One that takes back what was begun does not: it is short,
and a job that was canceled leaves nothing behind.
"""

import time
from collections.abc import Callable
from typing import Any

from strongroom.base.errors import SourceError, SourceGone
from strongroom.sources.base import Check
from strongroom.sources.openstack.cloud import errors

MADE_S_MAX = 7200.0  # a snapshot or a volume of it: a back end may copy everything
GONE_S_MAX = 600.0
POLL_S = 1.0
_IN_THE_MAKING = ("creating", "downloading", "attaching", "detaching", "reserved")  # cannot be deleted now


def wait(get: Callable[[str], Any], object_id: str, status: str, seconds: float, check: Check) -> Any:
    """The object when it has `status`. Raises SourceError for an error or when time is up, and what check raises."""
    deadline_s = time.monotonic() + seconds
    while True:
        check()
        found = get(object_id)
        if found.status == status:
            return found
        if found.status.lower().startswith("error") or time.monotonic() > deadline_s:
            raise SourceError(
                reason=f"OpenStack did not make it {status}: it is {found.status}. Tell the operator.", detail=object_id
            )
        time.sleep(POLL_S)


def delete(get: Callable[[str], Any], remove: Callable[[str], Any], object_id: str) -> None:
    """Gone on return; what is still in the making is waited for. Raises SourceError when it is not gone within
    GONE_S_MAX."""
    asked = False
    deadline_s = time.monotonic() + GONE_S_MAX
    try:
        with errors("what a task made"):
            while True:
                found = get(object_id)
                late = time.monotonic() > deadline_s
                if late or (asked and found.status.startswith("error")):
                    raise SourceError(reason=f"OpenStack does not delete it: it is {found.status}.", detail=object_id)
                if not asked and found.status not in _IN_THE_MAKING:
                    _ask(remove, object_id, found.status)
                    asked = True
                    continue
                time.sleep(POLL_S)
    except SourceGone:
        return


def _ask(remove: Callable[[str], Any], object_id: str, status: str) -> None:
    """What an attempt that was cut off has asked for already is refused, and goes all the same."""
    try:
        with errors("what a task made"):
            remove(object_id)
    except SourceGone:
        raise
    except SourceError:
        if status != "deleting":
            raise
