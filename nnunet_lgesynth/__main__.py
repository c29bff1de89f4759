import sys

from nnunet_lgesynth.cli import main

if __name__ == "__main__":
    sys.exit(main())
