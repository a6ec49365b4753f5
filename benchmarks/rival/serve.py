"""The other side of a benchmark: one process that imports a rival once and then answers requests, one JSON object a line.

A request names an operation ("linear.setup", "train.step", "llama.decode", ...) and its arguments; the answer is an object, with
"error" where the operation failed. Nothing computes between two requests, so that the two sides take turns on the machine.
Diagnostics go to standard error; standard output carries answers only.
"""

import importlib
import json
import os
import sys
import traceback


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not look like an answer
    modules = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            module, _, function = request.pop("op").partition(".")
            if module not in modules:
                modules[module] = importlib.import_module(f"rival_{module}")
            answer = getattr(modules[module], function)(**request)
        except Exception as error:  # the caller decides whether a missing rival ends the run
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
