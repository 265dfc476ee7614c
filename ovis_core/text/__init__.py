"""The language model's text: prompt templates, token ids, decoding and conversations."""
