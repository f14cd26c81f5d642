"""Whether a model computes the same in another way (packed tokens, another library) as transformers runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from batchnlp.backends.packed_attention import PackedModel, Span, Unsupported

LENGTHS = (3, 17, 40)  # of the sequences that an encoder is tried on
# See `deviation`: rounding comes to 0.1, a wrong mask to more than one.
TOLERANCE = {"float32": 1e-2, "bfloat16": 0.5, "int8": 0.5}


def compare(slots: PackedModel, begin: int) -> None:
    """Compare two rows, the second entering while the first is under way, with the model as transformers runs it."""
    vocabulary = slots.model.get_output_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(5)
    first, second, new = (torch.randint(vocabulary, (n,), generator=generator).to(slots.device) for n in (7, 12, 3))
    with torch.inference_mode():
        slots.reserve(2, 16, 16)
        got = [_entered(slots, first, 0, begin)]
        base = [1 if slots.seq2seq else len(ids) for ids in (first, second)]
        got.append(_stepped(slots, new[:1], [base[0]], [first])[0])
        other = [_entered(slots, second, 1, begin)]
        together = _stepped(slots, new[[1, 0]], [base[0] + 1, base[1]], [first, second])
        got, other = torch.stack([*got, together[0]]), torch.stack([*other, together[1]])
        with slots.plain() as model:
            wanted = [_alone(model, ids, new[:n], begin, slots.seq2seq) for ids, n in ((first, 2), (second, 1))]
    dtype = str(slots.dtype).removeprefix("torch.")
    check_close(torch.cat([got, other]), torch.cat(wanted), dtype)


def sequences(config: Any, limit: int) -> list[Tensor]:
    """Random tokens of `LENGTHS`, none over `limit`; an end token, without which heads like BART's fail, is last and nowhere
    else."""
    count, end = int(getattr(config.get_text_config(), "vocab_size", 1000)), config.eos_token_id
    special = {token for token in (end, config.pad_token_id) if isinstance(token, int)}
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(count, (min(n, limit),), generator=generator) for n in LENGTHS]
    for row in rows:
        row[torch.isin(row, torch.tensor(sorted(special), dtype=row.dtype))] = min(set(range(3)) - special)
        row[-1:] = end if isinstance(end, int) else row[-1:]
    return rows


def padded(rows: Sequence[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    """(token ids [B, L], mask [B, L])."""
    ids = pad_sequence(list(rows), batch_first=True, padding_value=pad)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return ids, mask


def unpadded(whole: Tensor, rows: Sequence[Tensor]) -> Tensor:
    """[B, W] as it is; of [B, L, W] the tokens of all rows, [T, W]."""
    return whole if whole.ndim == 2 else torch.cat([of[: len(row)] for of, row in zip(whole, rows, strict=True)])


def each_alone(answer: Any, rows: Sequence[Tensor]) -> Tensor:
    """What a model answers to sequences one at a time; `answer` is called with ids and, where some are padded, a mask."""
    return torch.cat([unpadded(answer(row[None]), [row]) for row in rows])


def padding_changes(answer: Any, config: Any, limit: int, device: torch.device, dtype: str) -> bool:
    """Whether a sequence is answered otherwise beside a longer one, whatever the mask: convolutions, Fourier transforms and
    landmarks know none."""
    rows = [row.to(device) for row in sequences(config, limit)]
    try:
        with torch.inference_mode():
            together = unpadded(answer(*padded(rows, int(config.pad_token_id or 0))), rows)
            return not deviation(together, each_alone(answer, rows)) <= TOLERANCE[dtype]
    except Exception:  # noqa: BLE001 - it cannot be told; documents that fail so will say why
        return True


def check_close(got: Tensor, wanted: Tensor, dtype: str) -> None:
    """Unsupported where the answers differ by more than the rounding of the `dtype` that they were computed in."""
    far = deviation(got, wanted)
    if not far <= TOLERANCE[dtype]:
        raise Unsupported(f"its answers differ from the model's own by {far:.2g} standard deviations")


def deviation(got: Tensor, wanted: Tensor) -> float:
    """By how much the worst of some answers [..., W] is off, in standard deviations of what tells them apart.

    What all answers have in common is left out: beside the bias of a classifier, or an embedding's mean, the answer to
    another document would look near.
    """
    got, wanted = (rows.float().reshape(-1, rows.shape[-1]) for rows in (got, wanted))
    spread = (wanted - wanted.mean(0)).square().mean().sqrt().clamp(min=1e-6)
    return float((got - wanted).square().mean(1).sqrt().max() / spread)


def _entered(slots: PackedModel, ids: Tensor, slot: int, begin: int) -> Tensor:
    n = len(ids)
    if not slots.seq2seq:
        return slots.prefill(ids, [Span(slot, 0, n)])[0]
    states = slots.encode(ids, [Span(0, 0, n)])
    return slots.prefill(torch.tensor([begin], device=ids.device), [Span(slot, 0, 1, source=(0, n))], states)[0]


def _stepped(slots: PackedModel, ids: Tensor, lengths: list[int], sources: list[Tensor]) -> Tensor:
    positions = torch.tensor(lengths, device=ids.device)
    ends = torch.tensor([len(source) for source in sources], device=ids.device)
    return slots.decode(ids, positions, max(lengths) + 1, ends)


def _alone(model: Any, ids: Tensor, new: Tensor, begin: int, seq2seq: bool) -> Tensor:
    """[steps, vocabulary] logits of the padded model for one row."""
    if seq2seq:
        decoder = torch.cat([torch.tensor([begin], device=ids.device), new])
        return torch.as_tensor(model(input_ids=ids[None], decoder_input_ids=decoder[None]).logits[0])
    return torch.as_tensor(model(input_ids=torch.cat([ids, new])[None]).logits[0, len(ids) - 1 :])
