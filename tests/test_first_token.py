"""The last layer computes one token where one is asked for; the parity suite proves that no answer changes by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_encoders as small
import tiny
import torch

from batchnlp.backends.first_token import cut_last_layer
from batchnlp.backends.model_files import resolve_model
from batchnlp.backends.torch_encoder import TorchEncoder
from batchnlp.types import Pieces, Resolved

CUT = {"bert", "roberta", "xlm-roberta", "camembert", "electra", "deberta-v2"}


def computed(model: Any) -> list[int]:
    """Tokens that each feed-forward layer is given."""
    seen: list[int] = []
    for name, module in model.named_modules():
        if name.endswith("intermediate.dense"):
            module.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[1]))
    return seen


@pytest.mark.parametrize("name", small.CONFIGS)
def test_which_models_are_cut(name: str, tmp_path: Path) -> None:
    model = small.save(name, "scores", tmp_path)
    ids = torch.randint(1000, small.VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        assert bool(cut_last_layer(model, tiny.LIMIT)) == (name in CUT)
        torch.testing.assert_close(model(input_ids=ids).logits, before, atol=1e-5, rtol=1e-5)


def encoder(path: str, kind: str) -> TorchEncoder:
    return TorchEncoder(resolve_model(path, None), Resolved("cpu", "float32", "torch", 300, ""), kind, 2)


def pieces() -> Pieces:
    starts = np.array([0, 9, 14], np.int64)
    return Pieces(np.arange(1000, 1014, dtype=np.int32), starts, np.arange(2, dtype=np.int32), np.ones(2, np.int32))


@pytest.mark.parametrize(
    ("modes", "last"), [(("cls",), 1), (("mean",), 9), (("cls", "mean"), 9)], ids=["cls", "mean", "both"]
)
def test_vectors_are_cut_where_they_are_the_first_tokens(modes: tuple[str, ...], last: int, tmp_path: Path) -> None:
    made = encoder(tiny.save_encoder(tmp_path, modes), "vectors")
    seen = computed(made._model)
    made.forward(pieces())
    assert seen == [9, last]


def test_a_classifier_computes_one_token_in_its_last_layer(classifier: str) -> None:
    made = encoder(classifier, "scores")
    seen = computed(made._model)
    made.forward(pieces())
    assert seen == [9, 1]


def test_a_head_that_reads_more_is_left_alone(tmp_path: Path) -> None:
    model = small.save("bert", "scores", tmp_path)
    model.bert.pooler.forward = lambda states: states.mean(1)
    seen = computed(model)
    assert not cut_last_layer(model, tiny.LIMIT)
    seen.clear()
    model(input_ids=torch.arange(1000, 1007)[None])
    assert seen == [7, 7]
