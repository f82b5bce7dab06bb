"""fastlm.patch: patched models of transformers equal the unpatched ones, and go back to what they were."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
import transformers
from torch import nn
from transformers import (
    AlbertConfig,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    OpenAIGPTConfig,
    RobertaConfig,
)

import fastlm
from fastlm.patching import PatchOptions
from fastlm.patching.swap import Swapped

VOCABULARY, LENGTH = 90, 20
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
DISTILBERT = {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "dropout": 0.0}
GPT = {"vocab_size": VOCABULARY, "n_positions": 40, "n_embd": 32, "n_layer": 2, "n_head": 4}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
ENDS = {"bos_token_id": 0, "eos_token_id": 0}

# Class: configuration, and the number of modules replaced.
MODELS = {
    "BertForMaskedLM": (BertConfig(**BERT), 11),
    "BertForPreTraining": (BertConfig(**BERT), 11),
    "BertLMHeadModel": (BertConfig(**BERT, is_decoder=True), 11),
    "BertForSequenceClassification": (BertConfig(**BERT, num_labels=2), 9),
    "RobertaForMaskedLM": (RobertaConfig(**BERT), 11),
    "RobertaForCausalLM": (RobertaConfig(**BERT, is_decoder=True), 11),
    "DistilBertForMaskedLM": (DistilBertConfig(**DISTILBERT, attention_dropout=0.0), 9),
    "ElectraForMaskedLM": (ElectraConfig(**BERT, embedding_size=16), 11),
    "ElectraForCausalLM": (ElectraConfig(**BERT, embedding_size=16, is_decoder=True), 11),
    "AlbertForMaskedLM": (AlbertConfig(**BERT, embedding_size=16), 5),
    "AlbertForPreTraining": (AlbertConfig(**BERT, embedding_size=16, classifier_dropout_prob=0.0), 5),
    "OpenAIGPTLMHeadModel": (OpenAIGPTConfig(**GPT, **NO_DROPOUT), 7),
    "GPT2LMHeadModel": (GPT2Config(**GPT, **NO_DROPOUT, **ENDS), 8),
}
CAUSAL = ("BertLMHeadModel", "RobertaForCausalLM", "ElectraForCausalLM", "OpenAIGPTLMHeadModel", "GPT2LMHeadModel")


def make(name: str, **changes) -> nn.Module:
    torch.manual_seed(0)
    config = copy.deepcopy(MODELS[name][0])
    for option, value in changes.items():
        setattr(config, option, value)
    model = getattr(transformers, name)(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def make_batch(name: str, seed: int = 1) -> dict[str, torch.Tensor]:
    """Returns a batch of 3 sequences padded at the end, a third of whose valid positions have labels."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(LENGTH) < torch.tensor([[LENGTH], [12], [5]])
    tokens = torch.randint(5, VOCABULARY, (3, LENGTH), generator=generator)
    pad = getattr(MODELS[name][0], "pad_token_id", None) or 0
    chosen = (torch.rand(3, LENGTH, generator=generator) < 0.3) & mask
    batch = {
        "input_ids": tokens.where(mask, pad),
        "attention_mask": mask.long(),
        "labels": tokens.where(chosen, -100),
    }
    if name == "BertForPreTraining":
        batch["next_sentence_label"] = torch.tensor([0, 1, 1])
    if name == "AlbertForPreTraining":
        batch["sentence_order_label"] = torch.tensor([0, 1, 1])
    if name == "BertForSequenceClassification":
        batch["labels"] = torch.tensor([0, 1, 1])
    return batch


def logits_of(output) -> torch.Tensor:
    return output.get("logits", output.get("prediction_logits"))


def assert_close(found: torch.Tensor, expected: torch.Tensor, what: str, bound: float) -> None:
    difference = (found - expected).abs().max().item()
    assert difference <= bound * max(1.0, expected.abs().max().item()), f"{what}: {difference}"


@pytest.mark.parametrize("name", MODELS)
def test_loss_gradients_and_logits_are_the_unpatched_models(name):
    """Float64; a causal model's own loss rounds the logits to float32, which bounds the difference there."""
    model = make(name).double()
    expected, batch = copy.deepcopy(model), make_batch(name)
    report = fastlm.patch(model)
    assert len(report.replaced) == MODELS[name][1] and not report.left, report
    bound = 1e-6 if name in CAUSAL else 1e-13
    ours, theirs = (m.train()(**batch) for m in (model, expected))
    assert_close(ours.loss, theirs.loss, "loss", bound)
    assert (logits_of(ours) is None) == (name != "BertForSequenceClassification")
    ours.loss.backward()
    theirs.loss.backward()
    for (path, p), q in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), path
        if p.grad is not None:
            assert_close(p.grad, q.grad, path, bound)
    ours, theirs = (m.eval()(**batch, output_hidden_states=True) for m in (model, expected))
    valid = batch["attention_mask"].bool()
    at = slice(None) if name == "BertForSequenceClassification" else valid
    assert_close(logits_of(ours)[at], logits_of(theirs)[at], "logits", 1e-13)
    for h, g in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert_close(h[valid], g[valid], "hidden states", 1e-13)


@pytest.mark.parametrize("name", MODELS)
def test_unpatch_puts_everything_back(name):
    model = make(name)
    before, batch = copy.deepcopy(model), make_batch(name)
    pointers = {path: p.data_ptr() for path, p in model.named_parameters()}
    classes, implementation = [type(m) for m in model.modules()], model.config._attn_implementation
    fastlm.patch(model)
    assert {path: p.data_ptr() for path, p in model.named_parameters()} == pointers
    assert fastlm.unpatch(model).restored == MODELS[name][1]
    assert [type(m) for m in model.modules()] == classes
    assert model.config._attn_implementation == implementation
    assert not any("fastlm" in key for m in model.modules() for key in vars(m))
    assert torch.equal(logits_of(model.eval()(**batch)), logits_of(before.eval()(**batch)))
    assert model.config.to_dict() == before.config.to_dict()


def test_dropout_keeps_its_rate_repeats_by_seed_and_is_off_in_eval():
    name = "BertForMaskedLM"
    model, batch = make(name, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5), make_batch(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    fastlm.patch(model)

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return model(**batch).loss.item()

    model.train()
    assert loss(3) == loss(3) != loss(4)
    hidden = model.bert.embeddings(batch["input_ids"])
    assert abs((hidden == 0).float().mean().item() - 0.5) < 0.05
    model.eval()
    assert loss(3) == loss(4)
    model.train()
    assert loss(3) != loss(4)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "GPT2LMHeadModel", "OpenAIGPTLMHeadModel"])
def test_padding_at_the_left_runs_on_the_kernel(name):
    model, batch = make(name).double(), make_batch(name)
    mask = torch.arange(LENGTH) >= torch.tensor([[0], [7], [13]])
    batch |= {"attention_mask": mask.long(), "labels": batch["input_ids"].where(mask, -100)}
    expected = copy.deepcopy(model)
    fastlm.patch(model, return_logits=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = model.train()(**batch)
    theirs = expected.train()(**batch)
    for output in (ours, theirs):
        logits = logits_of(output)[:, :-1] if name in CAUSAL else logits_of(output)
        labels = batch["labels"][:, 1:] if name in CAUSAL else batch["labels"]
        after = mask[:, : logits.shape[1]]  # the last padded position has a label: its logits are of the padding
        nn.functional.cross_entropy(logits[after], labels[after]).backward()
    assert_close(logits_of(ours)[mask], logits_of(theirs)[mask], "logits", 1e-13)
    for (path, p), q in zip(model.named_parameters(), expected.parameters(), strict=True):
        if q.grad is not None:
            assert_close(p.grad, q.grad, path, 1e-12)
    weights = model.eval()(batch["input_ids"], attention_mask=batch["attention_mask"], output_attentions=True)
    assert_close(weights.logits[mask], model(batch["input_ids"], attention_mask=mask.long()).logits[mask], name, 1e-12)


def test_a_mask_with_holes_is_served_by_sdpa_and_said():
    for name in ("BertForMaskedLM", "GPT2LMHeadModel", "OpenAIGPTLMHeadModel"):
        model, batch = make(name).double().eval(), make_batch(name)
        mask = torch.ones(3, LENGTH, dtype=torch.int64)
        mask[0, 3:6], mask[1, :7] = 0, 0
        expected = logits_of(model(batch["input_ids"], attention_mask=mask))
        fastlm.patch(model)
        with pytest.warns(UserWarning, match="padding between valid positions"):
            found = logits_of(model(batch["input_ids"], attention_mask=mask))
        assert_close(found[mask.bool()], expected[mask.bool()], name, 1e-13)


def test_wanted_attentions_are_computed():
    for name in ("BertForMaskedLM", "GPT2LMHeadModel", "OpenAIGPTLMHeadModel", "AlbertForMaskedLM"):
        batch = make_batch(name) | {"output_attentions": True}
        model = make(name).double().eval()
        if name != "OpenAIGPTLMHeadModel":
            model.set_attn_implementation("eager")
        expected = model(**batch).attentions
        fastlm.patch(model)
        found = model(**batch).attentions
        assert len(found) == len(expected) == 2
        valid = batch["attention_mask"].bool()
        for f, e in zip(found, expected, strict=True):
            assert_close(f.transpose(1, 2)[valid], e.transpose(1, 2)[valid], name, 1e-13)


def test_cached_generation_is_the_unpatched_models():
    model = make("GPT2LMHeadModel").eval()
    prompt = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    expected = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    fastlm.patch(model)
    assert torch.equal(model.generate(**prompt, max_new_tokens=8, do_sample=False), expected)


def test_gradient_checkpointing_gives_the_same_gradients():
    name, gradients = "BertForMaskedLM", []
    for checkpointing in (False, True):
        model = make(name, hidden_dropout_prob=0.25).train()
        fastlm.patch(model)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(7)
        model(**make_batch(name)).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=0, atol=1e-6)


def test_num_items_in_batch_divides_the_sum():
    """transformers' masked-LM classes take the argument and ignore it."""
    for name in ("BertForMaskedLM", "GPT2LMHeadModel"):
        model, batch = make(name).train(), make_batch(name)
        fastlm.patch(model)
        labels = batch["labels"][:, 1:] if name in CAUSAL else batch["labels"]
        count = (labels != -100).sum()
        mean = model(**batch).loss
        torch.testing.assert_close(model(**batch, num_items_in_batch=2 * count).loss, mean / 2)


def test_logits_are_returned_when_they_are_wanted():
    name = "BertForMaskedLM"
    model, batch = make(name).train(), make_batch(name)
    fastlm.patch(model, return_logits=True)
    assert model(**batch).logits.shape == (3, LENGTH, VOCABULARY)
    fastlm.patch(model)
    assert model(**batch).logits is None
    assert len(model(**batch, return_dict=False)) == 2
    del batch["labels"]  # as Trainer's label smoother does
    assert model(**batch).logits is not None


def test_what_cannot_be_served_is_named_and_stays():
    big = make("BertForMaskedLM", hidden_size=512, num_attention_heads=2)
    report = fastlm.patch(big)
    assert report.count("attention") == 0 and big.config._attn_implementation != "fastlm"
    assert "its head_dim is 256, and the kernels take up to 128" in str(report)
    assert "its activation is ReLU" in str(fastlm.patch(make("BertForMaskedLM", hidden_act="relu")))
    model = make("BertForMaskedLM")
    model.bert.encoder.layer[0].output.dropout.p = 1e-3
    assert "rounds to 0" in str(fastlm.patch(model))
    layer = make("BertForMaskedLM").bert.encoder.layer[0]
    report = fastlm.patch(layer)
    assert "patch the whole model" in str(report) and report.count("layer_norm") == 2


def test_a_class_with_a_forward_of_its_own_stays():
    class Mine(transformers.BertForMaskedLM):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    class Same(transformers.BertForMaskedLM):
        pass

    left, replaced = (fastlm.patch(cls(MODELS["BertForMaskedLM"][0])) for cls in (Mine, Same))
    assert [(entry.kind, entry.reason) for entry in left.left] == [("Mine", "its class has a forward of its own")]
    assert replaced.count("loss") == 1


def test_switches_options_and_patching_twice():
    model = make("BertForMaskedLM")
    assert {entry.switch for entry in fastlm.patch(model, gelu=False, loss=False).replaced} == {
        "attention",
        "embeddings",
        "layer_norm",
    }
    again = fastlm.patch(model)
    assert again.already and again.count("gelu") == 3 and again.count("loss") == 1
    assert fastlm.patch(model).replaced == []
    assert "replaced before" in str(fastlm.patch(model))
    assert model.config._attn_implementation == "fastlm"
    fastlm.patch(model, attention=False)
    assert model.config._attn_implementation == model.bert.config._attn_implementation == "sdpa"
    assert fastlm.patch(model).count("attention") == 2 and model.config._attn_implementation == "fastlm"
    with pytest.raises(TypeError, match="gelu must be True or False, got 1"):
        fastlm.patch(model, gelu=1)
    with pytest.raises(ValueError, match="backend must be one of"):
        fastlm.patch(model, backend="rocm")
    with pytest.raises(TypeError, match="not both"):
        fastlm.patch(model, PatchOptions(), gelu=False)
    with pytest.raises(TypeError, match=r"a torch.nn.Module expected, got a str"):
        fastlm.patch("bert-base-uncased")


def test_pickle_deepcopy_and_saving(tmp_path):
    name = "BertForMaskedLM"
    model, batch = make(name).eval(), make_batch(name)
    fastlm.patch(model)
    expected = model(**batch).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(other.bert.embeddings, Swapped)
        assert torch.equal(other(**batch).logits, expected)
    model.save_pretrained(tmp_path)
    loaded = transformers.BertForMaskedLM.from_pretrained(tmp_path).eval()
    assert loaded.config._attn_implementation == "sdpa" and loaded.config.architectures == [name]
    valid = batch["attention_mask"].bool()
    torch.testing.assert_close(loaded(**batch).logits[valid], expected[valid], rtol=0, atol=1e-5)


def test_another_model_with_the_same_configuration_stays():
    config = copy.deepcopy(MODELS["BertForMaskedLM"][0])
    first, second = (transformers.BertForMaskedLM(config) for _ in range(2))
    fastlm.patch(first)
    assert second.config._attn_implementation == "sdpa"
    assert first.config is first.bert.config is first.bert.encoder.layer[0].attention.self.config


def test_layers_that_are_not_plain_are_called():
    """An adapter (here one that adds a product of low rank, as LoRA does) takes part, forward and backward."""

    class Adapter(nn.Module):
        def __init__(self, base: nn.Linear):
            super().__init__()
            self.base = base
            self.down, self.up = nn.Linear(base.in_features, 2), nn.Linear(2, base.out_features)

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

    model = make("BertForMaskedLM").double().train()
    for layer in model.bert.encoder.layer:
        layer.output.dense, layer.intermediate.dense = Adapter(layer.output.dense), Adapter(layer.intermediate.dense)
        layer.attention.self.query = Adapter(layer.attention.self.query)
    model.double().bert.requires_grad_(False)
    expected, batch = copy.deepcopy(model), make_batch("BertForMaskedLM")
    seen = []
    fastlm.patch(model)
    model.bert.encoder.layer[0].attention.output.dense.register_forward_hook(lambda *_: seen.append(1))
    ours, theirs = model(**batch).loss, expected(**batch).loss
    assert_close(ours, theirs, "loss", 1e-13)
    assert seen == [1]


def test_any_tree_of_torch_modules():
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU("tanh"), nn.LayerNorm(8), nn.LayerNorm((2, 8)), nn.Tanh())
    model.append(nn.LayerNorm(8, elementwise_affine=False))
    x = torch.randn(3, 2, 8)
    expected, report = model(x), fastlm.patch(model)
    norms = [(path, "layer_norm") for path in "235"]
    assert [(entry.path, entry.switch) for entry in report.replaced] == [("1", "gelu"), *norms] and not report.left
    assert type(model[2]).__name__ == "LayerNorm" and isinstance(model[2], nn.LayerNorm)
    torch.testing.assert_close(model(x), expected)
    fastlm.unpatch(model)
    assert type(model[2]) is nn.LayerNorm and torch.equal(model(x), expected)


def test_compiled_as_one_graph():
    name = "BertForMaskedLM"
    model, batch = make(name).train(), make_batch(name)
    fastlm.patch(model)
    expected = model(**batch).loss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.compile(model, backend="eager", fullgraph=True)(**batch).loss
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["Bert", "GPT2"])
def test_cross_attention_to_a_padded_sequence_of_the_same_length(name):
    sizes = {"vocab_size": 61, "is_decoder": True, "add_cross_attention": True, "initializer_range": 0.3}
    if name == "Bert":
        sizes |= {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        model = transformers.BertLMHeadModel(transformers.BertConfig(**sizes)).eval()
    else:
        del sizes["is_decoder"]
        sizes |= {"n_embd": 32, "n_layer": 1, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    mask = torch.tensor([[1] * 8, [1] * 4 + [0] * 4])
    call = {"encoder_hidden_states": torch.randn(2, 8, 32), "encoder_attention_mask": mask, "use_cache": False}
    tokens = torch.randint(61, (2, 8))
    expected = model(tokens, **call).logits
    fastlm.patch(model)
    torch.testing.assert_close(model(tokens, **call).logits, expected)
