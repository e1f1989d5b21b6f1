"""The command line: ``fastdllm generate``, ``fastdllm chat`` and ``fastdllm info``."""
