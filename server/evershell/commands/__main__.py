"""`python -m evershell.commands`: the same commands as `evershell`."""

from evershell.cli.main import main

if __name__ == "__main__":
    main()
