"""A masked diffusion model on a benchmark: ``accelerate launch eval.py model=llada-inst dataset.name=gsm8k ...``.

``python eval.py --help`` lists every option; ``docs/evaluation.md`` explains them.
"""

import sys

if __name__ == "__main__":
    try:
        from fastdllm.evals.main import main
    except ImportError as error:
        print(f"error: {error.name} is missing: pip install '.[eval]'.", file=sys.stderr)
        sys.exit(2)
    sys.exit(main())
