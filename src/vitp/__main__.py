"""``python -m vitp`` is the command line."""

from vitp.cli import main

if __name__ == "__main__":
    main()
