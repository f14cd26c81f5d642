"""An encoder-decoder that begins with what an encoder knows, where no pretrained one is to be had.

Source of the idea: Rothe, Narayan, Severyn, "Leveraging Pre-trained Checkpoints for Sequence Generation Tasks" (2020). BART's
layers are BERT's, so the encoder is the very model that it was (token types aside, of which there is one), and the decoder
has its words, its positions and its layers; its attention to the source begins as the attention to its own tokens.
"""

from __future__ import annotations

from typing import Any

LAYER = {  # BART's name → BERT's
    "self_attn.q_proj": "attention.self.query", "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value", "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.output.LayerNorm", "fc1": "intermediate.dense", "fc2": "output.dense",
    "final_layer_norm": "output.LayerNorm",
}  # fmt: skip
KNOWN = ("bert",)  # model types whose layers are so


def encoder_decoder(encoder: Any, *, begin: int, end: int, pad: int) -> Any:
    """A BartForConditionalGeneration of a BertModel. `begin`, `end` and `pad` are ids of tokens."""
    from transformers import BartConfig, BartForConditionalGeneration

    old = encoder.config
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in (
        ("layers", old.num_hidden_layers), ("attention_heads", old.num_attention_heads),
        ("ffn_dim", old.intermediate_size))}  # fmt: skip
    model = BartForConditionalGeneration(BartConfig(
        vocab_size=old.vocab_size, d_model=old.hidden_size, max_position_embeddings=old.max_position_embeddings,
        activation_function=old.hidden_act, dropout=old.hidden_dropout_prob,
        attention_dropout=old.attention_probs_dropout_prob, bos_token_id=begin, eos_token_id=end, pad_token_id=pad,
        decoder_start_token_id=begin, forced_eos_token_id=None, **sizes,
    ))  # fmt: skip
    model.load_state_dict(_renamed(encoder.state_dict(), old.num_hidden_layers), strict=False)
    model.tie_weights()
    return model


def _renamed(bert: dict[str, Any], layers: int) -> dict[str, Any]:
    """The weights under BART's names; what is not among them stays new: the bias of the output, which is zero."""
    import torch

    words = bert["embeddings.word_embeddings.weight"]
    # The kind of the text is the same for all, so it is part of the place; two places before the first are not used.
    places = bert["embeddings.position_embeddings.weight"] + bert["embeddings.token_type_embeddings.weight"][0]
    places = torch.cat([torch.zeros_like(places[:2]), places])
    found = {"model.shared.weight": words, "lm_head.weight": words}
    for side in ("encoder", "decoder"):
        found[f"model.{side}.embed_tokens.weight"] = words
        found[f"model.{side}.embed_positions.weight"] = places
        for part in ("weight", "bias"):
            found[f"model.{side}.layernorm_embedding.{part}"] = bert[f"embeddings.LayerNorm.{part}"]
            for layer in range(layers):
                for new, name in LAYER.items():
                    value = bert[f"encoder.layer.{layer}.{name}.{part}"]
                    found[f"model.{side}.layers.{layer}.{new}.{part}"] = value
                    if side == "decoder" and new.startswith("self_attn"):
                        found[f"model.{side}.layers.{layer}.{new.replace('self', 'encoder')}.{part}"] = value
    return found
