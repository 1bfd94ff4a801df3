"""The sampling loop: noise, guidance, inputs and the scan over steps."""
