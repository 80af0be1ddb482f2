"""`python -m evershell.agents`: the program in a pod. The fleet controller starts it.

It is not a command of `python -m evershell.commands`, because click takes 40 ms to import.
"""

from evershell.agents.entry import end, main

if __name__ == "__main__":
    end(main())
