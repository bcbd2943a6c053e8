"""The specification: `algorithms`, on one page, and `adjoint`, the second derivation."""
