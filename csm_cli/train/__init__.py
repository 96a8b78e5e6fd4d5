"""Fine-tuning and training of CSM on prepared codes: LoRA, full weights, or random weights."""
