"""Options of PEFT's LoraConfig: read, of no consequence, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from txlab.lora.state import LoraConfig
from txlab.models.config import ATTENTION, MLP, UNEMBED
from txlab.models.files import some

CONFIG_FILE = "adapter_config.json"

# Options that change what an adapter computes, or which model it belongs to, each with the values under which it
# computes what ours do; null is one of them.
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM",),
    "bias": ("none",),
    "use_rslora": (False,),
    "use_dora": (False,),
    "use_qalora": (False,),
    "use_bdlora": (False, {}),
    "lora_bias": (False,),
    "fan_in_fan_out": (False,),
    "ensure_weight_tying": (False,),
    "enable_lora": (False, []),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "modules_to_save": ([],),
    "layers_to_transform": ([],),
    "layer_replication": ([],),
    "trainable_token_indices": ([], {}),
    "target_parameters": ([],),
    "alora_invocation_tokens": ([],),
    "velora_config": ({},),
    "monteclora_config": ({},),
    "kasa_config": ({},),
    "arrow_config": ({},),
    "megatron_config": ({},),
}

# Options that are read elsewhere in this module, and those that end with training or that another one switches on.
READ = frozenset({"r", "lora_alpha", "target_modules", "exclude_modules", "init_lora_weights"})
HARMLESS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "inference_mode",
        "layers_pattern",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
    }
)

# Initial weights that leave the base model as it is, and those that take a part out of it.
KEEPING_BASE = ("gaussian", "orthogonal", "eva", "mica")
CHANGING_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
MERGE = "merge it (model.merge_and_unload()) and serve the merged model"
CONVERT = (
    "save it again with PEFT's conversion (model.save_pretrained(folder, "
    "path_initial_model_for_weight_conversion=folder_of_the_untrained_adapter)), or " + MERGE
)


class PeftError(ValueError):
    """A PEFT adapter that cannot be read as an adapter of this lab; the message says what stands in the way."""


def read_options(settings: Mapping[str, Any]) -> LoraConfig:
    """The shape of the adapter that ``adapter_config.json`` describes. Raises PeftError for all but plain LoRA."""
    _refuse_variants(settings)
    _refuse_changed_base(settings.get("init_lora_weights"))
    targets = _targets(settings)
    attention, mlp, unembed = (_has_group(targets, group) for group in (ATTENTION, MLP, UNEMBED))
    return LoraConfig(_rank(settings), None, train_attn=attention, train_mlp=mlp, train_unembed=unembed)


def read_alpha(settings: Mapping[str, Any]) -> float:
    """PEFT scales an adapter by this number over its rank."""
    alpha = settings.get("lora_alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or alpha <= 0:
        raise PeftError(f"{CONFIG_FILE} has lora_alpha={alpha!r}: expected a positive number")
    return float(alpha)


def _refuse_variants(settings: Mapping[str, Any]) -> None:
    for option, value in settings.items():
        if option in PLAIN:
            plain = PLAIN[option]
            if value is not None and value not in plain:
                raise PeftError(
                    f"{CONFIG_FILE} has {option}={value!r}: only plain LoRA can be read ({option}={plain[0]!r})"
                )
        elif option not in READ | HARMLESS and _switches_on(value):
            raise PeftError(
                f"{CONFIG_FILE} has {option}={value!r}, which this lab does not know: only plain LoRA can be read"
            )


def _switches_on(value: Any) -> bool:
    """Whether an option may turn a variant on, as PEFT's do: by true, a configuration of its own, or a list."""
    return value is True or (isinstance(value, dict | list) and len(value) > 0)


def _refuse_changed_base(init: Any) -> None:
    """An adapter that began by taking a part out of the base weights is none of the base as it is."""
    if init is None or isinstance(init, bool):
        return
    name = init.lower() if isinstance(init, str) else repr(init)
    if name in KEEPING_BASE:
        return
    shown = f"{CONFIG_FILE} has init_lora_weights={init!r}"
    if not name.startswith(CHANGING_BASE):
        raise PeftError(f"{shown}: this lab knows true, false, {', '.join(KEEPING_BASE)}")
    cure = MERGE if name.startswith("loftq") else CONVERT
    raise PeftError(f"{shown}, which changed the base model that the adapter belongs to: {cure}")


def _rank(settings: Mapping[str, Any]) -> int:
    rank = settings.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank <= 0:
        raise PeftError(f"{CONFIG_FILE} has r={rank!r}: expected a positive number, and a whole one")
    return rank


def _targets(settings: Mapping[str, Any]) -> set[str]:
    """Kinds of module that the adapter sits on; PEFT may name each layer's module by itself."""
    targets = settings.get("target_modules")
    if not isinstance(targets, list) or not targets or not all(isinstance(target, str) for target in targets):
        raise PeftError(f"{CONFIG_FILE} has target_modules={targets!r}: expected a list of modules")
    kinds = {target.rsplit(".", 1)[-1] for target in targets}
    if isinstance(excluded := settings.get("exclude_modules"), list):
        kinds = {kind for kind in kinds if kind not in excluded}
    known = {*ATTENTION, *MLP, *UNEMBED}
    if unknown := kinds - known:
        raise PeftError(f"target_modules names {some(unknown)}: this lab adapts {', '.join(sorted(known))}")
    if not kinds:
        raise PeftError(f"exclude_modules leaves none of target_modules={targets!r}")
    return kinds


def _has_group(targets: set[str], group: tuple[str, ...]) -> bool:
    """Whether the adapter sits on all members of a group of projections; PeftError where on some alone."""
    missing = [name for name in group if name not in targets]
    if missing and len(missing) < len(group):
        raise PeftError(f"target_modules lacks {some(missing)}: this lab adapts all of {', '.join(group)} or none")
    return not missing
