"""Files encrypted by age (https://age-encryption.org) to the holders of keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from txlab.store.checkpoint_info import CheckpointError

SUFFIX = ".age"
MOST_RECIPIENTS = 10


def encrypt_files(files: Mapping[str, bytes], recipients: Sequence[str]) -> dict[str, bytes]:
    """Encrypt each file to all recipients, native ``age1…`` or SSH public keys; its name gets the suffix ``.age``.

    Raises CheckpointError for what is no such key, and where the package pyrage is not installed.
    """
    try:
        import pyrage
    except ImportError:
        raise CheckpointError(
            "age_encryption_recipients needs the package pyrage where the server runs: pip install pyrage"
        ) from None
    if len(recipients) > MOST_RECIPIENTS:
        raise CheckpointError(
            f"age_encryption_recipients has {len(recipients)} keys: expected {MOST_RECIPIENTS} at most"
        )
    keys = [_recipient(pyrage, index, key) for index, key in enumerate(recipients)]
    return {f"{name}{SUFFIX}": pyrage.encrypt(data, keys) for name, data in files.items()}


def _recipient(pyrage: Any, index: int, key: str) -> Any:
    kind = pyrage.ssh if key.startswith("ssh-") else pyrage.x25519
    try:
        return kind.Recipient.from_str(key)
    except pyrage.RecipientError as error:
        raise CheckpointError(
            f"age_encryption_recipients[{index}] is no public key ({error}): expected 'age1…' or 'ssh-…'"
        ) from None
