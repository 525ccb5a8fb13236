"""A real llama.cpp server with a tiny random model: `python tests/llama_server.py FOLDER` prints its address.

It ends with its standard input, so that none is left behind by a test that was killed.
"""

import sys
from pathlib import Path

ALIAS = "tiny-gguf"
WINDOW = 1024  # tokens


def write_gguf(path: Path) -> None:
    """The tiny Llama of `neurons.tiny_model` as a GGUF file."""
    import gguf
    from transformers import AutoModelForCausalLM

    from mongars.neurons.tiny_model import TEMPLATE, make_chat_model, make_tokenizer

    folder = make_chat_model(path.parent / "tiny", context=WINDOW)
    config = AutoModelForCausalLM.from_pretrained(folder).config
    weights = {
        name: t.numpy() for name, t in AutoModelForCausalLM.from_pretrained(folder).state_dict().items()
    }
    tokens = sorted(make_tokenizer().get_vocab().items(), key=lambda pair: pair[1])
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(WINDOW)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_key_length(config.head_dim)
    out.add_value_length(config.head_dim)
    out.add_rope_dimension_count(config.head_dim)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("default")
    out.add_token_list([token for token, _ in tokens])
    out.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3))
    out.add_token_merges([f"{tokens[3][0]} {tokens[4][0]}"])  # there must be one; this one leads to no token
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_add_bos_token(False)
    out.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in weights.items():
        out.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weight)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    import xllamacpp

    path = Path(sys.argv[1]) / "tiny.gguf"
    write_gguf(path)
    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.model_alias = [ALIAS]
    settings.n_ctx, settings.n_parallel, settings.port = WINDOW, 1, 0
    settings.warmup = False
    server = xllamacpp.Server(settings)
    print(server.listening_address, flush=True)
    sys.stdin.read()
