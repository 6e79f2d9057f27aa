"""A base model, loaded: configuration, decoder and tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import jax
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from txlab.config import ModelSettings
from txlab.folders import usable_cache
from txlab.models.config import ModelConfig, known_ids
from txlab.models.decoder import Decoder
from txlab.models.detokenizer import vocabulary_of
from txlab.models.files import ModelFileError, check_tokenizer_files, read_json
from txlab.models.mesh import make_mesh
from txlab.models.sources import Source, resolve
from txlab.models.tokenizer import check_vocabulary, load_tokenizer, save_gguf_tokenizer
from txlab.models.weights import GGUFFile, SafetensorsFolder, Tensors, load_parameters, own_head


@dataclass(frozen=True, slots=True, eq=False)
class BaseModel:
    """What adapters are trained on and sampled with. Its arrays never change."""

    name: str  # as users say it
    config: ModelConfig
    mesh: Mesh
    decoder: Decoder
    tokenizer: PreTrainedTokenizerBase
    tokenizer_dir: Path  # AutoTokenizer.from_pretrained loads it without network
    eos_ids: tuple[int, ...]
    parameter_count: int
    memory_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class OpenedModel:
    """A base model whose files were found and checked, but whose weights still lie on disk."""

    settings: ModelSettings
    config: ModelConfig
    tensors: Tensors
    tokenizer: PreTrainedTokenizerBase
    tokenizer_dir: Path


def load_base(settings: ModelSettings, mesh: Mesh | None = None) -> BaseModel:
    """Find, read and place the model that ``settings`` name; ``mesh`` is one device by default.

    Raises NoDevice, ModelNotFound, or ModelFileError where files cannot be read, or disagree with the configuration.
    """
    mesh = mesh or make_mesh()  # before anything is fetched or read
    return load_opened(open_model(settings), mesh)


def open_model(settings: ModelSettings) -> OpenedModel:
    """Find the model that ``settings`` name and read all but its weights, which is cheap.

    Raises ModelNotFound or ModelFileError (UnsupportedModel, TokenizerError and WeightsError are some).
    """
    cache = usable_cache(settings.cache)
    config, tensors, tokenizer, tokenizer_dir = _open(resolve(settings.name, settings), cache)
    check_vocabulary(tokenizer, config.vocab_size, tokenizer_dir)
    if settings.max_context is not None:
        config = replace(config, max_context=min(config.max_context, settings.max_context))
    vocabulary_of(tokenizer)  # refuses one whose texts could not be told bit by bit
    return OpenedModel(settings, config, tensors, tokenizer, tokenizer_dir)


def load_opened(opened: OpenedModel, mesh: Mesh | None = None) -> BaseModel:
    """Read the weights of an opened model and place them; ``mesh`` is one device by default. Raises WeightsError."""
    mesh = mesh or make_mesh()
    parameters = load_parameters(opened.config, opened.tensors, mesh, opened.settings.dtype)
    return BaseModel(
        name=opened.settings.name,
        config=opened.config,
        mesh=mesh,
        decoder=Decoder(opened.config, parameters),
        tokenizer=opened.tokenizer,
        tokenizer_dir=opened.tokenizer_dir,
        eos_ids=_eos_ids(opened.config, opened.tokenizer),
        parameter_count=sum(array.size for array in jax.tree.leaves(parameters)),
        memory_bytes=sum(array.nbytes for array in jax.tree.leaves(parameters)),
    )


def _open(source: Source, cache: Path) -> tuple[ModelConfig, Tensors, PreTrainedTokenizerBase, Path]:
    """Configuration, tensors still on disk, and the tokenizer with its folder."""
    if source.is_gguf:
        return _open_gguf(source.path, cache)
    file, generation = source.path / "config.json", source.path / "generation_config.json"
    config = ModelConfig.from_hf(read_json(file), read_json(generation) if generation.exists() else None, str(file))
    check_tokenizer_files(source.path)
    tokenizer, tokenizer_dir = load_tokenizer(source.path, cache)
    tensors = SafetensorsFolder(source.path)
    return own_head(config, tensors), tensors, tokenizer, tokenizer_dir


def _open_gguf(path: Path, cache: Path) -> tuple[ModelConfig, Tensors, PreTrainedTokenizerBase, Path]:
    file = GGUFFile(path)
    try:
        config = ModelConfig.from_gguf(file.metadata, file.names, file.rope_factors)
    except KeyError as error:
        raise ModelFileError(f"{path} lacks {error}, which language models have: is it part of a model?") from None
    tokenizer, tokenizer_dir = load_tokenizer(save_gguf_tokenizer(file.metadata, cache), cache)
    return config, file, tokenizer, tokenizer_dir


def _eos_ids(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens that end a turn: those of the configuration, and the tokenizer's own."""
    own = known_ids("the tokenizer's eos token", config.vocab_size, tokenizer.eos_token_id)
    return tuple(dict.fromkeys((*config.eos_ids, *own)))
