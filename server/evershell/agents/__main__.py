"""`python -m evershell.agents [AGENT]`: the program in a pod. The fleet controller starts it.

`AGENT` is `file.py:name` or `module:name`. Without it, the program runs the agent of this package
that the pod's spec names.

This program is not a command of `python -m evershell.commands`, because click takes 40 ms to
import.
"""

import sys

from evershell.agents.entry import end, main

if __name__ == "__main__":
    end(main(name="".join(sys.argv[1:2])))
