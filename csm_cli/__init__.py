"""csm-cli: Sesame's Conversational Speech Model from the command line."""

from csm_cli.device import set_mkl_rounding

__version__ = "0.1.0"

set_mkl_rounding()  # before anything multiplies: MKL reads the environment at its first call
