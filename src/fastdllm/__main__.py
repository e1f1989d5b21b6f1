"""``python -m fastdllm``: the command line."""

from fastdllm.cli.app import main

if __name__ == "__main__":
    main()
