"""Notifications under /ext: whom a project tells by mail or webhook, and of what."""

import secrets
from datetime import datetime
from typing import Any

import msgspec

from strongroom.api.operation import Call, Operation
from strongroom.base.clock import api_timestamp
from strongroom.base.errors import InvalidRequest
from strongroom.control import notifications
from strongroom.control.notifications import EVENTS, KINDS, Notification

SECRET_CHARS = (16, 128)


class NewNotification(msgspec.Struct, kw_only=True):
    """secret: of a webhook; without it, one is made and shown once. events: all, when left out."""

    name: str
    kind: str
    target: str
    events: list[str] = msgspec.field(default_factory=lambda: list(EVENTS))
    secret: str | None = None


class NewNotificationBody(msgspec.Struct):
    notification: NewNotification


class NotificationChange(msgspec.Struct, kw_only=True):
    """What is left out stays. A target and its secret stay always: make a new one."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    events: list[str] | msgspec.UnsetType = msgspec.UNSET
    enabled: bool | msgspec.UnsetType = msgspec.UNSET


class NotificationChangeBody(msgspec.Struct):
    notification: NotificationChange


class DeliveryView(msgspec.Struct):
    """One message of the last days. last_error "": none."""

    id: str
    event: str
    status: str
    attempts: int
    last_error: str
    created_at: str
    ended_at: str | None


class NotificationView(msgspec.Struct, omit_defaults=True):
    """secret: in the answer that makes it only. deliveries: in the answer about one only."""

    id: str
    name: str
    kind: str
    target: str
    events: list[str]
    enabled: bool
    created_at: str
    secret: str | msgspec.UnsetType = msgspec.UNSET
    deliveries: list[DeliveryView] | msgspec.UnsetType = msgspec.UNSET


class NotificationAnswer(msgspec.Struct):
    notification: NotificationView


class NotificationsAnswer(msgspec.Struct):
    notifications: list[NotificationView]


async def list_notifications(call: Call) -> NotificationsAnswer:
    found = await notifications.list_notifications(call.services.database, call.project_id)
    return NotificationsAnswer(notifications=[_view(each) for each in found])


async def show_notification(call: Call) -> NotificationAnswer:
    return await _shown(call, call.path["notification_id"], with_deliveries=True)


async def create_notification(call: Call) -> NotificationAnswer:
    asked: NewNotification = call.body.notification
    services = call.services
    if asked.kind not in KINDS:
        raise InvalidRequest(reason=f"Invalid kind: give one of {', '.join(KINDS)}.")
    services.check_target(asked.kind, asked.target)
    secret = None
    if asked.kind == "webhook":
        secret = asked.secret if asked.secret is not None else secrets.token_urlsafe(32)
        if not SECRET_CHARS[0] <= len(secret) <= SECRET_CHARS[1] or not secret.isprintable():
            raise InvalidRequest(reason=f"Invalid secret: give {SECRET_CHARS[0]} to {SECRET_CHARS[1]} characters.")
    made = await notifications.add_notification(
        services.database,
        call.project_id,
        name=asked.name,
        kind=asked.kind,
        target=asked.target,
        events=asked.events,
        secret_sealed=services.seal_secret(secret) if secret is not None else None,
        clock=services.clock,
    )
    answer = await _shown(call, made)
    if secret is not None and asked.secret is None:
        answer.notification.secret = secret
    return answer


async def update_notification(call: Call) -> NotificationAnswer:
    asked: NotificationChange = call.body.notification
    database, id_ = call.services.database, call.path["notification_id"]
    now = await notifications.show_notification(database, call.project_id, id_)
    await notifications.change_notification(
        database,
        call.project_id,
        id_,
        name=now.name if isinstance(asked.name, msgspec.UnsetType) else asked.name,
        events=now.events if isinstance(asked.events, msgspec.UnsetType) else asked.events,
        enabled=now.enabled if isinstance(asked.enabled, msgspec.UnsetType) else asked.enabled,
        clock=call.services.clock,
    )
    return await _shown(call, id_)


async def delete_notification(call: Call) -> None:
    await notifications.remove_notification(call.services.database, call.project_id, call.path["notification_id"])


async def test_notification(call: Call) -> None:
    """Send one message, to see whether it arrives."""
    await notifications.send_test(call.services.database, call.project_id, call.path["notification_id"])


async def _shown(call: Call, notification_id: str, *, with_deliveries: bool = False) -> NotificationAnswer:
    database = call.services.database
    view = _view(await notifications.show_notification(database, call.project_id, notification_id))
    if with_deliveries:
        rows = await notifications.last_deliveries(database, call.project_id, notification_id)
        view.deliveries = [_delivery(row) for row in rows]
    return NotificationAnswer(notification=view)


def _view(found: Notification) -> NotificationView:
    return NotificationView(
        id=found.id,
        name=found.name,
        kind=found.kind,
        target=found.target,
        events=found.events,
        enabled=found.enabled,
        created_at=api_timestamp(found.created_at),
    )


def _delivery(row: dict[str, Any]) -> DeliveryView:
    ended: datetime | None = row["ended_at"]
    return DeliveryView(
        id=row["id"],
        event=row["event"],
        status=row["status"],
        attempts=row["attempts"],
        last_error=row["last_error"],
        created_at=api_timestamp(row["created_at"]),
        ended_at=api_timestamp(ended) if ended is not None else None,
    )


_ALL, _ONE = "/ext/v1/{project_id}/notifications", "/ext/v1/{project_id}/notifications/{notification_id}"

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="list_notifications",
        method="GET",
        path=_ALL,
        action="strongroom:notifications:list",
        handler=list_notifications,
        answer=NotificationsAnswer,
    ),
    Operation(
        name="create_notification",
        method="POST",
        path=_ALL,
        action="strongroom:notifications:change",
        handler=create_notification,
        body=NewNotificationBody,
        answer=NotificationAnswer,
        status=201,
    ),
    Operation(
        name="show_notification",
        method="GET",
        path=_ONE,
        action="strongroom:notifications:list",
        handler=show_notification,
        answer=NotificationAnswer,
    ),
    Operation(
        name="update_notification",
        method="PUT",
        path=_ONE,
        action="strongroom:notifications:change",
        handler=update_notification,
        body=NotificationChangeBody,
        answer=NotificationAnswer,
    ),
    Operation(
        name="delete_notification",
        method="DELETE",
        path=_ONE,
        action="strongroom:notifications:change",
        handler=delete_notification,
        status=204,
    ),
    Operation(
        name="test_notification",
        method="POST",
        path=_ONE + "/test",
        action="strongroom:notifications:change",
        handler=test_notification,
        status=204,
    ),
)
