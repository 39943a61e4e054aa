"""Turn the quantised GGUF of a small Llama model into the safetensors folder that transformers reads.

The transformers library has a GGUF reader of its own. It is not used here because its answer depends on its version:
5.2 takes SmolLM2's tokenizer for a CodeLlama one (a begin-of-text token before every text, ids beyond the vocabulary)
and 5.23 refuses to save the model. No version splits digits before merging, as SmolLM2's tokenizer does.
"""

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL_TOKEN = 3  # the token type of chat marks and the like


def dequantise(source: Path, folder: Path, progress: Callable[[int, int], None]) -> None:
    """Write `model.safetensors` (float32), `config.json` and the tokenizer of the GGUF `source` into `folder`.

    `progress(done, total)` is called after every tensor. Raises ValueError for a model that is not a Llama with
    SmolLM2's tokenizer.
    """
    reader = gguf.GGUFReader(source)
    read = {name: field.contents for name, field in reader.fields.items()}
    kind = read["general.architecture"](), read["tokenizer.ggml.pre"]()
    if kind != ("llama", "smollm"):
        raise ValueError(f"{source}: architecture and tokenizer are {kind}, only ('llama', 'smollm') can be converted")
    heads = {"attn_q": read["llama.attention.head_count"](), "attn_k": read["llama.attention.head_count_kv"]()}
    weights = {}
    for done, tensor in enumerate(reader.tensors, start=1):
        name, weight = _renamed(tensor.name, heads, gguf.dequantize(tensor.data, tensor.tensor_type))
        weights[name] = np.ascontiguousarray(weight, dtype=np.float32)
        progress(done, len(reader.tensors))
    tied = "lm_head.weight" not in weights
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(read).save(str(folder / "tokenizer.json"))
    for name, table in {"config": _config(read, tied), "tokenizer_config": _tokenizer_config(read)}.items():
        (folder / f"{name}.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(read["tokenizer.chat_template"](), encoding="utf-8", newline="")


def _renamed(name: str, heads: dict[str, int], weight: np.ndarray) -> tuple[str, np.ndarray]:
    """The name transformers gives a tensor, and its rows in transformers' order."""
    first, *rest = name.split(".")
    if first != "blk":
        return f"{OUTER_NAMES[first]}.weight", weight
    layer, part, _ = rest
    if part in heads:  # GGUF holds the two halves of a rotary pair side by side, transformers half a head apart
        pairs = weight.reshape(heads[part], -1, 2, weight.shape[-1])
        weight = pairs.swapaxes(1, 2).reshape(weight.shape)
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.weight", weight


def _config(read: dict[str, Callable], tied: bool) -> dict:
    width, heads = read["llama.embedding_length"](), read["llama.attention.head_count"]()
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": read["llama.vocab_size"](),
        "hidden_size": width,
        "intermediate_size": read["llama.feed_forward_length"](),
        "num_hidden_layers": read["llama.block_count"](),
        "num_attention_heads": heads,
        "num_key_value_heads": read["llama.attention.head_count_kv"](),
        "head_dim": width // heads,
        "max_position_embeddings": read["llama.context_length"](),
        "rms_norm_eps": read["llama.attention.layer_norm_rms_epsilon"](),
        "rope_parameters": {"rope_type": "default", "rope_theta": read["llama.rope.freq_base"]()},
        "tie_word_embeddings": tied,
        "bos_token_id": read["tokenizer.ggml.bos_token_id"](),
        "eos_token_id": read["tokenizer.ggml.eos_token_id"](),
        "pad_token_id": read["tokenizer.ggml.padding_token_id"](),
    }


def _tokenizer(read: dict[str, Callable]) -> Tokenizer:
    tokens = read["tokenizer.ggml.tokens"]()
    merges = [tuple(merge.split(" ")) for merge in read["tokenizer.ggml.merges"]()]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = read["tokenizer.ggml.token_type"]()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def _tokenizer_config(read: dict[str, Callable]) -> dict:
    tokens = read["tokenizer.ggml.tokens"]()
    ids = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": read["llama.context_length"](),
        "clean_up_tokenization_spaces": False,
        **{f"{ours}_token": tokens[read[f"tokenizer.ggml.{theirs}_token_id"]()] for ours, theirs in ids.items()},
    }
