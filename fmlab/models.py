"""Load a language model and its tokenizer, offline first; or make a tiny one with random weights."""

import os

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from .language import LanguageModel, byte_of, quiet, ready
from .weights import DEFAULT, ModelError, check, fetch, source

CONFIGS = {"llama": LlamaConfig, "qwen3": Qwen3Config, "mistral": MistralConfig, "gpt_neox": GPTNeoXConfig}


def load(
    name: str | os.PathLike = DEFAULT,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    *,
    device_map: str | dict | None = None,
    progress: bool = True,
) -> LanguageModel:
    """Load a model by short name (`smollm2-135m`), folder or hub id; what is not here yet is fetched (see `fetch`).

    The files are checked by sha256 where a sum is known, pickled weights and code from a model's folder are refused.
    `device_map` (as in accelerate) spreads a model over several devices, instead of `device`. Raises ModelError.
    """
    folder = fetch(name, progress)
    check(folder)
    where = {} if device_map is None else {"device_map": device_map}
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model, found = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **where
            )
    except SafetensorError as reason:
        raise ModelError(f"the weights in {folder} cannot be read ({reason}); bring them there again") from reason
    if found["missing_keys"]:  # transformers would go on with random numbers in their place
        missing = sorted(found["missing_keys"])
        raise ModelError(
            f"{folder} has no weights for {len(missing)} tensors of {type(model).__name__}, among them {missing[0]}; "
            "bring the model's own *.safetensors and config.json there"
        )
    return ready(model if where else model.to(device), tokenizer, os.fspath(name), source(folder))


def tiny(arch: str = "llama", seed: int = 0, **overrides) -> LanguageModel:
    """A model of 70,000 random weights that takes any text: one token a byte, 256 tokens.

    Llama, Qwen3 and Mistral have 6 query heads on 2 KV heads, GPT-NeoX 4 of each; heads are 8 wide, layers 3 deep.
    `overrides` set fields of its transformers config, such as `sliding_window=16`. The weights are scaled so that
    attention is far from uniform. The same arguments give the same weights and leave torch's random state as it was.

    Raises ValueError for an unknown architecture or field.
    """
    if arch not in CONFIGS:
        raise ValueError(f"no tiny {arch!r}; give one of {', '.join(CONFIGS)}")
    config = CONFIGS[arch](**_sizes(arch))
    unknown = [field for field in overrides if not hasattr(config, field)]
    if unknown:
        raise ValueError(f"{type(config).__name__} has no field {', '.join(unknown)}")
    config = CONFIGS[arch](**_sizes(arch) | overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return ready(model, _byte_tokenizer(), f"tiny {arch}", f"random weights, seed {seed}")


def _sizes(arch: str) -> dict:
    heads = 4 if arch == "gpt_neox" else 6
    grouped = {} if arch == "gpt_neox" else {"num_key_value_heads": 2, "head_dim": 8}
    return {
        **grouped,
        **({"sliding_window": None} if arch == "mistral" else {}),
        "num_attention_heads": heads,
        "hidden_size": 8 * heads,
        "vocab_size": 256,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "max_position_embeddings": 16_384,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose token i is byte i: every text goes there and back."""
    tokenizer = Tokenizer(models.BPE(vocab=byte_of(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
