"""Laws of the text encoders: every caption is known, frozen ones compute once."""

import pytest
import torch
from tiny_inpaint import tiny_config
from transformers import BertConfig, BertModel

from nnunet_lgesynth.anatomy.aha import NAMES
from nnunet_lgesynth.anatomy.caption import LAYERS, LONGEST, NO_ENHANCEMENT, VOCABULARY
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.generators.inpaint.text import TextEncoder, build_text

CAPTIONS = [NO_ENHANCEMENT, *(
    f"{layer} enhancement of 15 percent burden and 75 percent depth in the {wall} wall{core}"
    for wall in NAMES.values() for layer in LAYERS for core in ("", " with no reflow core"))]


LESION = (f"subepicardial enhancement of 10 percent burden and 75 percent depth in the "
          f"{' and '.join([NAMES[16]] * 4)} wall with no reflow core")
CAPTIONS.append(f"{LESION} plus {LESION}")


@pytest.fixture(scope="module")
def own():
    torch.manual_seed(0)
    return build_text(tiny_config())


def foreign_folder(folder, own, width):
    """A local encoder as a user would bring one: BERT with its tokenizer, of another width."""
    BertModel(BertConfig(vocab_size=64, hidden_size=width, num_hidden_layers=1,
                         num_attention_heads=1, intermediate_size=8)).save_pretrained(folder)
    own.tokenizer.save_pretrained(folder)
    return tiny_config(text_encoder=str(folder))


def test_every_caption_is_known_whole_and_distinct(own):
    tokens = own.tokenizer(CAPTIONS, padding="max_length", max_length=own.length)["input_ids"]
    assert all(len(t) == own.length for t in tokens)
    assert own.tokenizer.unk_token_id not in {i for t in tokens for i in t}
    assert len(CAPTIONS[-1].split()) == LONGEST == own.length - 2       # nothing is cut
    assert len({tuple(t) for t in tokens}) == len(CAPTIONS)
    assert own.encode(["", NO_ENHANCEMENT]).shape == (2, own.length, 16)


def test_own_encoder_learns(own):
    own.requires_grad_(True).train()
    own.encode(CAPTIONS[:3]).square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in own.parameters())
    assert own.learnable is own


def test_a_caption_does_not_depend_on_its_batch(own):
    own.requires_grad_(False).eval()
    together = own.encode(CAPTIONS)
    assert torch.equal(own.encode(CAPTIONS[5:6])[0], together[5])
    own.train()                                    # forgets what it computed
    assert torch.equal(own.encode(CAPTIONS[5:6])[0], together[5])


@pytest.mark.parametrize("width", [16, 24])
def test_a_foreign_encoder_stays_frozen_and_is_projected(own, tmp_path, width):
    encoder = build_text(foreign_folder(tmp_path / "theirs", own, width))
    assert encoder.encode(["no enhancement"]).shape == (1, encoder.length, 16)
    assert not any(p.requires_grad for p in encoder.model.parameters())
    assert (len(list(encoder.learnable.parameters())) > 0) == (width != 16)


def test_a_frozen_encoder_computes_each_caption_once(own, tmp_path):
    encoder = build_text(foreign_folder(tmp_path / "theirs", own, 24))
    calls = []
    encoder.model.register_forward_hook(lambda *_: calls.append(1))
    first = encoder.encode(["no enhancement", ""])
    again = encoder.encode(["", "no enhancement", ""])
    assert len(calls) == 2 and torch.equal(again[1], first[0])
    again.sum().backward()
    assert encoder.projection.weight.grad is not None


@pytest.mark.parametrize("width", [None, 24])
def test_an_encoder_is_loaded_as_it_was_saved(own, tmp_path, width):
    encoder = own if width is None else build_text(foreign_folder(tmp_path / "theirs", own, width))
    encoder.requires_grad_(False).eval()
    (tmp_path / "mine").mkdir()
    encoder.save(tmp_path / "mine")
    loaded = TextEncoder.load(tmp_path / "mine")
    assert loaded.length == encoder.length and loaded.frozen
    assert torch.equal(loaded.encode(CAPTIONS[:4]), encoder.encode(CAPTIONS[:4]))


def test_a_folder_without_an_encoder_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be loaded"):
        build_text(tiny_config(text_encoder=str(tmp_path)))


def test_an_encoder_of_other_captions_is_refused(own, tmp_path, monkeypatch):
    own.save(tmp_path)
    TextEncoder.load(tmp_path)
    monkeypatch.setattr("nnunet_lgesynth.generators.inpaint.text.VOCABULARY",
                        (*VOCABULARY, "hibernating"))
    with pytest.raises(UserError, match=r"does not know hibernating.*fit the generator again"):
        TextEncoder.load(tmp_path)


def test_no_more_captions_are_kept_than_a_long_training_can_hold(own, monkeypatch):
    monkeypatch.setattr("nnunet_lgesynth.generators.inpaint.text.MOST_KNOWN", 3)
    encoder = own.requires_grad_(False)
    encoder.eval()
    first = encoder.encode(CAPTIONS[:5])
    assert len(encoder._known) == 3
    encoder.encode(CAPTIONS[5:9])
    assert len(encoder._known) == 3 and torch.equal(encoder.encode(CAPTIONS[:5]), first)
