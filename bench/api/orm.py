"""`GET checkpoint` as FastAPI and SQLAlchemy are commonly used: mapped classes, response models, an async session.

    python -m bench.api.orm URL PORT

Needs requirements/bench.txt. Same driver, pool size and uvicorn settings as the others; it authenticates nobody, logs
nothing, and runs two statements: the restore point, then its resources with their backups.
"""

import sys
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any

import psycopg
import uvicorn
from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import ForeignKey, func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

from bench.api.minimal import BACKLOG, POOL
from strongroom.control.checkpoint_views import PROTECT_STATUS
from strongroom.control.vault_resources import COUNTED_STATUSES


class Base(DeclarativeBase):
    pass


class Checkpoint(Base):
    __tablename__ = "checkpoints"
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str]
    status: Mapped[str]
    created_at: Mapped[datetime]
    vault_id: Mapped[str]
    vault_name: Mapped[str]
    provider_id: Mapped[str]
    name: Mapped[str]
    description: Mapped[str | None]
    retention_days: Mapped[int]


class CheckpointResource(Base):
    __tablename__ = "checkpoint_resources"
    project_id: Mapped[str]
    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"), primary_key=True)
    resource_id: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int]
    type: Mapped[str]
    name: Mapped[str]
    size_bytes: Mapped[int]
    extra_info: Mapped[str | None]


class Backup(Base):
    __tablename__ = "backups"
    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str]
    vault_id: Mapped[str]
    checkpoint_id: Mapped[str]
    resource_id: Mapped[str]
    status: Mapped[str]
    stored_bytes: Mapped[int]


class ResourceModel(BaseModel):
    id: str
    type: str
    name: str
    extra_info: str | None
    protect_status: str
    resource_size: str
    backup_size: str
    backup_count: str


class VaultModel(BaseModel):
    id: str
    name: str
    provider_id: str
    resources: list[ResourceModel]
    skipped_resources: list[ResourceModel]


class ExtraInfoModel(BaseModel):
    name: str
    description: str | None
    retention_duration: int


class CheckpointModel(BaseModel):
    id: str
    project_id: str
    status: str
    created_at: str
    vault: VaultModel
    extra_info: ExtraInfoModel


class Answer(BaseModel):
    checkpoint: CheckpointModel


def make_app(url: str) -> FastAPI:
    """The application, with a transaction a request, as the documentation of both has it."""

    async def connect() -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(url, prepare_threshold=0)

    engine = create_async_engine("postgresql+psycopg://", async_creator=connect, pool_size=POOL, max_overflow=0)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    app = FastAPI()

    async def session() -> AsyncIterator[AsyncSession]:
        async with sessions() as opened:
            yield opened

    @app.get("/v3/{project_id}/checkpoints/{checkpoint_id}")
    async def show(project_id: str, checkpoint_id: str, db: Annotated[AsyncSession, Depends(session)]) -> Answer:
        found = await db.execute(
            select(Checkpoint).where(Checkpoint.project_id == project_id, Checkpoint.id == checkpoint_id)
        )
        point = found.scalar_one_or_none()
        if point is None:
            raise HTTPException(404)
        return Answer(checkpoint=model(point, await resources(db, point)))

    return app


async def resources(db: AsyncSession, point: Checkpoint) -> list[ResourceModel]:
    """Resources of a restore point in their order, each with its backup and how many it has in the vault."""
    other = aliased(Backup)
    count = (
        select(func.count())
        .select_from(other)
        .where(
            other.project_id == CheckpointResource.project_id,
            other.vault_id == point.vault_id,
            other.resource_id == CheckpointResource.resource_id,
            other.status.in_(COUNTED_STATUSES),
        )
        .scalar_subquery()
    )
    found = await db.execute(
        select(CheckpointResource, Backup, count)
        .join(
            Backup,
            (Backup.project_id == CheckpointResource.project_id)
            & (Backup.checkpoint_id == CheckpointResource.checkpoint_id)
            & (Backup.resource_id == CheckpointResource.resource_id),
        )
        .where(CheckpointResource.project_id == point.project_id, CheckpointResource.checkpoint_id == point.id)
        .order_by(CheckpointResource.position)
    )
    return [
        ResourceModel(
            id=resource.resource_id,
            type=resource.type,
            name=resource.name,
            extra_info=resource.extra_info,
            protect_status=PROTECT_STATUS[backup.status],
            resource_size=str(-(-resource.size_bytes // (1 << 30))),
            backup_size=str(-(-backup.stored_bytes // (1 << 20))),
            backup_count=str(backups),
        )
        for resource, backup, backups in found.all()
    ]


def model(point: Checkpoint, held: list[ResourceModel]) -> CheckpointModel:
    """The answer's model."""
    return CheckpointModel(
        id=point.id,
        project_id=point.project_id,
        status=point.status,
        created_at=point.created_at.replace(tzinfo=None).isoformat(timespec="microseconds"),
        vault=VaultModel(
            id=point.vault_id,
            name=point.vault_name,
            provider_id=point.provider_id,
            resources=held,
            skipped_resources=[],
        ),
        extra_info=ExtraInfoModel(
            name=point.name, description=point.description, retention_duration=point.retention_days
        ),
    )


if __name__ == "__main__":
    uvicorn.run(
        make_app(sys.argv[1]),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
        backlog=BACKLOG,
    )
