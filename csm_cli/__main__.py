import sys

from csm_cli.cli import main

sys.exit(main())
