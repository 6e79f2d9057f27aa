"""Adapters from and for other programs."""

from __future__ import annotations

from pathlib import Path

from txlab.notebook.errors import TxlabError
from txlab.notebook.served import LabPart


class Exchange(LabPart):
    """Checkpoints to PEFT adapters and back."""

    def export_peft(self, path: str, folder: str | Path) -> Path:
        """Write a checkpoint as a PEFT adapter, and return its folder: ``PeftModel.from_pretrained`` loads it.

        ``path`` is a ``tinker://`` path of any kind. An adapter that lies in ``folder`` already is replaced.
        Raises TxlabError where there is no such checkpoint, or the folder cannot be written.
        """
        from txlab.store.checkpoints import CheckpointError, Checkpoints

        folder = Path(folder).expanduser()
        try:
            files = Checkpoints(self.settings.store.root).peft_files(path)
            folder.mkdir(parents=True, exist_ok=True)
            for name, data in files.items():
                (folder / name).write_bytes(data)
        except (CheckpointError, OSError) as error:
            raise TxlabError(str(error)) from None
        return folder

    def import_peft(self, folder: str | Path, name: str) -> str:
        """Read a PEFT adapter of this lab's model into a checkpoint, and return its path.

        ``create_training_client_from_state`` trains on from it, ``create_sampling_client`` samples with it.
        Raises TxlabError where the lab is stopped, the name is taken, or the adapter is none that this lab can hold:
        plain LoRA on all projections of the attention, of the MLP or of the output.
        """
        from txlab.lora.peft import from_peft
        from txlab.lora.peft_options import PeftError
        from txlab.store.checkpoint_info import Address
        from txlab.store.checkpoints import CheckpointError, Checkpoints, CheckpointTakenError

        base, address = self._serving().base, Address("peft", "weights", name)
        try:
            own = {"embedding": base.decoder.embedding[...], "head": base.decoder.head}
            state = from_peft(Path(folder).expanduser(), base.config, own)
            return Checkpoints(self.settings.store.root).write(address, state, base_model=base.name).path
        except CheckpointTakenError:
            raise TxlabError(f"checkpoint {address.path!r} exists: choose another name, or delete it first") from None
        except (CheckpointError, PeftError) as error:
            raise TxlabError(str(error)) from None
