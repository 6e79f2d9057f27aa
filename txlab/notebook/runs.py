"""What there is: live adapters, recorded training runs, checkpoints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, ClassVar

from txlab.engine.adapter_history import LEARNING_RATE, AdapterView
from txlab.lora.state import LoraConfig
from txlab.notebook.errors import TxlabError
from txlab.notebook.listing import Listed, Listing
from txlab.notebook.served import LabPart
from txlab.notebook.views.tables import NOTHING, Column, moment
from txlab.notebook.views.text import layers, memory, number, rate, whole

if TYPE_CHECKING:
    from txlab.store.checkpoint_info import CheckpointInfo
    from txlab.store.tables import RunRow

ALL = 2**62


@dataclass(frozen=True, slots=True, repr=False)
class Adapter(Listed):
    """An adapter at one moment."""

    KIND: ClassVar[str] = "adapter"
    COLUMNS: ClassVar[tuple[Column, ...]] = (
        Column("adapter"),
        Column("run", "code"),
        Column("rank", "number"),
        Column("layers"),
        Column("step", "number"),
        Column("loss", "number"),
        Column("learning rate", "number"),
        Column("grad norm", "number"),
        Column("tokens/s", "number"),
        Column("memory", "number"),
        Column("state"),
    )

    name: str
    model_id: str
    rank: int
    layers: str
    step: int
    loss: float | None  # per unit of weight
    learning_rate: float | None
    grad_norm: float | None  # of the last step, before clipping
    tokens: int  # trained so far
    tokens_per_second: float | None
    memory_bytes: int  # on the device
    state: str
    created: datetime

    @classmethod
    def of(cls, view: AdapterView) -> Adapter:
        """As the engine tells of it."""
        return cls(
            name=view.name or view.model_id,
            model_id=view.model_id,
            rank=view.rank,
            layers=layers(view.lora),
            step=view.step,
            loss=view.loss,
            learning_rate=view.learning_rate,
            grad_norm=view.grad_norm,
            tokens=view.tokens,
            tokens_per_second=view.tokens_per_second,
            memory_bytes=view.memory_bytes,
            state=view.state,
            created=datetime.fromtimestamp(view.created, UTC),
        )

    def names(self) -> tuple[str, ...]:
        """Its name and its run's id."""
        return self.name, self.model_id

    def cells(self) -> tuple[str, ...]:
        """What a table says of it."""
        return (
            self.name,
            self.model_id,
            str(self.rank),
            self.layers,
            f"{self.step:,}",
            number(self.loss),
            rate(self.learning_rate),
            number(self.grad_norm),
            whole(self.tokens_per_second),
            memory(self.memory_bytes),
            self.state,
        )


@dataclass(frozen=True, slots=True, repr=False)
class Checkpoint(Listed):
    """A checkpoint; ``path`` is its ``tinker://`` path."""

    KIND: ClassVar[str] = "checkpoint"
    COLUMNS: ClassVar[tuple[Column, ...]] = (
        Column("path", "code"),
        Column("kind"),
        Column("step", "number"),
        Column("rank", "number"),
        Column("size", "number"),
        Column("created"),
        Column("expires"),
        Column("published"),
    )

    path: str
    kind: str  # weights (with the optimizer's state), sampler_weights, external_weights (for other programs)
    model_id: str
    base_model: str
    step: int
    rank: int
    size_bytes: int
    created: datetime
    expires: datetime | None
    public: bool

    @classmethod
    def of(cls, info: CheckpointInfo) -> Checkpoint:
        """As the store knows it."""
        return cls(
            path=info.path,
            kind=info.address.kind,
            model_id=info.address.model_id,
            base_model=info.base_model,
            step=info.step,
            rank=info.lora.rank,
            size_bytes=info.size_bytes,
            created=info.created,
            expires=info.expires,
            public=info.public,
        )

    def names(self) -> tuple[str, ...]:
        """Its name within its run, and its path."""
        return self.path.rpartition("/")[2], self.path

    def cells(self) -> tuple[str, ...]:
        """What a table says of it."""
        return (
            self.path,
            self.kind.replace("_", " "),
            f"{self.step:,}",
            str(self.rank),
            memory(self.size_bytes),
            moment(self.created),
            moment(self.expires) if self.expires else "never",
            "yes" if self.public else "no",
        )


@dataclass(frozen=True, slots=True, repr=False)
class Run(Listed):
    """A recorded training run: one adapter, from its creation on. ``state`` is empty where it is not loaded here."""

    KIND: ClassVar[str] = "run"
    COLUMNS: ClassVar[tuple[Column, ...]] = (
        Column("run"),
        Column("id", "code"),
        Column("base model", "wrap"),
        Column("rank", "number"),
        Column("layers"),
        Column("steps", "number"),
        Column("created"),
        Column("last request"),
        Column("checkpoints", "number"),
        Column("state"),
    )

    name: str
    model_id: str
    base_model: str
    rank: int
    layers: str
    step: int | None  # None: nothing tells
    created: datetime
    last_request: datetime
    session_id: str
    state: str
    user_metadata: Mapping[str, str] = field(default_factory=dict)
    checkpoints: Listing[Checkpoint] = field(default_factory=lambda: Listing(Checkpoint, ()))

    def names(self) -> tuple[str, ...]:
        """Its name and its id."""
        return self.name, self.model_id

    def cells(self) -> tuple[str, ...]:
        """What a table says of it."""
        return (
            self.name,
            self.model_id,
            self.base_model,
            str(self.rank),
            self.layers,
            whole(self.step),
            moment(self.created),
            moment(self.last_request),
            f"{len(self.checkpoints):,}",
            self.state or NOTHING,
        )


class Inventory(LabPart):
    """What there is, now and from earlier."""

    @property
    def adapters(self) -> Listing[Adapter]:
        """The adapters that are loaded, as they are at this moment, in order of creation; none of a stopped lab."""
        views = self._bus.view().adapters if self._served is not None else ()
        return Listing(Adapter, [Adapter.of(view) for view in views if view.state != "unloaded"])

    def runs(self) -> Listing[Run]:
        """All recorded training runs under this lab's root, of earlier kernels too, newest first.

        Blocks on the disk: call it from a cell, not from an event loop.
        """
        views = {} if self._served is None else {view.model_id: view for view in self._bus.view().adapters}
        with self._stored() as store:
            rows, _ = store.records.runs(ALL, 0)
            kept = _by_run(store.checkpoint_index.page(ALL, 0)[0])
            steps = store.records.last_steps([row.model_id for row in rows], LEARNING_RATE)
        return Listing(Run, [_run(row, views.get(row.model_id), steps.get(row.model_id), kept) for row in rows])

    def checkpoints(self, run: str | None = None) -> Listing[Checkpoint]:
        """Checkpoints that have not expired, newest first: all, or those of a run, by its id or its name.

        Of several runs that are called the same it is the newest; each path begins with its run's id.

        Blocks as ``runs`` does. Raises TxlabError where there is no such run.
        """
        with self._stored() as store:
            infos = store.checkpoint_index.page(ALL, 0)[0]
            known = None if run is None else store.records.find_run(run)
        if run is not None:
            model_id = run if known is None else known.model_id
            infos = [info for info in infos if info.address.model_id == model_id]
            if known is None and not infos:
                raise TxlabError(f"There is no run {run!r}; lab.runs() lists them.")
        return Listing(Checkpoint, [Checkpoint.of(info) for info in infos])


def _by_run(infos: list[CheckpointInfo]) -> dict[str, list[Checkpoint]]:
    found: dict[str, list[Checkpoint]] = defaultdict(list)
    for info in infos:
        found[info.address.model_id].append(Checkpoint.of(info))
    return found


def _run(row: RunRow, view: AdapterView | None, step: int | None, kept: Mapping[str, list[Checkpoint]]) -> Run:
    checkpoints = kept.get(row.model_id, [])
    saved = max((one.step for one in checkpoints), default=None)
    return Run(
        name=(view.name if view else "") or row.name or row.model_id,
        model_id=row.model_id,
        base_model=row.base_model,
        rank=row.lora["rank"],
        layers=layers(LoraConfig(**row.lora)),
        step=view.step if view else saved if step is None else step,
        created=row.created,
        last_request=row.last_request,
        session_id=row.session_id,
        state=view.state if view and view.state != "unloaded" else "",
        user_metadata=row.user_metadata,
        checkpoints=Listing(Checkpoint, checkpoints),
    )
