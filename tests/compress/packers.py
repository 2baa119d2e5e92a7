"""Checkpoints in the formats of others, written by the tests' own code: known integers, and the weights they mean."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def copy_model(source: Path, folder: Path, tensors: dict[str, torch.Tensor], quantization: dict | None) -> Path:
    """A folder with `tensors`, the config of `source` and how it is quantised."""
    folder.mkdir(parents=True)
    config = json.loads((source / "config.json").read_text())
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    contiguous = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def gptq(
    source: Path, folder: Path, *, bits: int, group: int, act_order: bool, version: int
) -> dict[str, torch.Tensor]:
    """A GPTQ checkpoint of random integers; the weights that they mean, by name."""
    draw = np.random.default_rng(bits)
    tensors, meant = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if name.split(".")[-2] not in LAYERS:
            tensors[name] = meant[name] = tensor
            continue
        rows, columns = tensor.shape
        size = columns if group == -1 else group
        groups = np.arange(columns) // size
        if act_order:
            groups = draw.permutation(groups)
        codes = draw.integers(0, 2**bits, (columns, rows))
        zeros = draw.integers(0, 2**bits, (columns // size, rows))
        scales = torch.tensor(draw.uniform(1e-3, 0.05, zeros.shape)).half()
        meant[name] = (scales.float()[groups] * torch.tensor(codes - zeros[groups])).T.contiguous()
        stored = (zeros - 1) % 2**bits if version == 1 else zeros
        layer = name.removesuffix(".weight")
        tensors[f"{layer}.qweight"] = pack_columns_down(codes, bits)
        tensors[f"{layer}.qzeros"] = pack_columns_down(stored.T, bits).T
        tensors[f"{layer}.scales"] = scales
        tensors[f"{layer}.g_idx"] = torch.tensor(groups, dtype=torch.int32)
        tensors[f"{layer}.bias"] = torch.zeros(rows, dtype=torch.float16)  # AutoGPTQ's, where the model has none
    described = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act_order, "sym": False}
    if version == 2:
        described["checkpoint_format"] = "gptq_v2"
    copy_model(source, folder, tensors, described)
    return meant


def gptq_rounded(
    source: Path,
    folder: Path,
    *,
    bits: int,
    group: int,
    symmetric: bool,
    stored: int,
    stated: str | None,
    act_order: bool = False,
) -> dict[str, torch.Tensor]:
    """A GPTQ checkpoint of the model itself, rounded to nearest; the weights that it means, by name.

    Its zero points are stored as version `stored` of the format has them, and its config states `stated`.
    """
    draw = np.random.default_rng(0)
    tensors, meant = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if name.split(".")[-2] not in LAYERS:
            tensors[name] = meant[name] = tensor
            continue
        columns = tensor.shape[1]
        size = columns if group == -1 else group
        count = -(-columns // size)
        groups = np.arange(columns) // size
        if act_order:
            groups = draw.permutation(groups)
        values = tensor.float().numpy().T  # [columns, rows]
        low = np.stack([np.minimum(values[groups == g].min(0), 0) for g in range(count)])
        high = np.stack([np.maximum(values[groups == g].max(0), 0) for g in range(count)])
        if symmetric:
            high = np.maximum(-low, high)
            low = -high
        scales = np.maximum((high - low) / (2**bits - 1), 1e-4).astype(np.float16).astype(np.float32)
        zeros = np.full(scales.shape, 2 ** (bits - 1)) if symmetric else np.rint(-low / scales).astype(int)
        zeros = zeros.clip(1, 2**bits - 1)  # packers of version 1 spoil their neighbours where it is 0
        codes = (np.rint(values / scales[groups]) + zeros[groups]).clip(0, 2**bits - 1).astype(int)
        meant[name] = torch.tensor((scales[groups] * (codes - zeros[groups])).T.astype(np.float32)).contiguous()
        layer = name.removesuffix(".weight")
        tensors[f"{layer}.qweight"] = pack_columns_down(codes, bits)
        tensors[f"{layer}.qzeros"] = pack_columns_down((zeros - (stored == 1)).T, bits).T
        tensors[f"{layer}.scales"] = torch.tensor(scales).half()
        tensors[f"{layer}.g_idx"] = torch.tensor(groups, dtype=torch.int32)
    described = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act_order, "sym": symmetric}
    copy_model(source, folder, tensors, described | ({"checkpoint_format": stated} if stated else {}))
    return meant


def pack_columns_down(codes: np.ndarray, bits: int) -> torch.Tensor:
    """Codes [a, b] in int32 words [a * bits / 32, b] as AutoGPTQ does: 10 of 3 bits, then one across two words."""
    codes = codes.astype(np.uint64)
    words = np.zeros((codes.shape[0] * bits // 32, codes.shape[1]), dtype=np.uint64)
    place = word = 0
    while word < len(words):
        if bits in (2, 4, 8):
            for number in range(32 // bits):
                words[word] |= codes[place + number] << np.uint64(bits * number)
            place += 32 // bits
            word += 1
            continue
        for number in range(10):
            words[word] |= codes[place + number] << np.uint64(3 * number)
        words[word] |= (codes[place + 10] & np.uint64(3)) << np.uint64(30)
        words[word + 1] |= codes[place + 10] >> np.uint64(2)
        for number in range(10):
            words[word + 1] |= codes[place + 11 + number] << np.uint64(3 * number + 1)
        words[word + 1] |= (codes[place + 21] & np.uint64(1)) << np.uint64(31)
        words[word + 2] |= codes[place + 21] >> np.uint64(1)
        for number in range(10):
            words[word + 2] |= codes[place + 22 + number] << np.uint64(3 * number + 2)
        place += 32
        word += 3
    return torch.tensor(words.astype(np.uint32).view(np.int32))


def awq(source: Path, folder: Path, *, group: int) -> dict[str, torch.Tensor]:
    """An AWQ checkpoint (gemm) of random integers; the weights that they mean, by name."""
    draw = np.random.default_rng(0)
    tensors, meant = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if name.split(".")[-2] not in LAYERS:
            tensors[name] = meant[name] = tensor
            continue
        rows, columns = tensor.shape
        codes = draw.integers(0, 16, (columns, rows))
        zeros = draw.integers(0, 16, (columns // group, rows))
        scales = torch.tensor(draw.uniform(1e-3, 0.05, zeros.shape)).half()
        spread = np.repeat(zeros, group, axis=0)
        meant[name] = (scales.float().repeat_interleave(group, 0) * torch.tensor(codes - spread)).T.contiguous()
        layer = name.removesuffix(".weight")
        tensors |= {f"{layer}.qweight": pack_awq(codes), f"{layer}.qzeros": pack_awq(zeros), f"{layer}.scales": scales}
    described = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    copy_model(source, folder, tensors, described)
    return meant


def pack_awq(codes: np.ndarray) -> torch.Tensor:
    """Codes [a, b] in int32 words [a, b / 8], as AutoAWQ's gemm layout has them."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), dtype=np.uint32)
    for word in range(words.shape[1]):
        for number in range(8):
            words[:, word] |= codes[:, 8 * word + order[number]].astype(np.uint32) << np.uint32(4 * number)
    return torch.tensor(words.view(np.int32))


def gguf_file(source: Path, file: Path, kinds: dict[str, str]) -> dict[str, torch.Tensor]:
    """A GGUF file of a LLaMA whose layers are of `kinds` (by the last part of their names); the weights that it means.

    llama.cpp keeps the rows of queries and keys in another order than transformers.
    """
    import gguf
    from gguf.quants import dequantize, quantize

    config = json.loads((source / "config.json").read_text())
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(shared)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "q_proj": "attn_q"}
    names |= {"k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    names |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    meant = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        parts = name.split(".")
        kind = gguf.GGMLQuantizationType[kinds.get(parts[-2], "F32")]
        values = tensor.float().numpy()
        count = {"q_proj": heads, "k_proj": shared}.get(parts[-2])
        if count:
            values = values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        stored = quantize(values, kind)
        back = dequantize(stored, kind).reshape(values.shape)
        if count:
            back = back.reshape(count, -1, 2, back.shape[1]).swapaxes(1, 2).reshape(back.shape)
        meant[name] = torch.tensor(np.ascontiguousarray(back))
        top = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
        writer.add_tensor(top.get(name) or f"blk.{parts[2]}.{names[parts[-2]]}.weight", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant
