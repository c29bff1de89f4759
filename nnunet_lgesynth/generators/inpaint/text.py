"""Captions as token vectors (B, T, D): a small BERT trained along, or any frozen text encoder.

Without `text_encoder` the captions' finite vocabulary gets its own word-level tokenizer and a small
BERT that is trained with the U-Net. With a local path or a hub id, that encoder is used frozen; if
its width differs from `network.text_width`, a linear projection trained with the U-Net bridges it.
The network is touched only for a hub id. The empty caption is the null condition of
classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from nnunet_lgesynth.anatomy.caption import LONGEST, VOCABULARY
from nnunet_lgesynth.config import FitConfig, UserError

__all__ = ["NULL_CAPTION", "TextEncoder", "build_text"]

NULL_CAPTION = ""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
OWN_LENGTH = LONGEST + 2      # with [CLS] and [SEP]
FOREIGN_LENGTH = 128          # word pieces of a biomedical BERT
HEAD_WIDTH = 16
MOST_KNOWN = 256              # captions whose vectors are kept
PROJECTION_FILE = "projection.safetensors"


class TextEncoder(nn.Module):
    """A tokenizer, its language model and, where widths differ, a projection."""

    def __init__(self, tokenizer, model: nn.Module, projection: nn.Module, length: int,
                 foreign: bool = False):
        super().__init__()
        self.foreign = foreign
        self.tokenizer, self.model, self.projection = tokenizer, model, projection
        self.length = length
        self._known: dict[str, torch.Tensor] = {}

    @property
    def frozen(self) -> bool:
        """Whether the language model stays as it is, so that its outputs may be kept."""
        return not any(p.requires_grad for p in self.model.parameters())

    @property
    def learnable(self) -> nn.Module:
        """The part that the U-Net's stage trains along; without parameters where there is none."""
        return self.projection if self.foreign else self

    def encode(self, captions: Sequence[str]) -> torch.Tensor:
        """Token vectors (B, T, D) of the captions; one computation a caption where frozen."""
        if not self.frozen:
            return self.projection(self._states(captions))
        for caption in set(captions) - set(self._known):   # alone: a batch would change last bits
            self._known[caption] = self._states([caption])[0].detach().cpu()
        device = next(self.model.parameters()).device
        states = torch.stack([self._known[c] for c in captions]).to(device)
        for caption in list(self._known)[:-MOST_KNOWN]:     # the oldest: a training is long
            del self._known[caption]
        return self.projection(states)

    def train(self, mode: bool = True):
        self._known.clear()
        return super().train(mode)

    def _states(self, captions: Sequence[str]) -> torch.Tensor:
        tokens = self.tokenizer(list(captions), padding="max_length", truncation=True,
                                max_length=self.length, return_tensors="pt")
        device = next(self.model.parameters()).device
        return self.model(input_ids=tokens["input_ids"].to(device),
                          attention_mask=tokens["attention_mask"].to(device)).last_hidden_state

    def save(self, folder: Path) -> None:
        """Write tokenizer, model and projection; needs nothing but `folder` to load."""
        self.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.model_max_length = self.length
        self.tokenizer.save_pretrained(folder)
        if isinstance(self.projection, nn.Linear):
            save_file({k: v.contiguous() for k, v in self.projection.state_dict().items()},
                      folder / PROJECTION_FILE)

    @classmethod
    def load(cls, folder: Path) -> TextEncoder:
        """Read what `save` wrote, frozen."""
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        backend = getattr(tokenizer, "backend_tokenizer", None)       # a slow one has none
        own = backend is not None and isinstance(backend.model, WordLevel)
        if own and (unknown := set(VOCABULARY) - set(tokenizer.get_vocab())):
            raise UserError(f"{folder} was fitted with other captions (it does not know "
                            f"{', '.join(sorted(unknown)[:3])}): fit the generator again.")
        model = AutoModel.from_pretrained(folder, local_files_only=True, **_no_pooler(folder))
        projection: nn.Module = nn.Identity()
        if (folder / PROJECTION_FILE).is_file():
            weights = load_file(folder / PROJECTION_FILE)
            projection = nn.Linear(*reversed(weights["weight"].shape))
            projection.load_state_dict(weights)
        encoder = cls(tokenizer, model, projection, int(tokenizer.model_max_length))
        return encoder.requires_grad_(False).eval()


def build_text(config: FitConfig) -> TextEncoder:
    """The encoder that `config` asks for; see the module's text."""
    if config.text_encoder is None:
        return _own_encoder(config)
    tokenizer, model = _foreign_encoder(config.text_encoder)
    model.requires_grad_(False).eval()
    width = config.network.text_width
    same = model.config.hidden_size == width
    projection = nn.Identity() if same else nn.Linear(model.config.hidden_size, width)
    return TextEncoder(tokenizer, model, projection, FOREIGN_LENGTH, foreign=True)


def _own_encoder(config: FitConfig) -> TextEncoder:
    words = (*SPECIAL, *VOCABULARY)
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(w, words.index(w)) for w in ("[CLS]", "[SEP]")])
    network = config.network
    model = BertModel(BertConfig(
        vocab_size=len(words), hidden_size=network.text_width,
        num_hidden_layers=network.text_layers,
        num_attention_heads=max(1, network.text_width // HEAD_WIDTH),
        intermediate_size=2 * network.text_width, max_position_embeddings=OWN_LENGTH,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), add_pooling_layer=False)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", model_max_length=OWN_LENGTH)
    return TextEncoder(wrapped, model, nn.Identity(), OWN_LENGTH)


def _foreign_encoder(name: str):
    local = Path(name).exists()
    try:
        return (AutoTokenizer.from_pretrained(name, local_files_only=local),
                AutoModel.from_pretrained(name, local_files_only=local,
                                          **(_no_pooler(Path(name)) if local else {})))
    except (OSError, ValueError) as error:
        raise UserError(f"Text encoder {name!r} cannot be loaded ({str(error).splitlines()[0]}); "
                        "give a folder written by transformers' save_pretrained, a hub id that "
                        "this machine can reach, or leave it out.") from error


def _no_pooler(folder: Path) -> dict:
    """BERT's pooler is unused here; not building it avoids a warning about missing weights."""
    text = (folder / "config.json").read_text() if (folder / "config.json").is_file() else ""
    return {"add_pooling_layer": False} if '"model_type": "bert"' in text else {}
