"""Nets: small reference networks for experiments and tests."""
