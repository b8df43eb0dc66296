"""``python -m caplet`` is ``caplet``."""

from caplet.cli import main

if __name__ == "__main__":
    main()
