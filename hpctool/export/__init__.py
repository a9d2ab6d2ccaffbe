"""Export: TorchScript bundles that carry their own test, and aliases that point at them."""
