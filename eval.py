"""A masked diffusion model on a benchmark: ``accelerate launch eval.py model=llada-inst dataset.name=gsm8k ...``.

``python eval.py --help`` lists every option; ``docs/evaluation.md`` explains them.
"""

import sys

from fastdllm.evals.main import main

if __name__ == "__main__":
    sys.exit(main())
