"""Stage 6: shrink: INT8, GGUF, ONNX; each result gated again; speculative drafts."""
