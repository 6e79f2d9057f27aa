"""The index of checkpoints in SQLite, for lists and pages.

The folders are the truth. Each question first compares the stamps of their ``checkpoint.json`` with those of the
rows, and reads again what differs: one look at a file per checkpoint. So a folder that was copied in, or that another
process wrote, is found, and a database that was deleted is made again.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Engine, String, delete, func, insert, or_, select
from sqlalchemy.orm import Mapped, Session, load_only, mapped_column

from txlab.store.checkpoint_info import Address, CheckpointError, CheckpointInfo, CheckpointNotFoundError, Kind
from txlab.store.checkpoints import Checkpoints
from txlab.store.database import Base

log = logging.getLogger(__name__)


class CheckpointRow(Base):
    """A checkpoint as it was when its ``checkpoint.json`` had ``stamp``."""

    __tablename__ = "checkpoints"

    model_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[Kind] = mapped_column(String, primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    stamp: Mapped[str]
    created: Mapped[float] = mapped_column(index=True)  # seconds since 1970, UTC
    expires: Mapped[float | None]
    record: Mapped[str]  # CheckpointInfo as JSON

    @property
    def address(self) -> Address:
        """Where it is."""
        return Address(self.model_id, self.kind, self.name)

    @property
    def info(self) -> CheckpointInfo:
        """All that is known of it."""
        return CheckpointInfo.from_record(self.address, json.loads(self.record))


NEWEST = (CheckpointRow.created.desc(), CheckpointRow.model_id, CheckpointRow.kind, CheckpointRow.name)
KEY = (CheckpointRow.model_id, CheckpointRow.kind, CheckpointRow.name)


class CheckpointIndex:
    """Finds checkpoints that have not expired, newest first. Methods block, and may be called from any thread."""

    def __init__(self, checkpoints: Checkpoints, database: Engine):
        self._checkpoints = checkpoints
        self._database = database

    def page(self, limit: int, offset: int) -> tuple[list[CheckpointInfo], int]:
        """A page of all checkpoints, and how many there are in all."""
        self._reconcile(None)
        with self._database.connect() as db:
            total = db.scalar(select(func.count()).select_from(CheckpointRow).where(_alive()))
        return self._find(limit=limit, offset=offset), total or 0

    def of_run(self, model_id: str) -> list[CheckpointInfo]:
        """All checkpoints of a training run."""
        self._reconcile(model_id)
        return self._find(CheckpointRow.model_id == model_id)

    def _find(
        self, *wanted: ColumnElement[bool], limit: int | None = None, offset: int | None = None
    ) -> list[CheckpointInfo]:
        rows = select(CheckpointRow).where(_alive(), *wanted).order_by(*NEWEST)
        with Session(self._database) as db:
            return [row.info for row in db.scalars(rows.limit(limit).offset(offset))]

    def _reconcile(self, model_id: str | None) -> None:
        """Bring the rows, all or a model's, to what the folders say."""
        stamps = self._checkpoints.stamps(model_id)
        known = self._known(model_id)
        changed = [self._row(address, stamp) for address, stamp in stamps.items() if known.get(address) != stamp]
        rows = [row for row in changed if row is not None]
        old = [address for address, stamp in known.items() if stamps.get(address) != stamp]
        if old or rows:
            with self._database.begin() as db:
                for address in old:
                    db.execute(delete(CheckpointRow).where(*(c == getattr(address, c.key) for c in KEY)))
                if rows:
                    db.execute(insert(CheckpointRow).prefix_with("OR REPLACE"), rows)

    def _known(self, model_id: str | None) -> dict[Address, str]:
        """Stamps of the rows."""
        rows = select(CheckpointRow).options(load_only(CheckpointRow.stamp))
        if model_id is not None:
            rows = rows.where(CheckpointRow.model_id == model_id)
        with Session(self._database) as db:
            return {row.address: row.stamp for row in db.scalars(rows)}

    def _row(self, address: Address, stamp: str) -> dict[str, object] | None:
        """Read a checkpoint again; None where it cannot be, so that the next question tries once more."""
        try:
            info = self._checkpoints.info(address.path)
        except CheckpointNotFoundError:
            return None
        except CheckpointError as error:
            log.warning("not listed: %s", error)
            return None
        return {
            "model_id": address.model_id,
            "kind": address.kind,
            "name": address.name,
            "stamp": stamp,
            "created": info.created.timestamp(),
            "expires": info.expires and info.expires.timestamp(),
            "record": json.dumps(info.to_record()),
        }


def _alive() -> ColumnElement[bool]:
    return or_(CheckpointRow.expires.is_(None), CheckpointRow.expires > datetime.now(UTC).timestamp())
