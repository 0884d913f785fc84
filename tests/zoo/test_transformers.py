"""Models of transformers, built from small random configurations, with the loss that they compute themselves."""

import os

import pytest
import torch

import pipelab as pp
from tests.zoo.law import Case, assert_law

BATCH, LENGTH, VOCAB = 5, 6, 32


@pytest.fixture(scope="module")
def transformers():
    """transformers takes seconds to import, and must never ask the network."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    return pytest.importorskip("transformers")


def ids(length=LENGTH):
    return torch.randint(3, VOCAB, (BATCH, length))


def padding():
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[::2, -1] = 0
    return mask


def small(layers=4, **more):
    """A configuration in the names that most of them share."""
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2}
    return sizes | {"vocab_size": VOCAB, "max_position_embeddings": LENGTH} | more


def own_loss(model, cuts, **inputs):
    return Case(model.double().train(), inputs, None, None, cuts, whole=False)


def gpt2(hf):
    sizes = {"vocab_size": VOCAB, "n_positions": LENGTH, "n_embd": 8, "n_layer": 4, "n_head": 2}
    model = hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))
    x = ids()
    cuts = ["transformer.h.1", "transformer.h.2", "lm_head"]  # dropout; embedding and head are tied
    return own_loss(model, cuts, input_ids=x, labels=x, attention_mask=padding())


def llama(hf):
    x = ids()
    cuts = ["model.layers.1", "model.layers.2", "model.layers.3"]
    return own_loss(
        hf.LlamaForCausalLM(hf.LlamaConfig(**small(num_key_value_heads=1))), cuts, input_ids=x, labels=x
    )


def bert(hf):
    model = hf.BertForSequenceClassification(hf.BertConfig(**small()))
    cuts = ["bert.encoder.layer.1", "bert.encoder.layer.2", "bert.pooler"]
    labels = torch.randint(0, 2, (BATCH,))
    return own_loss(model, cuts, input_ids=ids(), attention_mask=padding(), labels=labels)


def t5(hf):
    sizes = {"vocab_size": VOCAB, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    model = hf.T5ForConditionalGeneration(hf.T5Config(**sizes, decoder_start_token_id=0))
    cuts = ["encoder.block.1", "decoder.block.0", "decoder.block.1"]
    return own_loss(model, cuts, input_ids=ids(), attention_mask=padding(), labels=ids(4))


def vit(hf):
    sizes = {
        key: size for key, size in small().items() if key not in ("vocab_size", "max_position_embeddings")
    }
    model = hf.ViTForImageClassification(hf.ViTConfig(**sizes, image_size=8, patch_size=4))
    cuts = ["vit.layers.1", "vit.layers.2", "vit.layernorm"]
    pixels = torch.randn(BATCH, 3, 8, 8).double()
    return own_loss(model, cuts, pixel_values=pixels, labels=torch.randint(0, 2, (BATCH,)))


def mixtral(hf):
    # With the balancing loss, which reads the router's logits of every layer; torch's grouped product knows no fp64.
    config = hf.MixtralConfig(**small(num_key_value_heads=1, num_local_experts=4), output_router_logits=True)
    config._experts_implementation = "eager"
    cuts = ["model.layers.1", "model.layers.2", "model.layers.3"]
    x = ids()
    return own_loss(hf.MixtralForCausalLM(config), cuts, input_ids=x, labels=x, attention_mask=padding())


def whisper(hf):
    sizes = {"vocab_size": VOCAB, "num_mel_bins": 4, "d_model": 8, "max_source_positions": 6}
    for part in ("encoder", "decoder"):
        sizes |= {f"{part}_layers": 2, f"{part}_attention_heads": 2, f"{part}_ffn_dim": 16}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "decoder_start_token_id": 1, "eos_token_id": 2}
    config = hf.WhisperConfig(**sizes, **tokens, max_target_positions=LENGTH, dropout=0.1)
    cuts = ["model.encoder.layers.1", "model.decoder.layers.0", "model.decoder.layers.1"]
    features = torch.randn(BATCH, 4, 12).double()
    return own_loss(hf.WhisperForConditionalGeneration(config), cuts, input_features=features, labels=ids())


MODELS = [gpt2, llama, bert, t5, vit, mixtral, whisper]


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1"])
@pytest.mark.parametrize("make", MODELS)
def test_a_model_of_transformers_computes_what_the_whole_model_computes(transformers, make, schedule):
    torch.manual_seed(0)
    case = make(transformers)
    assert_law(case, pp.schedule(schedule, num_ranks=4, num_microbatches=4))


@pytest.mark.parametrize("make", [gpt2, llama, bert, t5])
def test_with_gradient_checkpointing_of_its_own_too(transformers, make):
    torch.manual_seed(0)
    case = make(transformers)
    model = case.model
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    assert_law(case, pp.schedule("1f1b", num_ranks=4, num_microbatches=4))


@pytest.mark.parametrize("make", [gpt2, llama, bert, mixtral])
def test_with_activations_dropped_by_the_pipeline_too(transformers, make):
    torch.manual_seed(0)
    case = make(transformers)
    case.model.config.use_cache = False
    case.options = {"recompute": "all"}
    pipe = assert_law(case, pp.schedule("1f1b", num_ranks=4, num_microbatches=4))
    assert all("again in the backward" in note for note in pipe.recompute_notes[:3])


def test_a_layer_that_fills_a_cache_is_not_run_again(transformers):
    torch.manual_seed(0)
    case = llama(transformers)
    case.options = {"recompute": [1]}
    pipe = assert_law(case, pp.schedule("1f1b", num_ranks=4, num_microbatches=4))
    assert "model.layers.1.self_attn (what it is handed is changed in place)" in pipe.recompute_notes[0]
