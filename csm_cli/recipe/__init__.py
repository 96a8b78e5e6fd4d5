"""How the bundled voice was made; imported only by `make voice`, `make finetune-demo` and tests."""
