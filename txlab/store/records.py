"""What happened under a root: sessions, training runs and their curves, samplers, requests. Outlives the server.

Writes are queued and return at once; reads block, and see every write of this process that came before.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from sqlalchemy import (
    ColumnElement,
    Engine,
    Insert,
    Text,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    insert,
    inspect,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import Session, sessionmaker

from txlab.store.database import Base
from txlab.store.liveness import Presence
from txlab.store.tables import AuditRow, MarkRow, OriginRow, PointRow, RequestRow, RunRow, SamplerRow, SessionRow
from txlab.store.writer import Writer

DEFAULT_PROJECT = "default"
KEPT = timedelta(days=30)  # how long single requests are remembered

NEWEST_SESSIONS = (SessionRow.created.desc(), SessionRow.session_id.desc())
NEWEST_RUNS = (RunRow.created.desc(), RunRow.model_id.desc())
STATUS = case((SessionRow.ended.is_(None), "active"), else_=SessionRow.finish_reason)
TOUCH_SESSION = (
    update(SessionRow).where(SessionRow.session_id == bindparam("key")).values(last_activity=bindparam("now"))
)
TOUCH_RUN = update(RunRow).where(RunRow.model_id == bindparam("key")).values(last_request=bindparam("now"))
RENAME_RUN = (
    update(RunRow)
    .where(RunRow.model_id == bindparam("key"))
    .values(name=bindparam("called"), user_metadata=bindparam("metadata"))
)
END_SESSION = (
    update(SessionRow)
    .where(SessionRow.session_id == bindparam("key"), SessionRow.ended.is_(None))
    .values(ended=bindparam("now"), finish_reason=bindparam("reason"), finish_detail=bindparam("detail"))
)


@dataclass(frozen=True, slots=True)
class SessionQuery:
    """Which sessions to find; what is None matches all. Of ``session_id`` and ``display_name`` either suffices.

    A session's status is ``active``, or what its client said at the end: ``success``, ``errored``, ``interrupted``.
    """

    session_id: str | None = None
    display_name: str | None = None  # words that each appear in it, in any case
    project_ids: Sequence[str] | None = None
    user_metadata: Mapping[str, str] = field(default_factory=dict)
    statuses: Sequence[str] | None = None
    after: tuple[datetime, str] | None = None  # creation time and id of the last one seen


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one hour, kind of request, session and base model."""

    hour: datetime
    kind: str
    session_id: str | None
    base_model: str
    requests: int
    tokens_in: int
    tokens_cached: int
    tokens_out: int


class Records:
    """The records under ``root``, and this server's place among those that share it. Any thread may call it."""

    def __init__(self, root: Path, database: Engine):
        self._database = database
        self._open = sessionmaker(database, expire_on_commit=False)
        self._presence = Presence(root)
        self._writer = Writer(database)
        self._writer.write(delete(RequestRow).where(RequestRow.started < bindparam("old")), old=now() - KEPT)

    @property
    def server_id(self) -> str:
        """Names this server in the sessions that it adds."""
        return self._presence.server_id

    def close(self) -> None:
        """Bring everything to the disk; sessions that are still open end here. A second call does nothing."""
        self._writer.close()
        self._presence.close()
        self._end_orphans()

    # ------------------------------------------------------------------------------------------ writes

    def add(self, row: Base) -> None:
        """Insert ``row``."""
        self._writer.write(_insert(type(row)), **{c.key: getattr(row, c.key) for c in inspect(type(row)).columns})

    def touch_run(self, model_id: str) -> None:
        """Note that a training run got a request."""
        self._writer.write(TOUCH_RUN, key=model_id, now=now())

    def rename_run(self, model_id: str, name: str, user_metadata: Mapping[str, str]) -> None:
        """Give a training run another name, and the metadata that its user sees."""
        self._writer.write(RENAME_RUN, key=model_id, called=name, metadata=dict(user_metadata))

    def touch_session(self, session_id: str) -> None:
        """Note that its client is there."""
        self._writer.write(TOUCH_SESSION, key=session_id, now=now())

    def end_session(self, session_id: str, reason: str | None = None, detail: str | None = None) -> None:
        """Note that a session is over, and what its client said of it; the first end stays."""
        self._writer.write(END_SESSION, key=session_id, now=now(), reason=reason, detail=detail)

    # ---------------------------------------------------------------------------------------- sessions

    def session(self, session_id: str) -> SessionRow | None:
        """Find a session, alive or not."""
        return self.sessions([session_id]).get(session_id)

    def sessions(self, session_ids: Collection[str]) -> dict[str, SessionRow]:
        """Those of the named sessions that are known."""
        with self._reading() as db:
            found = db.scalars(select(SessionRow).where(SessionRow.session_id.in_(session_ids)))
            return {session.session_id: session for session in found}

    def session_ids(self, limit: int, offset: int) -> list[str]:
        """Ids of a page of sessions, newest first."""
        newest = select(SessionRow.session_id).order_by(*NEWEST_SESSIONS)
        with self._reading() as db:
            return list(db.scalars(newest.limit(limit).offset(offset)))

    def search(self, query: SessionQuery, limit: int) -> list[SessionRow]:
        """The first ``limit`` sessions that match, newest first."""
        found = select(SessionRow).where(*_conditions(query)).order_by(*NEWEST_SESSIONS).limit(limit)
        with self._reading() as db:
            return list(db.scalars(found))

    def move_session(self, session_id: str, project_id: str) -> bool:
        """Put a session into another project; False where there is none."""
        with self._reading() as db, db.begin():
            moved = update(SessionRow).where(SessionRow.session_id == session_id).values(project_id=project_id)
            return db.scalar(moved.returning(SessionRow.session_id)) is not None

    def runs_of(self, session_id: str) -> list[str]:
        """Ids of a session's training runs, oldest first."""
        with self._reading() as db:
            of_session = select(RunRow.model_id).where(RunRow.session_id == session_id)
            return list(db.scalars(of_session.order_by(RunRow.created)))

    def samplers_of(self, session_id: str) -> list[str]:
        """Ids of a session's samplers, oldest first."""
        with self._reading() as db:
            of_session = select(SamplerRow.sampler_id).where(SamplerRow.session_id == session_id)
            return list(db.scalars(of_session.order_by(SamplerRow.created)))

    # ------------------------------------------------------------------------------------ training runs

    def run(self, model_id: str) -> RunRow | None:
        """Find a training run, loaded or not."""
        with self._reading() as db:
            return db.get(RunRow, model_id)

    def runs(self, limit: int, offset: int, project_id: str | None = None) -> tuple[list[RunRow], int]:
        """A page of training runs, newest first, and how many there are in all."""
        runs = select(RunRow)
        if project_id is not None:
            runs = runs.join(SessionRow).where(SessionRow.project_id == project_id)
        page = runs.order_by(*NEWEST_RUNS).limit(limit).offset(offset)
        with self._reading() as db:
            return list(db.scalars(page)), db.scalar(select(func.count()).select_from(runs.subquery())) or 0

    def find_run(self, name: str) -> RunRow | None:
        """The training run of that id, else the newest of that name."""
        has_id = RunRow.model_id == name
        found = select(RunRow).where(or_(has_id, RunRow.name == name)).order_by(has_id.desc(), *NEWEST_RUNS)
        with self._reading() as db:
            return db.scalars(found.limit(1)).first()

    def points(self, model_id: str) -> list[tuple[int, int, float, dict[str, float]]]:
        """Step, tokens, time and metrics of all points of a run's curves, in the order in which they came."""
        columns = select(PointRow.step, PointRow.tokens, PointRow.time, PointRow.metrics)
        with self._reading() as db:
            found = db.execute(columns.where(PointRow.model_id == model_id).order_by(PointRow.number))
            return [(step, tokens, time, metrics) for step, tokens, time, metrics in found]

    def marks(self, model_id: str) -> list[tuple[int, float, str]]:
        """Step, time and text of what was remarkable about a run, in the order in which it came."""
        columns = select(MarkRow.step, MarkRow.time, MarkRow.text)
        with self._reading() as db:
            found = db.execute(columns.where(MarkRow.model_id == model_id).order_by(MarkRow.number))
            return [(step, time, text) for step, time, text in found]

    def origin(self, model_id: str) -> OriginRow | None:
        """The checkpoint that a run began with; None where it began afresh."""
        with self._reading() as db:
            return db.get(OriginRow, model_id)

    def last_steps(self, model_ids: Collection[str], metric: str) -> dict[str, int]:
        """The step of the newest point that has ``metric``, of those of the named runs that have one."""
        has_metric = func.instr(cast(PointRow.metrics, Text), f"{json.dumps(metric)}:") > 0  # NaN is no JSON to SQLite
        newest = select(PointRow.step).where(has_metric).order_by(PointRow.number.desc()).limit(1)
        with self._reading() as db:
            found = {model_id: db.scalar(newest.where(PointRow.model_id == model_id)) for model_id in model_ids}
        return {model_id: step for model_id, step in found.items() if step is not None}

    # ---------------------------------------------------------------------------------- requests, audit

    def requests(self, session_id: str) -> list[RequestRow]:
        """What a session asked of the engine, in the order in which it began."""
        with self._reading() as db:
            of_session = select(RequestRow).where(RequestRow.session_id == session_id)
            return list(db.scalars(of_session.order_by(RequestRow.started)))

    def usage(self, start: datetime, end: datetime) -> list[Usage]:
        """Tokens of the requests that began in [start, end), by hour."""
        hour = func.strftime("%Y-%m-%dT%H:00:00+00:00", RequestRow.started)
        groups = (hour, RequestRow.kind, RequestRow.session_id, RequestRow.base_model)
        tokens = (RequestRow.tokens_in, RequestRow.tokens_cached, RequestRow.tokens_out)
        rows = (
            select(*groups, func.count(), *(func.sum(column) for column in tokens))
            .where(RequestRow.started >= start, RequestRow.started < end, RequestRow.error.is_(None))
            .group_by(*groups)
            .order_by(hour)
        )
        with self._reading() as db:
            return [Usage(datetime.fromisoformat(row[0]), *row[1:]) for row in db.execute(rows)]

    def audit(self, start: datetime, end: datetime, resource: str | None = None) -> list[AuditRow]:
        """Events in [start, end), in order of time, all or those of one resource."""
        events = select(AuditRow).where(AuditRow.time >= start, AuditRow.time < end)
        if resource is not None:
            events = events.where(AuditRow.event.startswith(f"{resource}_", autoescape=True))
        with self._reading() as db:
            return list(db.scalars(events.order_by(AuditRow.time, AuditRow.number)))

    # ------------------------------------------------------------------------------------------- inside

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        """A database session that sees all writes so far, and no session of a dead server as active."""
        self._writer.flush()
        self._end_orphans()
        with self._open() as db:
            yield db

    def _end_orphans(self) -> None:
        """End the sessions whose server is gone, at the time of their last sign of life."""
        with self._open() as db:
            servers = db.scalars(select(SessionRow.server_id).where(SessionRow.ended.is_(None)).distinct())
            dead = [server for server in servers if not self._presence.is_alive(server)]
            if dead:
                orphans = update(SessionRow).where(SessionRow.server_id.in_(dead), SessionRow.ended.is_(None))
                db.execute(orphans.values(ended=SessionRow.last_activity))
                db.commit()


def _conditions(query: SessionQuery) -> Iterator[ColumnElement[bool]]:
    either = []
    if query.session_id is not None:
        either.append(SessionRow.session_id == query.session_id)
    if query.display_name is not None:
        words = query.display_name.split()
        either.append(and_(*(SessionRow.display_name.icontains(word, autoescape=True) for word in words)))
    if either:
        yield or_(*either)
    if query.project_ids is not None:
        yield SessionRow.project_id.in_(query.project_ids)
    for key, value in query.user_metadata.items():
        pair = func.json_each(SessionRow.user_metadata).table_valued("key", "value")
        yield select(pair).where(pair.c.key == key, pair.c.value == value).exists()
    if query.statuses is not None:
        yield STATUS.in_(query.statuses)
    if query.after is not None:
        created, session_id = query.after
        yield tuple_(SessionRow.created, SessionRow.session_id) < tuple_(created, session_id)


def now() -> datetime:
    """The moment, in UTC."""
    return datetime.now(UTC)


@cache
def _insert(table: type[Base]) -> Insert:
    """One statement for all rows of a table, so that the writer can send them together."""
    return insert(table)
