"""GGUF files (llama.cpp's format): header, function, tokenizer and weights, each read as the file says or refused."""
