"""What the server notes down of its clients and of what the engine did for them. Nothing here waits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from txlab.engine.requests import ForwardBackward, Request, Result, Sample, SampleResult, Sequenced
from txlab.server.auth import USER
from txlab.server.sessions import Model, Sampler, Session, session_of
from txlab.store.checkpoint_info import CheckpointInfo
from txlab.store.records import DEFAULT_PROJECT, Records
from txlab.store.tables import AuditRow, OriginRow, RequestRow, RunRow, SamplerRow, SessionRow


class Recorder:
    """Turns what happens in a server of ``base_model`` into records."""

    def __init__(self, records: Records, base_model: str):
        self._records = records
        self._base_model = base_model

    def began(self, session: Session) -> None:
        """A session began."""
        self._records.add(
            SessionRow(
                session_id=session.session_id,
                server_id=self._records.server_id,
                created=session.created_at,
                last_activity=session.created_at,
                tags=list(session.tags),
                user_metadata=as_texts(session.user_metadata),
                display_name=session.display_name,
                project_id=session.project_id or DEFAULT_PROJECT,
                sdk_version=session.sdk_version,
            )
        )

    def ended(self, session: Session) -> None:
        """A session ended, with what its client said of it."""
        reason = None if session.status == "expired" else session.status
        self._records.end_session(session.session_id, reason, session.detail)

    def made(self, thing: Model | Sampler, model_id: str | None = None) -> None:
        """A model was made, or a sampler, of the weights of ``model_id`` where it is one's."""
        now = datetime.now(UTC)
        if isinstance(thing, Sampler):
            row = SamplerRow(
                sampler_id=thing.sampler_id,
                session_id=thing.session_id,
                created=now,
                base_model=self._base_model,
                model_path=thing.model_path,
                model_id=model_id,
            )
            self._records.add(row)
            return
        self._records.add(
            RunRow(
                model_id=thing.model_id,
                session_id=thing.session_id,
                created=now,
                last_request=now,
                name=thing.name,
                base_model=self._base_model,
                lora=asdict(thing.lora),
                user_metadata=as_texts(thing.user_metadata),
            )
        )

    def resumed(self, model_id: str, info: CheckpointInfo, optimizer: bool) -> None:
        """A model was made of a checkpoint, with the optimizer's state or not."""
        row = OriginRow(
            model_id=model_id,
            parent_id=info.address.model_id,
            checkpoint=info.address.name,
            step=info.step,
            saved=info.created,
            continues=optimizer,
        )
        self._records.add(row)

    def renamed(self, model: Model) -> None:
        """A model is called something else now."""
        self._records.rename_run(model.model_id, model.name, as_texts(model.user_metadata))

    def served(self, request: Request, owner_id: str | None, seconds: float, result: Result | Exception) -> None:
        """The engine took ``seconds`` from the arrival of a request of a model or sampler to its end, just now."""
        now = datetime.now(UTC)
        row = RequestRow(
            kind=type(request).__name__,
            session_id=owner_id and session_of(owner_id),
            owner_id=owner_id,
            base_model=self._base_model,
            started=now - timedelta(seconds=seconds),
            seconds=seconds,
        )
        if isinstance(result, Exception):
            row.error = str(result)
        elif isinstance(request, ForwardBackward):
            row.tokens_in = sum(len(datum.tokens) for datum in request.data)
        elif isinstance(request, Sample) and isinstance(result, SampleResult):
            row.tokens_in, row.tokens_cached = len(request.prompt), result.prompt_cache_hit_tokens
            row.tokens_out = sum(len(sequence.tokens) for sequence in result.sequences)
        self._records.add(row)
        if isinstance(request, Sequenced):
            self._records.touch_run(request.model_id)

    def audit(self, event: str, **details: Any) -> None:
        """Something happened that is looked up by whoever runs the server; ``event`` is ``<resource>_<action>``."""
        self._records.add(AuditRow(time=datetime.now(UTC), event=event, details={"actor": USER} | details))


def as_texts(metadata: Mapping[str, Any] | None) -> dict[str, str]:
    """User metadata as the API gives it back: a value that is no text as its JSON."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in (metadata or {}).items()}
