"""How the bundled voice was made. Only `make voice` and `make finetune-demo` import it."""
